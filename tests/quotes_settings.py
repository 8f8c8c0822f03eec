"""Settings and defaults that a page quotes: each function returns the wrong ones."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from isopose.config import Config, HomogenizeConfig
from isopose.errors import InputError
from isopose.presets import load_config
from quotes import OTHERS, lines_of_code, prose

#: What stands for something else in a quoted value: VALUE, <n>, …
PLACEHOLDER = re.compile(r"[A-Z_]{3,}|[<…$*]|\.\.\.")


@cache
def settings() -> dict[str, Any]:
    """Default of every setting by its whole key."""
    defaults: dict[str, Any] = {}

    def walk(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                defaults[prefix + key] = value

    walk(Config().model_dump(), "")
    return defaults


SECTIONS = sorted({key.partition(".")[0] for key in settings() if "." in key})
KEY = rf"(?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+|dims|stn"
SETTING = re.compile(rf"(?<![\w./-])({KEY})(?:=([^\s`,;)]+))?(?![\w/(-]|\.[a-z])")


def quoted_settings(text: str) -> Iterator[tuple[str, str | None]]:
    """Keys with the values that they are given, in sentences, tables and shell commands."""
    for code in lines_of_code(text):
        yield from SETTING.findall(code)


def wrong_settings(text: str) -> list[str]:
    """Keys that no configuration has, and values that it refuses."""
    wrong = []
    for key, value in quoted_settings(text):
        if key in OTHERS or key.endswith((".py", ".md", ".json", ".toml")):
            continue
        if key not in settings() and not any(name.startswith(f"{key}.") for name in settings()):
            wrong.append(f"{key}: no such setting")
        elif value and not PLACEHOLDER.search(value) and key in settings():
            try:
                load_config(settings=[f"{key}={value}"])
            except InputError as error:
                # What only does not go with the other defaults is no fault of this value.
                if f": {key}: " in str(error):
                    wrong.append(f"{key}={value}: {error}")
    return wrong


#: ``value`` and ``key`` of a sentence that says what is the default.
DEFAULTS = tuple(
    re.compile(pattern.replace("KEY", rf"(?P<key>{KEY})").replace("NUMBER", r"(?P<value>\d[\d.]*\d|\d)"))
    for pattern in (
        r"`KEY=(?P<value>[^`]+)`,? (?:is )?the default\b",
        r"`KEY=(?P<value>[^`]+)`,? (?:is so )?by default\b",
        r"`KEY=(?P<value>[^`]+)` \((?:the )?default",
        r"\bdefault (?!of|pixels)[^`.|()]{0,60}\(`KEY=(?P<value>[^`]+)`\)",
        r"\bdefault [a-z ]{0,40} is NUMBER (?:[a-z]+ )?\(`KEY`\)",
        r"`KEY` \(NUMBER(?: by default|, the default)?\)",
        r"`KEY` \((?:by )?default:? (?:NUMBER|`(?P<word>[^`)]+)`)\)",
        r"`KEY`,? (?:by default|whose default is|\(default\)) `?NUMBER`?",
        r"\bdefault of `KEY` is `?(?P<value>[\w.]+\w)`?",
    )
)


def wrong_defaults(text: str) -> list[str]:
    """Defaults of settings, and of ``isopose homogenize``, that are others in the code."""
    flat = " ".join(prose(text).split())
    wrong = []
    for pattern in DEFAULTS:
        for match in pattern.finditer(flat):
            key, value = match["key"], match["value"] or match.groupdict().get("word")
            if key in settings() and value != shown(settings()[key]):
                wrong.append(f"{key}: quoted default {value}, it is {shown(settings()[key])}")
    size, frame = HomogenizeConfig().size, settings()["data.size"]
    for pattern, value in ((r"frame has (\d+) pixels", frame), (r"(\d+) × \1 pixels \(`--size`\)", size)):
        wrong += [
            f"{match[0]}: it is {value}" for match in re.finditer(pattern, flat) if match[1] != str(value)
        ]
    return wrong


def shown(value: Any) -> str:
    """Return a value as documentation pages write it."""
    if value is None:
        return "none"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
