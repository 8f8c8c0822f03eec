"""``python fuzz``: damaged and unusual inputs by the thousand: each is read, or refused in one clear line.

    python fuzz --inputs 20000 --seed 1 --jobs 2

Each damaged input is a copy of sound files (``seeds.py``) changed by ``mutations.py``; each unusual one
(``unusual_*.py``) is valid or nearly so, and what is read of it is compared with independent readers
(``oracles.py``). Each is read in a process of its own with a bound on memory and time. A failure is an
exception that isopose did not foresee, a message that is not one line, a value that should have been refused,
other values or places than the independent readers', a crash, or a bound reached. Failures are kept, and
repeat by ``python fuzz --only TARGET:NUMBER --seed SEED``.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import planes
import targets
from seeds import write_seeds

#: Seconds and bytes (beyond what is taken already) that one input may take.
SECONDS, BYTES = 20, 2 * 2**30
#: One input in so many goes through the whole command.
COMMANDS = 10
#: Longest message that is one clear line.
LINE = 1500
#: Reasons for refusing valid inputs that are listed for each kind of unusual input.
REASONS = 12


def main() -> int:
    """Run, print a line for each target, and return 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--targets", default=",".join(target.name for target in targets.TARGETS))
    parser.add_argument("--only", help="TARGET:NUMBER, one input again, in this process")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="folder for failures")
    given = parser.parse_args()
    _imports()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        seeds = Path(place) / "seeds"
        write_seeds(seeds)
        if given.only:
            name, number = given.only.split(":")
            folder = _damaged(seeds, Path(place) / "one", name, int(number), given.seed)
            print(_outcome(name, folder, seeds, int(number)))
            return 0
        return _all(given, seeds, Path(place))


def _all(given: argparse.Namespace, seeds: Path, place: Path) -> int:
    names = given.targets.split(",")
    jobs: dict[int, Path] = {}
    for job in range(given.jobs):
        path = place / f"job-{job}.jsonl"
        pid = os.fork()
        if pid == 0:
            try:
                _job(
                    range(job, given.inputs, given.jobs),
                    names,
                    given.seed,
                    seeds,
                    # In a folder of its own, since a damaged link may lead to the folder above.
                    place / f"job-{job}" / "work",
                    path,
                    given.keep,
                )
            except BaseException:
                traceback.print_exc()
            finally:
                # Not through the end of the folder, which is the parent's.
                os._exit(0)
        jobs[pid] = path
    for pid in jobs:
        os.waitpid(pid, 0)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    failures, rows = [], []
    for path in jobs.values():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows.append(row)
            counts[row["target"]][row["kind"]] += 1
            slowest[row["target"]] = max(slowest[row["target"]], row["seconds"])
            if row["kind"] == "failed":
                failures.append(row)
    print("| input | tried | read | refused in one line | failed | slowest, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        found = counts[name]
        print(
            f"| {name} | {sum(found.values())} | {found['read']} | {found['refused']} | {found['failed']} "
            f"| {slowest[name]:.1f} |"
        )
    print(f"in all: {sum(sum(found.values()) for found in counts.values())}, failed: {len(failures)}")
    _print_unusual([row for row in rows if row["kinds"]])
    for row in failures[:50]:
        print(f"{row['target']}:{row['number']}: {row['message'][-600:]}")
    return 1 if failures or sum(sum(found.values()) for found in counts.values()) != given.inputs else 0


def _print_unusual(rows: list[dict[str, Any]]) -> None:
    """How many unusual inputs were refused although they are valid, and why most often."""
    if not rows:
        return
    print("\n| input | tried | read correctly | refused although valid | refused correctly | failed |")
    print("| --- | --- | --- | --- | --- | --- |")
    names = list(dict.fromkeys(row["target"] for row in rows))
    refused = {
        name: [row for row in rows if row["target"] == name and row["kind"] == "refused" and row["valid"]]
        for name in names
    }
    for name in names:
        kinds = Counter(row["kind"] for row in rows if row["target"] == name)
        print(
            f"| {name} | {sum(kinds.values())} | {kinds['read']} | {len(refused[name])} "
            f"| {kinds['refused'] - len(refused[name])} | {kinds['failed']} |"
        )
    for name in names:
        reasons: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in refused[name]:
            reasons[_reason(row["message"])].append(row)
        for reason, alike in sorted(reasons.items(), key=lambda item: -len(item[1]))[:REASONS]:
            kinds = Counter(kind for row in alike for kind in row["kinds"])
            often = ", ".join(f"{kind} ({times})" for kind, times in kinds.most_common(3))
            print(f"refused {len(alike)} times, e.g. {name}:{alike[0]['number']}: {reason} [{often}]")


def _reason(message: str) -> str:
    """A message without its paths and numbers, so that alike ones can be counted."""
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"\S*/\S*", "PATH", message))[:200]


