"""Process the cases of a run, in this process or in several, and report each."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from isopose.errors import printable
from isopose.isolation import Failed
from isopose.outputs import Outcome
from isopose.parallel import attempts
from isopose.progress import Reporter

Item = TypeVar("Item")
R = TypeVar("R")


def process_cases(
    work: Callable[[Item], Outcome[R]],
    items: Sequence[Item],
    *,
    name: Callable[[Item], str],
    title: str,
    warnings_of: Callable[[R], Iterable[str]],
    discard: Callable[[Item], None],
    workers: int,
    reporter: Reporter,
) -> list[Outcome[R]]:
    """Process all items and report each; an item that fails does not stop the others.

    Args:
        work: picklable function of an item.
        items: one for each case.
        name: returns the case's id.
        title: of the progress.
        warnings_of: returns the warnings in a record that are reported.
        discard: called with an item that failed; removes its files, even if its process died.
        workers: number of processes; 0 works in this process.
        reporter: receives progress.

    Returns:
        The outcomes, in the order of the items.

    Raises:
        RunError: an item raised an error that concerns all items.
    """
    outcomes: list[Outcome[R]] = []
    started, new_results = time.monotonic(), 0
    with reporter.counting(title) as progress:
        results = attempts(work, items, name=name, workers=workers, progress=progress)
        for done, (item, result) in enumerate(zip(items, results, strict=True), start=1):
            outcome = Outcome[R](name(item), None, result.why) if isinstance(result, Failed) else result
            if outcome.problem is not None:
                discard(item)
            new_results += outcome.made
            seconds_left = (time.monotonic() - started) / max(new_results, 1) * (len(items) - done)
            line = f"[{done}/{len(items)}] {outcome.name}"
            if outcome.made and outcome.record is not None and seconds_left:
                line += f"  about {seconds_left:.0f} s left"
            report_outcome(outcome, line, warnings_of, reporter)
            outcomes.append(outcome)
    return outcomes


def report_outcome(
    outcome: Outcome[R], line: str, warnings_of: Callable[[R], Iterable[str]], reporter: Reporter
) -> None:
    """Report the line of a case, then its problem or its warnings."""
    if not outcome.made:
        line += "  is there already, made from the same scan and settings"
    reporter.say(printable(line))
    if outcome.problem is not None:
        reporter.say(f"  error: {outcome.problem}")
    for warning in () if outcome.record is None else warnings_of(outcome.record):
        reporter.say(f"  warning: {warning}")
