"""The plan of a study: its runs, their patients and configurations, fixed when it first starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from isopose import outputs
from isopose.config import Config
from isopose.data.body import body_box
from isopose.data.modality import find_body, modality_of
from isopose.data.normalization import pose_channel_of
from isopose.data.splits import check_sides, split_patients
from isopose.errors import InputError
from isopose.files import entries_below, hash_of, read_json, sha256, write_json
from isopose.io.cases import CT, Case
from isopose.io.datasets import Dataset, open_dataset
from isopose.io.images import read_volume
from isopose.io.sources import hash_of_source
from isopose.parallel import Progress
from isopose.presets import load_config
from isopose.settings import DataConfig
from isopose.study import nnunet
from isopose.study.arms import ARMS, BY_NAME, SOURCE, UNTRAINED, Arm
from isopose.study.lengths import refuse_short
from isopose.version import __version__

#: Files in a study's folder: its options, and the body widths of the scored scans.
STUDY_FILE, SIZES_FILE = "study.json", "sizes.json"
#: The stages of a run, and the only one that a budget shortens: shortened STNs would not test the paper.
STAGES, SHORTENED = ("pose", "crop", "unet"), "unet"
#: Minimum number of the U-Net's epochs that a budget may leave.
MIN_EPOCHS = 3


@dataclass(frozen=True)
class Options:
    """Options of a study.

    Args:
        dataset: path of the target patients' dataset.
        labels: name to stored value, instead of the values that the dataset's layout gives.
        presets: ``default``, ``paper`` or both.
        seeds: training seeds; each arm is trained once with each.
        folds: 1: test on the dataset's own test cases; more: test every labeled patient once, with a model
            that was trained on the other folds.
        settings: ``section.key=value`` for all arms.
        values: contents of a configuration file for all arms.
        source: path of the source dataset of Table 1 (transfer learning), or None.
        source_labels: name to stored value in the source dataset.
        scale: fraction of the U-Net's epochs that the budget leaves; 1 without a budget.
        short_stns: allow settings that train STN1 and STN2 for less than the preset; the report then says so.
    """

    dataset: Path
    labels: Mapping[str, int] | None
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: int
    settings: tuple[str, ...]
    values: Mapping[str, Any]
    source: Path | None
    source_labels: Mapping[str, int] | None = None
    scale: float = 1.0
    short_stns: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """One run: an arm of a preset with one seed on one fold's patients."""

    preset: str
    arm: str
    seed: int
    fold: int

    @property
    def place(self) -> Path:
        """Path of the run's folder below the study's ``runs``."""
        return Path(self.preset) / self.arm / f"seed-{self.seed}-fold-{self.fold}"

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        return f"{self.preset} {self.arm}, seed {self.seed}, fold {self.fold}"


def check_options(options: Options) -> None:
    """Check that a study with these options is possible.

    Raises:
        InputError: an unknown preset, a repeated seed, no patient to test on, settings that do not fit an arm
            or shorten its STNs (unless allowed), or a source with other labels or with test patients.
    """
    for preset in options.presets:
        if preset not in ("default", "paper"):
            raise InputError(f"preset {preset!r} is unknown; expected default or paper")
    for name, values in (("--presets", options.presets), ("--seeds", options.seeds)):
        if not values or len(set(values)) < len(values):
            raise InputError(f"{name}: expected one or more, each once, got {', '.join(map(str, values))}")
    patients_of(options, 0)
    for arm in arms_of(options, None):
        for preset in options.presets:
            config = config_of(options, preset, arm, options.seeds[0])
            if not options.short_stns:
                refuse_short(config, arm)
    if options.source is not None:
        _check_source(options)
    elif options.source_labels:
        raise InputError("--source-label: there is no source; name it with --source")


