import json

import pytest

from isopose.cluster.places import Mirror, Place, local_path_of, place_of
from isopose.errors import InputError, IsoposeError
from isopose.files import write_text
from isopose.io.datasets import open_dataset


@pytest.fixture(params=["disk", "s3"])
def storage(request, tmp_path):
    if request.param == "disk":
        return Place(str(tmp_path / "there"))
    return Place(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_published_files_are_listed_read_fetched_and_removed(storage, tmp_path):
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "b.txt", "two")
    (storage / "deep/a.txt").publish(tmp_path / "a.txt")
    (storage / "b.txt").publish(tmp_path / "b.txt")
    (storage / "c.json").write_json({"ü": 1})
    (storage / "odd [1] *.txt").publish(tmp_path / "b.txt")
    assert sorted(storage.files()) == ["b.txt", "c.json", "deep/a.txt", "odd [1] *.txt"]
    assert storage.read(["odd [1] *.txt", "odd [2] *.txt"]) == {"odd [1] *.txt": b"two"}
    assert storage.read(["deep/a.txt", "b.txt", "none"]) == {"deep/a.txt": b"one", "b.txt": b"two"}
    (storage / "deep/a.txt").fetch(tmp_path / "back" / "a.txt")
    assert (tmp_path / "back" / "a.txt").read_text() == "one"
    (storage / "b.txt").remove()
    (storage / "b.txt").remove()
    assert not (storage / "b.txt").exists()
    assert json.loads(storage.read(["c.json"])["c.json"]) == {"ü": 1}


def test_changed_content_changes_the_stamp(storage, tmp_path):
    write_text(tmp_path / "a.txt", "one")
    (storage / "a.txt").publish(tmp_path / "a.txt")
    before = storage.files()["a.txt"]
    assert storage.files()["a.txt"] == before
    write_text(tmp_path / "a.txt", "other")
    (storage / "a.txt").publish(tmp_path / "a.txt")
    assert storage.files()["a.txt"] != before


def test_listing_a_file_gives_an_empty_name(storage, tmp_path):
    write_text(tmp_path / "a.txt", "one")
    (storage / "a.txt").publish(tmp_path / "a.txt")
    assert list((storage / "a.txt").files()) == [""]


def test_mirror_of_a_url_has_full_metadata_and_empty_scans(bucket, tmp_path):
    storage = Place(f"{bucket}/mirrored")
    write_text(tmp_path / "scan.nii.gz", "voxels")
    (storage / "dataset.json").write_json({"labels": {}})
    (storage / "imagesTr/scan.nii.gz").publish(tmp_path / "scan.nii.gz")
    mirror = Mirror.make(storage, tmp_path / "below")
    scan = mirror.folder / "imagesTr" / "scan.nii.gz"
    assert mirror.folder.name == "mirrored"
    assert json.loads((mirror.folder / "dataset.json").read_text()) == {"labels": {}}
    assert scan.read_text() == ""
    origin = mirror.origin(scan)
    assert origin == storage / "imagesTr/scan.nii.gz"
    assert local_path_of(origin, [""], tmp_path / "brought.nii.gz").read_text() == "voxels"
    stamp = (storage / "imagesTr").files()["scan.nii.gz"]
    assert mirror.stamp(scan) == {"": stamp}
    assert mirror.stamp(scan.parent) == {"scan.nii.gz": stamp}
    assert mirror.stamp(scan.with_name("none")) == {}
    series = local_path_of(storage / "imagesTr", ["scan.nii.gz"], tmp_path / "series")
    assert (series / "scan.nii.gz").read_text() == "voxels"
    assert mirror.origin(tmp_path) is None


def test_the_folder_of_a_manifest_is_mirrored(bucket, tmp_path):
    write_text(tmp_path / "cases.csv", "image,label\na.nii.gz,b.nii.gz\n")
    storage = Place(f"{bucket}/manifest")
    for name in ("cases.csv", "a.nii.gz", "b.nii.gz"):
        (storage / name).publish(tmp_path / "cases.csv")
    mirror, where = Mirror.of_dataset(storage / "cases.csv", tmp_path / "below")
    (case,) = open_dataset(where, {"kidney": 1}).cases
    assert mirror.origin(case.image) == storage / "a.nii.gz"
    assert case.label is not None
    assert mirror.origin(case.label) == storage / "b.nii.gz"


def test_a_single_object_is_mirrored_under_its_name(bucket, tmp_path):
    write_text(tmp_path / "one.nii.gz", "voxels")
    storage = Place(f"{bucket}/single/one.nii.gz")
    storage.publish(tmp_path / "one.nii.gz")
    mirror = Mirror.make(storage, tmp_path / "below")
    assert (mirror.folder.name, mirror.folder.is_file()) == ("one.nii.gz", True)
    assert mirror.origin(mirror.folder) == storage
    assert len(mirror.stamp(mirror.folder)) == 1
    assert local_path_of(storage, [""], tmp_path / "brought").read_text() == "voxels"


def test_missing_objects_and_unknown_protocols_are_reported(bucket, tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        Mirror.make(Place(f"{bucket}/nothing"), tmp_path)
    with pytest.raises(InputError, match="nonsense://x"):
        Place("nonsense://x").files()
    with pytest.raises(IsoposeError, match="not visible on every machine"):
        local_path_of(Place(str(tmp_path / "none")), [], tmp_path / "x")


def test_paths_become_absolute_and_urls_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place_of("scans/") == Place(str(tmp_path / "scans"))
    assert place_of("s3://b/scans/") == Place("s3://b/scans")
    assert Place("file:///a/b").local is not None
    assert Place("s3://b").local is None
