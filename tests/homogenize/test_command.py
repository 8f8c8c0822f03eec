"""Placeholders of a command, and running it without a shell."""

import os
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from isopose.errors import InputError
from isopose.homogenize.command import exit_description, read_command, run_command


@pytest.mark.parametrize(
    "words",
    [("{input}", "{output}"), ("-i={input}", "{output_folder}/x"), ("{inputs}", "{outputs}")],
    ids=str,
)
def test_each_placeholder_of_the_command_is_replaced(words) -> None:
    command = read_command([sys.executable, "-c", "print({'a': 1})", *words])
    assert command.batch == (words[0] == "{inputs}")
    paths = {name: Path(f"/{name} s") for name in ("input", "output", "output_folder", "inputs", "outputs")}
    filled = command.filled(paths)
    # Other braces stay.
    assert filled[:3] == [sys.executable, "-c", "print({'a': 1})"]
    assert filled[3:] == [word.replace("{", "/").replace("}", " s").replace("-i=/", "-i=/") for word in words]


@pytest.mark.parametrize(
    ("words", "err"),
    [
        ([], "no command, expected one after --"),
        (["{python}"], "got none"),
        (["{python}", "{input}"], "got {input}"),
        (["{python}", "{output}"], "got {output}"),
        (["{python}", "{outputs}"], "got {outputs}"),
        (["{python}", "{input}", "{output}", "{output_folder}"], "got {input}, {output}, {output_folder}"),
        (["{python}", "{input}", "{outputs}"], "of one scan ({input} with {output} or {output_folder})"),
        (["no-such-program", "{input}", "{output}"], "no-such-program: no such program"),
    ],
    ids=str,
)
def test_missing_or_mixed_placeholders_are_refused_in_one_line(words, err) -> None:
    with pytest.raises(InputError) as error:
        read_command([sys.executable if word == "{python}" else word for word in words])
    assert err in str(error.value)


def test_arguments_are_not_interpreted_by_a_shell(tmp_path) -> None:
    evil = f"$(touch {tmp_path}/a); touch {tmp_path}/b & `touch {tmp_path}/c` > {tmp_path}/d"
    words = [sys.executable, "-c", "import sys; print(sys.argv[1:])", evil, "a b", "*", "~"]
    assert run_command(words, tmp_path / "logs" / "one.log") == 0
    assert (tmp_path / "logs" / "one.log").read_text() == f"{[evil, 'a b', '*', '~']}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs"]


def test_output_and_exit_code_of_the_command(tmp_path) -> None:
    code = "import os, sys; print(repr(sys.stdin.read())); print('no', file=sys.stderr); os._exit(7)"
    log = tmp_path / "log"
    assert run_command([sys.executable, "-u", "-c", code], log) == 7
    assert log.read_text() == "''\nno\n"
    assert run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"], log) == -15
    assert [exit_description(n) for n in (7, -15)] == ["ended with exit code 7", "was ended by SIGTERM"]
    (tmp_path / "odd").write_bytes(b"\x00\x01")
    (tmp_path / "odd").chmod(0o755)
    with pytest.raises(InputError, match="odd: cannot be run"):
        run_command([str(tmp_path / "odd")], log)


#: Starts another program, which writes its number into a file; both then wait.
CHILD = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}, sys.argv[1]])"


def ended(file: Path, process) -> bool:
    """Wait until the command's child process runs, stop isopose's process; return whether the child ended."""
    while not file.exists() or not file.read_text():
        assert process.is_alive()
        time.sleep(0.05)
    proc_folder = Path("/proc") / file.read_text()
    assert proc_folder.exists() == Path("/proc/self").exists()
    process.stop()
    process.join(60)
    assert process.exitcode not in (None, 0)
    # A process that was killed takes a moment to end, and one that has ended may still wait to be counted.
    limit = time.monotonic() + 30
    while is_running(proc_folder) and time.monotonic() < limit:
        time.sleep(0.05)
    return not is_running(proc_folder)


def is_running(process: Path) -> bool:
    try:
        return ") Z " not in (process / "stat").read_text()
    except OSError:
        return False


def run_interruptible(words: list[str], log: Path) -> None:
    """Run a command in a process that handles SIGINT, even if the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command(words, log)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=("interrupted", "worker"))
def test_child_processes_of_the_command_end_when_isopose_is_stopped(number, tmp_path) -> None:
    """Both in the main process of ``isopose wrap`` and in a worker, which a signal ends at once."""
    words, file = [sys.executable, "-c", PARENT, str(tmp_path / "child")], tmp_path / "child"
    process = get_context("spawn").Process(target=run_interruptible, args=(words, tmp_path / "log"))
    process.start()
    process.stop = lambda: os.kill(process.pid, number)
    try:
        assert ended(file, process)
    finally:
        process.kill()
