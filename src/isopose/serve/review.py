"""HTTP interface of ``isopose review``."""

import threading
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, HTTPException, Query
from fastapi.responses import FileResponse, Response

from isopose.isolation import line_of
from isopose.labels import class_colors
from isopose.serve.cohort import LONGEST_COMMENT, Decisions, Reviewed, ReviewedCohort, case_view, thumbnail
from isopose.serve.guard import Access
from isopose.serve.pages import add_guard, add_pages, send_octets, send_slice
from isopose.serve.viewing import reduced
from isopose.version import __version__

#: Number of scans read at a time; each takes the memory of one.
MAX_READERS = 2


def review_app(cohort: ReviewedCohort, access: Access) -> FastAPI:
    """Return the server of a review.

    Args:
        cohort: cases to review.
        access: access rules.

    Raises:
        InputError: ``review.csv`` in the cohort's folder does not hold decisions.
    """
    decisions = Decisions(cohort.folder / "review.csv", tuple(one.case for one in cohort.cases))
    app = FastAPI(title="isopose", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    add_pages(app, "review.html")
    _add_table(app, cohort, decisions)
    _add_cases(app, cohort)
    add_guard(app, access)
    return app


def _add_table(app: FastAPI, cohort: ReviewedCohort, decisions: Decisions) -> None:
    """Add the routes of the table: all cases, their thumbnails, and people's decisions."""
    reading, writing = threading.Semaphore(MAX_READERS), threading.Lock()

    @app.get("/api/cohort")
    def list_cases() -> dict[str, Any]:
        rows = []
        for case in cohort.cases:
            decision, comment = decisions.of.get(case.case, ("", ""))
            rows.append({**case.row(cohort.targets), "decision": decision, "comment": comment})
        names = zip(cohort.labels.names, class_colors(cohort.labels.names), strict=True)
        return {
            "targets": cohort.targets,
            "labels": [{"name": name, "color": color} for name, color in names],
            "rows": rows,
        }

    @app.get("/api/cases/{number}/thumbnail.png")
    def send_thumbnail(number: int) -> FileResponse:
        case = _find_case(cohort, number)
        with reading:
            try:
                path = thumbnail(cohort, case)
            except Exception as error:
                raise HTTPException(422, str(line_of(error))) from None
        return FileResponse(path, media_type="image/png", headers={"cache-control": "private, max-age=600"})

    @app.post("/api/cases/{number}/decision")
    def decide(
        number: int,
        decision: Annotated[Literal["", "accepted", "rejected"], Body()],
        comment: Annotated[str, Body(max_length=LONGEST_COMMENT)] = "",
    ) -> None:
        case = _find_case(cohort, number)
        with writing:
            decisions.decide(case.case, decision, comment.strip())


def _add_cases(app: FastAPI, cohort: ReviewedCohort) -> None:
    """Add the routes of one case: its scan and label maps, as volumes and slice by slice."""
    viewing = threading.Lock()

    def find_view(number: int) -> tuple[Path, dict[str, Any]]:
        _find_case(cohort, number)
        with viewing:
            try:
                return case_view(cohort, number)
            except Exception as error:
                raise HTTPException(422, str(line_of(error))) from None

    @app.get("/api/cases/{number}/view")
    def send_view(number: int) -> dict[str, Any]:
        return find_view(number)[1]

    @app.get("/api/cases/{number}/{name}.nii")
    def send_volume(
        number: int,
        name: Literal["scan", "labels", "truth", "against"],
        few: Annotated[bool, Query(alias="reduced")] = False,
    ) -> FileResponse:
        place, info = find_view(number)
        path = place / f"{name}.nii"
        if not path.exists():
            raise HTTPException(404, "there is no such label map of this case")
        return send_octets(reduced(path, info["shape"]) if few else path)

    @app.get("/api/cases/{number}/slices/{z}")
    def send_panels(number: int, z: int) -> Response:
        place, info = find_view(number)
        return send_slice(place, info["shape"], z)


def _find_case(cohort: ReviewedCohort, number: int) -> Reviewed:
    if not 0 <= number < len(cohort.cases):
        raise HTTPException(404, f"there are cases 0 to {len(cohort.cases) - 1}")
    return cohort.cases[number]
