import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isopose.errors import InputError
from isopose.io.cases import Case, check_all_usable, dataset_of
from isopose.io.datasets import open_dataset
from isopose.labels import Labels


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def described(root, **content):
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def v2(root, **changes):
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": 1, "tumor": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    } | changes
    return described(root, **{k: v for k, v in content.items() if v is not None})


def refused(path, *words, labels=None):
    with pytest.raises(InputError) as error:
        open_dataset(path, labels)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_nnunet_v2_layout_is_read(tmp_path):
    v2(tmp_path)
    touch(tmp_path, "imagesTr/b_0000.nii.gz", "imagesTr/a_1_0000.nii.gz", "imagesTr/._b_0000.nii.gz")
    touch(tmp_path, "labelsTr/b.nii.gz", "labelsTr/lonely.nii.gz")
    touch(tmp_path, "imagesTs/t_0000.nii.gz", "imagesTs/u_0000.nii.gz", "labelsTs/t.nii.gz")
    expected = (
        # Each partner that is not there is expected, so that the check can miss it.
        Case(
            "a_1",
            tmp_path / "imagesTr/a_1_0000.nii.gz",
            tmp_path / "labelsTr/a_1.nii.gz",
            "a_1",
            None,
            "train",
        ),
        Case("b", tmp_path / "imagesTr/b_0000.nii.gz", tmp_path / "labelsTr/b.nii.gz", "b", None, "train"),
        Case(
            "lonely",
            tmp_path / "imagesTr/lonely_0000.nii.gz",
            tmp_path / "labelsTr/lonely.nii.gz",
            "lonely",
            None,
            "train",
        ),
        Case("t", tmp_path / "imagesTs/t_0000.nii.gz", tmp_path / "labelsTs/t.nii.gz", "t", None, "test"),
        Case("u", tmp_path / "imagesTs/u_0000.nii.gz", None, "u", None, "test"),
    )
    for path in (tmp_path, tmp_path / "dataset.json"):
        dataset = open_dataset(path)
        assert dataset.cases == expected
        assert (dataset.layout, dataset.root, dataset.name) == ("nnunet", tmp_path, tmp_path.name)
        assert dict(dataset.labels.values) == {"kidney": 1, "tumor": 2}
        assert dict(dataset.labels.unions) == {"kidney+tumor": ("kidney", "tumor")}
    assert dict(open_dataset(tmp_path, {"mass": 7}).labels.values) == {"mass": 7}


def test_regions_of_nnunet_are_read(tmp_path):
    touch(tmp_path, "imagesTr/b_0000.nii.gz")
    labels = open_dataset(
        v2(
            tmp_path,
            labels={"background": 0, "organ": [1, 2, 3], "mass": [2, 3], "tumor": 2},
            regions_class_order=[1, 3, 2],
        )
    ).labels
    assert dict(labels.values) == {"tumor": 2, "label_1": 1, "label_3": 3}
    assert dict(labels.unions) == {"organ": ("label_1", "tumor", "label_3"), "mass": ("tumor", "label_3")}
    assert list(labels.regions.items()) == [("organ", 1), ("mass", 3), ("tumor", 2)]
    assert labels.loss_targets() == {"organ": (1, 2, 3), "mass": (2, 3), "tumor": (2,)}
    labels = open_dataset(
        v2(
            tmp_path,
            labels={"background": 0, "both": [1, 2], "kidney": [1], "tumor": 2, "ignore": 3},
            regions_class_order=[1, 1, 2],
        )
    ).labels
    assert labels.ignore == 3
    assert dict(labels.values) == {"kidney": 1, "tumor": 2}
    assert dict(labels.unions) == {"both": ("kidney", "tumor")}


