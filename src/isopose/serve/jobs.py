"""The queue of scans to predict, stored in SQLite, so that it survives a restart."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isopose.errors import InputError

#: Version of the tables.
VERSION = 1

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"

_TABLES = """
CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY,
    filename TEXT NOT NULL,
    upload TEXT NOT NULL,
    state TEXT NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    seconds REAL,
    problem TEXT,
    series TEXT,
    correction TEXT,
    turn INTEGER NOT NULL
);
"""


@dataclass(frozen=True)
class Job:
    """One uploaded scan.

    Args:
        number: from 1, never reused.
        filename: of the upload. It may name a patient, so it is sent only on request.
        upload: name under which the scan is stored.
        state: one of the states above.
        done: number of predicted slices.
        total: number of slices to predict, 0 if not known yet.
        seconds: duration of the prediction.
        problem: why there is no result, one line.
        series: which one of several DICOM series.
        correction: pose and crop set by hand, as JSON-able values.
        turn: order in the queue.
    """

    number: int
    filename: str
    upload: str
    state: str
    done: int
    total: int
    seconds: float | None
    problem: str | None
    series: str | None
    correction: dict[str, Any] | None
    turn: int

    def shown(self, *, names: bool) -> dict[str, Any]:
        """Return the values for the page; the file name only with ``names``."""
        hidden = {"upload", "turn", "correction"} | (set() if names else {"filename"})
        public = {key: value for key, value in asdict(self).items() if key not in hidden}
        return {**public, "corrected": self.correction is not None}


class Jobs:
    """The queue; thread-safe.

    Args:
        path: the database; created if missing. Jobs that were running when it was closed are queued again.

    Raises:
        InputError: the file is not a queue, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._base.row_factory = sqlite3.Row
        try:
            (version,) = self._base.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise InputError(
                    f"{path}: a queue of version {version}, expected {VERSION}; choose another folder"
                )
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.executescript(_TABLES)
            self._base.execute(f"PRAGMA user_version = {VERSION}")
            self._base.execute("UPDATE jobs SET state = ?, done = 0 WHERE state = ?", (QUEUED, RUNNING))
        except sqlite3.DatabaseError as error:
            self._base.close()
            raise InputError(f"{path}: expected isopose's queue, but it cannot be read ({error})") from None

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._base.close()

    def all(self) -> list[Job]:
        """Return all scans, the newest first."""
        with self._cursor() as cursor:
            return [_read_job(row) for row in cursor.execute("SELECT * FROM jobs ORDER BY number DESC")]

    def get(self, number: int) -> Job | None:
        """Return one scan."""
        with self._cursor() as cursor:
            row = cursor.execute("SELECT * FROM jobs WHERE number = ?", (number,)).fetchone()
        return None if row is None else _read_job(row)

    def reserve(self) -> int:
        """Return a new number."""
        with self._cursor() as cursor:
            cursor.execute("INSERT INTO numbers DEFAULT VALUES")
            number = cursor.lastrowid
        assert number is not None, "SQLite numbers every row"
        return number

    def add(self, number: int, filename: str, upload: str) -> None:
        """Append a stored scan to the queue."""
        with self._cursor() as cursor:
            cursor.execute(
                f"INSERT INTO jobs (number, filename, upload, state, turn) VALUES (?, ?, ?, ?, {_NEXT_TURN})",
                (number, filename, upload, QUEUED),
            )

    def take(self) -> Job | None:
        """Return the next scan and mark it as running; None if none waits."""
        with self._cursor() as cursor:
            row = cursor.execute(
                "UPDATE jobs SET state = ?, done = 0, total = 0, problem = NULL WHERE number = "
                "(SELECT number FROM jobs WHERE state = ? ORDER BY turn LIMIT 1) RETURNING *",
                (RUNNING, QUEUED),
            ).fetchone()
        return None if row is None else _read_job(row)

    def progress(self, number: int, done: int, total: int) -> None:
        """Set the progress of a running scan."""
        with self._cursor() as cursor:
            cursor.execute("UPDATE jobs SET done = ?, total = ? WHERE number = ?", (done, total, number))

    def finish(
        self, number: int, state: str, *, problem: str | None = None, seconds: float | None = None
    ) -> None:
        """Set the final state of a running scan, unless it was cancelled or removed."""
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE jobs SET state = ?, problem = ?, seconds = ? WHERE number = ? AND state = ?",
                (state, problem, seconds, number, RUNNING),
            )

    def cancel(self, number: int) -> None:
        """Cancel a waiting or running scan."""
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE jobs SET state = ? WHERE number = ? AND state IN (?, ?)",
                (CANCELLED, number, QUEUED, RUNNING),
            )

    def again(self, number: int, *, series: str | None, correction: dict[str, Any] | None) -> bool:
        """Queue a scan again unless it waits or runs; return whether it was queued."""
        text = None if correction is None else json.dumps(correction, allow_nan=False)
        with self._cursor() as cursor:
            cursor.execute(
                f"UPDATE jobs SET state = ?, done = 0, total = 0, problem = NULL, series = ?, "
                f"correction = ?, turn = {_NEXT_TURN} WHERE number = ? AND state NOT IN (?, ?)",
                (QUEUED, series, text, number, QUEUED, RUNNING),
            )
            return cursor.rowcount == 1

    def remove(self, number: int) -> None:
        """Forget a scan."""
        with self._cursor() as cursor:
            cursor.execute("DELETE FROM jobs WHERE number = ?", (number,))

    @contextmanager
    def _cursor(self) -> Iterator[sqlite3.Cursor]:
        with self._lock:
            cursor = self._base.cursor()
            try:
                yield cursor
            finally:
                cursor.close()


_NEXT_TURN = "(SELECT COALESCE(MAX(turn), 0) + 1 FROM jobs)"


def _read_job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values["correction"] = values["correction"] and json.loads(values["correction"])
    return Job(**values)
