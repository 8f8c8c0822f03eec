import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch


def test_a_full_disk_gives_one_line_and_exit_code_1(isopose, cohort, model_folder, tmp_path, monkeypatch):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "out.json")

    monkeypatch.setattr("isopose.inference.files.write_json", full)
    code, out, err = isopose("predict", model_folder, cohort / "imagesTs", "--output", tmp_path / "o")
    assert code == 1
    assert out == ""
    assert err.splitlines()[-1] == "isopose: out.json: No space left on device; nothing was left half-written"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("64 GB"),
        RuntimeError("bad allocation for DOE^JOHN"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 139 GiB in all"),
    ],
)
def test_out_of_memory_names_the_settings_to_lower(
    error, isopose, cohort, model_folder, tmp_path, monkeypatch
):
    def hungry(*args, **kwargs):
        raise error

    monkeypatch.setattr("isopose.inference.ensemble.load_ensemble", hungry)
    code, _, err = isopose("predict", model_folder, cohort / "imagesTs", "--output", tmp_path / "o")
    assert code == 1
    assert err.startswith("isopose: out of memory; lower the batch size")
    assert err.count("\n") == 1


def test_an_unexpected_error_gives_one_line_without_a_librarys_message(
    isopose, cohort, tmp_path, monkeypatch
):
    def fail(*args, **kwargs):
        raise KeyError("DOE^JOHN")

    monkeypatch.setattr("isopose.io.datasets.read_json", fail)
    code, out, err = isopose("check", cohort)
    assert (code, out) == (1, "")
    assert err.startswith("isopose: failed unexpectedly by KeyError at isopose.io.datasets:")
    assert err.endswith("; please report it\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["fit", "preprocess"])
def test_too_few_patients_are_reported_before_pytorch_is_imported(command, cohort, tmp_path):
    """The list of cases is enough for this error; importing PyTorch first would take fifteen seconds."""
    option = "--model" if command == "fit" else "--store"
    code = (
        "import sys\n"
        "from isopose.cli import main\n"
        f"sys.argv = ['isopose', {command!r}, {str(cohort)!r}, {option!r}, {str(tmp_path / 'out')!r}]\n"
        "try: main()\n"
        "finally: print('heavy:', sorted({'torch', 'monai', 'blosc2'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout) == (2, "heavy: []\n"), process.stderr
    assert "5 folds need as many labeled patients, got 2; use fewer" in process.stderr
    assert process.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "isopose", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_forked_worker_ends_without_output(tmp_path):
    (tmp_path / "forks.py").write_text(
        "import multiprocessing\n"
        "from isopose.cli import entry\n"
        "def forks():\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        print(pool.map(abs, [-1, -2]))\n"
        "entry.app = forks\n"
        "entry.main()\n"
    )
    process = subprocess.run(
        [sys.executable, tmp_path / "forks.py"], capture_output=True, text=True, timeout=120
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "[1, 2]\n", "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_gives_one_line_and_exit_code_130(name, workers, tmp_path):
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
        "isopose: stopped; finished results are kept, the same command (fit: with --resume) continues"
    ]
    assert "Traceback" not in err
    assert not json.loads((output / "phantom.json").read_text())["complete"]
