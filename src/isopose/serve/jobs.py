"""The queue of scans to predict, in SQLite, so that it outlives the server."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isopose.errors import InputError

#: Goes up with every change of the table.
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
    """One scan that was given.

    Args:
        number: from 1, never given twice.
        filename: as it was given. It may name a patient, so it is told only to who asks.
        upload: name under which it is stored.
        state: one of those above.
        done: slices that are predicted.
        total: slices to predict, 0 where not known yet.
        seconds: that the prediction took.
        problem: why there is no result, one line.
        series: which of several DICOM series.
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
        """What a page is told."""
        hidden = {"upload", "turn", "correction"} | (set() if names else {"filename"})
        told = {key: value for key, value in asdict(self).items() if key not in hidden}
        return {**told, "corrected": self.correction is not None}


class Jobs:
    """The queue; may be used by several threads.

    Args:
        path: the database; made where it is not there. What was running when it was left is queued again.

    Raises:
        InputError: it is another file, or of another version.
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
        """Let go of the database."""
        with self._lock:
            self._base.close()

    def all(self) -> list[Job]:
        """Return all scans, the newest first."""
        with self._cursor() as cursor:
            return [_job(row) for row in cursor.execute("SELECT * FROM jobs ORDER BY number DESC")]

    def get(self, number: int) -> Job | None:
        """Return one scan."""
        with self._cursor() as cursor:
            row = cursor.execute("SELECT * FROM jobs WHERE number = ?", (number,)).fetchone()
        return None if row is None else _job(row)

    def reserve(self) -> int:
        """Return a number that no scan has had or will get."""
        with self._cursor() as cursor:
            cursor.execute("INSERT INTO numbers DEFAULT VALUES")
            number = cursor.lastrowid
        assert number is not None, "SQLite numbers every row"
        return number

    def add(self, number: int, filename: str, upload: str) -> None:
        """Put a scan, that is in its place, at the end of the queue."""
        with self._cursor() as cursor:
            cursor.execute(
                f"INSERT INTO jobs (number, filename, upload, state, turn) VALUES (?, ?, ?, ?, {_LAST})",
                (number, filename, upload, QUEUED),
            )

    def take(self) -> Job | None:
        """Return the scan whose turn it is, which is running from now on; none where none waits."""
        with self._cursor() as cursor:
            row = cursor.execute(
                "UPDATE jobs SET state = ?, done = 0, total = 0, problem = NULL WHERE number = "
                "(SELECT number FROM jobs WHERE state = ? ORDER BY turn LIMIT 1) RETURNING *",
                (RUNNING, QUEUED),
            ).fetchone()
        return None if row is None else _job(row)

    def progress(self, number: int, done: int, total: int) -> None:
        """How far a running scan is."""
        with self._cursor() as cursor:
            cursor.execute("UPDATE jobs SET done = ?, total = ? WHERE number = ?", (done, total, number))

    def finish(
        self, number: int, state: str, *, problem: str | None = None, seconds: float | None = None
    ) -> None:
        """What became of a running scan; one that was cancelled or removed meanwhile stays so."""
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE jobs SET state = ?, problem = ?, seconds = ? WHERE number = ? AND state = ?",
                (state, problem, seconds, number, RUNNING),
            )

    def cancel(self, number: int) -> None:
        """Do not predict a scan that waits, or stop with the one that runs."""
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE jobs SET state = ? WHERE number = ? AND state IN (?, ?)",
                (CANCELLED, number, QUEUED, RUNNING),
            )

    def again(self, number: int, *, series: str | None, correction: dict[str, Any] | None) -> bool:
        """Queue a scan once more, that neither waits nor runs; whether it does so now."""
        text = None if correction is None else json.dumps(correction, allow_nan=False)
        with self._cursor() as cursor:
            cursor.execute(
                f"UPDATE jobs SET state = ?, done = 0, total = 0, problem = NULL, series = ?, "
                f"correction = ?, turn = {_LAST} WHERE number = ? AND state NOT IN (?, ?)",
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


_LAST = "(SELECT COALESCE(MAX(turn), 0) + 1 FROM jobs)"


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values["correction"] = values["correction"] and json.loads(values["correction"])
    return Job(**values)
