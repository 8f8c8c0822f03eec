"""The documentation agrees with the code: functions, code blocks, example files, tables."""

import ast
import importlib.util
import json
import math
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isopose.config import Config, HomogenizeConfig
from isopose.data.fingerprint import Fingerprint
from isopose.data.record import RECORD_ADAPTER
from isopose.evaluation.cleaning import candidates
from isopose.evaluation.evaluate import Evaluation
from isopose.geometry.pose import matrix_from_pose
from isopose.homogenize.record import CASE_RECORD_ADAPTER
from isopose.inference.postprocess import rules_from_json
from isopose.io.datasets import open_dataset
from isopose.models.folder import members_of
from isopose.models.info import ModelInfo, ReferenceInfo, StageInfo, TrainingInfo
from isopose.models.shipped import REFERENCES, load_reference, shipped_sha256
from isopose.phantom.growth import reference_size
from isopose.presets import load_config, validate_config
from isopose.report.tables import csv_text
from quotes import FENCE, INLINE, OTHERS, SOURCE, prose
from scripts import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "study" not in page.parts),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(page: Path) -> list[tuple[str, str]]:
    return FENCE.findall(page.read_text(encoding="utf-8"))


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in rows if not set("".join(row)) <= {"-", " ", ":"}]


# Names


@each_page
def test_named_functions_exist(page: Path) -> None:
    for code in INLINE.findall(prose(page.read_text(encoding="utf-8"))):
        if match := re.fullmatch(r"(\S+\.py): ([\w.]+)", code):
            module = next((base / match[1] for base in (SOURCE, ROOT) if (base / match[1]).exists()), None)
            assert module is not None, f"{page.name}: no file {match[1]}"
            assert match[2] in names_in(module), f"{page.name}: {match[1]} has no {match[2]}"


def test_links_of_functions_lead_to_their_files() -> None:
    links = re.findall(r"\[`(\S+\.py): [\w.]+`\]\(([^)]+)\)", (ROOT / "docs" / "paper.md").read_text())
    assert len(links) > 30
    for name, target in links:
        assert (ROOT / "docs" / target).resolve() == SOURCE / name


@cache
def names_in(module: Path) -> frozenset[str]:
    """Functions, classes, their methods and fields, and constants of a file."""
    return frozenset(_names(ast.parse(module.read_text(encoding="utf-8")).body, ""))


def _names(body: list[ast.stmt], prefix: str) -> list[str]:
    names = []
    for node in body:
        match node:
            case ast.FunctionDef(name=name):
                names.append(prefix + name)
            case ast.ClassDef(name=name, body=inner):
                names += [prefix + name, *_names(inner, f"{prefix}{name}.")]
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.append(prefix + name)
    return names


def test_names_of_a_module_exclude_local_variables() -> None:
    names = names_in(SOURCE / "geometry" / "pose.py")
    assert {"matrix_from_pose", "POSE_SIZE"} <= names
    assert "cos" not in names, "a local variable is no name of the module"


def test_pages_and_headings_that_the_code_refers_to_exist() -> None:
    count = 0
    for path in (
        path for folder in ("src", "benchmarks", "tests", "fuzz") for path in (ROOT / folder).rglob("*.py")
    ):
        # A comment may break the line within the reference.
        text = re.sub(r"\s*\n\s*#?:? *", " ", path.read_text(encoding="utf-8"))
        for name, heading in re.findall(r"""(docs/[\w/-]+\.md)(?:, ["']([^"'`]+)["'])?""", text):
            if name in OTHERS:
                continue
            page = ROOT / name
            assert page.exists(), f"{path.relative_to(ROOT)}: no {name}"
            if heading and path.is_relative_to(SOURCE):
                count += 1
                headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in headings, f"{path.relative_to(ROOT)}: {name} has no {heading!r}"
    assert count >= 4


def test_guides_are_short() -> None:
    """Reference and measurements are looked up and may be longer."""
    words = {page: len(page.read_text(encoding="utf-8").split()) for page in PAGES}
    assert words[ROOT / "README.md"] <= 900
    looked_up = ("formats.md", "configuration.md", "measurements.md")
    long = {page.name: count for page, count in words.items() if count > 2000}
    assert set(long) <= set(looked_up), long