def _check_source(options: Options) -> None:
    """Check that the source has the same labels and channels, and none of the test patients.

    Raises:
        InputError: labels or channels differ, or a test patient's scan is in the source.
    """
    source, target = source_of(options), open_dataset(options.dataset, options.labels)
    if source.labels.names != target.labels.names:
        raise InputError(
            f"{source.root}: the source has the labels {', '.join(source.labels.names)}, the dataset "
            f"{', '.join(target.labels.names)}: expected the same labels in the same order (--source-label)"
        )
    tested = {id for fold in range(options.folds) for id in held_out(patients_of(options, fold))}
    if [name.casefold() for name in source.channels] != [name.casefold() for name in target.channels]:
        raise InputError(
            f"{source.root}: the source has the channels {', '.join(source.channels)}, the dataset "
            f"{', '.join(target.channels)}: expected the same names in the same order"
        )
    same = _find_same_scans([c for c in target.cases if c.id in tested], source.cases)
    if same:
        mine, its = same[0]
        raise InputError(
            f"{source.root}: {its} is the same scan as the test patient {mine} ({len(same)} in total): "
            "remove the test patients from the source"
        )


def _find_same_scans(cases: Iterable[Case], other_cases: Iterable[Case]) -> list[tuple[str, str]]:
    """Return pairs of ids of cases with identical images; only files of equal size are read."""
    by_size: dict[int, list[Case]] = {}
    for case in cases:
        by_size.setdefault(_count_bytes(case.image), []).append(case)
    hashes: dict[str, str] = {}
    pairs = []
    for other in other_cases:
        for case in by_size.get(_count_bytes(other.image), ()):
            if case.id not in hashes:
                hashes[case.id] = hash_of_source(case.image)
            if hash_of_source(other.image) == hashes[case.id]:
                pairs.append((case.id, other.id))
    return pairs


def _count_bytes(image: Path) -> int:
    """Return the bytes of a scan's file, or of all files of its folder.

    Raises:
        InputError: it does not exist.
    """
    if not image.exists():
        raise InputError(f"{image}: no such file; isopose check lists what is missing")
    files = (file for file in entries_below(image) if file.is_file()) if image.is_dir() else (image,)
    return sum(file.stat().st_size for file in files)


def arms_of(options: Options, names: Sequence[str] | None) -> list[Arm]:
    """Return the arms to run, in the order of the tables.

    Arms of transfer learning need a source, nnU-Net's arms need nnU-Net, and the one with poses inside
    nnU-Net needs CT.

    Args:
        options: options of the study.
        names: names of the arms; None: all that are possible.

    Raises:
        InputError: a named arm is unknown or not possible.
    """
    if names is not None and not names:
        raise InputError(f"--arms: expected some of {', '.join(BY_NAME)}")
    for name in names or ():
        if name not in BY_NAME:
            raise InputError(f"--arms: {name!r} is unknown; expected some of {', '.join(BY_NAME)}")
        if BY_NAME[name].source and options.source is None:
            raise InputError(f"--arms: {name!r} is transfer learning from other patients; add --source")
        peer = BY_NAME[name].peer
        if peer:
            nnunet.require()
            if peer.posed and not _is_of_ct(options):
                raise InputError(
                    f"--arms: {name!r} needs CT as the first channel, and the dataset has another; leave "
                    "this arm out"
                )
    return [
        arm
        for arm in ARMS
        if (not names or arm.name in names)
        and (options.source is not None or not arm.source)
        and (arm.peer is None or (nnunet.available() and (not arm.peer.posed or _is_of_ct(options))))
    ]


def _is_of_ct(options: Options) -> bool:
    """Return whether nnU-Net's first channel is CT."""
    return open_dataset(options.dataset, options.labels).channels[0].casefold() == "ct"


def config_of(options: Options, preset: str, arm: Arm, seed: int) -> Config:
    """Return the configuration of an arm: the preset, changed by the file, the settings, and then the arm.

    Every stage has the same number of steps in all arms: there is no early stopping, and the U-Net has the
    fraction of its epochs that the budget leaves. The weights with the best smoothed validation score are
    kept, as in every training.
    """
    wanted = [*options.settings, *arm.settings, f"train.seed={seed}"]
    config = load_config(preset, settings=wanted, base=dict(options.values))
    if config.preset != preset:
        raise InputError("preset: give presets by --presets, not as a setting")
    if config.train.fold != 0:
        raise InputError("train.fold: a study sets the fold itself (--folds); leave the setting out")
    if arm.peer is not None and config.train.device.startswith("cuda:"):
        number = config.train.device.removeprefix("cuda:")
        raise InputError(
            f"train.device=cuda:{number}: nnU-Net uses the first visible GPU; expected cuda, with "
            f"CUDA_VISIBLE_DEVICES={number} in the environment"
        )
    lengths = []
    for stage in STAGES:
        scale = options.scale if stage == SHORTENED else 1.0
        epochs = max(1, round(scale * getattr(config, stage).optimizer.epochs))
        lengths += [f"{stage}.optimizer.{key}={epochs}" for key in ("epochs", "min_epochs", "patience")]
    return load_config(preset, settings=[*wanted, *lengths], base=dict(options.values))


