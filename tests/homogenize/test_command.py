"""Placeholders of a command, and running it without a shell."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isopose.errors import InputError
from isopose.homogenize.command import how_it_ended, read_command, run_command


@pytest.mark.parametrize(
    "words",
    [("{input}", "{output}"), ("-i={input}", "{output_folder}/x"), ("{inputs}", "{outputs}")],
    ids=str,
)
def test_each_way_to_say_where_files_belong(words) -> None:
    command = read_command([sys.executable, "-c", "print({'a': 1})", *words])
    assert command.together == (words[0] == "{inputs}")
    paths = {name: Path(f"/{name} s") for name in ("input", "output", "output_folder", "inputs", "outputs")}
    filled = command.filled(paths)
    # Other braces stay.
    assert filled[:3] == [sys.executable, "-c", "print({'a': 1})"]
    assert filled[3:] == [word.replace("{", "/").replace("}", " s").replace("-i=/", "-i=/") for word in words]


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_what_is_missing_or_mixed_is_one_line(words, said) -> None:
    with pytest.raises(InputError) as error:
        read_command([sys.executable if word == "{python}" else word for word in words])
    assert said in str(error.value)


def test_no_shell_reads_the_words(tmp_path) -> None:
    evil = f"$(touch {tmp_path}/a); touch {tmp_path}/b & `touch {tmp_path}/c` > {tmp_path}/d"
    words = [sys.executable, "-c", "import sys; print(sys.argv[1:])", evil, "a b", "*", "~"]
    assert run_command(words, tmp_path / "logs" / "one.log") == 0
    assert (tmp_path / "logs" / "one.log").read_text() == f"{[evil, 'a b', '*', '~']}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs"]


def test_what_it_prints_and_how_it_ended(tmp_path) -> None:
    code = "import os, sys; print(repr(sys.stdin.read())); print('no', file=sys.stderr); os._exit(7)"
    log = tmp_path / "log"
    assert run_command([sys.executable, "-u", "-c", code], log) == 7
    assert log.read_text() == "''\nno\n"
    assert run_command([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"], log) == -15
    assert [how_it_ended(n) for n in (7, -15)] == ["ended with exit code 7", "was ended by SIGTERM"]
    (tmp_path / "odd").write_bytes(b"\x00\x01")
    (tmp_path / "odd").chmod(0o755)
    with pytest.raises(InputError, match="odd: cannot be run"):
        run_command([str(tmp_path / "odd")], log)


def test_what_it_has_started_is_ended_with_it_when_isopose_is_stopped(tmp_path) -> None:
    child = (
        f"import os, time; open({str(tmp_path / 'child')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    ours = (
        "import sys; from pathlib import Path; from isopose.homogenize.command import run_command\n"
        f"run_command([sys.executable, '-c', {parent!r}], Path({str(tmp_path / 'log')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", ours], stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait() != 0
    finally:
        process.kill()
    started = Path("/proc") / (tmp_path / "child").read_text()
    if Path("/proc/self").exists():
        # A process that has ended may still wait to be counted.
        assert not started.exists() or ") Z " in (started / "stat").read_text()