# Code


@each_page
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A block may be a program that looks at its arguments; these are not pytest's.
    monkeypatch.setattr("sys.argv", [page.name])
    scope: dict[str, Any] = {"__name__": page.stem}
    for number, text in enumerate(text for language, text in blocks(page) if language == "python"):
        exec(compile(text, f"{page.name}, python block {number + 1}", "exec"), scope)


# Configuration


def test_the_configuration_page_equals_the_output_of_its_script() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == script().page(), "run python docs/make_configuration.py"


def test_configuration_page_has_every_key_once() -> None:
    listed = [row[0].strip("`") for row in table_rows((ROOT / "docs" / "configuration.md").read_text())]
    keys = sorted(key for key in listed if key not in ("key", "option") and not key.startswith("--"))
    assert keys == sorted(flat(Config().model_dump()))
    assert [key for key in listed if key.startswith("--")] == [
        f"--{key.replace('_', '-')}" for key in HomogenizeConfig.model_fields
    ]


def test_example_file_of_the_configuration_is_accepted(tmp_path: Path) -> None:
    [text] = [text for language, text in blocks(ROOT / "docs" / "configuration.md") if language == "toml"]
    (tmp_path / "settings.toml").write_text(text)
    config = load_config(file=tmp_path / "settings.toml")
    assert (config.unet.input, config.unet.optimizer.epochs) == ("quarter", 60)
    assert config.unet.optimizer.learning_rate == Config().unet.optimizer.learning_rate


def test_the_table_of_the_paper_preset_matches_the_code() -> None:
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8").partition("## The paper preset")[2]
    quoted = {key: (row[1], row[2]) for row in table_rows(text)[1:] for key in INLINE.findall(row[0])}
    default, paper = flat(Config().model_dump()), flat(load_config("paper").model_dump())
    differ = {key: (shown(default[key]), shown(paper[key])) for key in default if default[key] != paper[key]}
    assert differ.pop("preset") == ("default", "paper")
    assert quoted == differ


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs/make_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def shown(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def test_the_table_of_the_reference_child_matches_the_code() -> None:
    text = (ROOT / "docs" / "phantom.md").read_text(encoding="utf-8").partition("## Sizes")[2]
    rows = [row for row in table_rows(text) if row[0] == "adult" or row[0].isdecimal()]
    assert len(rows) == 11
    for age, *documented in rows:
        one = reference_size(30.0 if age == "adult" else float(age))
        assert float(documented[2]) == pytest.approx(one.width, abs=0.51)
        assert float(documented[3]) == pytest.approx(one.depth, abs=0.51)
        assert float(documented[0]) == pytest.approx(one.stature_mm / 10, abs=0.51)
        assert float(documented[1]) == pytest.approx(one.mass_kg, abs=0.051)
        assert float(documented[4]) == pytest.approx(one.width / one.depth, abs=0.0051)
        volumes = (one.kidney_length, one.kidney_ml, one.liver_ml, one.spleen_ml)
        for quoted, value in zip(documented[5:], volumes, strict=True):
            assert float(quoted) == pytest.approx(value, abs=0.51)


# Formats


@pytest.fixture(scope="module")
def examples() -> dict[str, Any]:
    """Examples of docs/formats.md by the file's name after the language."""
    named = {language: text for language, text in blocks(ROOT / "docs" / "formats.md") if " " in language}
    return {
        name.partition(" ")[2]: json.loads(text) if name.startswith("json") else text
        for name, text in named.items()
    }


def keys_of(function: str, module: str) -> list[set[str]]:
    """Keys of each dictionary that a function's source spells out, outermost first."""
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    [body] = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function]
    key_lists = []
    for node in [node for node in ast.walk(body) if isinstance(node, ast.Dict)]:
        keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
        for key, value in zip(node.keys, node.values, strict=True):
            match key, value:  # **another(...) of the same module
                case None, ast.Call(func=ast.Name(id=another)):
                    keys |= keys_of(another, module)[0]
        key_lists.append(keys)
    return key_lists


