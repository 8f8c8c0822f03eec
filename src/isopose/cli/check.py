"""``isopose check``."""

from collections import Counter
from typing import TYPE_CHECKING

import typer

from isopose.cli.options import (
    AsJson,
    DatasetPath,
    Label,
    Masks,
    ModalityOption,
    PlaneOption,
    PoseChannel,
    Workers,
    parse_labels,
)
from isopose.cli.output import print_json
from isopose.errors import counted

if TYPE_CHECKING:
    from isopose.data.check import Problem
    from isopose.data.fingerprint import Fingerprint
    from isopose.io.datasets import Dataset
    from isopose.settings import DataConfig


def check(
    dataset: DatasetPath,
    label: Label = None,
    modality: ModalityOption = None,
    plane: PlaneOption = None,
    pose_channel: PoseChannel = None,
    masks: Masks = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Report every problem of a dataset by case, and its fingerprint."""
    from isopose.data.check import check_dataset
    from isopose.data.fingerprint import describe
    from isopose.io.datasets import open_dataset
    from isopose.io.masks import with_masks
    from isopose.presets import load_config
    from isopose.progress import Terminal

    options = {"data.modality": modality, "data.plane": plane, "data.pose_channel": pose_channel}
    data = load_config(
        settings=[f"{key}={value}" for key, value in options.items() if value is not None]
    ).data
    opened = with_masks(open_dataset(dataset, parse_labels(label), allow_unusable=True), masks)
    problems: list[Problem] = []
    fingerprint: Fingerprint | None = None
    ignored: dict[str, float] = {}
    planes: Counter[str] = Counter()
    stop_error: BaseException | None = None
    try:
        with Terminal().counting("check") as progress:
            check_dataset(
                opened,
                config=data,
                workers=workers,
                progress=progress,
                on_problem=problems.append,
                planes=planes,
            )
        fingerprint, ignored = _fingerprint(opened, data, problems, workers)
    # BaseException, so that problems found so far are reported after Ctrl-C too.
    except BaseException as error:
        stop_error = error
    failed = {problem.case for problem in problems if problem.severity == "error"}
    # Several unusable cases may have one name.
    broken = len(failed - {case.name for case in opened.unusable}) + len(opened.unusable)
    total = len(opened.cases) + len(opened.unusable)
    if as_json:
        print_json(
            {
                "dataset": opened.name,
                "layout": opened.layout,
                "cases": total,
                "problems": [vars(problem) for problem in problems],
                "fingerprint": fingerprint and fingerprint.to_json(),
                "planes": dict(planes),
                "ignored": ignored or None,
                "stopped": None if stop_error is None else _describe_stop(stop_error),
            }
        )
    else:
        cases = counted(total, "case")
        typer.echo(f"{opened.name}: {opened.layout}, {cases}, labels {opened.labels.stored}")
        for problem in problems:
            typer.echo(f"{problem.severity}: {problem.case}: {problem.message}")
        if planes:
            typer.echo(f"{'plane':<32} {_planes(planes, data)}")
        for name, value in describe(fingerprint, data.plane) if fingerprint else []:
            typer.echo(f"{name:<32} {value}")
        if ignored:
            percent, slices, of_slices = 100 * ignored["voxels"], ignored["slices"], ignored["of_slices"]
            typer.echo(
                f"{'ignored':<32} {percent:.1f} % of the voxels, {slices} of {of_slices} slices entirely"
            )
        if stop_error is None or broken:
            typer.echo(f"{broken} of {total} cases cannot be used" if broken else "no errors")
    if stop_error is not None:
        raise stop_error
    if broken:
        raise typer.Exit(2)


def _planes(planes: "Counter[str]", data: "DataConfig") -> str:
    """Return how many scans have slices in each plane, as text, and the setting for another plane."""
    counts = {plane: count for plane, count in planes.items() if plane != "any"}
    parts = [f"{plane} in {counted(count, 'scan')}" for plane, count in sorted(counts.items())]
    if planes["any"]:
        parts.append(f"nearly cubic voxels, for any plane, in {counted(planes['any'], 'scan')}")
    text = ", ".join(parts)
    majority = max(counts, key=lambda plane: counts[plane]) if counts else data.plane
    if majority == data.plane:
        return text
    return f"{text}; give --plane {majority} here and to homogenize, --set data.plane={majority} to fit"


def _describe_stop(error: BaseException) -> str:
    """Return in one line why the check ended early."""
    from isopose.isolation import line_of

    return str(line_of(error)) if isinstance(error, Exception) else "stopped by a signal"


def _fingerprint(
    dataset: "Dataset", data: "DataConfig", problems: "list[Problem]", workers: int
) -> "tuple[Fingerprint | None, dict[str, float]]":
    """Return the fingerprint of readable training cases, and how much of them is ignored, if any is.

    A case that fails here is added to the problems.
    """
    from isopose.data.check import Problem
    from isopose.data.fingerprint import facts_of, ignored_of, reduce_facts
    from isopose.isolation import Failed
    from isopose.progress import Terminal

    broken = {problem.case for problem in problems if problem.severity == "error"}
    usable = [c for c in dataset.cases if c.label is not None and c.split != "test" and c.id not in broken]
    if not usable:
        return None, {}
    facts = []
    with Terminal().counting("fingerprint") as progress:
        answers = facts_of(usable, dataset.labels, data, workers, progress, channels=dataset.channels)
        for case, answer in zip(usable, answers, strict=True):
            if isinstance(answer, Failed):
                why = answer.why.removeprefix(f"{case.id}: ")
                problems.append(Problem(case.id, "error", f"fingerprint: {why}"))
            else:
                facts.append(answer)
    if not facts:
        return None, {}
    return reduce_facts(facts, dataset.labels, data, dataset.channels), ignored_of(facts)