def _job(
    numbers: range, names: list[str], seed: int, seeds: Path, work: Path, rows: Path, keep: Path
) -> None:
    with open(rows, "w", encoding="utf-8") as file:
        for number in numbers:
            name = names[number % len(names)]
            folder = _damaged(seeds, work, name, number, seed)
            started = time.monotonic()
            kind, text = _in_a_process(name, folder, seeds, number)
            note = planes.note_of(folder)
            row = {
                "kinds": note.kinds if note else [],
                "valid": bool(note and note.valid and (note.hu or not _by_command(number))),
                "target": name,
                "number": number,
                "kind": kind,
                "message": text,
                "seconds": time.monotonic() - started,
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            if kind == "failed":
                keep.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(keep / f"{name}-{number}", ignore_errors=True)
                shutil.copytree(folder, keep / f"{name}-{number}", symlinks=True)
                (keep / f"{name}-{number}.txt").write_text(text)


def _damaged(seeds: Path, work: Path, name: str, number: int, seed: int) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    if (seeds / name).is_dir():
        shutil.copytree(seeds / name, work)
    else:
        work.mkdir(parents=True)
    targets.BY_NAME[name].damage(work, Random(f"{seed} {name} {number}"))
    return work


def _in_a_process(name: str, folder: Path, seeds: Path, number: int) -> tuple[str, str]:
    """The outcome of one input, in a fork that cannot take down the rest."""
    result = folder.with_name(folder.name + ".result")
    result.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, taken + BYTES))
            resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES))
            os.setpgid(0, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            result.write_text(json.dumps(_outcome(name, folder, seeds, number)))
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what a command may have started
    if result.exists() and (text := result.read_text()):
        kind, message = json.loads(text)
        return kind, message
    if os.WIFSIGNALED(status):
        ended = signal.Signals(os.WTERMSIG(status)).name
        return "failed", "too long" if ended == "SIGALRM" else f"ended by {ended}"
    return "failed", "ended without a word"


def _by_command(number: int) -> bool:
    """Whether an input goes through the whole command line."""
    return number // len(targets.TARGETS) % COMMANDS == 0


def _outcome(name: str, folder: Path, seeds: Path, number: int) -> tuple[str, str]:
    from isopose.errors import IsoposeError

    target = targets.BY_NAME[name]
    try:
        if _by_command(number):
            found = _of_command(target.command(folder, seeds), folder)
            if found[0] == "read" and target.after:
                target.after(folder)
            return found
        target.act(folder)
    except IsoposeError as error:
        return _judged(str(error))
    except planes.Differs as error:
        return "failed", str(error)
    except BaseException:
        return "failed", traceback.format_exc()
    return "read", ""


def _of_command(arguments: list[str], folder: Path) -> tuple[str, str]:
    """By exit code and standard error, as a user sees them."""
    heard = folder.with_name(folder.name + ".stderr")
    kept = os.dup(2)
    with open(heard, "wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            code, _ = targets.run_command(arguments)
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
    message = heard.read_text(errors="replace")
    lines = [line for line in message.splitlines() if line.startswith("isopose: ")]
    if "Traceback" in message or code not in (0, 1, 2):
        return "failed", f"{arguments}: exit {code}: {message}"
    if "Secret" in message or "SECRET" in message:
        return "failed", f"names the patient: {message}"
    if code == 0:
        return "read", ""
    # `check` ends with 1 where it lists errors of cases, each in a line of its own.
    if code == 1 and arguments[0] != "check":
        return "failed", f"{arguments}: exit 1: {message}"
    if code == 2 and not lines and arguments[0] != "check":
        return "failed", f"{arguments}: exit 2 without a line: {message}"
    return _judged(lines[-1]) if lines else ("refused", "as printed on standard output")


def _judged(message: str) -> tuple[str, str]:
    shown = " ".join(message.split())
    if not shown or len(shown) > LINE:
        return "failed", f"a message of {len(shown)} characters: {shown[:300]}"
    if any(not (c.isprintable() or "\ud800" <= c <= "\udfff") for c in shown):
        return "failed", f"a message with control characters: {shown!r}"
    return "refused", shown


def _imports() -> None:
    """Once, so that a fork starts with everything."""
    import torch

    torch.set_num_threads(1)
    for module in (
        "cli",
        "inference.predict",
        "inference.files",
        "training.fit",
        "homogenize.restore",
        "data.check",
    ):
        __import__(f"isopose.{module}")


if __name__ == "__main__":
    sys.exit(main())
