"""The server over HTTP, with a process that predicts."""

import gzip
import io
import json
import re
import signal
import sqlite3
import time
import zipfile

import httpx
import numpy as np
import pytest
from served import Served

from bright import bright_model
from isopose.inference.files import predict_scans
from isopose.io.images import read_labels, read_volume
from isopose.io.scans import find_scans
from isopose.models.folder import load_model, save_model
from isopose.progress import Silent
from isopose.scan.correction import read_corrections

INTENT = {"X-Isopose": "1"}


@pytest.fixture(scope="module")
def client(model_folder, tmp_path_factory):
    """A server shared by the tests of this module, and an HTTP client."""
    folder = tmp_path_factory.mktemp("served") / "kept"
    served = Served("serve", model_folder, "--folder", folder, "--device", "cpu")
    with httpx.Client(base_url=served.address, headers=INTENT, timeout=30) as client:
        client.served, client.folder = served, folder
        yield client
    if served.process.poll() is None:
        served.stop()


def give(client, path, name=None):
    response = client.post("/api/jobs", params={"filename": name or path.name}, content=path.read_bytes())
    assert response.status_code == 201, response.text
    return response.json()["number"]


def ended(client, number):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        job = next(job for job in client.get("/api/jobs").json() if job["number"] == number)
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.1)
    raise AssertionError(job)


def planes(client, number, z):
    raw = client.get(f"/api/jobs/{number}/slices/{z}").content
    length = int.from_bytes(raw[:4], "little")
    out = {}
    for one in json.loads(raw[4 : 4 + length]):
        dtype = np.dtype(one["type"]).newbyteorder("<")
        count = int(np.prod(one["shape"]))
        out[one["name"]] = np.frombuffer(raw, dtype, count, 4 + length + one["offset"]).reshape(one["shape"])
    return out


def test_results_equal_those_of_the_command_line(client, scan, model_folder, tmp_path):
    number = give(client, scan)
    assert ended(client, number)["state"] == "done"
    got = client.get(f"/api/jobs/{number}/download/nifti")
    assert got.headers["content-disposition"] == f'attachment; filename="scan-{number}.nii.gz"'
    (tmp_path / "got.nii.gz").write_bytes(got.content)
    predict_scans(
        load_model(model_folder),
        find_scans([scan]),
        tmp_path,
        probabilities=False,
        reporter=Silent(),
    )
    expected = read_labels(tmp_path / scan.name)
    labels = read_labels(tmp_path / "got.nii.gz")
    np.testing.assert_array_equal(labels.array, expected.array)
    assert labels.same_grid(expected)
    # The scan lies on axes L, P, S already, so that the page's slices are the file's.
    view = client.get(f"/api/jobs/{number}/view").json()
    assert view["shape"] == list(expected.array.shape)
    assert [one["name"] for one in view["labels"]] == ["kidney", "tumor"]
    classes = np.array([0, 1, 0, 0, 0, 0, 0, 2], np.uint8)[expected.array]
    assert classes.any()
    for z in (0, 5, 11):
        displayed = planes(client, number, z)
        np.testing.assert_array_equal(displayed["native"], read_volume(scan).array[z])
        np.testing.assert_array_equal(displayed["labels"], classes[z])
        assert displayed["crop"].shape == displayed["crop_labels"].shape
        assert displayed["homogenized"].std() > 10
    (tmp_path / "view.nii").write_bytes(client.get(f"/api/jobs/{number}/labels.nii").content)
    np.testing.assert_array_equal(read_labels(tmp_path / "view.nii").array, classes)
    assert client.get(f"/api/jobs/{number}/slices/12").status_code == 404


def test_file_names_are_hidden_unless_requested(client, scan):
    number = give(client, scan)
    ended(client, number)
    assert "Doe" not in client.get("/api/jobs").text
    # The server is shared, so other tests may have added jobs before.
    (job,) = [job for job in client.get("/api/jobs?names=true").json() if job["number"] == number]
    assert job["filename"] == "Doe_Jane.nii.gz"
    response = client.get(f"/api/jobs/{number}/download/nifti?names=true")
    assert 'filename="Doe_Jane.nii.gz"' in response.headers["content-disposition"]
    for path in ("view", "download/report", "download/record"):
        text = client.get(f"/api/jobs/{number}/{path}").text
        # Letters of a picture, three of which may be any.
        assert "Doe" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    kept = [path for path in client.folder.rglob("*") if "Doe" in path.name]
    assert kept == []


