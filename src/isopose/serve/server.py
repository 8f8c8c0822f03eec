"""HTTP interface of ``isopose serve``."""

import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from isopose.errors import InputError
from isopose.io.limits import largest_bytes
from isopose.io.results.formats import FORMATS, NIFTI
from isopose.scan.correction import (
    FORMAT,
    Correction,
    correction_from_json,
    correction_path,
    write_correction,
)
from isopose.serve.guard import Access
from isopose.serve.jobs import DONE, Job, Jobs
from isopose.serve.pages import add_guard, add_pages, send_octets, send_slice
from isopose.serve.viewing import read_view, reduced
from isopose.serve.worker import RESULT, JobWorker, Settings
from isopose.version import __version__

#: Accepted uploads: formats of one file each, and a zipped DICOM series.
ACCEPTED_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha", ".zip")
#: Characters of a file's name that are kept.
LONGEST_NAME = 200
#: Results by the last part of their address: file, type, and ending of the download's name.
DOWNLOADS = {
    **{
        one: (f"{RESULT}{ending}", "application/gzip" if one == NIFTI else "application/dicom", ending)
        for one, ending in FORMATS.items()
    },
    "report": ("report.html", "text/html", "-report.html"),
    "record": (f"{RESULT}.json", "application/json", ".json"),
}


