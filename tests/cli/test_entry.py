import json
import os
import signal
import subprocess
import sys
import time

import pytest


def test_a_full_disk_is_one_line_and_code_1(isopose, cohort, model_folder, tmp_path, monkeypatch):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "out.json")

    monkeypatch.setattr("isopose.inference.scans.write_json", full)
    code, out, err = isopose("predict", model_folder, cohort / "imagesTs", "--output", tmp_path / "o")
    assert code == 1
    assert out == ""
    assert err.splitlines()[-1] == "isopose: out.json: No space left on device; nothing was left half-written"
    assert "Traceback" not in err


def test_too_little_memory_says_what_to_lower(isopose, cohort, model_folder, tmp_path, monkeypatch):
    def hungry(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("isopose.inference.scans.read_volume", hungry)
    code, _, err = isopose("predict", model_folder, cohort / "imagesTs", "--output", tmp_path / "o")
    assert code == 1
    assert err.splitlines()[-1].startswith("isopose: out of memory; lower the batch size")


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "isopose", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_forked_worker_ends_without_a_word(tmp_path):
    (tmp_path / "forks.py").write_text(
        "import multiprocessing\n"
        "from isopose.cli import entry\n"
        "def forks():\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        print(pool.map(abs, [-1, -2]))\n"
        "entry.app = forks\n"
        "entry.main()\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "forks.py"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 2]\n", "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_with_130_and_one_line(name, workers, tmp_path):
    output = tmp_path / "cohort"
    process = start("phantom", output, "--cases", 500, "--slices", 20, "--size", 64, "--workers", workers)
    try:
        deadline = time.monotonic() + 60
        while not list(output.glob("imagesTr/phantom*")) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1:] == [
        "isopose: stopped; what was finished is kept, the same command (fit: with --resume) goes on"
    ]
    assert "Traceback" not in err
    assert not json.loads((output / "phantom.json").read_text())["complete"]