def test_explicit_paths_of_nnunet_are_read(tmp_path):
    entry = {"images": ["scans/x.nii.gz"], "label": "truth/x.nii.gz"}
    case = open_dataset(v2(tmp_path, dataset={"x": entry})).cases[0]
    assert (case.image, case.label) == (tmp_path / "scans/x.nii.gz", tmp_path / "truth/x.nii.gz")
    for images, word in (
        (["../x.nii.gz"], "leaves"),
        (["/x.nii.gz"], "leaves"),
        (["a", "b"], "2 images"),
        ([3], "got 3"),
    ):
        refused(v2(tmp_path, dataset={"x": entry | {"images": images}}), word)
    refused(v2(tmp_path, dataset={"x": {"images": ["a"]}}), "'images' (a list) and 'label'")
    refused(v2(tmp_path, dataset=["x"]), "object of case names")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"labels": None}, "'labels' is missing"),
        ({"channel_names": None}, "'channel_names' is missing"),
        ({"file_ending": None}, "'file_ending' is missing"),
        ({"channel_names": {}}, "'channel_names' to name the channels 0, 1"),
        ({"channel_names": {"1": "CT"}}, "'channel_names' to name the channels 0, 1"),
        ({"channel_names": {"0": "MR", "1": "MR"}}, "channel names must be unique"),
        ({"file_ending": ".png"}, "'.png' cannot be read"),
        ({"file_ending": 3}, "cannot be read"),
        ({"labels": {"background": 0, "kidney": 2, "ignore": 1}}, "expected the highest of all"),
        ({"labels": {"background": 0, "kidney": 2, "ignore": 0}}, "expected the highest of all"),
        ({"labels": {"background": 0, "kidney": 2, "ignore": [3]}}, "not a region"),
        ({"labels": {"background": 0, "both": [1, 2], "tumor": 2}}, "'regions_class_order' to list 2"),
        ({"labels": {"both": [1, 2], "tumor": 2}, "regions_class_order": [1]}, "got [1]"),
        ({"labels": {"both": [1, 2], "tumor": 2}, "regions_class_order": [1, True]}, "got [1, True]"),
        (
            {"labels": {"both": [1, 2], "tumor": 2}, "regions_class_order": [3, 2]},
            "writes 3 for region 'both'",
        ),
        ({"labels": {"both": [1, 2], "tumor": 2}, "regions_class_order": [2, 2]}, "where the value is 1"),
        ({"labels": {"tumor": 2, "both": [1, 2]}, "regions_class_order": [2, 1]}, "where the value is 2"),
        ({"labels": {"all": [0, 1], "tumor": 2}, "regions_class_order": [1, 2]}, "'all' holds 0"),
        ({"labels": {"background": 0}}, "at least one label"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "used twice"),
        ({"labels": {"background": 0, "a": "1"}}, "label 'a' has value '1'"),
        ({"labels": {"background": 0, "a": []}}, "label 'a' has value []"),
        ({"labels": {"background": 0, "a": 300}}, "from 1 to 255"),
        ({"labels": ["kidney"]}, "object of names"),
    ],
)
def test_invalid_nnunet_datasets_are_refused(tmp_path, changes, word):
    touch(tmp_path, "imagesTr/b_0000.nii.gz")
    refused(v2(tmp_path, **changes), "dataset.json", word)


def test_case_names_of_nnunet(tmp_path):
    v2(tmp_path)
    refused(tmp_path, "no cases")
    touch(tmp_path, "imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz")
    refused(tmp_path, "b_0001.nii.gz", "expected 1 channel (CT)", "got _0001")
    (tmp_path / "imagesTr/b_0001.nii.gz").rename(tmp_path / "imagesTr/c.nii.gz")
    refused(tmp_path, "c.nii.gz", "_0000.nii.gz")
    (tmp_path / "imagesTr/c.nii.gz").rename(tmp_path / "imagesTr/B_0000.nii.gz")
    refused(tmp_path, "'B' and 'b'")
    (tmp_path / "imagesTr/B_0000.nii.gz").unlink()
    touch(tmp_path, "imagesTs/b_0000.nii.gz")
    refused(tmp_path, "'b' and 'b'")