def serve_app(model: Path, folder: Path, access: Access, *, device: str, precision: str | None) -> FastAPI:
    """Return the server; it starts to predict on startup.

    Args:
        model: folder of the model.
        folder: for scans, results, the queue and corrections; exists and is locked.
        access: access rules.
        device: as ``isopose predict --device``.
        precision: as ``isopose predict --precision``.

    Raises:
        InputError: the folder's queue cannot be used.
    """
    jobs = Jobs(folder / "queue.sqlite")
    worker = JobWorker(Settings(model, device, precision, folder / "jobs"), jobs)
    _remove_leftovers(folder, jobs)

    @asynccontextmanager
    async def work(_app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()
        jobs.close()

    app = FastAPI(
        title="isopose", version=__version__, lifespan=work, docs_url=None, redoc_url=None, openapi_url=None
    )
    add_pages(app, "serve.html")
    _add_queue(app, folder, jobs)
    _add_predictions(app, folder, jobs, worker)
    _add_results(app, folder, jobs)
    add_guard(app, access)
    return app


def _add_queue(app: FastAPI, folder: Path, jobs: Jobs) -> None:
    """Add the routes that list, cancel and delete scans."""

    @app.get("/api/about")
    def describe_server() -> dict[str, Any]:
        return {"version": __version__, "taken": ACCEPTED_EXTENSIONS, "largest_bytes": largest_bytes()}

    @app.get("/api/jobs")
    def list_jobs(names: bool = False) -> list[dict[str, Any]]:
        return [job.shown(names=names) for job in jobs.all()]

    @app.post("/api/jobs/{number}/cancel")
    def cancel(number: int) -> None:
        _find_job(jobs, number)
        jobs.cancel(number)

    @app.delete("/api/jobs/{number}")
    def remove(number: int) -> None:
        _find_job(jobs, number)
        jobs.cancel(number)
        jobs.remove(number)
        shutil.rmtree(folder / "jobs" / str(number), ignore_errors=True)


def _add_predictions(app: FastAPI, folder: Path, jobs: Jobs, worker: JobWorker) -> None:
    """Add the routes that queue a scan: a new one, or one that is predicted again."""

    @app.post("/api/jobs", status_code=201)
    async def add(
        request: Request, filename: Annotated[str, Query(max_length=LONGEST_NAME)]
    ) -> dict[str, int]:
        kind = next((one for one in ACCEPTED_EXTENSIONS if filename.lower().endswith(one)), None)
        if kind is None:
            raise HTTPException(415, f"expected a file that ends in {', '.join(ACCEPTED_EXTENSIONS)}")
        # Stored under a temporary name until it is complete, so that an incomplete upload is not a job.
        arriving = folder / f"arriving-{secrets.token_hex(8)}"
        try:
            await _store_body(request, arriving)
            number = await run_in_threadpool(jobs.reserve)
            place = folder / "jobs" / str(number)
            place.mkdir(parents=True)
            arriving.replace(place / f"upload{kind}")
            await run_in_threadpool(jobs.add, number, filename, f"upload{kind}")
        finally:
            arriving.unlink(missing_ok=True)
        worker.wake()
        return {"number": number}

    @app.post("/api/jobs/{number}/again")
    def predict_again(
        number: int,
        series: Annotated[str | None, Body(max_length=64)] = None,
        correction: Annotated[dict[str, Any] | Literal["as found"] | None, Body()] = None,
    ) -> None:
        """Queue a scan again; without a correction the earlier one is kept, e.g. for a cancelled scan."""
        job = _find_job(jobs, number)
        checked = _check_correction(folder, job, correction) if isinstance(correction, dict) else None
        kept_correction = job.correction if checked is None else checked.to_json()
        if correction == "as found":
            kept_correction = None
        if not jobs.again(number, series=series or job.series, correction=kept_correction):
            raise HTTPException(409, "the scan is already waiting or running")
        if checked is not None:
            write_correction(folder / "corrections", checked)
        elif kept_correction is None and job.correction is not None:
            # A removed correction must not be used in training.
            correction_path(folder / "corrections", job.correction["image_sha256"]).unlink(missing_ok=True)
        worker.wake()


def _add_results(app: FastAPI, folder: Path, jobs: Jobs) -> None:
    """Add the routes of one scan's result: view, volumes, slices and downloads."""

    def find_view(number: int) -> tuple[Path, dict[str, Any]]:
        _find_job(jobs, number)
        place = folder / "jobs" / str(number) / "view"
        view = read_view(place)
        if view is None:
            raise HTTPException(404, "there is no result yet")
        return place, view

    def send_volume(name: str, number: int, few: bool) -> FileResponse:
        place, info = find_view(number)
        return send_octets(reduced(place / name, info["shape"]) if few else place / name)

    @app.get("/api/jobs/{number}/view")
    def send_view(number: int) -> dict[str, Any]:
        place, info = find_view(number)
        results = place.parent / "result"
        kinds_present = [kind for kind, (name, *_) in DOWNLOADS.items() if (results / name).exists()]
        return {**info, "downloads": kinds_present}

    @app.get("/api/jobs/{number}/scan.nii")
    def send_scan(number: int, few: Annotated[bool, Query(alias="reduced")] = False) -> FileResponse:
        return send_volume("scan.nii", number, few)

    @app.get("/api/jobs/{number}/labels.nii")
    def send_labels(number: int, few: Annotated[bool, Query(alias="reduced")] = False) -> FileResponse:
        return send_volume("labels.nii", number, few)

    @app.get("/api/jobs/{number}/slices/{z}")
    def send_panels(number: int, z: int) -> Response:
        place, info = find_view(number)
        return send_slice(place, info["shape"], z)

    @app.get("/api/jobs/{number}/download/{kind}")
    def download(number: int, kind: str, names: bool = False) -> FileResponse:
        job = _find_job(jobs, number)
        if job.state != DONE or kind not in DOWNLOADS:
            raise HTTPException(404, "there is no such result")
        name, media_type, suffix = DOWNLOADS[kind]
        path = folder / "jobs" / str(number) / "result" / name
        if not path.exists():
            raise HTTPException(404, "there is no such result of this scan")
        stem = job.filename[: len(job.filename) - len(_find_kind(job))] if names else f"scan-{number}"
        return FileResponse(path, media_type=media_type, filename=stem + suffix)


async def _store_body(request: Request, path: Path) -> None:
    """Write the request's body to a file, up to the size limit."""
    largest = largest_bytes()
    message = f"expected at most {largest / 2**30:g} GB; ISOPOSE_MAX_GB sets another limit"
    given = request.headers.get("content-length", "")
    announced = int(given) if given.isdecimal() else 0
    if announced > largest:
        raise HTTPException(413, message)
    if shutil.disk_usage(path.parent).free < announced:
        raise HTTPException(507, "the disk is full; delete some results")
    received = 0
    try:
        with open(path, "wb") as file:
            async for part in request.stream():
                received += len(part)
                if received > largest:
                    raise HTTPException(413, message)
                await run_in_threadpool(file.write, part)
    except OSError as error:
        raise HTTPException(507, f"the scan cannot be stored ({error.strerror})") from None
    if not received:
        raise HTTPException(400, "the file is empty")


def _find_job(jobs: Jobs, number: int) -> Job:
    job = jobs.get(number)
    if job is None:
        raise HTTPException(404, f"there is no scan {number}")
    return job


def _check_correction(folder: Path, job: Job, values: dict[str, Any]) -> Correction:
    """Return a valid correction for this scan, with the frame and reference of its prediction."""
    view = read_view(folder / "jobs" / str(job.number) / "view")
    if view is None or "reference" not in view["steps"]:
        raise HTTPException(409, "only models of slices support poses set by hand")
    known = {
        "format": FORMAT,
        "image_sha256": view["image_sha256"],
        "frame": view["frame"],
        "reference": view["steps"]["reference"],
    }
    try:
        return correction_from_json(
            {**{key: values.get(key, []) for key in ("poses", "crops")}, **known}, "the pose set by hand"
        )
    except InputError as error:
        raise HTTPException(422, str(error)) from None


def _find_kind(job: Job) -> str:
    return next(kind for kind in ACCEPTED_EXTENSIONS if job.upload.endswith(kind))


def forget(folder: Path) -> None:
    """Delete scans, results and the queue after the server has stopped; corrections stay."""
    shutil.rmtree(folder / "jobs", ignore_errors=True)
    for path in folder.glob("queue.sqlite*"):
        path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path, jobs: Jobs) -> None:
    """Delete incomplete uploads, and folders of scans that are no longer queued."""
    for path in folder.glob("arriving-*"):
        path.unlink(missing_ok=True)
    known = {str(job.number) for job in jobs.all()}
    for place in (folder / "jobs").glob("*"):
        if place.is_dir() and place.name not in known:
            shutil.rmtree(place, ignore_errors=True)