def test_a_corrected_pose_is_used_and_kept_until_it_is_removed(client, scan):
    number = give(client, scan)
    ended(client, number)
    first = client.get(f"/api/jobs/{number}/view").json()
    pose = [0.0, 0.0, 0.0, 1.6, 0.0]
    body = {"correction": {"poses": [{"slice": 4, "pose": pose}], "crops": []}}
    assert client.post(f"/api/jobs/{number}/again", json=body).status_code == 200
    job = ended(client, number)
    assert (job["state"], job["corrected"]) == ("done", True)
    second = client.get(f"/api/jobs/{number}/view").json()
    assert second["corrected"]
    assert [one["pose"] for one in second["slices"]] == [pytest.approx(pose)] * 12
    assert second["volumes_ml"] != first["volumes_ml"]
    (kept,) = read_corrections(client.folder / "corrections").values()
    assert (kept.image_sha256, list(kept.poses[0].pose)) == (first["image_sha256"], pose)
    # Done again, it keeps what was set; taken back, it does not.
    client.post(f"/api/jobs/{number}/again", json={})
    assert ended(client, number)["corrected"]
    assert len(read_corrections(client.folder / "corrections")) == 1
    client.post(f"/api/jobs/{number}/again", json={"correction": "as found"})
    assert not ended(client, number)["corrected"]
    third = client.get(f"/api/jobs/{number}/view").json()
    assert third["volumes_ml"] == first["volumes_ml"]
    assert list((client.folder / "corrections").iterdir()) == []


@pytest.mark.parametrize(
    ("correction", "message"),
    [({"poses": []}, "expected a pose or a crop"), ({"poses": [{"slice": 0, "pose": [1]}]}, "poses.0.pose")],
)
def test_an_invalid_correction_is_refused(client, scan, correction, message):
    number = give(client, scan)
    ended(client, number)
    response = client.post(f"/api/jobs/{number}/again", json={"correction": correction})
    assert response.status_code == 422
    assert message in response.json()["detail"]
    assert ended(client, number)["state"] == "done"


def test_unreadable_scans_are_reported_without_paths_of_the_server(client, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(gzip.compress(b"no NIfTI file" * 50))
    packed = tmp_path / "bad.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../escape.txt", "no DICOM")
    for path in (bad, packed):
        job = ended(client, give(client, path))
        assert job["state"] == "failed"
        assert job["problem"]
        assert str(tmp_path) not in job["problem"]
        assert "\n" not in job["problem"]
        assert client.get(f"/api/jobs/{job['number']}/view").status_code == 404
    assert not (tmp_path / "escape.txt").exists()


def test_unsupported_and_too_large_uploads_are_refused_and_removed(
    serve, model_folder, scan, tmp_path, monkeypatch
):
    monkeypatch.setenv("ISOPOSE_MAX_GB", "0.000001")
    served = serve("serve", model_folder, "--folder", tmp_path / "kept")
    with httpx.Client(base_url=served.address, headers=INTENT) as client:
        assert client.post("/api/jobs?filename=a.exe", content=b"x").status_code == 415
        assert client.post("/api/jobs?filename=a.nii", content=b"").status_code == 400
        response = client.post("/api/jobs?filename=a.nii", content=b"x" * 5000)
        assert response.status_code == 413
        assert "ISOPOSE_MAX_GB" in response.text
        # Without a length that is announced.
        response = client.post("/api/jobs?filename=a.nii", content=iter([b"x" * 900, b"x" * 900]))
        assert response.status_code == 413
        assert client.get("/api/jobs").json() == []
    assert list((tmp_path / "kept").glob("arriving-*")) == []
    assert not list((tmp_path / "kept" / "jobs").glob("*"))


def test_deleting_a_scan_deletes_its_results(client, scan):
    number = give(client, scan)
    ended(client, number)
    assert (client.folder / "jobs" / str(number) / "result").exists()
    assert client.delete(f"/api/jobs/{number}").status_code == 200
    assert number not in [job["number"] for job in client.get("/api/jobs").json()]
    assert not (client.folder / "jobs" / str(number)).exists()
    assert client.get(f"/api/jobs/{number}/view").status_code == 404
    assert client.delete(f"/api/jobs/{number}").status_code == 404


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_queue_survives_a_restart_of_the_server(serve, model_folder, scan, tmp_path, how):
    folder = tmp_path / "kept"
    served = serve("serve", model_folder, "--folder", folder)
    with httpx.Client(base_url=served.address, headers=INTENT) as client:
        numbers = [give(client, scan) for _ in range(3)]
    _, output = served.stop(how)
    assert "Traceback" not in output
    with sqlite3.connect(folder / "queue.sqlite") as base:
        left = {state for (state,) in base.execute("SELECT state FROM jobs")}
    base.close()
    assert left & {"queued", "running"}, "all was done before it was stopped"
    served = serve("serve", model_folder, "--folder", folder)
    with httpx.Client(base_url=served.address, headers=INTENT) as client:
        assert [ended(client, number)["state"] for number in numbers] == ["done"] * 3
        assert len({client.get(f"/api/jobs/{n}/download/nifti").content for n in numbers}) == 1


