import json
import pickle
import re
import shutil
import time
from contextlib import nullcontext

import numpy as np
import pytest
import SimpleITK as sitk

from bright import bright_model
from isopose.cluster import homogenize as cluster_homogenize
from isopose.cluster import predict as cluster_predict
from isopose.cluster import preprocess as cluster_preprocess
from isopose.cluster.cohort import Cohort, Ledger, SetUp
from isopose.cluster.places import Place
from isopose.errors import InputError
from isopose.io.images import read_labels, read_volume, write_labels
from isopose.io.sources import hash_of_source
from isopose.models.folder import save_model
from isopose.phantom import write_cohort

pytestmark = pytest.mark.long

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def model_and_cohort(tmp_path_factory):
    """A model, and a dataset of phantoms with a patients' table."""
    root = tmp_path_factory.mktemp("cohort")
    save_model(root / "model", bright_model({"data": {"size": 64}}, real_unet=True))
    write_cohort(root / "kids", cases=6, slices=4, size=64, seed=3, test_fraction=0.3)
    return root


@pytest.fixture(scope="module")
def scans(model_and_cohort):
    """A folder of scans with different noise, and one file that is not a scan."""
    folder = model_and_cohort / "scans"
    folder.mkdir()
    images = sorted((model_and_cohort / "kids").glob("images*/*.nii.gz"))
    for number in range(24):
        image = sitk.ReadImage(images[number % len(images)])
        noise = np.random.default_rng(number).normal(0, 5, sitk.GetArrayViewFromImage(image).shape)
        noisy = sitk.GetImageFromArray((sitk.GetArrayFromImage(image) + noise).astype(np.int16))
        noisy.CopyInformation(image)
        sitk.WriteImage(noisy, folder / f"scan_{number:02d}.nii.gz")
    (folder / "scan_11.nii.gz").write_bytes(b"no scan")
    return folder