def decathlon(root, **changes):
    content = {
        "name": "Kidneys",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "kidney", "2": "tumor"},
        "training": [{"image": "./imagesTr/k_1.nii.gz", "label": "./labelsTr/k_1.nii.gz"}],
        "test": ["./imagesTs/k_2.nii.gz"],
    } | changes
    return described(root, **{k: v for k, v in content.items() if v is not None})


def test_decathlon_layout_is_read(tmp_path):
    fork = {"image": "./imagesTr/._k_1.nii.gz", "label": "./labelsTr/._k_1.nii.gz"}
    pair = {"image": "./imagesTr/k_1.nii.gz", "label": "./labelsTr/k_1.nii.gz"}
    dataset = open_dataset(decathlon(tmp_path, training=[fork, pair]))
    assert dataset.layout == "decathlon"
    assert dataset.name == "Kidneys"
    assert dataset.cases == (
        Case("k_1", tmp_path / "imagesTr/k_1.nii.gz", tmp_path / "labelsTr/k_1.nii.gz", "k_1", None, "train"),
        Case("k_2", tmp_path / "imagesTs/k_2.nii.gz", None, "k_2", None, "test"),
    )
    assert dict(dataset.labels.values) == {"kidney": 1, "tumor": 2}
    assert dict(dataset.labels.unions) == {"kidney+tumor": ("kidney", "tumor")}


def test_nnunet_v1_numbers_its_files(tmp_path):
    touch(tmp_path, "imagesTr/k_1_0000.nii.gz", "labelsTr/k_1.nii.gz")
    case = open_dataset(decathlon(tmp_path)).cases[0]
    assert (case.id, case.image) == ("k_1", tmp_path / "imagesTr/k_1_0000.nii.gz")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"modality": {"0": "T2", "1": "ADC"}}, "one modality"),
        ({"labels": None}, "'labels' is missing"),
        ({"training": None}, "'training' is missing"),
        ({"training": [{"image": "../../etc/passwd", "label": "x"}]}, "leaves"),
        ({"training": [{"image": "a.nii.gz", "label": "/x.nii.gz"}]}, "leaves"),
        ({"training": ["a.nii.gz"]}, "has no 'label'"),
        ({"training": [{"label": "a.nii.gz"}]}, "got None"),
        ({"training": "a.nii.gz"}, "list of train cases"),
        ({"labels": {"kidney": 1}}, "map values to names"),
        ({"labels": {"0": "b", "1": "k", "2": "k"}}, "'k' is used twice"),
        ({"test": ["./imagesTr/k_1.nii.gz"]}, "must be unique"),
    ],
)
def test_invalid_decathlon_datasets_are_refused(tmp_path, changes, word):
    refused(decathlon(tmp_path, **changes), word)


def test_kits19_layout_is_read(tmp_path):
    for name in ("case_00001", "case_00209", "case_00210"):
        touch(tmp_path, f"data/{name}/imaging.nii.gz")
    touch(tmp_path, "data/case_00001/segmentation.nii.gz")
    ages = [
        {"case_id": "case_00001", "age_at_nephrectomy": 49},
        {"case_id": "case_00209", "age_at_nephrectomy": None},
    ]
    (tmp_path / "data/kits.json").write_text(json.dumps(ages))
    for path in (tmp_path, tmp_path / "data"):
        dataset = open_dataset(path)
        assert dataset.layout == "kits19"
        assert [(c.id, c.label and c.label.name, c.age_years, c.split) for c in dataset.cases] == [
            ("case_00001", "segmentation.nii.gz", 49.0, None),
            ("case_00209", "segmentation.nii.gz", None, None),  # not there: for the check to miss
            ("case_00210", None, None, "test"),
        ]
        assert dict(dataset.labels.values) == {"kidney": 1, "tumor": 2}
    (tmp_path / "data/kits.json").write_text('{"case_00001": 3}')
    refused(tmp_path, "kits.json", "list of patients")


