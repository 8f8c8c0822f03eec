"""A study report's tables and notes on STN1 and STN2: training length, and whether STN1 learned rotation."""

from collections.abc import Mapping, Sequence

from isopose.models.info import MIN_SLOPE
from isopose.report.tables import Cell, Column, Table
from isopose.study.lengths import STNS, Length, lengths_of
from isopose.study.plan import Options, config_of
from isopose.study.results import ArmResult, StudyRun

#: Shown for a value that the version which made a run did not measure.
NOT_MEASURED = "not measured"


def lengths_by_arm(
    options: Options, preset: str, results: Mapping[str, ArmResult]
) -> dict[str, dict[str, Length]]:
    """Return the training length of STN1 and STN2 in each arm, from the run that trained it least.

    For runs of versions that did not record it, it is computed from their history and the study's settings.
    """
    found: dict[str, dict[str, Length]] = {}
    for name, result in results.items():
        if result.arm.peer is None:
            every = [_find_lengths(options, preset, result, run) for run in result.runs]
            found[name] = {
                stn: min((one[stn] for one in every if stn in one), key=lambda length: length.steps)
                for stn in STNS
                if any(stn in one for one in every)
            }
    return found


def _find_lengths(options: Options, preset: str, result: ArmResult, run: StudyRun) -> dict[str, Length]:
    known = run.stn.get("lengths")
    if known is not None:
        return {name: Length(**values) for name, values in known.items()}
    # An arm without training, such as direct inference, has an empty history.
    return lengths_of(config_of(options, preset, result.arm, run.seed), result.arm, run.history)


def notes_of(
    preset: str, results: Mapping[str, ArmResult], lengths: Mapping[str, Mapping[str, Length]]
) -> tuple[str, ...]:
    """Return warnings about STNs that were shortened or learned no rotation, one line each."""
    notes = []
    for stn in STNS:
        by_steps: dict[str, list[str]] = {}
        for name in results:
            length = lengths.get(name, {}).get(stn)
            if length is not None and length.short:
                by_steps.setdefault(_format_length(length), []).append(name)
        for part, names in by_steps.items():
            whose = "the paper's" if preset == "paper" else f"the {preset}"
            notes.append(
                f"{stn} was shortened in {', '.join(names)} ({part}): this does not test {whose} preset."
            )
    still = [
        f"{name} seed {run.seed} ({run.stn['turning']['slope']:.2f})"
        for name, result in results.items()
        for run in result.runs
        if run.stn.get("turning") and run.stn["turning"]["slope"] < MIN_SLOPE
    ]
    if still:
        notes.append(
            f"STN1 has not learned rotation in {', '.join(still)}: when a slice is rotated, its angle "
            f"changes by less than {MIN_SLOPE:.0%} of the rotation, so patients keep their own roll. Such "
            "a run does not test the method."
        )
    return tuple(notes)


def _format_length(length: Length) -> str:
    text = f"{length.steps:,} of {length.preset_steps:,} steps"
    if length.steps >= length.preset_steps:
        text = f"{length.slices:,} of {length.preset_slices:,} slices seen"
    return text


def stn_table(results: Mapping[str, ArmResult], lengths: Mapping[str, Mapping[str, Length]]) -> Table | None:
    """Return a table of STN1's roll errors and of both training lengths in each run; None without runs."""
    columns = (
        Column("Arm", text=True),
        Column("Seed"),
        Column("Fold"),
        Column("STN1: steps (in the preset)", text=True),
        Column("STN2: steps (in the preset)", text=True),
        Column("STN1: slope", text=True),
        Column("STN1: roll error (degrees)", text=True),
        Column("Moments: roll error (degrees)", text=True),
        Column("STN1 to moments (degrees)", text=True),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, result in results.items():
        of_arm = lengths.get(name, {})
        if not of_arm:
            continue
        for run in result.runs:
            rows.append(
                (
                    name,
                    run.seed,
                    run.fold,
                    *(_format_steps(of_arm.get(stn)) for stn in STNS),
                    *_format_roll(run, of_arm),
                )
            )
    if not rows:
        return None
    return Table(
        "STN1 and STN2 in each run",
        columns,
        tuple(rows),
        notes=(
            "medians over slices of the validation patients (of the training patients if there are none), "
            "after training; slope: change of STN1's angle divided by the angle by which a slice was "
            f"rotated: 1 is correct, 0 means that nothing was learned, below {MIN_SLOPE} rotation was not "
            "learned; roll error: absolute difference from the true roll, which is known only for phantoms",
        ),
    )


def _format_steps(length: Length | None) -> str:
    return "none" if length is None else f"{length.steps:,} ({length.preset_steps:,})"


def _format_roll(run: StudyRun, lengths: Mapping[str, Length]) -> Sequence[str]:
    """Return a run's slope and roll errors as text."""
    if "STN1" not in lengths or not lengths["STN1"].steps:
        return ("no STN1",) * 4
    turning = run.stn.get("turning")
    if not turning:
        return (NOT_MEASURED,) * 4
    values = (turning[key] for key in ("degrees_from_truth", "moments_from_truth", "degrees_from_moments"))
    return (f"{turning['slope']:.2f}", *("not known" if v is None else f"{v:.1f}" for v in values))
