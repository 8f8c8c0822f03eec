"""``isopose study-run``."""

from pathlib import Path


def study_run(folder: Path) -> None:
    """Do one run of a study; isopose study starts it."""
    from isopose.heap import keep_freed_memory
    from isopose.study.job import run_job

    keep_freed_memory()
    run_job(folder)
