"""Write a cohort of phantom patients as an nnU-Net v2 raw dataset; an interrupted run can be resumed."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import SimpleITK as sitk

from isopose.choices import Modality, Plane
from isopose.errors import InputError, IsoposeError
from isopose.files import output_folder, replacing, write_json, write_text
from isopose.io.nifti import is_complete
from isopose.io.truth import TRUTH_FILE
from isopose.outputs import claim
from isopose.parallel import in_order
from isopose.phantom.case import (
    Population,
    mr_of,
    sample_case,
    texture_generator,
    truth,
    tumor_volume_ml,
)
from isopose.phantom.mr import drawn_for_mr
from isopose.phantom.pet import render_uptake
from isopose.phantom.render import KIDNEY, TUMOR, render
from isopose.phantom.stack import MIN_SLICES, stack_of

#: Increased whenever the same parameters give other images.
VERSION = 1
#: Volume in ml below which a tumor is small, and maximum number of patients drawn for each one that is used.
SMALL_ML, MAX_DRAWN = 20.0, 40
ENDING = ".nii.gz"
#: Parameters that are recorded only if they differ from this default.
OPTIONAL = {"small_tumors": None, "pet": False, "modality": "ct", "plane": "axial"}


@dataclass(frozen=True)
class _CaseToMake:
    """One case to make; small and picklable, because it is sent to another process."""

    folder: Path
    case: str
    index: int
    test: bool
    seed: int
    size: int
    slices: int | None
    population: Population
    pet: bool
    modality: Modality
    plane: Plane

    @property
    def image(self) -> Path:
        return self.folder / ("imagesTs" if self.test else "imagesTr") / f"{self.case}_0000{ENDING}"

    @property
    def uptake(self) -> Path:
        return self.image.with_name(f"{self.case}_0001{ENDING}")

    @property
    def label(self) -> Path:
        return self.folder / ("labelsTs" if self.test else "labelsTr") / f"{self.case}{ENDING}"


def write_cohort(
    output: Path,
    *,
    cases: int = 20,
    slices: int | None = None,
    size: int = 512,
    seed: int = 0,
    workers: int = 0,
    test_fraction: float = 0.25,
    small_tumors: float | None = None,
    population: Population = "child",
    pet: bool = False,
    modality: Modality = "ct",
    plane: Plane = "axial",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write synthetic abdominal CT or MR with kidney and tumor labels, and the ground truth of every case.

    The folder is an nnU-Net v2 raw dataset (``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``, and
    ``labelsTs`` so that the test cases can be scored), with ``patients.csv`` (case, patient, age_years) and
    ``phantom.json`` (true pose, size and tumor of each case, see ``docs/phantom.md``). The axes are LPS; of
    other planes they are those of :func:`isopose.geometry.volume.axes_of`.

    Args:
        output: folder to write; an unfinished cohort of the same parameters in it is continued.
        cases: number of patients, one scan each.
        slices: slices per scan; None: as many as slice thickness (1 to 5 mm) and range need. If given, the
            margins around the kidneys are trimmed first, and the thickness exceeds 5 mm only where needed.
        size: columns and rows; pixels of 0.35 to 0.95 mm at 512, scaled by ``512 / size``.
        seed: seed of the cohort; case ``i`` depends on the seed and ``i`` only.
        workers: processes; 0 uses this one. The files are byte for byte the same.
        test_fraction: fraction of the cases, the last ones, that go to ``imagesTs``.
        small_tumors: fraction of the training cases, and of the test cases, with a tumor below
            :data:`SMALL_ML`; None: as the patients are drawn, about a sixth. With a fraction, patients of the
            same random sequence are skipped until there are enough of each kind.
        population: children from birth to 16 years, or adults.
        pet: write the uptake of a tracer as a second channel (:mod:`isopose.phantom.pet`).
        modality: ``ct``, or ``mr`` with one of four contrasts for each case, see :mod:`isopose.phantom.mr`.
        plane: of the slices; ``coronal`` and ``sagittal`` slices (MR only) are 3 to 6 mm thick.
        progress: called with (done, all) after every case.

    Returns:
        The folder.

    Raises:
        InputError: a parameter is out of range, or the folder contains something else.
    """
    output = Path(output)
    _check(cases, slices, size, seed, workers, test_fraction, small_tumors, population, modality)
    if pet and modality != "ct":
        raise InputError("phantom: the uptake of a tracer is drawn for CT only; leave one of the two out")
    _check_plane(plane, modality, size, slices)
    tests = min(round(cases * test_fraction), cases - 1)
    parameters: dict[str, Any] = {
        "version": VERSION, "cases": cases, "slices": slices, "size": size, "seed": seed, "test_cases": tests,
        "population": population,
    }  # fmt: skip
    optional = {"small_tumors": small_tumors, "pet": pet, "modality": modality, "plane": plane}
    parameters |= {name: value for name, value in optional.items() if value != OPTIONAL[name]}
    _begin(output, parameters)
    chosen = _choose(cases, tests, seed, small_tumors, population)
    planned = [
        _CaseToMake(
            output,
            f"phantom_{n:03d}",
            index,
            n >= cases - tests,
            seed,
            size,
            slices,
            population,
            pet,
            modality,
            plane,
        )
        for n, index in enumerate(chosen)
    ]
    truths = list(in_order(_make, planned, name=attrgetter("case"), workers=workers, progress=progress))
    write_text(output / "patients.csv", _patients(truths))
    _describe(output, population, modality, pet, cases - tests)
    write_json(output / TRUTH_FILE, {"parameters": parameters, "complete": True, "cases": truths})
    return output


