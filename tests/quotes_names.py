"""Files, Python names and figures that a page quotes: each function returns the wrong ones."""

import ast
import math
import re
import tomllib
from pathlib import Path

from quotes import INLINE, OTHERS, SOURCE, lines_of_code, prose, tree_of
from scripts import ROOT

#: Folders of the repository that pages name.
FOLDERS = ("src", "tests", "benchmarks", "docs", "examples", "fuzz")


def wrong_paths(text: str, page: Path) -> list[str]:
    """Files and folders of the repository that are not there."""
    wrong = []
    for code in INLINE.findall(prose(text)):
        path = code.partition(": ")[0].rstrip("/")
        first = path.partition("/")[0]
        if path in OTHERS or not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)*", path):
            continue
        if path.endswith(".py"):
            # Modules are named from the package's folder, or alone.
            exists = any((folder / path).exists() for folder in (ROOT, SOURCE, page.parent)) or (
                "/" not in path and any(SOURCE.rglob(path))
            )
        else:
            exists = not (first in FOLDERS and "/" in path) or (ROOT / path).exists()
        if not exists:
            wrong.append(f"{code}: no such file")
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        name = target.partition("#")[0]
        if name and not re.match(r"[a-z]+:", target) and not (page.parent / name).exists():
            wrong.append(f"{target}: no such file")
    return wrong


def wrong_names(text: str) -> list[str]:
    """Python names of the package that are not there, and calls of its API with unknown arguments."""
    wrong = []
    for name in (*re.findall(r"^::: (isopose[\w.]+)", text, re.MULTILINE), *INLINE.findall(prose(text))):
        match = re.fullmatch(r"(isopose(?:\.\w+)+)(?:\(.*\))?", name)
        if match and not match[1].endswith((".py", ".json")) and definition(match[1]) is None:
            wrong.append(f"{name}: not in the package")
    for code in INLINE.findall(prose(text)):
        match = re.fullmatch(r"(\w+)(?:\.(\w+))?(?:\((.*)\))?(?:\.\w+\(.*\))?", code)
        if match is None or match[2] == "json":
            continue
        first, attribute, arguments = match.groups()
        if first in METHODS and attribute is None:
            first, attribute = "homogenizer", first
        if first not in API:
            continue
        called = definition(f"{API[first]}.{attribute or '__init__'}")
        if called is None and attribute is not None:
            wrong.append(f"{code}: {API[first]} has no {attribute}")
        elif arguments and isinstance(called, ast.FunctionDef):
            known = {one.arg for one in (*called.args.args, *called.args.kwonlyargs)}
            wrong += [f"{code}: no argument {name}" for name in sorted(_named(arguments) - known)]
    return wrong


def definition(name: str) -> ast.AST | None:
    """Return the syntax node that defines a dotted name of the package, without importing the package."""
    parts = name.split(".")[1:]
    folder, module = SOURCE, SOURCE / "__init__.py"
    while parts and ((folder / parts[0]).is_dir() or (folder / f"{parts[0]}.py").is_file()):
        folder = folder / parts.pop(0)
        module = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    node_of_part: ast.AST | None = tree_of(module)
    for part in parts:
        node_of_part = next(
            (node for node in getattr(node_of_part, "body", ()) if part in _defined(node)), None
        )
        if isinstance(node_of_part, ast.ImportFrom):
            node_of_part = definition(f"{node_of_part.module}.{part}")
    return node_of_part