@pytest.mark.parametrize(
    ("extra", "label"),
    [
        ("case_00001/aggregated_MAJ_seg.nii.gz", "aggregated_MAJ_seg.nii.gz"),
        ("case_00001/instances/kidney.nii.gz", "segmentation.nii.gz"),
        ("kits23.json", "segmentation.nii.gz"),
    ],
)
def test_kits21_and_kits23_layouts_are_read(tmp_path, extra, label):
    touch(tmp_path, "case_00001/imaging.nii.gz", "case_00001/segmentation.nii.gz", extra)
    if extra.endswith("json"):
        (tmp_path / extra).write_text('[{"case_id": "case_00001", "age_at_nephrectomy": 7}]')
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "kits21"
    assert dataset.cases[0].label == tmp_path / "case_00001" / label
    assert dict(dataset.labels.values) == {"kidney": 1, "tumor": 2, "cyst": 3}
    assert dict(dataset.labels.unions)["tumor+cyst"] == ("tumor", "cyst")
    assert dict(open_dataset(tmp_path, {"kidney": 1}).labels.values) == {"kidney": 1}


def test_only_kits19_has_cases_without_label(tmp_path):
    touch(tmp_path, "case_00001/instances/kidney.nii.gz", "case_00400/imaging.nii.gz")
    case = open_dataset(tmp_path).cases[1]
    assert case == Case(
        "case_00400",
        tmp_path / "case_00400/imaging.nii.gz",
        tmp_path / "case_00400/segmentation.nii.gz",
        "case_00400",
    )


def test_manifest_is_read(tmp_path):
    path = tmp_path / "cohort.csv"
    path.write_bytes(
        b"\xef\xbb\xbfImage;Label;patient;age;split;remark\r\n"
        b"a/one.nii.gz;a/one_seg.nii.gz;P1;0,5;train;x\r\n"
        + b"/abs/two.NRRD;;P1;;;\r\n\r\n../dicom/three;l.mha;;16;VAL;"
    )
    dataset = open_dataset(path)
    assert dataset.cases == (
        Case("one", tmp_path / "a/one.nii.gz", tmp_path / "a/one_seg.nii.gz", "P1", 0.5, "train"),
        Case("three", tmp_path / "../dicom/three", tmp_path / "l.mha", "three", 16.0, "val"),
        Case("two", path.__class__("/abs/two.NRRD"), None, "P1", None, None),
    )
    assert (dataset.name, dataset.layout) == ("cohort", "manifest")
    assert dict(dataset.labels.values) == {"kidney": 1, "tumor": 2}
    assert dict(open_dataset(path, {"spleen": 9}).labels.values) == {"spleen": 9}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("column 'image'", "none")),
        ("label\nx", ("column 'image'", "got label")),
        ("image,label,image\nx,y,z", ("has the column 'image' twice",)),
        ("image,label\n", ("no cases",)),
        ("image,label\nx.nii,\n,y", ("line 3", "no image")),
        ("image,label\nx.nii,y,z", ("line 2 has 3 cells",)),
        ("image,label,age\nx.nii,,old", ("line 2", "'old'")),
        ("image,label,age\nx.nii,,-1", ("'-1'",)),
        ("image,label,age\nx.nii,,nan", ("'nan'",)),
        ("image,label,split\nx.nii,,dev", ("'dev'", "train, val, test")),
        ("image,label\na/imaging.nii.gz,\nb/imaging.nii.gz,", ("must be unique", "'imaging'")),
        ("image,label,case\nx.nii,,../up", ("'../up'", "file name")),
        ('image,label\n"x.nii,', ("cannot be read",)),
    ],
)
def test_invalid_manifests_are_refused(tmp_path, text, words):
    path = tmp_path / "m.csv"
    path.write_text(text)
    refused(path, *words)


def test_a_manifest_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes("image,label\nübung.nii,".encode("latin-1"))
    refused(path, "UTF-8")


