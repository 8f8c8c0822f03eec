"""Strict reading of files by pydantic, and one line of what is wrong with them."""

import re
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


#: Pydantic's names of types, which follow the key where a value may be of several types.
_TYPES = re.compile(r"(constrained-)?(bool|float|int|str)|(literal|tuple)\[.*")
#: Beginning of pydantic's messages about a value.
_MESSAGE_PREFIX = "Input should be "


def first_problem(error: ValidationError) -> InvalidValue:
    """Return the first of a validation's problems, with all alternatives if there are several types."""
    errors = error.errors(include_url=False, include_context=False)
    keys = [".".join(part for part in map(str, e["loc"]) if not _TYPES.fullmatch(part)) for e in errors]
    first = errors[0]
    # Pydantic reports a problem for each of the types, and the fitting one need not be the first.
    alternatives = [e for e, key in zip(errors, keys, strict=True) if key == keys[0]]
    texts = [_text_of(e["type"], e["msg"]) for e in alternatives]
    others = [
        text.removeprefix(_MESSAGE_PREFIX)
        for text in dict.fromkeys(texts[1:])
        if text.startswith(_MESSAGE_PREFIX)
    ]
    return InvalidValue(keys[0], " or ".join([texts[0], *others]), first["type"], first["input"])


def _text_of(kind: str, message: str) -> str:
    if kind == "string_too_short":
        return "Expected text that is not empty"
    # "..., unable to parse string as a number" tells no more.
    return message.removeprefix("Value error, ").partition(", unable to ")[0]
