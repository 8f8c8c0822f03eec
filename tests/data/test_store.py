import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bodies import write_cohort

from isopose.data.fingerprint import Fingerprint, fingerprint_of
from isopose.data.preprocess import prepare
from isopose.data.store import Store, folder_name, open_store, store_head, write_store
from isopose.errors import InputError, IsoposeError, RunError
from isopose.files import hash_of, sha256
from isopose.geometry.volume import Reorientation
from isopose.io.images import read_labels, read_volume, write_image
from isopose.labels import Labels
from isopose.settings import DataConfig

LABELS = Labels.create({"kidney": 1, "tumor": 2})
CONFIG = DataConfig(size=64)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 3)


@pytest.fixture(scope="module")
def fingerprint(cohort) -> Fingerprint:
    return fingerprint_of(cohort, LABELS, CONFIG)


@pytest.fixture(scope="module")
def store(cohort, fingerprint, tmp_path_factory) -> Store:
    return write_store(tmp_path_factory.mktemp("store"), cohort, fingerprint, LABELS, CONFIG)


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Path:
    """A parent folder with a copy of the store in it."""
    shutil.copytree(store.folder, tmp_path / store.folder.name)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.b2nd")}


def test_the_store_returns_the_prepared_cases(store: Store, cohort, fingerprint) -> None:
    assert [case.record.id for case in store.cases] == ["case_000", "case_001", "case_002"]
    assert store.key == hash_of(store_head(fingerprint, LABELS, CONFIG))
    assert store.folder.name == store.key[:12]
    assert (store.config, store.fingerprint, store.labels) == (CONFIG, fingerprint, LABELS)
    for case, stored in zip(cohort, store.cases, strict=True):
        volume = read_volume(case.image)
        prepared = prepare(volume, fingerprint, CONFIG, read_labels(case.label), LABELS)
        slices = [3, 0, 2]
        image, mask, labels = stored.read(slices)
        assert (image.dtype, mask.dtype, labels.dtype) == (np.float32, np.uint8, np.uint8)
        assert np.array_equal(image, prepared.image[slices].astype(np.float16).astype(np.float32))
        assert np.abs(image - prepared.image[slices]).max() < 2e-3
        assert np.array_equal(mask, prepared.mask[slices])
        assert np.array_equal(labels, prepared.labels[slices])
        record = stored.record
        assert record.frame == prepared.frame
        assert Reorientation(record.axes, record.flips) == prepared.reorientation
        assert np.array_equal(record.native_world_from_index, volume.world_from_index)
        assert (record.patient, record.age_years) == (case.patient, case.age_years)
        assert record.air == prepared.scale.air
        has_label = [[(plane == index).any() for index in (1, 2)] for plane in prepared.labels]
        assert np.array_equal(record.presence, has_label)
        assert np.array(record.presence).any()
        assert record.body_fraction == pytest.approx([m.mean() for m in prepared.mask])
        assert record.sources == {"image": sha256(case.image), "label": sha256(case.label)}


def test_any_number_of_workers_writes_the_same_bytes(store: Store, cohort, fingerprint, tmp_path) -> None:
    other = write_store(tmp_path, cohort, fingerprint, LABELS, CONFIG, workers=2)
    assert contents(other.folder) == contents(store.folder)


def test_a_pickled_case_can_be_read_and_the_store_is_compressed(store: Store) -> None:
    case = pickle.loads(pickle.dumps(store.cases[1]))
    assert all(np.array_equal(a, b) for a, b in zip(case.read([1]), store.cases[1].read([1]), strict=True))
    with pytest.raises(IndexError):
        case.read([99])
    raw = sum(np.prod(c.record.shape) * 4 for c in store.cases)
    assert sum(p.stat().st_size for p in store.folder.rglob("*.b2nd")) < 0.7 * raw


def test_finished_cases_are_not_prepared_again(copy: Path, cohort, fingerprint) -> None:
    before = times(copy)
    done: list[int] = []
    write_store(copy, cohort, fingerprint, LABELS, CONFIG, progress=lambda n, _: done.append(n))
    assert times(copy) == before
    assert done == [1, 2, 3]


def test_damaged_cases_are_detected_and_prepared_again(copy: Path, store: Store, cohort, fingerprint) -> None:
    damaged = copy / store.folder.name / "cases" / "case_001" / "labels.b2nd"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    before = times(copy)
    write_store(copy, cohort, fingerprint, LABELS, CONFIG)
    assert contents(damaged.parents[2]) == contents(store.folder)
    changed = {name for name, t in times(copy).items() if before[name] != t}
    assert changed
    assert all("case_001" in name for name in changed)


def test_partial_files_are_removed_and_incomplete_cases_prepared_again(
    copy: Path, store: Store, cohort, fingerprint
) -> None:
    cases = copy / store.folder.name / "cases"
    (cases / "case_000" / "record.json").unlink()
    (cases / "case_002" / ".77.partial.image.b2nd").write_bytes(b"half")
    (cases / "gone").mkdir()
    (cases / "gone" / "image.b2nd").write_bytes(b"old")
    write_store(copy, cohort, fingerprint, LABELS, CONFIG)
    assert contents(cases.parent) == contents(store.folder)


