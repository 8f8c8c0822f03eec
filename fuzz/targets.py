"""What is damaged, and what isopose is asked to do with it."""

import io
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import mutations
import planes
from oracles import truth_of
from oracles_nifti import nifti_truth
from unusual_dicom import unusual_dicom
from unusual_itk import unusual_itk
from unusual_nifti import unusual_nifti

#: Damages the files of a copied folder.
Damage = Callable[[Path, Random], None]
#: Reads it; may raise what isopose foresees.
Act = Callable[[Path], None]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Args:
        name: of the folder of seeds.
        damage: what is done to a copy of it; an unusual input is made from nothing.
        act: what is done with the copy, in a process of its own; returns where it is accepted.
        command: the same as a command line, run now and then in place of it.
        after: what is looked at where the command ended well.
    """

    name: str
    damage: Damage
    act: Act
    command: Callable[[Path, Path], list[str]]
    after: Act | None = None


def _packed_or_not(folder: Path, draw: Random) -> None:
    """One file of a folder, the others are removed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    chosen = draw.choice(files)
    for path in files:
        if path != chosen:
            path.unlink()
    _change(chosen, draw)


def _change(path: Path, draw: Random) -> None:
    """By what the name says is in it."""
    data = path.read_bytes()
    packed = data[:2] == b"\x1f\x8b"
    if packed and draw.random() < 0.02:
        path.write_bytes(mutations.bomb(draw))
    elif packed:
        path.write_bytes(mutations.damaged_packed(data, draw))
    elif path.suffix == ".json":
        path.write_bytes(mutations.damaged_json(data, draw))
    elif path.suffix in (".csv", ".toml", ".nhdr", ".mhd"):
        path.write_bytes(mutations.damaged_text(data, draw))
    elif path.suffix in (".nrrd", ".mha") and draw.random() < 0.5:
        # The head of these is text that ends before the packed voxels.
        end = (data.find(b"\n\n") if path.suffix == ".nrrd" else data.find(b"ElementDataFile")) + 1
        path.write_bytes(mutations.damaged_text(data[:end], draw) + data[end:])
    else:
        path.write_bytes(mutations.damaged_bytes(data, draw))


def _one_of_many(folder: Path, draw: Random) -> None:
    """One or two files of a folder whose others stay as they are, or a name among them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in draw.sample(files, min(len(files), draw.choice((1, 1, 2)))):
        act = draw.random()
        if act < 0.75:
            _change(path, draw)
        elif act < 0.80:
            path.unlink()
        elif act < 0.85:
            path.unlink()
            path.symlink_to(draw.choice((path.name, "..", "/dev/zero", "/etc/passwd", "absent", ".")))
        elif act < 0.90:
            path.unlink()
            path.mkdir()
        else:
            name = draw.choice(
                (b"\xff\xfe.nii.gz", b" .nii.gz", b"-x.nii.gz", b"a b\n.nii.gz", b"\x1b[31m.dcm")
            )
            os.rename(os.fsencode(path), os.path.join(os.fsencode(path.parent), name))


def _text_files(folder: Path, draw: Random) -> None:
    """A dataset's descriptions rather than its images."""
    texts = [path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".csv", ".toml")]
    if texts and draw.random() < 0.7:
        _change(draw.choice(texts), draw)
    else:
        _one_of_many(folder, draw)


