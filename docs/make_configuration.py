"""Write docs/configuration.md from the models of the settings; run it after each change of them."""

import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from isopose.config import Config, HomogenizeConfig
from isopose.presets import VOLUME_SETTINGS, load_config
from isopose.settings import ConfigSection

PAGE = Path(__file__).with_name("configuration.md")

HEAD = """# Configuration

<!-- Written by docs/make_configuration.py from config.py and settings.py. Do not edit by hand. -->

Every setting has a default. A configuration is made in this order; what comes later wins:

1. a preset: `--preset default` or `--preset paper` (see [paper.md](paper.md)), or `preset` in the file;
2. a file: `--config settings.toml`, TOML or, with the ending `.json`, JSON; any part of any section;
3. single values: `--set section.key=value`, repeated, values as JSON or plain words, `none` for none.

```console
isopose fit DATASET --model model --config settings.toml --set unet.base_features=16 --fold 1
```

```toml
[data]
size = 256

[unet]
input = "quarter"

[unet.optimizer]
epochs = 60
min_epochs = 30
```

An unknown key, or a value of the wrong type or out of range, ends the run with a one-line error and exit
code 2. Nothing is read from the environment. The whole configuration is saved with the model (`config` in
`model.json`), and a resumed run must be given the same one.

In the tables "paper" is the value of the paper preset where it differs from the default.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page as Markdown."""
    paper = load_config("paper")
    brought = ", ".join(f"`{key}={_value(value)}`" for key, value in _flat(VOLUME_SETTINGS))
    parts = [HEAD, f"`dims=3` changes these defaults, after the preset and before the file: {brought}.\n"]
    default = Config()
    for prefix, section in _sections("", default):
        title = f"`{prefix}`" if prefix else "Top level"
        parts.append(f"## {title}\n\n{_doc(section)}\n\n{_table(prefix, section, _at(paper, prefix))}")
    options = [
        f"| `--{key.replace('_', '-')}` | {' | '.join(cells)} |"
        for key, cells in _options(HomogenizeConfig())
    ]
    head = "| option | default | allowed | meaning |\n| --- | --- | --- | --- |\n"
    title = "## Options of `isopose homogenize`"
    parts.append(f"{title}\n\n{_doc(HomogenizeConfig())}\n\n{head}" + "\n".join(options) + "\n")
    return "\n".join(parts)


def _options(section: BaseModel) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for key, field, value in rows("", section):
        yield key, (f"`{_value(value)}`", _allowed(field), field.description or "")


def rows(prefix: str, section: BaseModel) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Whole key, field and value of each setting of a section, without those of the sections in it."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not isinstance(value, BaseModel):
            yield (f"{prefix}.{name}" if prefix else name), field, value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        yield from _flat(value, f"{key}.") if isinstance(value, Mapping) else [(key, value)]


def _sections(prefix: str, section: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    yield prefix, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, ConfigSection):
            yield from _sections(f"{prefix}.{name}" if prefix else name, value)


def _at(section: Any, prefix: str) -> BaseModel:
    for name in filter(None, prefix.split(".")):
        section = getattr(section, name)
    found: BaseModel = section
    return found


def _doc(section: BaseModel) -> str:
    return (type(section).__doc__ or "").strip()


def _table(prefix: str, section: BaseModel, paper: BaseModel) -> str:
    lines = ["| key | default | paper | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
    for key, field, value in rows(prefix, section):
        if not field.description:
            raise ValueError(f"{key}: no description in isopose.settings")
        other = getattr(paper, key.rpartition(".")[2])
        shown = "" if other == value else f"`{_value(other)}`"
        cells = (f"`{key}`", f"`{_value(value)}`", shown, _allowed(field), field.description)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _allowed(field: FieldInfo) -> str:
    bounds = [
        f"{words} {json.dumps(getattr(rule, name))}"
        for rule in field.metadata
        for name, words in (("gt", "above"), ("ge", "from"), ("lt", "below"), ("le", "to"))
        if hasattr(rule, name)
    ]
    return ", ".join([_type(field.annotation), *bounds])


def _of_union(kind: Any) -> str:
    """Return what an annotated member of a union allows: its type and its own bounds."""
    return _allowed(FieldInfo.from_annotation(kind)) if get_origin(kind) is Annotated else _type(kind)


def _type(kind: Any) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{_value(value)}`" for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_of_union(one) for one in inside)
    if origin is tuple and inside[-1] is Ellipsis:
        return f"a list of {_type(inside[0])}"
    if origin is tuple:
        return f"{len(inside)} {_type(inside[0])}s"
    if origin is dict:
        return "table of label to number"
    return {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}.get(kind, "none")


if __name__ == "__main__":
    main()