def _describe(output: Path, population: Population, modality: Modality, pet: bool, training: int) -> None:
    """Write nnU-Net's description of the dataset."""
    write_json(output / "dataset.json", {
        "name": "isopose phantom",
        "description": f"synthetic abdominal {modality.upper()} ({population}), not patient data",
        "channel_names": {"0": modality.upper(), **({"1": "PET"} if pet else {})},
        "labels": {"background": 0, "kidney": KIDNEY, "tumor": TUMOR},
        "numTraining": training,
        "file_ending": ENDING,
    })  # fmt: skip


def _choose(
    cases: int, tests: int, seed: int, small_tumors: float | None, population: Population
) -> list[int]:
    """Return the indices of the patients of a seed to use: those for training, then those for testing.

    Training and test patients each have the requested fraction of small tumors. Patients are used in the
    order in which they are drawn, training first, so that their ages stay evenly spread.

    Raises:
        InputError: too few patients have a small tumor, or too few a larger one.
    """
    if small_tumors is None:
        return list(range(cases))
    parts: tuple[list[int], list[int]] = ([], [])
    left = []
    for count in (cases - tests, tests):
        few = round(small_tumors * count)
        left.append({True: few, False: count - few})
    for index in range(MAX_DRAWN * cases):
        wanted = {small for part in left for small, count in part.items() if count}
        if not wanted:
            break
        small = tumor_volume_ml(seed, index, population) < SMALL_ML
        for part, chosen in zip(left, parts, strict=True):
            if part[small]:
                part[small] -= 1
                chosen.append(index)
                break
    if any(count for part in left for count in part.values()):
        raise InputError(
            f"phantom: of {MAX_DRAWN * cases} patients too few have a tumor below {SMALL_ML:g} ml, or too "
            "few a larger one; choose another share of small tumors"
        )
    return [*parts[0], *parts[1]]


def _check(
    cases: int,
    slices: int | None,
    size: int,
    seed: int,
    workers: int,
    test_fraction: float,
    small_tumors: float | None,
    population: str,
    modality: str,
) -> None:
    """Check the parameters.

    Raises:
        InputError: one is out of range.
    """
    if not 1 <= cases <= 999_999:
        raise InputError(f"phantom: cases is {cases}, expected at least 1")
    if slices is not None and not 4 <= slices <= 2000:
        raise InputError(f"phantom: slices is {slices}, expected 4 to 2000, or none to let the range decide")
    if not 32 <= size <= 2048:
        raise InputError(f"phantom: size is {size}, expected 32 to 2048 pixels")
    if seed < 0:
        raise InputError(f"phantom: seed is {seed}, expected 0 or more")
    if workers < 0:
        raise InputError(f"phantom: workers is {workers}, expected 0 or more")
    if not 0.0 <= test_fraction < 1.0:
        raise InputError(f"phantom: the share of test cases is {test_fraction}, expected 0 to below 1")
    if small_tumors is not None and not 0.0 <= small_tumors <= 1.0:
        raise InputError(f"phantom: the share of small tumors is {small_tumors}, expected 0 to 1")
    if population not in get_args(Population):
        raise InputError(f"phantom: population {population!r} is unknown, expected child or adult")
    if modality not in get_args(Modality):
        raise InputError(f"phantom: modality {modality!r} is unknown, expected ct or mr")


