"""Keys of files from before the spelling became American, and how they are spelled now.

Each table maps the dotted path of an old key to its present name. Only these paths are renamed: other
dictionaries hold names that users chose, such as labels.
"""

from collections.abc import Mapping
from typing import Any

SETTINGS = {f"{section}.optimiser": "optimizer" for section in ("pose", "crop", "unet")}
TRANSFORM = {"frame.centre_mm": "center_mm"}
CASE_RECORD = {f"transform.{path}": name for path, name in TRANSFORM.items()}
EVALUATION = {"unlabelled": "unlabeled"}
CORRECTION = {"frame.centre_mm": "center_mm", "reference.centre": "center"}
#: Part of the name of a network's weight.
WEIGHTS = {"localisation": "localization"}


def present_weight(name: str) -> str:
    """Return the present name of a weight, e.g. ``crop.localization.hidden.bias``."""
    return ".".join(WEIGHTS.get(part, part) for part in name.split("."))


def with_present_names(values: Any, renamed: Mapping[str, str]) -> Any:
    """Return JSON-able values with old keys renamed, in the same order.

    Args:
        values: of any kind; left as they are.
        renamed: one of this module's tables. An old key whose present name stands beside it stays, and the
            reader refuses it as unknown.
    """
    if not isinstance(values, dict):
        return values
    result: dict[str, Any] = {}
    for key, value in values.items():
        nested = {
            path.removeprefix(f"{key}."): name for path, name in renamed.items() if path.startswith(f"{key}.")
        }
        name = renamed.get(key, key)
        result[key if name in values else name] = with_present_names(value, nested) if nested else value
    return result
