import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from isopose.errors import InputError
from isopose.files import (
    entries_below,
    hash_of,
    only_writer,
    output_folder,
    read_json,
    read_text,
    replacing,
    sha256,
    write_json,
    write_text,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_files_are_written_atomically_and_keep_their_suffix(tmp_path):
    path = tmp_path / "new" / "scan.nii.gz"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.endswith(".nii.gz")
        assert temporary.name.startswith(".")
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert names(path.parent) == ["scan.nii.gz"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        fail()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_block_that_writes_nothing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "before"


def test_text_is_utf8_in_any_locale(tmp_path):
    write_text(tmp_path / "a.txt", "θ₁ · é\n")
    assert (tmp_path / "a.txt").read_bytes() == "θ₁ · é\n".encode()
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"é": [1, None]}
    assert "é" in (tmp_path / "a.json").read_text("utf-8")


@pytest.mark.parametrize(("content", "word"), [(b"{", "JSON"), (b"\xff\xfe{}", "JSON"), (b"", "JSON")])
def test_invalid_json_is_refused(tmp_path, content, word):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=word) as error:
        read_json(tmp_path / "a.json")
    assert "a.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_json_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_hashes_of_files(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100000).hexdigest()
    assert hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": 2})
    assert hash_of([1, 2]) != hash_of([2, 1])
    with pytest.raises(ValueError, match="JSON"):
        hash_of(float("inf"))


def test_an_output_folder_is_created_or_refused_in_one_line(tmp_path):
    assert output_folder(tmp_path / "a" / "b").is_dir()
    assert output_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="a file has that name") as error:
            output_folder(path)
        assert str(path) in str(error.value)
    assert (tmp_path / "file").read_text() == "x"


#: Holds a folder and says so.
HOLDER = (
    "import sys, time; from pathlib import Path; from isopose.files import only_writer\n"
    "with only_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that writes to the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_one_process_at_a_time_writes_to_a_folder(holder, tmp_path):
    with (
        pytest.raises(InputError, match="another isopose process is writing to it"),
        only_writer(tmp_path),
    ):
        pass
    assert names(tmp_path) == []
    # However it ends: nothing of it stays behind.
    holder.kill()
    holder.wait()
    with only_writer(tmp_path):
        pass


def test_a_waiting_process_writes_next(holder, tmp_path):
    waiter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER.replace("(Path(sys.argv[1]))", "(Path(sys.argv[1]), wait=True)"),
            tmp_path,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(1.0)
        assert waiter.poll() is None
        holder.kill()
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "held\n"
    finally:
        waiter.kill()
        waiter.wait()


def test_a_text_is_a_regular_file_of_bounded_size(tmp_path, monkeypatch):
    """A link may lead to an endless device."""
    (tmp_path / "a.json").symlink_to("/dev/zero")
    with pytest.raises(
        InputError, match=r"a\.json: expected a JSON file, but it cannot be read \(not a file\)"
    ):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.txt").write_text("four")
    assert read_text(tmp_path / "b.txt", "words") == "four"
    monkeypatch.setattr("isopose.files.MAX_TEXT_BYTES", 3)
    with pytest.raises(InputError, match="larger than"):
        read_text(tmp_path / "b.txt", "words")


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 10_000, "{", "\x00"])
def test_values_that_json_cannot_hold_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="expected a JSON file"):
        read_json(tmp_path / "a.json")


def test_listing_a_folder_does_not_follow_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "slice").write_text("")
    (tmp_path / "elsewhere" / "c").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    result = [path.relative_to(tmp_path / "a").as_posix() for path in entries_below(tmp_path / "a")]
    assert result == ["b", "b/slice", "link"]


@pytest.mark.parametrize(
    ("error", "message"),
    [(FileNotFoundError, "series: changed while it was read"), (PermissionError, "gone: cannot be read")],
)
def test_an_unreadable_subfolder_is_refused(tmp_path, monkeypatch, error, message):
    folder = tmp_path / "series" / "gone"
    folder.mkdir(parents=True)
    scandir = os.scandir

    def fail(path):
        if os.fspath(path) == str(folder):
            raise error(1, "Operation not permitted", str(folder))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(InputError, match=message):
        entries_below(tmp_path / "series")
