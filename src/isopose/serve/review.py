"""``isopose review``: what its page asks for, over HTTP."""

import threading
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, HTTPException, Query
from fastapi.responses import FileResponse, Response

from isopose.isolation import line_of
from isopose.labels import class_colors
from isopose.serve.cohort import LONGEST_COMMENT, Cohort, Decisions, Reviewed, case_view, thumbnail
from isopose.serve.guard import Access
from isopose.serve.pages import add_pages, octets, slice_answer, with_guard
from isopose.serve.viewing import reduced
from isopose.version import __version__

#: Scans that are read at a time; each takes the memory of one.
READERS = 2


def review_app(cohort: Cohort, access: Access) -> FastAPI:
    """Return the server of a review.

    Args:
        cohort: what is shown.
        access: who may come.

    Raises:
        InputError: the folder's decisions are none.
    """
    decisions = Decisions(cohort.folder / "review.csv", tuple(one.case for one in cohort.cases))
    app = FastAPI(title="isopose", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    add_pages(app, "review.html")
    reading, writing = threading.Semaphore(READERS), threading.Lock()
    viewing = threading.Lock()

    def case_of(number: int) -> Reviewed:
        if not 0 <= number < len(cohort.cases):
            raise HTTPException(404, f"there are cases 0 to {len(cohort.cases) - 1}")
        return cohort.cases[number]

    @app.get("/api/cohort")
    def all_cases() -> dict[str, Any]:
        rows = []
        for case in cohort.cases:
            decision, comment = decisions.of.get(case.case, ("", ""))
            rows.append({**case.row(cohort.targets), "decision": decision, "comment": comment})
        colors = class_colors(cohort.labels.names)
        names = zip(cohort.labels.names, colors, strict=True)
        return {
            "targets": cohort.targets,
            "labels": [{"name": name, "color": color} for name, color in names],
            "rows": rows,
        }

    @app.get("/api/cases/{number}/thumbnail.png")
    def small(number: int) -> FileResponse:
        case = case_of(number)
        with reading:
            try:
                path = thumbnail(cohort, case)
            except Exception as error:
                raise HTTPException(422, str(line_of(error))) from None
        return FileResponse(path, media_type="image/png", headers={"cache-control": "private, max-age=600"})

    def view_of(number: int) -> tuple[Any, dict[str, Any]]:
        case_of(number)
        with viewing:
            try:
                return case_view(cohort, number)
            except Exception as error:
                raise HTTPException(422, str(line_of(error))) from None

    @app.get("/api/cases/{number}/view")
    def view(number: int) -> dict[str, Any]:
        return view_of(number)[1]

    @app.get("/api/cases/{number}/{name}.nii")
    def volume(
        number: int,
        name: Literal["scan", "labels", "truth", "against"],
        few: Annotated[bool, Query(alias="reduced")] = False,
    ) -> FileResponse:
        place, info = view_of(number)
        path = place / f"{name}.nii"
        if not path.exists():
            raise HTTPException(404, "there is no such label map of this case")
        return octets(reduced(path, info["shape"]) if few else path)

    @app.get("/api/cases/{number}/slices/{z}")
    def panels(number: int, z: int) -> Response:
        place, info = view_of(number)
        return slice_answer(place, info["shape"], z)

    @app.post("/api/cases/{number}/decision")
    def decide(
        number: int,
        decision: Annotated[Literal["", "accepted", "rejected"], Body()],
        comment: Annotated[str, Body(max_length=LONGEST_COMMENT)] = "",
    ) -> None:
        case = case_of(number)
        with writing:
            decisions.decide(case.case, decision, comment.strip())

    with_guard(app, access)
    return app