def jobs_of(options: Options, arms: Iterable[Arm]) -> tuple[list[PlannedRun], dict[str, str]]:
    """Return all runs of the arms, and the arms that need no run because an earlier arm is identical.

    nnU-Net's arms do not depend on the preset and are run in one preset only.

    Returns:
        The runs in the order of the tables, one seed after the other; and ``preset/arm`` to the name of the
        earlier arm that has the same configuration.
    """
    jobs: list[PlannedRun] = []
    twins: dict[str, str] = {}
    of_peers = "default" if "default" in options.presets else options.presets[0]
    for preset in options.presets:
        known: dict[str, str] = {}
        for arm in arms:
            if arm.peer and preset != of_peers:
                continue
            config = config_of(options, preset, arm, options.seeds[0])
            peer = asdict(arm.peer) if arm.peer else None
            key = hash_of([config.model_dump(mode="json"), arm.source, peer])
            # Direct inference has its source's configuration, but trains nothing, so it is not identical.
            if arm.name not in UNTRAINED and key in known:
                twins[f"{preset}/{arm.name}"] = known[key]
                continue
            if arm.name not in UNTRAINED:
                known[key] = arm.name
            jobs += [
                PlannedRun(preset, arm.name, seed, fold)
                for seed in options.seeds
                for fold in range(options.folds)
            ]
    return jobs, twins


def source_job(preset: str, seed: int) -> PlannedRun:
    """Return the run that trains the source's model, from which transfer learning starts."""
    return PlannedRun(preset, SOURCE.name, seed, 0)


def is_done(output: Path, job: PlannedRun) -> bool:
    """Return whether a run is finished; the source's run also needs its model, from which others start."""
    folder = output / "runs" / job.place
    return (folder / "result.json").exists() and (
        job.arm != SOURCE.name or (folder / "model" / "model.json").exists()
    )


