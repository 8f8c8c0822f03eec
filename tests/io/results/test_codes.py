import pytest

from isopose.io.results.codes import meanings


def codes_of(meaning):
    return (
        meaning.category.meaning,
        meaning.kind.value,
        meaning.organ and meaning.organ.value,
        meaning.side and meaning.side.meaning,
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # The codes are SNOMED CT's: kidney, neoplasm, cyst, liver, adrenal gland.
        (["kidney"], [("Anatomical Structure", "64033007", "64033007", None)]),
        (
            ["kidney", "tumor"],
            [
                ("Anatomical Structure", "64033007", "64033007", None),
                ("Morphologically Abnormal Structure", "108369006", "64033007", None),
            ],
        ),
        (["liver_tumor"], [("Morphologically Abnormal Structure", "108369006", "10200004", None)]),
        (
            ["KidneyLeft", "kidney_R", "cyst"],
            [
                ("Anatomical Structure", "64033007", "64033007", "Left"),
                ("Anatomical Structure", "64033007", "64033007", "Right"),
                ("Morphologically Abnormal Structure", "367643001", "64033007", None),
            ],
        ),
        # In which of two organs a tumor lies is not guessed.
        (
            ["liver", "kidney", "tumor"],
            [
                ("Anatomical Structure", "10200004", "10200004", None),
                ("Anatomical Structure", "64033007", "64033007", None),
                ("Morphologically Abnormal Structure", "108369006", None, None),
            ],
        ),
        (["left adrenal gland"], [("Anatomical Structure", "23451007", "23451007", "Left")]),
        (["renal artery"], [("Anatomical Structure", "2841007", "2841007", None)]),
        # No word that is known: a structure, under its own name.
        (["Niere"], [("Anatomical Structure", "91723000", None, None)]),
    ],
)
def test_label_names_map_to_codes(names, expected):
    result = meanings(names)
    assert [codes_of(one) for one in result] == expected
    assert [one.name for one in result] == names