def test_after_a_cancelled_scan_the_next_is_predicted(client, scan):
    first, second, third = (give(client, scan) for _ in range(3))
    client.post(f"/api/jobs/{second}/cancel")
    client.post(f"/api/jobs/{first}/cancel")
    assert ended(client, third)["state"] == "done"
    assert ended(client, second)["state"] == "cancelled"
    assert ended(client, first)["state"] in ("cancelled", "done")
    client.post(f"/api/jobs/{second}/again", json={})
    assert ended(client, second)["state"] == "done"


def test_a_killed_process_fails_only_its_own_scan(client, scan):
    import psutil

    ended(client, give(client, scan))
    (worker,) = [
        p for p in psutil.Process(client.served.process.pid).children() if "spawn_main" in str(p.cmdline())
    ]
    worker.kill()
    number = give(client, scan)
    job = ended(client, number)
    if job["state"] == "failed":
        assert "was killed, probably because memory ran out" in job["problem"]
        number = give(client, scan)
    assert ended(client, number)["state"] == "done"


def test_a_second_server_on_the_same_folder_is_refused(client, isopose, model_folder):
    code, _, message = isopose("serve", model_folder, "--folder", client.folder, "--port", 0, "--no-browser")
    assert (code, message.count("\n")) == (2, 1)
    assert "another isopose process is writing to it" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0", "--token", "short"], "expected 16 characters or more"),
        (["--host", "203.0.113.7", "--token", "x" * 20], "is not available"),
        (["--device", "abacus"], "abacus"),
        (["--precision", "3"], "--precision"),
    ],
)
def test_invalid_arguments_are_reported_at_the_start(isopose, model_folder, tmp_path, arguments, message):
    code, _, err = isopose(
        "serve", model_folder, "--folder", tmp_path / "kept", "--port", 0, "--no-browser", *arguments
    )
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_a_public_address_generates_and_prints_a_token(serve, model_folder, scan, tmp_path):
    served = serve("serve", model_folder, "--folder", tmp_path / "kept", "--host", "0.0.0.0", "--forget")
    address, _, token = served.address.partition("?token=")
    assert len(token) >= 32
    assert "others on the network can reach this server" in served.output
    address = address.replace("0.0.0.0", "127.0.0.1")
    with httpx.Client(base_url=address, headers=INTENT) as client:
        assert client.get("/api/jobs").status_code == 401
        client.headers["Authorization"] = f"Bearer {token}"
        ended(client, give(client, scan))
    code, output = served.stop()
    assert (code, token not in output.replace(served.address, "")) == (0, True)
    assert "Traceback" not in output
    assert "Doe" not in output
    assert list((tmp_path / "kept").rglob("*.nii*")) == []


def test_a_zipped_series_gives_dicom_objects_that_refer_to_it(client, real_ct):
    series = next(path for path in sorted(real_ct.iterdir()) if path.is_dir())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in series.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(series))
    response = client.post("/api/jobs?filename=series.zip", content=packed.getvalue())
    number = response.json()["number"]
    assert ended(client, number)["state"] == "done"
    import pydicom

    source = pydicom.dcmread(next(file for file in series.rglob("*") if file.is_file()))
    listed = client.get(f"/api/jobs/{number}/view").json()["downloads"]
    assert listed == ["nifti", "dicom-seg", "rtstruct", "dicom-sr", "report", "record"]
    objects = {
        kind: pydicom.dcmread(io.BytesIO(client.get(f"/api/jobs/{number}/download/{kind}").content))
        for kind in listed[1:4]
    }
    assert [one.Modality for one in objects.values()] == ["SEG", "RTSTRUCT", "SR"]
    assert len({one.StudyInstanceUID for one in objects.values()}) == 1
    named = objects["dicom-seg"].ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert source.file_meta.MediaStorageSOPInstanceUID in {one.ReferencedSOPInstanceUID for one in named}


def test_a_model_of_volumes_refuses_corrections(serve, scan, tmp_path):
    volume_model = bright_model(
        {"dims": 3, "data": {"size": 64}, "pose": {"per": "volume", "learned": False}}, real_unet=True
    )
    save_model(tmp_path / "model", volume_model)
    served = serve("serve", tmp_path / "model", "--folder", tmp_path / "kept", "--device", "cpu")
    with httpx.Client(base_url=served.address, headers=INTENT, timeout=30) as client:
        number = give(client, scan)
        assert ended(client, number)["state"] == "done"
        view = client.get(f"/api/jobs/{number}/view").json()
        assert "reference" not in view["steps"]
        assert len(view["scales"]) == 3
        assert set(planes(client, number, 3)) == {"native", "labels", "homogenized", "crop", "crop_labels"}
        assert "report" in view["downloads"]
        body = {"correction": {"poses": [{"slice": 4, "pose": [0.0] * 5}]}}
        response = client.post(f"/api/jobs/{number}/again", json=body)
        assert response.status_code == 409
        assert "only models of slices" in response.json()["detail"]