def contents(folder):
    """Contents of all files in a folder by name, without the cluster's own list."""
    files = [path for path in folder.rglob("*") if path.is_file() and "cohort" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def copied(place, folder):
    for name in place.files():
        (place / name).fetch(folder / name)
    return folder


def put(source, place):
    for path in source.rglob("*"):
        if path.is_file():
            (place / path.relative_to(source).as_posix()).publish(path)
    return place


@pytest.mark.slow
def test_results_are_complete_after_a_machine_is_killed(
    machines, start, isopose, model_and_cohort, scans, bucket, tmp_path, monkeypatch
):
    """With scans and results on object storage; the files equal those that one process writes to disk."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    inputs, output = put(scans, Place(f"{bucket}/killed/scans")), Place(f"{bucket}/killed/out")
    model = put(model_and_cohort / "model", Place(f"{bucket}/killed/model"))
    command = ("predict", model, inputs, "--output", output, "--ray", machines.address)
    run = start(*command)
    deadline = time.monotonic() + 120
    while sum(name.endswith(".json") and "/" not in name for name in output.files()) < 4:
        assert time.monotonic() < deadline, run.communicate()
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    machines.remove_node(machines.workers.pop(), allow_graceful=False)
    out, err = run.communicate(timeout=240)
    assert run.returncode == 2, err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("isopose: ")] == [
        f"isopose: {inputs}/scan_11.nii.gz: expected a NIfTI file, but its header is not one; copy or export "
        "it again"
    ]
    assert [line.split()[0] for line in out.splitlines()] == [
        f"{output}/scan_{n:02d}.nii.gz" for n in range(24) if n != 11
    ]

    code, _, _ = isopose("predict", model_and_cohort / "model", scans, "--output", tmp_path / "alone")
    assert code == 2
    files = contents(copied(output, tmp_path / "cluster"))
    alone = contents(tmp_path / "alone")
    assert files.keys() == alone.keys()
    assert {n for n in files if n.endswith(".gz") and files[n] != alone[n]} == set()

    # Given again: nothing is done but the scan that could not be read, which was mended.
    stamps = output.files()
    shutil.copy(scans / "scan_10.nii.gz", tmp_path / "mended.nii.gz")
    (inputs / "scan_11.nii.gz").publish(tmp_path / "mended.nii.gz")
    run = start(*command)
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert "23 of 24 are done already" in err
    assert len(out.splitlines()) == 24
    again = output.files()
    changed = {name for name in again if stamps.get(name) != again[name] and "cohort/" not in name}
    assert changed == {"scan_11.nii.gz", "scan_11.json"}


@pytest.mark.slow
def test_homogenize_and_preprocess_write_the_files_of_one_process(
    isopose, model_and_cohort, bucket, tmp_path
):
    dataset = put(model_and_cohort / "kids", Place(f"{bucket}/alike/kids"))
    # The reference is read from the bucket, and travels to the workers.
    size = ("--size", "64", "--reference", "phantom_002")
    fold = ("--fold", "all", "--set", "data.size=64")
    assert isopose("homogenize", model_and_cohort / "kids", tmp_path / "alone", *size)[0] == 0
    assert isopose("preprocess", model_and_cohort / "kids", "--store", tmp_path / "store", *fold)[0] == 0

    output = Place(f"{bucket}/alike/out")
    code, out, err = isopose("homogenize", dataset, output, *size, "--ray", "local")
    assert (code, out.split()[0]) == (0, str(output)), err
    assert contents(copied(output, tmp_path / "cluster")) == contents(tmp_path / "alone")
    stamps = output.files()
    code, _, err = isopose("homogenize", dataset, output, *size, "--ray", "local")
    assert code == 0
    assert "6 of 6 are done already" in err
    assert contents(copied(output, tmp_path / "again")) == contents(tmp_path / "alone")
    code, _, err = isopose("homogenize", dataset, output, "--size", "96", "--ray", "local")
    assert code == 2
    assert "was homogenized by another isopose or with another model, settings or labels" in err
    assert {n: s for n, s in output.files().items() if "/" in n and "cohort" not in n} == {
        n: s for n, s in stamps.items() if "/" in n and "cohort" not in n
    }

    code, out, err = isopose(
        "preprocess", model_and_cohort / "kids", "--store", tmp_path / "shared", *fold, "--ray", "local"
    )
    assert code == 0, err
    assert contents(tmp_path / "shared") == contents(tmp_path / "store")


class Here:
    """A pool that runs in this process in place of Ray's workers; arguments are pickled and unpickled."""

    gpus = False

    def __init__(self):
        self.tried = 0

    def run(self, set_up, items, say):
        do = pickle.loads(pickle.dumps(set_up))()
        for number, item in enumerate(items):
            self.tried += 1
            yield number, do(pickle.loads(pickle.dumps(item)))


@pytest.fixture
def local_pool(monkeypatch):
    """Commands with ``--ray here`` run in this process."""
    pool = Here()
    for module in (cluster_homogenize, cluster_predict, cluster_preprocess):
        monkeypatch.setattr(module, "cluster", lambda *_: nullcontext(pool))
    return pool


@pytest.fixture
def masked(model_and_cohort, bucket, tmp_path):
    """A dataset with a square mask for each case but one, on this disk and on object storage."""
    masks = tmp_path / "masks"
    for image in sorted((model_and_cohort / "kids").glob("images*/*.nii.gz")):
        scan = read_volume(image)
        body = np.zeros(scan.array.shape, np.uint8)
        body[:, 14:46, 10:50] = 1
        write_labels(scan.with_array(body), masks / image.name.replace("_0000", ""))
    return masks, put(masks, Place(f"{bucket}/{tmp_path.name}/masks"))


@pytest.mark.parametrize("command", ["predict", "homogenize", "preprocess"])
def test_given_masks_reach_the_workers(isopose, model_and_cohort, masked, local_pool, tmp_path, command):
    """Masks from disk and object storage give the results of one process; a changed mask runs again."""
    options = {
        "predict": (model_and_cohort / "model", model_and_cohort / "kids" / "imagesTr", "--output"),
        "homogenize": (model_and_cohort / "kids", "--size", "64"),
        "preprocess": (model_and_cohort / "kids", "--fold", "all", "--set", "data.size=64", "--store"),
    }[command]

    def run(name, own, *more):
        code, _, err = isopose(command, *options, tmp_path / name, "--masks", own, *more)
        return code, err

    masks, url = masked
    assert run("alone", masks)[0] == 0
    for name, own in (("disk", masks), ("url", url)):
        code, err = run(name, own, "--ray", "here")
        assert code == 0
        # After the last scan nothing is left.
        assert re.search(r"^\[(\d+)/\1\]$", err, re.MULTILINE)
        in_cluster, alone = (
            {place: text for place, text in contents(tmp_path / one).items() if "fingerprint" not in place}
            for one in (name, "alone")
        )
        assert in_cluster == alone
    if command == "predict":
        record = json.loads((tmp_path / "url" / "phantom_001.json").read_text())
        assert record["mask_sha256"] == hash_of_source(masks / "phantom_001.nii.gz")

    # Found without masks it is another result; only what has a new mask is done again.
    tried = local_pool.tried
    body = read_labels(masks / "phantom_001.nii.gz")
    write_labels(body.with_array(np.roll(body.array, 3, axis=2)), tmp_path / "moved.nii.gz")
    (url / "phantom_001.nii.gz").publish(tmp_path / "moved.nii.gz")
    before = contents(tmp_path / "url")
    assert run("url", url, "--ray", "here")[0] == 0
    if command != "preprocess":  # whose fingerprint is another one, and so its store
        assert local_pool.tried == tried + 1
    after = contents(tmp_path / "url")
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed
    assert all("phantom_001" in name or command == "preprocess" for name in changed)


def test_a_missing_mask_fails_only_its_own_scan(isopose, model_and_cohort, masked, local_pool, tmp_path):
    masks, url = masked
    (masks / "phantom_001.nii.gz").unlink()
    (url / "phantom_001.nii.gz").remove()
    for name, own in (("disk", masks), ("url", url)):
        out = tmp_path / name
        code, _, err = isopose(
            "homogenize", model_and_cohort / "kids", out, "--size", "64", "--masks", own, "--ray", "here"
        )
        assert code == 2
        assert err.count("error:") == 1
        assert f"phantom_001: {own}/phantom_001.nii.gz: no such file or folder" in err
        assert "Traceback" not in err
    for nowhere, message in (
        (tmp_path / "nowhere", "no such file"),
        (f"{url}-nowhere", f"{url}-nowhere: no such file or folder"),
    ):
        code, _, err = isopose(
            "homogenize", model_and_cohort / "kids", tmp_path / "out", "--masks", nowhere, "--ray", "here"
        )
        assert (code, err.count("\n"), message in err) == (2, 1, True)
    code, _, err = isopose("homogenize", model_and_cohort / "kids", tmp_path / "out", "--masks", url)
    assert (code, "a URL; it is read and written by a Ray cluster" in err) == (2, True)


def test_results_of_another_model_are_replaced_completely(isopose, model_and_cohort, scans, tmp_path):
    """Files that no longer belong to a scan are removed, and other files are left alone."""
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(scans / "scan_00.nii.gz", one)
    output = tmp_path / "out"
    first = isopose(
        "predict", model_and_cohort / "model", one, "--output", output, "--ray", "local", "--probabilities"
    )
    assert first[0] == 0, first
    assert len(list((output / "probabilities").iterdir())) == 3
    (output / "mine.txt").write_text("kept")
    save_model(tmp_path / "other", bright_model({"data": {"size": 96}}, real_unet=True))
    code, _, err = isopose("predict", tmp_path / "other", one, "--output", output, "--ray", "local")
    assert code == 0, err
    record = json.loads((output / "scan_00.json").read_text())
    # Warnings are shown, of a scan that is done and of one that is there.
    assert record["warnings"]
    again = isopose("predict", tmp_path / "other", one, "--output", output, "--ray", "local")
    assert "1 of 1 are done already" in again[2]
    for warning in record["warnings"]:
        assert f"warning: scan_00: {warning}" in err
        assert f"warning: scan_00: {warning}" in again[2]
    assert record["files"] == ["scan_00.nii.gz"]
    assert list((output / "probabilities").iterdir()) == []
    assert (output / "mine.txt").read_text() == "kept"
    assert not list(output.rglob(".*.partial.*"))


def test_urls_without_a_cluster_are_reported(isopose, model_and_cohort):
    code, _, err = isopose("predict", model_and_cohort / "model", "s3://bucket/scans", "--output", "out")
    assert code == 2
    assert err == (
        "isopose: s3://bucket/scans: a URL; it is read and written by a Ray cluster (--ray local is this "
        "machine's)\n"
    )


def test_a_worker_that_sees_a_different_folder_is_refused(tmp_path):
    for folder, token in (("here", "one"), ("there", "two")):
        (Place(str(tmp_path / folder)) / "cohort/run.json").write_json({"token": token})
    for folder in ("there", "nowhere"):
        with pytest.raises(InputError, match="is not the same folder on every machine"):
            SetUp(None, Place(str(tmp_path / folder)), "one")()


def test_the_list_of_finished_scans_is_read_despite_a_truncated_line(tmp_path):
    ledger = Ledger(Place(str(tmp_path)))
    assert ledger.read() == {}
    ledger.add("a", "1")
    ledger.flush()
    ledger.add("b", "1")
    ledger.add("a", "2")
    ledger.flush()
    (tmp_path / "done-9.jsonl").write_text('{"name": "c", "made_from": "1"}\n{"name": "d", "ma')
    assert ledger.read() == {"a": "2", "b": "1", "c": "1"}


def test_the_stamp_covers_voxels_beside_a_header(tmp_path):
    cohort = Cohort([], Place(str(tmp_path / "out")), "0", "predict")
    (tmp_path / "scan.mhd").write_text("NDims = 3\nElementDataFile = scan.raw\n")
    (tmp_path / "scan.raw").write_bytes(b"1")
    before = cohort.stamp([cohort.source(tmp_path / "scan.mhd")])
    assert cohort.stamp([cohort.source(tmp_path / "scan.mhd")]) == before
    (tmp_path / "scan.raw").write_bytes(b"22")
    assert cohort.stamp([cohort.source(tmp_path / "scan.mhd")]) != before
    assert cohort.stamp([cohort.source(tmp_path / "missing.mhd")]) != before
