"""Names with accents match in NFC and NFD; texts with a byte order mark are read."""

import json
import unicodedata

import pytest

from bright import make_scene
from isopose.data.check import check_dataset
from isopose.errors import InputError
from isopose.evaluation.evaluate import evaluate, open_truth
from isopose.files import as_stored, composed, read_json, read_text
from isopose.io.datasets import open_dataset
from isopose.io.images import write_image, write_labels
from isopose.io.scans import find_scans
from isopose.presets import load_config

NFC, NFD = (unicodedata.normalize(form, "Käthe_Ñ") for form in ("NFC", "NFD"))
HERE = make_scene(slices=4)
LABELS = {"kidney": 1, "tumor": 7}


def test_nfc_and_nfd_spellings_differ():
    assert NFC != NFD
    assert composed(NFD) == composed(NFC) == NFC


def image(path):
    write_image(HERE.volume, path)


def labels(path):
    write_labels(HERE.volume.with_array(HERE.truth), path)


@pytest.mark.parametrize(("one", "other"), [(NFC, NFD), (NFD, NFC)])
def test_nnunet_folders_match_names_in_either_normalization(tmp_path, one, other):
    image(tmp_path / "imagesTr" / f"{one}_0000.nii.gz")
    labels(tmp_path / "labelsTr" / f"{other}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    (tmp_path / "patients.csv").write_text(f"case,patient\n{other},P\n", encoding="utf-8")
    dataset = open_dataset(tmp_path)
    (case,) = dataset.cases
    assert (case.id, case.patient) == (NFC, "P")
    assert check_dataset(dataset) == []
    (tmp_path / "imagesTr" / f"{other}_0000.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="another file in its folder is also named"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(("one", "other"), [(NFC, NFD), (NFD, NFC)])
@pytest.mark.parametrize("layout", ["manifest", "decathlon", "nnunet"])
def test_listed_files_match_names_in_either_normalization(tmp_path, one, other, layout):
    image(tmp_path / one / f"{one}.nii.gz")
    labels(tmp_path / one / f"{other}_l.nii.gz")
    image_path, label_path = f"{other}/{other}.nii.gz", f"{one}/{one}_l.nii.gz"
    if layout == "manifest":
        path = tmp_path / "list.csv"
        path.write_text(f"image;label\n{image_path};{label_path}\n", encoding="utf-8-sig")
    else:
        path = tmp_path / "dataset.json"
        entry = {"image": image_path, "label": label_path}
        content = {"modality": {"0": "CT"}, "labels": {"1": "kidney", "7": "tumor"}, "training": [entry]}
        if layout == "nnunet":
            content = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
            content["dataset"] = {other: {"images": [image_path], "label": label_path}}
        path.write_text(json.dumps(content), encoding="utf-8-sig")
    dataset = open_dataset(path, LABELS)
    assert [case.id for case in dataset.cases] == [NFC]
    assert check_dataset(dataset) == []


def test_an_exact_name_is_preferred(tmp_path):
    (tmp_path / NFD).mkdir()
    (tmp_path / NFD / "a").write_text("")
    assert as_stored(tmp_path / NFC / "a") == tmp_path / NFD / "a"
    assert as_stored(tmp_path / NFC / "b") == tmp_path / NFC / "b"
    (tmp_path / NFC).mkdir()
    assert as_stored(tmp_path / NFC / "a") == tmp_path / NFC / "a"


@pytest.mark.parametrize(("one", "other"), [(NFC, NFD), (NFD, NFC)])
def test_scans_and_evaluations_match_names_in_either_normalization(tmp_path, one, other):
    image(tmp_path / "in" / f"{one}_0000.nii.gz")
    assert [scan.name for scan in find_scans([tmp_path / "in"])] == [NFC]
    labels(tmp_path / "found" / f"{one}.nii.gz")
    labels(tmp_path / "truth" / f"{other}.nii.gz")
    evaluation = evaluate(tmp_path / "found", *open_truth(tmp_path / "truth", LABELS))
    assert [case.case for case in evaluation.cases] == [NFC]
    assert evaluation.cases[0].scores["kidney"].dice == 1.0


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_is_ignored(tmp_path, mark):
    (tmp_path / "a.json").write_text(mark + '{"a": 1}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    for name, text in (("c.toml", "[train]\nseed = 7\n"), ("c.json", '{"train": {"seed": 7}}')):
        (tmp_path / name).write_text(mark + text, encoding="utf-8")
        assert load_config("default", tmp_path / name).train.seed == 7
    (tmp_path / "a.txt").write_bytes(mark.encode() + b"a\r\nb\rc\n")
    assert read_text(tmp_path / "a.txt", "a text") == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("image,label\na,b\nä,c\n".encode("latin-1"), 3),
        ("image,label\r\na,b\r\nc,d\r\nä,c\r\n".encode("latin-1"), 4),
        ("image,label\ra,b\rä,c\r".encode("latin-1"), 3),
        ("ä,label\n".encode("cp1252"), 1),
        ("image,label\n".encode("utf-16"), 1),
    ],
)
def test_a_table_that_is_not_utf8_is_refused_with_its_line(tmp_path, content, line):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(
        InputError, match=rf"list\.csv: expected .*line {line} is not UTF-8; save it as UTF-8"
    ):
        open_dataset(tmp_path / "list.csv")
