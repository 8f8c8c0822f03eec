"""The record is written last, and complete results are not made again."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from isopose.errors import InputError
from isopose.files import replacing, sha256, write_json, write_text
from isopose.outputs import (
    claim,
    damaged,
    earlier_mark,
    earlier_record,
    hashes,
    listed,
    made_from,
    remove,
    remove_empty,
    replacing_results,
    sweep,
)

PARAMETERS = {"size": 64, "seeds": [0, 1], "model": "a"}


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A folder with a result of two files and their record."""
    write_text(tmp_path / "a.txt", "labels")
    write_text(tmp_path / "maps" / "a.txt", "map")
    files = hashes(tmp_path, [tmp_path / "a.txt", tmp_path / "maps" / "a.txt"])
    write_json(tmp_path / "a.json", {**PARAMETERS, "files": files})
    return tmp_path


def test_a_complete_result_is_recognized(result: Path) -> None:
    record = earlier_record(result / "a.json")
    assert record is not None
    assert made_from(record, PARAMETERS)
    assert record["files"]["maps/a.txt"] == sha256(result / "maps" / "a.txt")
    assert damaged(result, record["files"]) is None
    assert listed(record) == {"a.txt", "maps/a.txt"}


@pytest.mark.parametrize("text", [None, "", "[1]", '"text"', "{half", "null"])
def test_a_missing_or_damaged_record_means_no_result(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    assert earlier_record(tmp_path / "a.json") is None
    assert not made_from(None, {})
    assert listed(None) == set()


@pytest.mark.parametrize(
    "changed", [{"size": 65}, {"seeds": [0]}, {"model": None}, {"correction": "set by hand"}]
)
def test_other_parameters_do_not_match_the_record(result: Path, changed: dict[str, object]) -> None:
    assert not made_from(earlier_record(result / "a.json"), {**PARAMETERS, **changed})


def test_none_matches_an_entry_missing_from_the_record(result: Path) -> None:
    record = earlier_record(result / "a.json")
    assert made_from(record, {**PARAMETERS, "correction": None})
    assert not made_from({**PARAMETERS, "correction": "set by hand"}, {**PARAMETERS, "correction": None})


def test_changed_and_missing_files_are_named(result: Path) -> None:
    files = json.loads((result / "a.json").read_text())["files"]
    (result / "maps" / "a.txt").write_text("Map")
    assert damaged(result, files) == "maps/a.txt"
    assert damaged(result, list(files)) is None, "by existence alone"
    (result / "maps" / "a.txt").unlink()
    assert damaged(result, files) == damaged(result, list(files)) == "maps/a.txt"
    (result / "maps" / "a.txt").mkdir()
    assert damaged(result, list(files)) == "maps/a.txt"


@pytest.mark.parametrize("files", [["a", "../b", "/c", "d/../../e", "f/g", 3, None], {"a": "", "f/g": ""}])
def test_listed_files_must_lie_in_the_folder(files: object) -> None:
    assert listed({"files": files}) == {"a", "f/g"}
    assert listed({"files": None}) == listed({}) == set()


def test_results_are_replaced_with_the_record_last(result: Path) -> None:
    record, file, old = result / "a.json", result / "a.txt", result / "maps" / "a.txt"
    with replacing_results(record, [file], stale=[old]):
        assert contents(result) == {"a.txt": "labels"}
        write_text(file, "new labels")
        write_json(record, {})
    assert contents(result) == {"a.txt": "new labels", "a.json": "{}\n"}


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_failure_while_writing_leaves_nothing_of_the_result(
    result: Path, error: type[BaseException], written: int
) -> None:
    write_text(result / "b.txt", "of another scan")
    files: list[Path] = []
    names = ["maps/a.txt", "a.txt", "a.json"][:written]

    def write_and_fail() -> None:
        for name in names:
            files.append(result / name)
            write_text(result / name, "new")
        raise error

    with pytest.raises(error), replacing_results(result / "a.json", files, stale=[result / "a.txt"]):
        write_and_fail()
    left = {"b.txt": "of another scan"} | ({} if "maps/a.txt" in names else {"maps/a.txt": "map"})
    assert contents(result) == left


def test_removal_does_not_follow_links(result: Path) -> None:
    (result / "link").symlink_to(result / "maps")
    remove([result / "link", result / "a.json", result / "none"])
    assert contents(result).keys() == {"a.txt", "maps/a.txt"}
    remove([result / "maps"])
    assert contents(result).keys() == {"a.txt"}


def half_of(path: Path) -> Path:
    """Leave a partial file, as a process that is killed while writing does."""
    with suppress(KeyError), replacing(path) as temporary:
        raise KeyError
    temporary.write_text("half")
    return temporary


def test_only_partial_files_are_removed(result: Path) -> None:
    before = contents(result)
    halves = [half_of(result / name) for name in ("a.txt", "maps/a.txt", "maps/b[1].txt", "maps/ab.txt")]
    sweep(result / "maps", "b[1].txt")
    assert [half.exists() for half in halves] == [True, True, False, True]
    sweep(result / "maps", "a.txt")
    assert [half.exists() for half in halves] == [True, False, False, True]
    sweep(result)
    assert contents(result) == before


def claimed(folder: Path, parameters: dict[str, object], within: str | None = None):
    return claim(
        folder,
        folder / "work" / "run.json",
        parameters,
        within=within,
        other="was begun with another {names}",
        strange="holds no run",
    )


@pytest.mark.parametrize("within", [None, "of"])
def test_a_folder_accepts_the_same_parameters_and_refuses_others(tmp_path: Path, within: str | None) -> None:
    mark = tmp_path / "work" / "run.json"
    assert claimed(tmp_path / "absent", PARAMETERS, within) is None
    assert claimed(tmp_path, PARAMETERS, within) is None
    mark.parent.mkdir()
    assert claimed(tmp_path, PARAMETERS, within) is None
    known = {"of": PARAMETERS, "more": 1} if within else PARAMETERS
    write_json(mark, known)
    (tmp_path / "model.json").write_text("a result")
    assert claimed(tmp_path, PARAMETERS, within) == known
    assert claimed(tmp_path, {**PARAMETERS, "newer": 1}, within) == known, "the mark is older than it"
    with pytest.raises(InputError, match="another size and model; use the same inputs") as refused:
        claimed(tmp_path, {**PARAMETERS, "size": 1, "model": "b"}, within)
    assert "\n" not in str(refused.value)
    assert json.loads(mark.read_text()) == known


@pytest.mark.parametrize("text", ["[]", "{}", '{"of": 3}', '{"of": {}}', "half"])
def test_a_damaged_folder_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"another size and seeds and model|expected a JSON file"):
        earlier_mark(tmp_path, tmp_path / "run.json", PARAMETERS, within="of", other="another {names}")


def test_a_folder_with_other_files_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no run; choose another folder"):
        claimed(tmp_path, PARAMETERS)
    assert contents(tmp_path) == {"thesis.txt": "mine"}


def test_folders_without_files_are_removed_and_no_others(tmp_path: Path) -> None:
    write_text(tmp_path / "maps" / "a" / "one.txt", "map")
    for empty in ("maps/b", "maps/c/d", "probabilities", "other"):
        (tmp_path / empty).mkdir(parents=True)
    remove_empty([tmp_path / "maps", tmp_path / "probabilities", tmp_path / "missing"])
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        *("maps", "maps/a", "maps/a/one.txt", "other"),
    ]