def _defined(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.ImportFrom(names=names):
            return {alias.asname or alias.name for alias in names}
        case ast.If(body=body):  # TYPE_CHECKING
            return set().union(*(_defined(one) for one in body))
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


def _named(given: str) -> set[str]:
    call = ast.parse(f"f({given})", mode="eval").body
    assert isinstance(call, ast.Call)
    return {keyword.arg for keyword in call.keywords if keyword.arg}


#: What pages write of the public classes: their names, and those that examples give to their objects.
API = {
    "Homogenizer": "isopose.api.Homogenizer",
    "Pipeline": "isopose.api.Pipeline",
    "ReferencePose": "isopose.api.monai.ReferencePose",
    "ReferencePosed": "isopose.api.monai.ReferencePosed",
    "homogenizer": "isopose.api.Homogenizer",
    "pipeline": "isopose.api.Pipeline",
    "upright": "isopose.api.Homogenized",
    "result": "isopose.api.Result",
}
#: Of a homogenizer, where they are named alone.
METHODS = ("fit", "transform", "transform_labels", "inverse_transform")


# Figures


#: A figure, its unit, and the constant that it is said to be.
FIGURE = re.compile(
    r"(?<![\w.])(-?\d+(?:\.\d+)?|twice)[  ]?(degrees|%|mm|HU|MB|s)?(?:[ ,][^`(.;\d]{0,40})?"
    r"\(`([\w/]+\.py): ([A-Z][A-Z_0-9]+)`"
)
UNITS = {"degrees": 57.29577951308232, "%": 100.0, "MB": 1 / 2**20}


def wrong_figures(text: str) -> list[str]:
    """Figures beside the name of a constant that has another value."""
    flat = " ".join(prose(text).split())
    wrong = []
    for figure, unit, path, name in FIGURE.findall(flat):
        defined = definition(f"isopose.{path.removesuffix('.py').replace('/', '.')}.{name}")
        if not isinstance(defined, ast.Assign):
            wrong.append(f"{path}: {name}: no such constant")
            continue
        try:
            value = eval(ast.unparse(defined.value), {"math": math})
        except NameError:
            continue
        quoted = 2.0 if figure == "twice" else float(figure)
        in_unit = value * UNITS.get(unit, 1.0)
        if abs(quoted - in_unit) > 0.005 * abs(quoted):
            wrong.append(f"{figure} {unit} ({path}: {name}): it is {in_unit:g}")
    return wrong


def wrong_sizes(text: str) -> list[str]:
    """Bytes and weights of the network that ships with the package, where a sentence tells them."""
    from safetensors import safe_open

    file = SOURCE / "models" / "roll.safetensors"
    with safe_open(file, "np") as opened:
        weights = sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    flat = " ".join(prose(text).split())
    wrong = []
    for figure in re.findall(r"network of (\d+) KB", flat):
        if int(figure) != round(file.stat().st_size / 1000):
            wrong.append(f"{figure} KB: {file.name} has {file.stat().st_size} bytes")
    for figure in re.findall(
        r"`models/roll.py: RollNetwork`, ([\d.]+) million|roll network's ([\d.]+) million", flat
    ):
        if float("".join(figure)) != round(weights / 1e6, 1):
            wrong.append(f"{''.join(figure)} million: it has {weights}")
    return wrong


def wrong_surroundings(text: str) -> list[str]:
    """Extras, targets of ``make`` and variables that are not there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    wrong = []
    for code in lines_of_code(text):
        for extra in re.findall(r"(?:isopose|install \"?'?\.)\[([\w,-]+)\]", code):
            wrong += [
                f"{code}: no extra {e}" for e in extra.split(",") if e not in project["optional-dependencies"]
            ]
        for target in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", code):
            wrong += [] if target in targets else [f"{code}: no target {target}"]
        for variable in re.findall(r"\b(ISOPOSE_[A-Z_]+)", code):
            wrong += [] if variable in sources else [f"{code}: {variable} is read nowhere"]
    return wrong


def wrong_versions(text: str) -> list[str]:
    """Versions in the table of tools that are others than those that the tests run with."""
    pinned = dict(
        line.lower().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if re.fullmatch(r"[\w.-]+==[\w.+-]+", line)
    )
    wrong = []
    for name, version in re.findall(r"\b([A-Za-z][\w-]*) (\d+\.\d+)\b(?! by hand)", prose(text)):
        known = pinned.get(name.lower())
        if known is not None and not f"{known}.".startswith(f"{version}."):
            wrong.append(f"{name} {version}: tests run with {known}")
    return wrong
