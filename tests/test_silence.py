"""No library's warning or log message leaves a process of isopose's own, and nothing stays set in others."""

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
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, **variables},
    )
    return done.stdout + done.stderr


def test_the_noise_is_heard_without():
    assert run(NOISE).count(SECRET) == 6


@pytest.mark.parametrize("asked", ["default", "error"])
def test_a_process_of_our_own_says_nothing(asked):
    """Not even where the environment asks for it, or makes errors of warnings."""
    code = f"from isopose.silence import silence; silence()\n{NOISE}\nprint('done')"
    assert run(code, PYTHONWARNINGS=asked) == "done\n"


def test_workers_say_nothing(tmp_path):
    (tmp_path / "noisy.py").write_text(
        "from isopose.parallel import in_order\n"
        f"def work(number):\n    exec({NOISE!r})\n    return number\n"
        "if __name__ == '__main__':\n"
        "    print(list(in_order(work, [1, 2], name=str, workers=1)))\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "noisy.py"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout + done.stderr == "[1, 2]\n"


def test_the_command_line_says_nothing(tmp_path):
    (tmp_path / "noise.py").write_text(NOISE)
    code = (
        "import sys, runpy\n"
        "from isopose.cli import entry\n"
        f"entry.app = lambda: runpy.run_path({str(tmp_path / 'noise.py')!r})\n"
        "entry.main()\n"
    )
    assert run(code) == ""


def test_processes_that_are_started_are_silent_from_their_first_import_on():
    code = (
        "import subprocess, sys\n"
        "from isopose.silence import silence\n"
        "silence()\n"
        f"subprocess.run([sys.executable, '-c', 'import warnings; warnings.warn(\"{SECRET}\")'])\n"
    )
    assert run(code) == ""


def test_what_was_set_holds_again_after_a_command(caplog, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with silent():
            logging.getLogger("pydicom").error(SECRET)
            warnings.warn(SECRET, stacklevel=1)
        warnings.warn("after", stacklevel=1)
    logging.getLogger("pydicom").error("after")
    assert [str(one.message) for one in heard] == ["after"]
    assert [one.message for one in caplog.records] == ["after"]
    assert os.environ["PYTHONWARNINGS"] == "default"


def test_blocks_of_several_threads_leave_settings_as_they_were(caplog):
    """Each setting back what it found, one of them would set back the other's silence."""
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


def test_highdicom_is_as_silent_as_pydicom(caplog):
    with caplog.at_level(logging.DEBUG):
        with quiet_pydicom():
            for name in ("pydicom", "highdicom", "highdicom.base"):
                logging.getLogger(name).critical(SECRET)
        logging.getLogger("highdicom.base").info("after")
    assert [one.message for one in caplog.records] == ["after"]