def _only(folder: Path) -> Path:
    """The file that was damaged; a detached header stands for its voxels."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    heads = [path for path in files if path.suffix in (".mhd", ".nhdr")]
    return (heads or files)[0]


def _one_format(folder: Path, draw: Random) -> None:
    """MetaImage or NRRD, in one file or two."""
    kept = draw.choice(sorted(folder.iterdir()))
    for other in list(folder.iterdir()):
        if other != kept:
            shutil.rmtree(other)
    heads = sorted(kept.iterdir())
    kind = draw.choice([path for path in heads if path.suffix != ".raw"])
    for path in heads:
        if path.suffix not in (kind.suffix, ".raw"):
            path.unlink()
    _change(draw.choice(sorted(kept.iterdir())), draw)


def _read(folder: Path) -> None:
    from isopose.io.images import read_volume

    path = _only(folder)
    volume = read_volume(path)
    _sound(volume)
    if path.name.endswith((".nii", ".nii.gz")):
        _as_others_read(path, volume)


def _as_others_read(path: Path, volume: Any) -> None:
    """Where nibabel and SimpleITK read a damaged file as well, they find the same values and places."""
    import numpy as np

    try:
        truth = nifti_truth(path.read_bytes())
    except planes.MustBeRefused as error:
        truth = planes.Truth(refuse=str(error))
    except planes.Differs:
        raise
    except Exception:  # in as many ways as a header can be damaged
        return
    # Of places that are far away float32 keeps fewer digits.
    tolerance = max(
        2 * planes.PLACES, 1e-6 * float(np.abs(volume.world_from_index).max()) * max(volume.array.shape)
    )
    found = planes.difference(volume.array, volume.world_from_index, truth, tolerance)
    if found:
        raise planes.Differs(found)


def _sound(volume: Any) -> None:
    import numpy as np

    assert np.isfinite(volume.array).all(), "values that are not finite were accepted"
    assert np.isfinite(volume.world_from_index).all(), "a grid that is not finite was accepted"
    assert (volume.spacing > 0).all(), "voxels without size were accepted"
    direction = volume.direction
    assert np.allclose(direction.T @ direction, np.eye(3), atol=2e-2), "a sheared grid was accepted"


def _given(folder: Path) -> Path:
    """What the note of an unusual input says that isopose is given."""
    return folder / _note(folder).scan


def _note(folder: Path) -> planes.Note:
    note = planes.note_of(folder)
    assert note is not None, "an unusual input has a note"
    return note


def _read_alike(folder: Path) -> None:
    """Values and places as independent readers find them."""
    from isopose.errors import IsoposeError
    from isopose.io.images import read_volume

    note = _note(folder)
    truth = truth_of(folder, note)
    try:
        volume = read_volume(folder / note.scan)
    except IsoposeError as error:
        if "secret" in str(error).lower():
            raise planes.Differs(f"names the patient: {error}") from None
        raise
    _sound(volume)
    found = planes.difference(volume.array, volume.world_from_index, truth, note.tolerance)
    if found:
        raise planes.Differs(f"{found} ({', '.join(note.kinds)})")


def _written_alike(folder: Path) -> None:
    """The label map lies where independent readers find the scan."""
    import nibabel as nib
    import numpy as np

    note = _note(folder)
    (written,) = (folder / "out").rglob("*.nii.gz")
    labels = nib.Nifti1Image.from_filename(written)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ labels.affine
    truth = planes.places_only(truth_of(folder, note))
    found = planes.difference(np.zeros(labels.shape[::-1]), lps, truth, note.tolerance + planes.PLACES)
    if found:
        raise planes.Differs(f"the label map: {found} ({', '.join(note.kinds)})")


def _series(folder: Path) -> Path:
    """The folder or the archive, chosen by the sizes of the files, so that both are tried and it repeats."""
    places = [folder / "series.zip", folder / "series"]
    number = sum(path.stat().st_size for path in folder.rglob("*.dcm") if path.is_file()) % 2
    return places[number] if places[number].exists() else places[1 - number]


def _read_series(folder: Path) -> None:
    from isopose.io.images import read_volume

    _sound(read_volume(_series(folder)))


def _dataset(folder: Path) -> Path:
    """The layout that was damaged; the others are removed before."""
    (layout,) = [path for path in folder.iterdir() if path.is_dir()]
    return layout / "cases.csv" if layout.name == "manifest" else layout


def _one_layout(folder: Path, draw: Random) -> None:
    kept = draw.choice(sorted(folder.iterdir()))
    for other in list(folder.iterdir()):
        if other != kept:
            shutil.rmtree(other)
    _text_files(kept, draw)


def _check(folder: Path) -> None:
    from isopose.data.check import check_dataset
    from isopose.io.datasets import open_dataset

    for problem in check_dataset(open_dataset(_dataset(folder))):
        assert problem.message, "a problem without a word"


def _configure(folder: Path) -> None:
    from isopose.presets import load_config

    load_config("default", _only(folder))


def _load(folder: Path) -> None:
    from isopose.models.folder import load_model

    load_model(folder / "model")


def _model(folder: Path, draw: Random) -> None:
    """Damage a file of the model; half the time, update the recorded hash to match the damaged weights."""
    _one_of_many(folder, draw)
    manifest, weights = folder / "model" / "model.json", folder / "model" / "weights.safetensors"
    if draw.random() < 0.5 and manifest.is_file() and weights.is_file() and not weights.is_symlink():
        import json

        from isopose.files import sha256

        try:
            values = json.loads(manifest.read_text("utf-8"))
            values["weights_sha256"] = sha256(weights)
            manifest.write_text(json.dumps(values))
        except (ValueError, TypeError, UnicodeError):
            return


def _restore(folder: Path) -> None:
    from isopose.homogenize.restore import restore
    from isopose.progress import Silent

    homogenized = folder / "homogenized"
    restore(homogenized / "labelsTr", homogenized, folder / "out", reporter=Silent())


def _open_store(folder: Path) -> None:
    from isopose.data.samples import Slices
    from isopose.data.store import open_store

    (store,) = [path for path in folder.iterdir() if path.is_dir()]
    opened = open_store(store)
    slices = Slices(opened.cases)
    for _ in slices.batches(4):
        pass


def _resume(folder: Path) -> None:
    import torch

    from isopose.training.checkpoint import load_checkpoint

    optimizer = torch.optim.SGD(torch.nn.Linear(3, 2).parameters(), lr=0.1, momentum=0.9)
    load_checkpoint(folder / "unet.safetensors", optimizer)


def _predict_with(scan: Callable[[Path], Path]) -> Callable[[Path, Path], list[str]]:
    def command(folder: Path, seeds: Path) -> list[str]:
        model = seeds / "model" / "model"
        return ["predict", str(model), str(scan(folder)), "--output", str(folder / "out")]

    return command


TARGETS = (
    Target("nifti", _packed_or_not, _read, _predict_with(_only)),
    Target("itk", _one_format, _read, _predict_with(_only)),
    Target("dicom", _one_of_many, _read_series, _predict_with(_series)),
    Target("dataset", _one_layout, _check, lambda folder, _: ["check", str(_dataset(folder))]),
    Target(
        "config",
        _packed_or_not,
        _configure,
        lambda folder, seeds: [
            *("fit", str(seeds / "dataset" / "nnunet"), "--model", str(folder / "m")),
            *("--config", str(_only(folder)), "--set", "train.fold=7", "--set", "train.folds=9"),
        ],
    ),
    Target(
        "model",
        _model,
        _load,
        lambda folder, seeds: [
            *("predict", str(folder / "model"), str(seeds / "nifti" / "int16.nii.gz")),
            *("--output", str(folder / "out")),
        ],
    ),
    Target(
        "record",
        _one_of_many,
        _restore,
        lambda folder, _: [
            *("restore", str(folder / "homogenized" / "labelsTr")),
            *("--homogenized", str(folder / "homogenized"), "--output", str(folder / "out")),
        ],
    ),
    Target(
        "store",
        _one_of_many,
        _open_store,
        lambda folder, seeds: [
            *("fit", str(seeds / "dataset" / "nnunet"), "--model", str(folder / "m"), "--store", str(folder)),
            *("--set", "data.size=64", "--fold", "0"),
        ],
    ),
    Target("checkpoint", _packed_or_not, _resume, lambda folder, _: ["check", str(folder)]),
    # Not damaged, but unlike what is read every day; what is read is compared.
    Target("unusual-dicom", unusual_dicom, _read_alike, _predict_with(_given), _written_alike),
    Target("unusual-nifti", unusual_nifti, _read_alike, _predict_with(_given), _written_alike),
    Target("unusual-itk", unusual_itk, _read_alike, _predict_with(_given), _written_alike),
)
BY_NAME = {target.name: target for target in TARGETS}


def run_command(arguments: list[str]) -> tuple[int, str]:
    """A command line in this process: exit code and what stood on standard error and output."""
    from isopose import cli

    sys.argv = ["isopose", *arguments]
    heard = io.StringIO()
    try:
        with redirect_stdout(heard):
            cli.main()
    except SystemExit as end:
        return int(end.code or 0), heard.getvalue()
    raise AssertionError("the command line came back")
