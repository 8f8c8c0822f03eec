"""Warnings and log messages of libraries are suppressed in isopose's processes and restored elsewhere."""

import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest

from isopose.io.quiet import quiet_pydicom
from isopose.silence import silent

SECRET = "Zzyzx"
#: What libraries do: loggers with and without handlers of their own, warnings under filters of their own.
NOISE = f"""
import logging, sys, warnings
own = logging.getLogger("nibabel.global")
own.addHandler(logging.StreamHandler(sys.stderr))
own.critical("{SECRET}")
logging.getLogger("pydicom").error("{SECRET}")
logging.getLogger("matplotlib.font_manager").warning("{SECRET}")
logging.error("{SECRET}")
warnings.simplefilter("always")
warnings.warn("{SECRET}")
warnings.warn("{SECRET}", FutureWarning)
"""


def run(code: str, **variables: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, **variables},
    )
    return process.stdout + process.stderr


def test_libraries_print_without_the_silencer():
    assert run(NOISE).count(SECRET) == 6


@pytest.mark.parametrize("requested", ["default", "error"])
def test_our_processes_print_nothing(requested):
    """Even if the environment enables warnings or turns them into errors."""
    code = f"from isopose.silence import silence; silence()\n{NOISE}\nprint('done')"
    assert run(code, PYTHONWARNINGS=requested) == "done\n"


def test_workers_print_nothing(tmp_path):
    (tmp_path / "noisy.py").write_text(
        "from isopose.parallel import in_order\n"
        f"def work(number):\n    exec({NOISE!r})\n    return number\n"
        "if __name__ == '__main__':\n"
        "    print(list(in_order(work, [1, 2], name=str, workers=1)))\n"
    )
    process = subprocess.run(
        [sys.executable, tmp_path / "noisy.py"], capture_output=True, text=True, check=True, timeout=120
    )
    assert process.stdout + process.stderr == "[1, 2]\n"


def test_the_command_line_prints_no_library_messages(tmp_path):
    (tmp_path / "noise.py").write_text(NOISE)
    code = (
        "import sys, runpy\n"
        "from isopose.cli import entry\n"
        f"entry.app = lambda: runpy.run_path({str(tmp_path / 'noise.py')!r})\n"
        "entry.main()\n"
    )
    assert run(code) == ""


def test_child_processes_are_silent_from_their_first_import():
    code = (
        "import subprocess, sys\n"
        "from isopose.silence import silence\n"
        "silence()\n"
        f"subprocess.run([sys.executable, '-c', 'import warnings; warnings.warn(\"{SECRET}\")'])\n"
    )
    assert run(code) == ""


def test_warning_and_logging_settings_are_restored_after_a_command(caplog, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with silent():
            logging.getLogger("pydicom").error(SECRET)
            warnings.warn(SECRET, stacklevel=1)
        warnings.warn("after", stacklevel=1)
    logging.getLogger("pydicom").error("after")
    assert [str(one.message) for one in caught] == ["after"]
    assert [one.message for one in caplog.records] == ["after"]
    assert os.environ["PYTHONWARNINGS"] == "default"


def test_silenced_blocks_in_threads_restore_the_settings(caplog):
    """If each thread restored what it had found, one would restore the other's silenced state."""
    logger, filters = logging.getLogger("highdicom"), list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with quiet_pydicom():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with quiet_pydicom():
        thread.start()
        assert inside.wait(10)
    logger.error(SECRET)  # still within the other's block
    leave.set()
    thread.join()
    logger.error("after")
    assert [one.message for one in caplog.records] == ["after"]
    assert logger.level == logging.NOTSET
    assert warnings.filters == filters


def test_highdicom_is_silenced_like_pydicom(caplog):
    with caplog.at_level(logging.DEBUG):
        with quiet_pydicom():
            for name in ("pydicom", "highdicom", "highdicom.base"):
                logging.getLogger(name).critical(SECRET)
        logging.getLogger("highdicom.base").info("after")
    assert [one.message for one in caplog.records] == ["after"]
