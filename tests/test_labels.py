import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isopose.errors import InputError
from isopose.labels import IGNORED, Labels, class_colors, mirrored_classes, voxels_of

values = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.integers(1, 255), min_size=1, max_size=8
).filter(lambda d: len(set(d.values())) == len(d))


@given(values, st.data())
def test_classes_and_values_are_inverse(named, data):
    labels = Labels.create(named)
    drawn = data.draw(st.lists(st.sampled_from([0, *named.values()]), min_size=1, max_size=30))
    for dtype in (np.uint8, np.int32, np.float32):
        array = np.array(drawn, dtype=dtype)
        classes = labels.to_classes(array)
        assert classes.dtype == np.uint8
        assert classes.max() < labels.classes == len(named) + 1
        np.testing.assert_array_equal(labels.to_values(classes), array)
    for value, index in zip(drawn, labels.to_classes(np.array(drawn)), strict=True):
        assert value == (0 if index == 0 else named[labels.names[index - 1]])


def test_class_order_is_by_stored_value():
    labels = Labels.create({"tumor": 9, "kidney": 4, "cyst": 200})
    assert labels.names == ("kidney", "tumor", "cyst")
    np.testing.assert_array_equal(labels.to_classes(np.array([[0, 200], [4, 9]])), [[0, 3], [1, 2]])


@pytest.mark.parametrize("name", ["tumor", "tumour"])
def test_kidney_is_scored_alone_and_with_the_tumor(name):
    labels = Labels.create({"kidney": 1, name: 2})
    assert labels.targets() == {"kidney": (1,), name: (2,), f"kidney+{name}": (1, 2)}
    assert list(labels.targets()) == ["kidney", name, f"kidney+{name}"]


def test_default_unions_are_added_only_without_configured_ones():
    assert Labels.create({"kidney": 1, "tumor": 2}, {}).targets() == {"kidney": (1,), "tumor": (2,)}
    assert Labels.create({"kidney": 1}).targets() == {"kidney": (1,)}
    labels = Labels.create({"a": 1, "b": 5}, {"both": ("b", "a")})
    assert labels.targets()["both"] == (5, 1)


@pytest.mark.parametrize(
    ("named", "unions", "word"),
    [
        ({}, {}, "at least one"),
        ({"a": 0}, {}, "from 1 to 255"),
        ({"a": 256}, {}, "from 1 to 255"),
        ({"a": True}, {}, "from 1 to 255"),
        ({"a": 1.0}, {}, "from 1 to 255"),
        ({"a": 1, "b": 1}, {}, "used twice"),
        ({"a": 1}, {"u": ("a", "c")}, "'u'"),
        ({"a": 1}, {"a": ("a",)}, "'a'"),
    ],
)
def test_invalid_labels_are_refused(named, unions, word):
    with pytest.raises(InputError, match=word):
        Labels.create(named, unions)


@pytest.mark.parametrize("bad", [3, 255, -1, 1.5, np.nan, 257])
def test_unknown_values_are_named(bad):
    array = np.array([0, 1, 2, bad])
    with pytest.raises(InputError, match=rf"unknown label value {bad}, expected 0 or one of \[1, 2\]"):
        Labels.create({"kidney": 1, "tumor": 2}).to_classes(array)


def test_background_is_not_a_label():
    # Its probabilities would be written under the same name as those of no label at all.
    with pytest.raises(InputError, match="value 0, not 3"):
        Labels.create({"background": 3})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("kidney_left", "kidney_right"),
        ("left_kidney", "right_kidney"),
        ("kidney left", "kidney right"),
        ("Left Kidney", "Right Kidney"),
        ("left-kidney", "kidney.RIGHT"),
        ("KidneyLeft", "KidneyRight"),
        ("kidneyleft", "rightkidney"),
        ("kidney_L", "kidney_R"),
        ("kidneyL", "kidneyR"),
        ("Kidney_Lt", "Kidney_Rt"),
        ("L kidney", "r kidney"),
        ("kidney_L", "right_kidney"),
        ("rib_left_1", "rib_right_1"),
        ("left kidney, right pole", "right kidney, left pole"),
    ],
)
def test_mirroring_swaps_left_and_right(left, right):
    assert mirrored_classes(["spleen", right, "tumor", left]) == (0, 1, 4, 3, 2)
    assert mirrored_classes([left, right]) == (0, 2, 1)


def test_mirroring_keeps_names_without_a_side():
    names = ["kidney", "tumor", "cleft", "bright spot", "upright", "vertebra_L5", "liver", "rim", "1"]
    assert mirrored_classes(names) == tuple(range(10))
    assert mirrored_classes([]) == (0,)


def test_sides_are_paired_by_all_other_words():
    names = ["kidney_left", "rib_left_1", "rib_right_2", "rib_left_2", "kidney_right", "rib_right_1"]
    assert mirrored_classes(names) == (0, 5, 6, 4, 3, 1, 2)