def test_a_changed_source_is_prepared_again(store: Store, fingerprint, tmp_path) -> None:
    cohort = write_cohort(tmp_path / "data", 2)
    first = write_store(tmp_path / "store", cohort, fingerprint, LABELS, CONFIG)
    before, image = contents(first.folder), first.cases[1].read([1])[0][0]
    volume = read_volume(cohort[1].image)
    write_image(volume.with_array(volume.array + np.int16(30)), cohort[1].image)
    second = write_store(tmp_path / "store", cohort, fingerprint, LABELS, CONFIG)
    after = contents(second.folder)
    assert {name for name in before if before[name] != after[name]} == {
        "cases/case_001/image.b2nd", "cases/case_001/record.json"
    }  # fmt: skip
    kidney = second.cases[1].read([1])[2][0] == 1
    brighter = second.cases[1].read([1])[0][0] - image
    assert np.median(brighter[kidney]) == pytest.approx(30 / fingerprint.channels[0].scale.sd, rel=0.02)
    moved = replace(cohort[0], patient="another")
    assert (
        write_store(tmp_path / "store", [moved], fingerprint, LABELS, CONFIG).cases[0].record.patient
        == "another"
    )


def test_other_settings_use_another_folder(store: Store, fingerprint) -> None:
    keys = {
        hash_of(store_head(*settings))
        for settings in (
            (fingerprint, LABELS, CONFIG),
            (fingerprint, LABELS, DataConfig(size=128)),
            (replace(fingerprint, fov_mm=fingerprint.fov_mm + 1), LABELS, CONFIG),
            (fingerprint, Labels({"kidney": 1, "mass": 2}), CONFIG),
        )
    }
    assert len(keys) == 4
    assert store.key in keys


SCRIPT = """
import sys, pickle
from pathlib import Path
from isopose.data.store import write_store
folder, arguments = sys.argv[1:]
cases, fingerprint, labels, config = pickle.loads(Path(arguments).read_bytes())
def report(done, total):
    print(done, flush=True)
    if done == 1:
        sys.stdin.read()
write_store(Path(folder), cases, fingerprint, labels, config, progress=report)
"""


def test_resuming_after_a_kill_gives_the_same_bytes(store: Store, cohort, fingerprint, tmp_path) -> None:
    (tmp_path / "arguments").write_bytes(pickle.dumps((cohort, fingerprint, LABELS, CONFIG)))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(tmp_path / "arguments")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"1\n"
        child.stdin.close()
        # Once it has begun the second case, and before it can be done with the third.
        second = tmp_path / "store" / store.folder.name / "cases" / "case_001"
        limit = time.monotonic() + 30
        while not second.exists() and time.monotonic() < limit:
            time.sleep(0.001)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    folder = tmp_path / "store" / store.folder.name
    assert not (folder / "store.json").exists()
    with pytest.raises(InputError, match="no finished store"):
        open_store(folder)
    first = times(tmp_path)["store/" + store.folder.name + "/cases/case_000/image.b2nd"]
    write_store(tmp_path / "store", cohort, fingerprint, LABELS, CONFIG)
    assert contents(folder) == contents(store.folder)
    assert times(tmp_path)["store/" + store.folder.name + "/cases/case_000/image.b2nd"] == first


def test_a_full_disk_is_reported_in_one_line(cohort, fingerprint, tmp_path, monkeypatch) -> None:
    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"image.b2nd: No space left on device; nothing was left") as error:
        write_store(tmp_path, cohort, fingerprint, LABELS, CONFIG)
    assert "\n" not in str(error.value)


def test_a_file_in_place_of_the_folder_is_refused(cohort, fingerprint, tmp_path) -> None:
    (tmp_path / "taken").write_text("here")
    with pytest.raises(IsoposeError, match="cannot write the store"):
        write_store(tmp_path / "taken", cohort, fingerprint, LABELS, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "expected format 1, got 99"),
        ({"cases": None}, "missing or damaged"),
        ({"key": "0" * 64}, "do not agree with their hash"),
        ({"labels": {}}, "missing or damaged"),
        ({"cases": []}, "lists no case"),
    ],
)
def test_a_tampered_store_is_refused(copy: Path, store: Store, change: dict, message: str) -> None:
    path = copy / store.folder.name / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message) as error:
        open_store(path.parent)
    assert "\n" not in str(error.value)


def test_an_array_cut_short_is_named_when_read(copy: Path, store: Store) -> None:
    path = copy / store.folder.name / "cases" / "case_001" / "image.b2nd"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"^case_001: .*image.b2nd cannot be read"):
        open_store(copy / store.folder.name).cases[1].read([0])


def test_bad_cases_are_named(cohort, fingerprint, tmp_path) -> None:
    with pytest.raises(InputError, match="'case_000' is given twice"):
        write_store(tmp_path, [cohort[0], cohort[0]], fingerprint, LABELS, CONFIG)
    with pytest.raises(InputError, match="expected cases"):
        write_store(tmp_path, [], fingerprint, LABELS, CONFIG)
    with pytest.raises(InputError, match=r"^case_001: expected a label file"):
        write_store(tmp_path, [cohort[0], replace(cohort[1], label=None)], fingerprint, LABELS, CONFIG)
    with pytest.raises(InputError, match=r"^case_000: .*absent.nii.gz: no such file"):
        write_store(
            tmp_path, [replace(cohort[0], image=tmp_path / "absent.nii.gz")], fingerprint, LABELS, CONFIG
        )


def test_every_case_id_has_its_own_folder() -> None:
    ids = ["case_1", "a/b", "a%2Fb", "..", ".", "", "é", "x" * 300, "x" * 299 + "y", "case 1", "a\\b", "%"]
    names = [folder_name(i) for i in ids]
    assert len(set(names)) == len(ids)
    assert folder_name("case_00001") == "case_00001"
    for name in names:
        assert name
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name) <= 120
