"""Strict reading of files by pydantic, and one line of what is wrong with them."""

from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field, ValidationError

#: For dataclasses that are read from JSON: unknown keys, converted types, NaN and infinity are errors.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
#: A SHA-256 in hexadecimal.
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class InvalidValue(NamedTuple):
    """The first problem that pydantic found in some values.

    Args:
        key: dotted path to the value; empty where the problem is of the whole.
        message: what was expected; quotes no value.
        kind: pydantic's name for the error, e.g. ``extra_forbidden``.
        value: what was found.
    """

    key: str
    message: str
    kind: str
    value: Any

    def __str__(self) -> str:
        """Return key and message in one line."""
        return f"{self.key}: {self.message}" if self.key else self.message


def first_problem(error: ValidationError) -> InvalidValue:
    """Return the first of a validation's problems."""
    first = error.errors(include_url=False, include_context=False)[0]
    # Where a value may be of several types, pydantic names the type after the key.
    key = ".".join(
        part
        for part in map(str, first["loc"])
        if part.split("-")[-1] not in ("int", "float") and not part.startswith("literal[")
    )
    return InvalidValue(key, first["msg"].removeprefix("Value error, "), first["type"], first["input"])