def test_the_record_example_is_valid(examples: dict[str, Any]) -> None:
    values = examples["record.json"]
    for part in ("arrays", "sources"):
        values = values | {part: {name: short.ljust(64, "0") for name, short in values[part].items()}}
    record = RECORD_ADAPTER.validate_json(json.dumps(values))
    assert list(values) == [field.name for field in fields(record)]
    assert record.frame.pixel_mm == pytest.approx(302.998374042511 / 192)


def test_the_model_example_has_every_key(examples: dict[str, Any]) -> None:
    model = examples["model.json"]
    assert set(model) == keys_of("save_model", "models/folder.py")[0]
    info = model["info"]
    for kind, values in (
        (ModelInfo, info),
        (ReferenceInfo, info["reference"]),
        (TrainingInfo, info["training"]),
        (StageInfo, info["stages"]["unet"]),
    ):
        optional = {"corrections_sha256"}
        assert {field.name for field in fields(kind)} - optional == set(values) - optional
    assert set(model["versions"]) == keys_of("versions", "models/folder.py")[0]
    assert set(model["fingerprint"]) <= {field.name for field in fields(Fingerprint)}
    assert validate_config(model["config"], "example").data.size == 192


def test_folds_example_is_a_model_of_several_folds(examples: dict[str, Any], tmp_path: Path) -> None:
    model = examples["folds.json"]
    assert set(model) == keys_of("save_ensemble", "inference/ensemble.py")[0]
    (tmp_path / "model.json").write_text(json.dumps(model))
    assert members_of(tmp_path) == {"fold-0": "1ab1ef7d"}
    [rule] = rules_from_json(model["clean_up"])
    assert rule in candidates("tumor", sides=True)
    assert model["clean_up_dice"]["tumor"].keys() == {"none", str(rule)}


def test_the_prediction_example_has_every_key_and_is_consistent(examples: dict[str, Any]) -> None:
    record = examples["prediction.json"]
    whole, *_ = keys_of("prediction_record", "inference/record.py")
    [origin] = [keys for keys in keys_of("provenance", "inference/record.py") if "model_sha256" in keys]
    # What was written is known only after the record; the others only some results have.
    rare = {"correction_sha256", "mask_sha256", "members_sha256", "clean_up"}
    assert set(record) == {*whole, *origin, "slices", "files"} - rare
    [one] = record["slices"]
    _, of_slice = keys_of("_slice_entries", "inference/record.py")
    [of_row] = keys_of("_row_entries", "inference/record.py")
    assert set(one) == of_slice | of_row
    text = (ROOT / "docs" / "formats.md").read_text()
    explained = {name for row in table_rows(text) for name in INLINE.findall(row[0])}
    assert set(one) <= explained

    import torch

    pose = torch.tensor(one["pose"])
    matrix = matrix_from_pose(pose)
    assert matrix[:2, 0].norm() == pytest.approx(one["scale_x"], rel=1e-5)
    assert matrix[:2, 1].norm() == pytest.approx(one["scale_y"], rel=1e-5)
    assert torch.rad2deg(pose[0]) == pytest.approx(one["roll_degrees"], rel=1e-5)
    volumes = record["volumes_ml"]
    assert volumes["kidney"] + volumes["tumor"] == pytest.approx(volumes["kidney+tumor"])


def test_homogenized_examples_match_the_output_of_the_commands(examples: dict[str, Any]) -> None:
    values = examples["transform.json"]
    values["settings_sha256"] = values["settings_sha256"].ljust(64, "0")
    values["reference"]["sha256"] = values["reference"]["sha256"].ljust(64, "0")
    for part in ("sources", "files"):
        values[part] = {name: short.ljust(64, "0") for name, short in values[part].items()}
    assert len(values.pop("sha256")) == 8
    record = CASE_RECORD_ADAPTER.validate_json(json.dumps(values))
    assert list(values) == [field.name for field in fields(record)]
    assert record.slices[0].roll_degrees == pytest.approx(math.degrees(record.transform.poses[0][0]))
    head = examples["homogenize.json"]
    written = keys_of("head_of", "homogenize/head.py")
    assert set(head) == written[0]
    assert set(head["reference"]) in written
    assert head["reference"]["pixel_mm"] == record.transform.grid.pixel_mm
    assert head["reference"]["side_mm"] == pytest.approx(load_reference().side_mm)
    assert head["reference"]["size"] == HomogenizeConfig().size
    assert head["scale_z"] is HomogenizeConfig().scale_z
    for part in (head["reference"], examples["transform.json"]["reference"]):
        assert (part["kind"], part["case"]) == ("child", None)
        assert part["sha256"].startswith(shipped_sha256(REFERENCES["child"])[:8])
    assert set(head["labels"]["kidney"]) == {"value", "stored"}
    restored = examples["restored.json"]
    first, second = keys_of("_write_results", "homogenize/restore.py")[:2]
    assert set(restored) == first | second
    # What was restored is the label map that was homogenized.
    homogenized = values["files"]["labelsTr/phantom_000.nii.gz"]
    assert restored["predictions"]["phantom_000.nii.gz"] == homogenized[:8]


