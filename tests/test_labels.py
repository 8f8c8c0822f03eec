import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isopose.errors import InputError
from isopose.labels import Labels

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
    labels = Labels.create({"tumour": 9, "kidney": 4, "cyst": 200})
    assert labels.names == ("kidney", "tumour", "cyst")
    np.testing.assert_array_equal(labels.to_classes(np.array([[0, 200], [4, 9]])), [[0, 3], [1, 2]])


@pytest.mark.parametrize("name", ["tumour", "tumor"])
def test_kidney_is_scored_alone_and_with_the_tumour(name):
    labels = Labels.create({"kidney": 1, name: 2})
    assert labels.targets() == {"kidney": (1,), name: (2,), f"kidney+{name}": (1, 2)}
    assert list(labels.targets()) == ["kidney", name, f"kidney+{name}"]


def test_unions_are_only_added_where_nothing_is_said():
    assert Labels.create({"kidney": 1, "tumour": 2}, {}).targets() == {"kidney": (1,), "tumour": (2,)}
    assert Labels.create({"kidney": 1}).targets() == {"kidney": (1,)}
    said = Labels.create({"a": 1, "b": 5}, {"both": ("b", "a")})
    assert said.targets()["both"] == (5, 1)


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
def test_impossible_labels(named, unions, word):
    with pytest.raises(InputError, match=word):
        Labels.create(named, unions)


@pytest.mark.parametrize("bad", [3, 255, -1, 1.5, np.nan, 257])
def test_unknown_values_are_named(bad):
    array = np.array([0, 1, 2, bad])
    with pytest.raises(InputError, match=rf"unknown label value {bad}, expected 0 or one of \[1, 2\]"):
        Labels.create({"kidney": 1, "tumour": 2}).to_classes(array)


def test_background_is_no_label():
    # Its probabilities would be written under the same name as those of no label at all.
    with pytest.raises(InputError, match="value 0, not 3"):
        Labels.create({"background": 3})
