import pickle

from isopose.errors import MAX_MESSAGE_LENGTH, InputError, counted, first_names


def test_a_message_is_one_printable_line():
    """Messages may quote file contents, which may contain control characters."""
    error = InputError("a.json: got 'x\n\ty\x1b[31m\u202e\ufeff\ud800é'; do\nthis")
    assert str(error) == "a.json: got 'x y\\x1b[31m\\u202e\\ufeff\\ud800é'; do this"


def test_a_long_message_keeps_its_beginning_and_its_end():
    error = str(InputError(f"case.json: got {'x' * 100_000}; do this"))
    assert len(error) <= MAX_MESSAGE_LENGTH
    assert error.startswith("case.json: got xxx")
    assert error.endswith("xxx; do this")


def test_long_lists_of_names_are_shortened():
    assert first_names(["a", "b"], 2) == "a, b"
    assert first_names(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert first_names([], 2) == ""


def test_counts_of_one_are_singular() -> None:
    assert [counted(number, "scan") for number in (0, 1, 2)] == ["0 scans", "1 scan", "2 scans"]


def test_errors_can_be_pickled():
    assert str(pickle.loads(pickle.dumps(InputError("a: b")))) == "a: b"
