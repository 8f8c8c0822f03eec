"""Read small CSV tables that people edit in spreadsheets."""

import csv
import math
from pathlib import Path

from isopose.errors import InputError
from isopose.files import read_text

#: Highest age that is accepted.
MAX_AGE_YEARS = 120


def read_table(
    path: Path, required: tuple[str, ...], optional: tuple[str, ...]
) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a CSV file with a header, as (line number, cells by lower-case column name).

    The separator (comma, semicolon or tab) is detected from the header. A byte-order mark is allowed, empty
    lines are skipped, and columns that are neither required nor optional are ignored. Cells are stripped.

    Raises:
        InputError: the file is unreadable or not UTF-8, a required column is missing, a required or optional
            column occurs twice, or a row is longer than the header.
    """
    try:
        lines = read_text(path, "a CSV table in UTF-8").splitlines()
        delimiter = max(",;\t", key=lines[0].count) if lines else ","
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: expected a CSV table in UTF-8, but it cannot be read ({error})") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    for name in required:
        if name not in header:
            got = ", ".join(header) or "none"
            raise InputError(f"{path}: expected a column {name!r} in the first line, got {got}")
    names = (*required, *optional)
    for name in names:
        if header.count(name) > 1:
            raise InputError(f"{path}: has the column {name!r} twice; remove one")
    table = []
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(header):
            raise InputError(
                f"{path}: line {line} has {len(row)} cells, expected {len(header)}; quote separators"
            )
        cells = dict.fromkeys(names, "") | {
            n: c.strip() for n, c in zip(header, row, strict=False) if n in names
        }
        table.append((line, cells))
    return table


def parse_age(path: Path, line: int, text: str) -> float | None:
    """Return an age in years, None where the cell is empty.

    Raises:
        InputError: not a number from 0 to 120.
    """
    if not text:
        return None
    try:
        age = float(text.replace(",", "."))  # spreadsheets may use a decimal comma
    except ValueError:
        age = math.nan
    if not 0 <= age <= MAX_AGE_YEARS:
        raise InputError(f"{path}: line {line} has age {text!r}, expected years from 0 to {MAX_AGE_YEARS}")
    return age