@given(st.lists(st.sampled_from("abcde"), unique=True, min_size=1), st.data())
def test_mirroring_twice_changes_nothing(organs, data):
    names = data.draw(st.permutations([f"{organ}x_{side}" for organ in organs for side in ("left", "R", "")]))
    with pytest.raises(InputError):
        mirrored_classes([name for name in names if name != f"{organs[0]}x_R"])
    partners = mirrored_classes(names)
    assert [partners[partner] for partner in partners] == list(range(len(names) + 1))
    for name, partner in zip(names, partners[1:], strict=True):
        other = {"left": "R", "R": "left", "": ""}[name[3:]]
        assert names[partner - 1] == f"{name[:3]}{other}"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["kidney", "left kidney"], "'left kidney' names a side.*got 0 among kidney, left kidney"),
        (["kidney_left", "spleen_right"], "'kidney_left' names a side.*got 0"),
        (["adrenal_R"], "'adrenal_R' names a side.*got 0"),
        (["left and right kidney"], "'left and right kidney' names a side"),
        (["kidney_left", "kidney right", "kidney_R"], "'kidney_left' names a side.*got 2"),
        (["right kidney", "left kidney", "kidney left"], "'kidney left' and 'right kidney' are not"),
    ],
)
def test_a_side_without_its_one_partner_is_refused(names, message):
    with pytest.raises(InputError, match=message):
        mirrored_classes(names)


def test_colors_follow_names_and_differ():
    assert class_colors(("tumor", "kidney")) == class_colors(("kidney", "tumor"))[::-1]
    many = class_colors(("kidney", "tumor", "liver", "spleen", "aorta"))
    assert len(set(many)) == 5
    assert many[:2] == class_colors(("kidney", "tumor"))


def test_the_ignore_value_is_neither_background_nor_structure():
    labels = Labels.create({"kidney": 4, "tumor": 9, "ignore": 12})
    assert (labels.names, labels.classes, labels.ignore) == (("kidney", "tumor"), 3, 12)
    array = np.array([[0, 4], [9, 12]], np.uint8)
    np.testing.assert_array_equal(labels.to_classes(array), [[0, 1], [2, IGNORED]])
    # nnU-Net wants consecutive values, the one to ignore last.
    np.testing.assert_array_equal(labels.to_nnunet(array), [[0, 1], [2, 3]])
    assert labels.for_nnunet() == {"labels": {"background": 0, "kidney": 1, "tumor": 2, "ignore": 3}}
    assert "ignore" not in labels.targets()
    assert labels.stored == {"kidney": 4, "tumor": 9, "ignore": 12}
    assert Labels.create(labels.stored) == labels
    with pytest.raises(InputError, match="unknown label value 12"):
        Labels.create({"kidney": 4, "tumor": 9}).to_classes(array)


def test_regions_are_what_the_loss_compares():
    unions = {"whole": ("kidney", "tumor")}
    labels = Labels.create({"kidney": 3, "tumor": 7, "ignore": 8}, unions, {"whole": 3, "tumor": 7})
    assert labels.loss_targets() == {"whole": (1, 2), "tumor": (2,)}
    assert list(labels.targets()) == ["kidney", "tumor", "whole"]
    assert labels.for_nnunet() == {
        "labels": {"background": 0, "whole": [1, 2], "tumor": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    }
    assert Labels.create({"kidney": 3, "tumor": 7}, unions).loss_targets() == {"kidney": (1,), "tumor": (2,)}


def test_json_round_trip_keeps_ignore_value_and_regions():
    labels = Labels.create({"a": 1, "b": 2, "ignore": 3}, {"ab": ("a", "b")}, {"ab": 1, "b": 2})
    assert Labels.from_json(labels.to_json()) == labels
    old = {"values": {"a": 1, "b": 2}, "unions": {"ab": ["a", "b"]}}
    assert Labels.from_json(old) == Labels({"a": 1, "b": 2}, {"ab": ("a", "b")})
    assert Labels.from_json(old).to_json() == old


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"a": 5, "ignore": 4}, "expected the highest of all, a whole number from 6 to 255"),
        ({"a": 5, "ignore": 5}, "expected the highest"),
        ({"a": 255, "ignore": 256}, "expected the highest"),
        ({"ignore": 1}, "at least one label"),
    ],
)
def test_the_ignore_value_must_be_the_highest(values, word):
    with pytest.raises(InputError, match=word):
        Labels.create(values)


@pytest.mark.parametrize("most", [0, 1, 5, 200, 255])
def test_voxels_are_counted_by_value(most) -> None:
    labels = np.random.default_rng(most).integers(0, most + 1, (4, 9, 11)).astype(np.uint8)
    labels[1] = min(most, 1)
    np.testing.assert_array_equal(voxels_of(labels), np.bincount(labels.ravel(), minlength=256))
    np.testing.assert_array_equal(
        voxels_of(labels[:, ::-1, ::2].T), np.bincount(labels[:, :, ::2].ravel(), minlength=256)
    )