def test_the_wrapped_example_matches_the_output_of_the_command(examples: dict[str, Any]) -> None:
    record = examples["wrapped.json"]
    [head] = keys_of("wrap_provenance", "homogenize/wrapped.py")
    [more] = keys_of("write_restored", "homogenize/wrapped.py")
    assert set(record) == head | more
    [pose] = keys_of("_pose_record", "homogenize/wrap.py")
    assert set(record["pose"]) == set(HomogenizeConfig.model_fields) | pose
    assert record["pose"]["side_mm"] == pytest.approx(load_reference().side_mm)
    assert record["pose"]["size"] == HomogenizeConfig().size


def test_the_record_of_a_volume_is_explained(examples: dict[str, Any]) -> None:
    [whole] = keys_of("_volume_entries", "inference/record.py")
    documented = set(INLINE.findall((ROOT / "docs" / "formats.md").read_text()))
    assert whole - set(examples["prediction.json"]) <= documented
    assert "reach" in whole


def test_the_scores_examples_belong_to_one_evaluation(examples: dict[str, Any]) -> None:
    values = examples["scores.json"]
    evaluation = Evaluation.from_json(values | {"targets": ["kidney"]})
    assert csv_text(evaluation) == examples["scores.csv"]
    assert set(values) == {*evaluation.to_json(), "summary"}


def test_dataset_examples_open(examples: dict[str, Any], tmp_path: Path) -> None:
    described = tmp_path / "described"
    for name in ("imagesTr/phantom_000_0000", "labelsTr/phantom_000", "imagesTr/phantom_001_0000"):
        path = described / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (described / "dataset.json").write_text(json.dumps(examples["dataset.json"]))
    [patients] = [text for language, text in blocks(ROOT / "docs" / "formats.md") if language == "csv"]
    (described / "patients.csv").write_text(patients)
    dataset = open_dataset(described)
    assert dataset.layout == "nnunet"
    assert dataset.labels.targets() == {"kidney": (1,), "tumor": (2,), "kidney+tumor": (1, 2)}
    assert [(case.id, case.age_years) for case in dataset.cases] == [
        ("phantom_000", 9.3385),
        ("phantom_001", 4.4169),
    ]

    (tmp_path / "manifest.csv").write_text(examples["manifest.csv"])
    cases = open_dataset(tmp_path / "manifest.csv").cases
    assert [(case.id, case.age_years, case.split) for case in cases] == [
        ("phantom_000", 9.3385, "train"),
        ("phantom_048", 0.0246, "test"),
    ]
    assert cases[0].image == tmp_path / "imagesTr" / "phantom_000_0000.nii.gz"


def test_the_phantom_example_has_no_unknown_key(examples: dict[str, Any]) -> None:
    truth = examples["phantom.json"]
    written = [keys for name in ("write_cohort", "_begin") for keys in keys_of(name, "phantom/cohort.py")]
    assert set(truth) in written
    assert set(truth["parameters"]) in written
    of_case = keys_of("truth", "phantom/case.py")[0] | {"case", "patient", "split"}
    assert set(truth["cases"][0]) <= of_case


@each_page
def test_the_quoted_default_size_of_the_frame_is_correct(page: Path) -> None:
    """A page once said 192 although the default was 256."""
    documented = re.findall(
        r"frame (?:has|of) (\d+) pixels by default", prose(page.read_text(encoding="utf-8"))
    )
    assert {int(size) for size in documented} <= {Config().data.size}
    if page.name == "own-data.md":
        assert documented