def add_sources(output: Path, jobs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs with the source's runs inserted before the unfinished runs that start from them."""
    out: list[PlannedRun] = []
    for job in jobs:
        first = source_job(job.preset, job.seed)
        if BY_NAME[job.arm].source and first not in out and not is_done(output, job):
            out.append(first)
        out.append(job)
    return out


def source_of(options: Options) -> Dataset:
    """Return the dataset from which Table 1 transfers."""
    assert options.source is not None, "checked by arms_of"
    return open_dataset(options.source, options.source_labels)


def patients_of(options: Options, fold: int) -> Dataset:
    """Return the target dataset with the patients of a fold marked as test cases.

    Raises:
        InputError: no labeled test case and only one fold, or too few patients.
    """
    dataset = open_dataset(options.dataset, options.labels)
    if options.folds == 1:
        check_sides(dataset)
        if not any(case.split == "test" and case.label is not None for case in dataset.cases):
            raise InputError(
                f"{dataset.root}: no labeled test case (nnU-Net: imagesTs with labelsTs); add --folds 5 "
                "to test every patient once"
            )
        return dataset
    labeled = tuple(replace(c, split=None) for c in dataset.cases if c.label is not None)
    _, held_out_cases = split_patients(replace(dataset, cases=labeled), options.folds, fold, 0)
    tested = {case.id for case in held_out_cases}
    cases = tuple(replace(case, split="test" if case.id in tested else None) for case in labeled)
    return replace(dataset, cases=cases)


def held_out(dataset: Dataset) -> list[str]:
    """Return the ids of the cases that are predicted and scored."""
    return [case.id for case in dataset.cases if case.split == "test" and case.label is not None]


def claim_study(output: Path, options: Options) -> tuple[Options, bool]:
    """Start a study in a folder, or check that the folder holds this study.

    Returns:
        The options, with the study's scale if it was fixed before; and whether it was.

    Raises:
        InputError: the folder holds another study or something else.
    """
    path = output / STUDY_FILE
    now = _identify(options)
    other, strange = "holds a study of other {names}", "not empty and no study"
    known = outputs.claim(output, path, now, within="of", other=other, strange=strange)
    if known is None:
        known = {"isopose": __version__, "of": now, "scale": None}
        write_json(path, known)
    scale = known["scale"]
    return (options, False) if scale is None else (replace(options, scale=float(scale)), True)


def settle_epochs(output: Path, options: Options) -> None:
    """Store the fraction of the U-Net's epochs for all arms; it never changes afterward."""
    write_json(
        output / STUDY_FILE, read_json(output / STUDY_FILE) | {"scale": options.scale, "scales": SHORTENED}
    )


def notes_of_length(output: Path) -> tuple[str, ...]:
    """Return notes on a study whose budget was fixed by a version that shortened the STNs as well."""
    known = read_json(output / STUDY_FILE)
    if known["scale"] in (None, 1.0) or known.get("scales") == SHORTENED:
        return ()
    return (
        "note: this study's length was fixed by a version that shortened STN1 and STN2 as well; new runs "
        "train them in full, so arms with a pose may not be comparable; to compare them, start a new study",
    )


def _identify(options: Options) -> dict[str, Any]:
    values = asdict(options)
    # Presets and seeds may be added later, because each has runs of its own. The source's labels are part of
    # the hash of its contents. What --short-stns allows is part of the settings.
    for key in ("presets", "seeds", "scale", "source_labels", "short_stns"):
        values.pop(key)
    return values | {
        "dataset": _hash_contents(open_dataset(options.dataset, options.labels)),
        "source": _hash_contents(source_of(options)) if options.source else None,
        "settings": list(options.settings),
    }


def _hash_contents(dataset: Dataset) -> str:
    """Return a hash of a dataset's cases, patients, splits and label files, independent of its path.

    Raises:
        InputError: a label file does not exist.
    """
    contents = []
    for case in dataset.cases:
        if case.label is not None and not case.label.is_file():
            raise InputError(
                f"{case.id}: no such label file: {case.label}; isopose check lists what is missing"
            )
        contents.append([case.id, case.patient, case.split, case.label and sha256(case.label)])
    return hash_of([dataset.labels.stored, *map(list, dataset.labels.regions.items()), contents])


def measure_widths(output: Path, datasets: Sequence[Dataset], data: DataConfig, progress: Progress) -> None:
    """Measure the body width of every scored case that was not measured before; it stands for body size.

    Args:
        output: the study's folder.
        datasets: of all folds, with their test cases marked.
        data: modality of the scans, threshold of the body, and pose channel.
        progress: called with the number of finished cases and of all cases.

    Raises:
        InputError: a case that cannot be read, or shows no body.
    """
    earlier = _read_widths(output)
    wanted = [case for dataset in datasets for case in dataset.cases if case.id in held_out(dataset)]
    # Cases that several datasets share are of one modality.
    channels = datasets[0].channels if datasets else CT
    modality, number = modality_of(data, channels), pose_channel_of(data, channels)
    for done, case in enumerate(wanted, start=1):
        if case.id not in earlier:
            try:
                volume = read_volume(case.images[number], modality=modality).reoriented()
                left, _, right, _ = body_box(find_body(volume, data, modality), volume.spacing)
            except InputError as error:
                raise InputError(
                    f"{case.id}, a test case: {error}; repair it or remove it from the dataset"
                ) from None
            earlier[case.id] = round(right - left, 1)
            write_json(output / SIZES_FILE, earlier)
        progress(done, len(wanted))


def known_widths(output: Path, dataset: Dataset) -> dict[str, float]:
    """Return the body width in mm of the scored cases."""
    known = _read_widths(output)
    return {case: known[case] for case in held_out(dataset)}


def _read_widths(output: Path) -> dict[str, float]:
    path = output / SIZES_FILE
    return dict(read_json(path)) if path.exists() else {}