def _check_plane(plane: str, modality: str, size: int, slices: int | None) -> None:
    """Check the plane of the slices.

    Raises:
        InputError: it is unknown, the phantoms are CT, or slices would be thinner than two pixels.
    """
    if plane not in get_args(Plane):
        raise InputError(f"phantom: plane {plane!r} is unknown, expected axial, coronal or sagittal")
    if plane == "axial":
        return
    if modality != "mr":
        raise InputError(f"phantom: {plane} slices are drawn in MR only; add --modality mr")
    if slices is not None and slices > size // MIN_SLICES:
        raise InputError(
            f"phantom: slices is {slices}, expected at most {size // MIN_SLICES} {plane} slices of {size} "
            "pixels"
        )


def _begin(output: Path, parameters: dict[str, Any]) -> None:
    """Start the cohort in its folder, or check that the folder holds it already."""
    output_folder(output)
    known = claim(
        output,
        output / TRUTH_FILE,
        parameters,
        within="parameters",
        other="holds a phantom cohort of other parameters ({names})",
        strange="is not empty and holds no phantom cohort",
    )
    # Parameters at their default are left out, so that cohorts made before they existed can be continued.
    other = [name for name in OPTIONAL if known and known["parameters"].get(name) != parameters.get(name)]
    if other:
        raise InputError(
            f"{output}: holds a phantom cohort of other parameters ({', '.join(other)}); choose another "
            "folder"
        )
    if known is None:
        write_json(output / TRUTH_FILE, {"parameters": parameters, "complete": False, "cases": []})


def _make(one: _CaseToMake) -> dict[str, Any]:
    """Render and write one case, or read its labels if it is complete; return its ground truth."""
    drawn = one.slices if one.plane == "axial" else None
    case = sample_case(one.seed, one.index, size=one.size, slices=drawn, population=one.population)
    scan, stack = case.scan, None
    if one.plane != "axial":
        stack = stack_of(scan, one.plane, one.slices, _own_generator(one, 5))
        scan = stack.scan
    shape = (scan.slices, scan.size, scan.size) if stack is None else stack.shape
    grid = scan.world_from_index if stack is None else stack.world_from_index
    anatomy, mr, facts = case.anatomy, None, {}
    if one.modality == "mr":
        anatomy, mr = drawn_for_mr(anatomy), mr_of(case)
        facts = {"sequence": mr.sequence, "noise": round(mr.noise, 4), "bias_sd": round(mr.bias_sd, 4)}
    labels = _existing(one, shape)
    if labels is None:
        image, labels = render(anatomy, case.pose, scan, texture_generator(case), mr=mr, noise=stack is None)
        if stack is not None:
            assert mr is not None, "stacks of other planes are MR"
            image, labels = stack.image(image, mr, _own_generator(one, 6)), stack.labels(labels)
        arrays = [(one.label, labels), (one.image, image)]
        if one.pet:
            spacing = (scan.pixel, scan.pixel, scan.thickness)
            arrays.insert(1, (one.uptake, render_uptake(image, labels, spacing, _own_generator(one, 4))))
        # The image is written last: if it exists, the case is complete.
        for path, array in arrays:
            volume = sitk.GetImageFromArray(array)
            spacing = np.linalg.norm(grid[:3, :3], axis=0)
            volume.SetSpacing(spacing.tolist())
            volume.SetDirection((grid[:3, :3] / spacing).ravel().tolist())
            volume.SetOrigin(grid[:3, 3].tolist())
            try:
                with replacing(path) as temporary:
                    sitk.WriteImage(volume, str(temporary), useCompression=True, compressionLevel=1)
                    if not is_complete(temporary):
                        raise OSError
            except (OSError, RuntimeError):
                raise IsoposeError(f"{path}: cannot be written; is the disk full or read-only?") from None
    role = "test" if one.test else "train"
    return {
        "case": one.case,
        "patient": one.case,
        "split": role,
        **truth(case, labels, None if stack is None else grid),
        **facts,
    }


def _own_generator(one: _CaseToMake, key: int) -> np.random.Generator:
    """Return a random generator that no other part of the case uses.

    Args:
        one: the case.
        key: 4 for the second channel's noise, 5 for the thickness of a stack's slices, 6 for its noise.
    """
    seed = np.random.SeedSequence([one.seed, one.index], spawn_key=(key,))
    return np.random.Generator(np.random.Philox(seed))


def _existing(one: _CaseToMake, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Return the labels of a complete case, else None."""
    files = [one.image, one.label, *([one.uptake] if one.pet else [])]
    if not all(file.is_file() and is_complete(file) for file in files):
        return None
    try:
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(one.label)))
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(one.image))
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return labels if labels.shape == shape and reader.GetSize()[::-1] == shape else None


def _patients(truths: list[dict[str, Any]]) -> str:
    """Return ``patients.csv`` as text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "age_years"])
    writer.writerows([t["case"], t["patient"], t["age_years"]] for t in truths)
    return text.getvalue()