def test_patients_and_ages_come_from_the_table(tmp_path):
    touch(tmp_path, *(f"imagesTr/{name}_0000.nii.gz" for name in "abc"))
    v2(tmp_path)
    table = tmp_path / "patients.csv"
    table.write_text("case,patient,age_years\na,P1,2.5\nb,P1,\nelsewhere,P2,1\n")
    result = [(c.id, c.patient, c.age_years) for c in open_dataset(tmp_path).cases]
    assert result == [("a", "P1", 2.5), ("b", "P1", None), ("c", "c", None)]
    for text, word in (
        ("case,patient\na,P1\na,P2\n", "line 3 lists case 'a' again"),
        ("case,patient\na,\n", "line 2 needs both"),
        ("case,patient\nx,P1\n", "none of its cases"),
        ("case,age_years\na,3\n", "column 'patient'"),
        ("case,patient,age_years\na,P,x\n", "'x'"),
    ):
        table.write_text(text)
        refused(tmp_path, "patients.csv", word)


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    refused(tmp_path / "none", "no such dataset")
    refused(tmp_path, "not a known dataset")
    touch(tmp_path, "scan.nii.gz")
    refused(tmp_path / "scan.nii.gz", "not a known dataset")
    described(tmp_path, foo=1)
    refused(tmp_path, "channel_names", "got foo")
    (tmp_path / "dataset.json").write_text("[1]")
    refused(tmp_path, "JSON object, got list")
    (tmp_path / "dataset.json").write_text("{")
    refused(tmp_path, "cannot be read")
    refused(tmp_path, "labels", labels={"kidney": 0})


@pytest.mark.parametrize("name", ["-x", "x.", "a:b", "x" * 151])
def test_the_message_about_an_invalid_case_id_names_allowed_characters(tmp_path, name):
    dataset = dataset_of("d", "scans", tmp_path, Labels({}), [Case(name, tmp_path, None, name)])
    with pytest.raises(InputError) as error:
        check_all_usable(dataset)
    assert [(one.name, one.problem) for one in dataset.unusable] == [(name, str(error.value))]
    assert str(error.value) == (
        f"{tmp_path}: case id {name!r} cannot be a file name; rename it: letters, digits, dots, dashes and "
        "underscores, the first and the last a letter or digit, at most 150 of them"
    )


@given(st.text(max_size=12))
def test_case_ids_are_safe_file_names(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp()
    try:
        check_all_usable(
            dataset_of("d", "manifest", root, Labels.create({"k": 1}), [Case(name, root, None, name)])
        )
    except InputError:
        return
    path = root / name
    assert path.parent == root
    assert path.name == name
    assert not name.startswith((".", "-"))
    assert "\\" not in name


def test_an_ignore_value_is_read_in_every_layout(tmp_path):
    touch(tmp_path, "imagesTr/b_0000.nii.gz")
    labels = open_dataset(v2(tmp_path, labels={"background": 0, "kidney": 1, "ignore": 2})).labels
    assert (dict(labels.values), labels.ignore) == ({"kidney": 1}, 2)
    manifest = tmp_path / "scans.csv"
    manifest.write_text("image,label\na.nii.gz,b.nii.gz\n")
    labels = open_dataset(manifest, {"kidney": 1, "ignore": 200}).labels
    assert (dict(labels.values), labels.ignore) == ({"kidney": 1}, 200)


def test_channels_of_a_dataset_have_names(tmp_path):
    v2(tmp_path / "v2", channel_names={"0": "T2 fs"})
    touch(tmp_path / "v2", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz")
    assert open_dataset(tmp_path / "v2").channels == ("T2 fs",)
    assert open_dataset(decathlon(tmp_path / "msd", modality={"0": "MRI"})).channels == ("MRI",)
    touch(tmp_path / "kits", "case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz")
    assert open_dataset(tmp_path / "kits").channels == ("CT",)
