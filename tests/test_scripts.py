"""Each script beside the package runs on its smallest size, and is type-checked with the rest."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from bright import bright_model
from isopose.labels import Labels
from isopose.models.folder import save_model
from isopose.phantom import write_cohort
from scripts import ROOT, ran

FOLDERS = ("benchmarks", "docs", "examples", "fuzz")
#: Scripts that a test runs otherwise than by ``ran``: the test, and what in it runs them.
OTHERWISE = {
    "benchmarks/phantom_sizes.py": ("test_phantom_sizes.py", 'load("phantom_sizes")'),
    "docs/site_hooks.py": ("test_site.py", '"-m", "mkdocs", "build"'),
    "examples/homogenize.ipynb": ("test_notebooks.py", 'EXAMPLES.glob("*.ipynb")'),
    "examples/train_and_predict.ipynb": ("test_notebooks.py", 'EXAMPLES.glob("*.ipynb")'),
    "fuzz/__main__.py": ("test_fuzz.py", 'ROOT / "fuzz"'),
}
CHROMIUM = shutil.which("chromium")
#: Of trainings that show only that they run; ``dims=3`` has its volumes of the same size.
BRIEF = ("data.size=64", "pose.size=32", "crop.size=32", "unet.base_features=2", "train.validation_slices=4")
STEPS = ("epochs=1", "min_epochs=1", "iterations=2", "batch_size=2")


def brief(*stages: str, also: tuple[str, ...] = BRIEF) -> list[str]:
    """Return ``--set`` arguments for a training of as few steps as possible."""
    settings = [*also, *(f"{stage}.optimizer.{step}" for stage in stages for step in STEPS)]
    return [part for setting in settings for part in ("--set", setting)]


def scripts() -> set[str]:
    """Return the paths of all scripts and notebooks, without modules that scripts import."""
    files = {path for folder in FOLDERS for path in (ROOT / folder).glob("*.*") if path.suffix != ".md"}
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    return set(texts) - set(modules_of(texts))


def modules_of(texts: dict[str, str]) -> list[str]:
    """Return Python files that are only imported: they have no main part, unlike others beside them."""
    return [
        name
        for name, text in texts.items()
        if name.startswith(("benchmarks/", "fuzz/")) and '__name__ == "__main__"' not in text
    ]


def run_by(text: str) -> set[str]:
    """Return the scripts named in a test file's calls of ``ran``."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return {
        str(argument.value)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "ran"
        for argument in call.args[:1]
        if isinstance(argument, ast.Constant)
    }


def test_every_script_is_run_by_a_test() -> None:
    tests = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    run = {name for text in tests.values() for name in run_by(text)}
    for name, (test, part) in OTHERWISE.items():
        assert part in tests[ROOT / "tests" / test], f"tests/{test} no longer runs {name}"
    assert run | set(OTHERWISE) == scripts()
    assert not run & set(OTHERWISE)


def test_a_script_without_a_test_is_detected() -> None:
    result = scripts()
    assert {"benchmarks/limit.py", "fuzz/kills.py", "examples/homogenize.ipynb"} <= result
    assert not {"benchmarks/pose_scans.py", "fuzz/seeds.py", "docs/index.md"} & result
    assert run_by('ran("benchmarks/limit.py", "--rounds", 1)\nrun("fuzz/kills.py")') == {
        "benchmarks/limit.py"
    }


def test_every_module_beside_the_scripts_is_imported_by_one() -> None:
    for folder in ("benchmarks", "fuzz"):
        texts = {str(p.relative_to(ROOT)): p.read_text() for p in (ROOT / folder).glob("*.py")}
        imported = set(re.findall(r"^(?:from|import) (\w+)", "\n".join(texts.values()), re.MULTILINE))
        assert {Path(name).stem for name in modules_of(texts)} <= imported


def test_every_script_is_type_checked() -> None:
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert {"src/isopose", *FOLDERS} <= set(checked["files"])
    assert not {"exclude", "overrides"} & set(checked)
    assert "mypy" in (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]


# What needs seconds, and more on a machine that does other things


def test_the_configurations_page_is_written(tmp_path: Path) -> None:
    copy = shutil.copy(ROOT / "docs" / "make_configuration.py", tmp_path)
    ran("docs/make_configuration.py", at=Path(copy))
    assert (tmp_path / "configuration.md").read_text() == (ROOT / "docs" / "configuration.md").read_text()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with an untrained U-Net."""
    folder = tmp_path_factory.mktemp("scripts") / "model"
    bright = bright_model({"data": {"size": 64}}, real_unet=True)
    # Its classes under the values of the phantoms.
    save_model(folder, replace(bright, labels=Labels.create({"kidney": 1, "tumor": 2})))
    return folder


@pytest.fixture(scope="module")
def demo(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``isopose demo`` leaves it, with the files that the README's images need."""
    folder = tmp_path_factory.mktemp("demo")
    write_cohort(folder / "cohort", cases=6, slices=6, size=64, seed=1, test_fraction=0.67)
    for arm in ("with", "without"):
        shutil.copytree(model, folder / arm / "model")
        command = [sys.executable, "-m", "isopose", "predict", folder / arm / "model"]
        command += [folder / "cohort" / "imagesTs", "--output", folder / arm / "predictions"]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return folder


def test_views_of_several_models_are_compared(model: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "cohort", cases=3, slices=5, size=64, seed=3, test_fraction=0.4)
    output = ran("benchmarks/views.py", tmp_path / "out", tmp_path / "cohort", model, model)
    rows = [row.split(" | ") for row in output.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "| both views each",
        "| in turns",
        "| in turns, exchanged",
        "| one view each",
    ]
    # Two models that are one: the turns are both of its views, in either order.
    assert rows[0][1:] == rows[1][1:] == rows[2][1:]
    assert (tmp_path / "out" / "views.md").read_text() == output


@pytest.mark.long
def test_the_readmes_picture_is_drawn(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    copy = shutil.copy(ROOT / "docs" / "make_pictures.py", tmp_path)
    ran("docs/make_pictures.py", demo, at=Path(copy))
    assert (tmp_path / "pictures" / "steps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_parts_of_a_prediction_are_measured(model: Path, demo: Path, tmp_path: Path) -> None:
    scan = next((demo / "cohort" / "imagesTs").iterdir())
    output = ran("benchmarks/parts.py", model, scan, "--output", tmp_path, "--rounds", 1)
    assert output == (tmp_path / "parts.md").read_text()
    assert "| U-Net |" in output
    assert "| the whole, s |" in output


def test_the_body_in_mr_is_measured(tmp_path: Path) -> None:
    output = ran("benchmarks/body_mr.py", tmp_path, "--phantoms", 1, "--variants", 1)
    [row] = [row for row in output.splitlines() if "phantoms" in row]
    assert float(row.split("|")[2]) > 0.97
    assert (tmp_path / "body-mr.md").read_text() == output


@pytest.mark.long
def test_the_paper_s_stages_are_timed_at_a_size(tmp_path: Path) -> None:
    output = ran("benchmarks/paper_sizes.py", tmp_path, "--sizes", 64, "--batches", 4, "--steps", 1)
    rows = [row.strip("|").split("|") for row in output.splitlines()[2:]]
    assert [row[2].strip() for row in rows] == ["STN1", "STN2", "U-Net"]
    assert all(float(row[3]) > 0 and float(row[4]) > float(row[5]) >= 0 for row in rows)
    assert (tmp_path / "paper-sizes.md").read_text() == output


def test_rolls_in_mr_are_measured(tmp_path: Path) -> None:
    output = ran("benchmarks/pose_mr.py", tmp_path, "--phantoms", 1, "--turns", 0)
    rows = [row.split(" | ") for row in output.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["| phantoms, CT", "CT", "1"],
        ["| phantoms, CT", "any contrast", "1"],
        ["| phantoms, t1", "any contrast", "1"],
    ]
    # None is wrong without a warning, and none counts as a mirror image as it is.
    assert [(row[7], row[9]) for row in rows] == [("0", "0 |")] * 3
    assert (tmp_path / "pose-mr.md").read_text() == output


@pytest.mark.long
def test_stn1_is_trained_in_mr(tmp_path: Path) -> None:
    options = ("--phantoms", 0, "--turns", 0, "--stn-epochs", 1, "--cohort", 5)
    output = ran("benchmarks/pose_mr.py", tmp_path, *options)
    table = (tmp_path / "stn1-mr.md").read_text()
    assert output.endswith(table)
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    assert [row[0] for row in rows] == ["CT", "MR"]
    assert all(0 <= float(error) <= 180 for row in rows for error in row[2:])


@pytest.mark.long
def test_a_second_channel_is_measured(tmp_path: Path) -> None:
    output = ran("benchmarks/channels.py", tmp_path, "--cases", 6, "--workers", 0, *brief("unet"))
    assert [row.split(" | ")[0] for row in output.splitlines()[2:]] == ["| CT", "| CT and PET"]
    assert (tmp_path / "channels.md").read_text() == output


@pytest.mark.long
def test_stacks_are_compared(tmp_path: Path) -> None:
    some = ("--plane", "coronal", "--cases", 6, "--slices", 8, "--size", 48)
    output = ran("benchmarks/stacks.py", tmp_path, *some, *brief("crop", "unet"))
    rows = [row.split(" | ")[:3] for row in output.splitlines()[2:]]
    assert rows == [["| coronal", "homogenized", "2"], ["| coronal", "nnU-Net's augmentation", "2"]]
    assert (tmp_path / "stacks.md").read_text() == output


def test_contrasts_are_compared(model: Path, tmp_path: Path) -> None:
    output = ran("benchmarks/contrast.py", tmp_path, model, "--cases", 1, "--size", 64, "--slices", 6)
    rows = [row.split(" | ") for row in output.splitlines()[2:4]]
    assert [row[1] for row in rows] == ["arterial phase", "any contrast"]
    # Random weights mark something everywhere: a Dice that is small, and that of another picture.
    assert rows[0][2] != rows[1][2]
    assert (tmp_path / "contrast.md").read_text() == output


def test_folds_are_timed_beside_one_of_them(model: Path, tmp_path: Path) -> None:
    output = ran("benchmarks/folds.py", model, tmp_path, "--slices", 4, "--size", 64, "--rounds", 1)
    [one, several] = [row.split("|")[1:-1] for row in output.splitlines()[-2:]]
    assert (one[0].strip(), several[0].strip()) == ("one", "5 folds")
    assert float(several[3]) == pytest.approx(float(several[2]) / float(one[2]), rel=0.1)
    assert (tmp_path / "folds.md").read_text() == output


@pytest.mark.long
def test_growth_is_measured_and_drawn(model: Path, tmp_path: Path) -> None:
    sizes = ("--slices", 4, 8, "--sides", 64, 96)
    output = ran("benchmarks/growth.py", model, "--output", tmp_path, *sizes)
    assert [line.split(" | ")[:2] for line in output.splitlines()[2:]] == [
        ["| 4", "64"], ["| 8", "64"], ["| 4", "96"],
    ]  # fmt: skip
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.long
def test_memory_of_a_case_is_measured(tmp_path: Path) -> None:
    case = "data.size=64 unet.input=half unet.base_features=4"
    output = ran("benchmarks/memory.py", "--output", tmp_path, "--case", case)
    assert output.startswith(f"| {case} | ")
    assert len((tmp_path / "memory.md").read_text().splitlines()) == 3


@pytest.mark.long
def test_the_limit_of_a_training_step_is_measured(tmp_path: Path) -> None:
    small = ("--sizes", 64, "--batches", 2, "--rounds", 1, "--base-features", 4)
    output = ran("benchmarks/limit.py", "--output", tmp_path, *small)
    assert output == (tmp_path / "limit.md").read_text()
    assert "\n| 64 | 2 | " in output
    assert "\n| convolution | " in output


@pytest.mark.long
def test_a_gpus_script_runs_on_a_cpu(tmp_path: Path) -> None:
    """Two of its parts; the others have a test of their own (tests/test_benchmarks.py)."""
    parts = ("--only", "full", "--only", "compiled")
    output = ran("benchmarks/gpu.py", tmp_path, "--device", "cpu", "--quick", *parts)
    assert output == (tmp_path / "gpu.md").read_text()
    assert "**no**" not in output
    assert "| isopose fit without enough memory | exit code 1; isopose: out of memory; lower " in output
    assert "| compiled | left out on a CPU" in output


@pytest.mark.long
def test_start_up_time_is_measured(tmp_path: Path) -> None:
    output = ran("benchmarks/start_up.py", "--output", tmp_path, "--rounds", 1)
    assert output == (tmp_path / "start_up.md").read_text()
    assert {"`python -c pass`", "`isopose predict --help`"} <= set(re.findall(r"`.*?`", output))


@pytest.mark.long
def test_the_overhead_of_wrapping_is_measured(tmp_path: Path) -> None:
    size = ("--slices", 4, "--size", 64, "--scans", 2, "--workers", 2)
    output = ran("benchmarks/wrapping.py", tmp_path, *size)
    assert output == (tmp_path / "wrapping.md").read_text()
    assert "| beside the command, reading and writing | " in output


@pytest.mark.long
def test_the_round_trip_is_measured(tmp_path: Path) -> None:
    ran("benchmarks/homogenize.py", tmp_path, "--patients", 1, "--slices", 4, "--size", 64)
    assert "| volume, 384 | " in (tmp_path / "homogenize.md").read_text()


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page was not tried in a browser")
def test_the_time_to_the_first_image_on_the_page_is_measured(model: Path) -> None:
    output = ran("benchmarks/page.py", model, "--slices", 4, "--size", 64, "--rounds", 1)
    assert [line.split()[0] for line in output.splitlines()] == ["predicted_s", "picture_after_s"]


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page was not tried in a browser")
def test_screenshots_of_the_page_are_written(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    copy = shutil.copy(ROOT / "docs" / "make_screenshots.py", tmp_path)
    ran("docs/make_screenshots.py", demo, at=Path(copy))
    assert sorted(path.stem for path in (tmp_path / "pictures").iterdir()) == [
        "page-beside", "page-hand", "page-review", "page-scan", "page-steps",
    ]  # fmt: skip


# What needs minutes


@pytest.mark.long
def test_pipelines_are_compared(tmp_path: Path) -> None:
    size = ("--cases", 10, "--slices", 4, "--size", 64)
    settings = brief("pose", "crop", "unet")
    output = ran("benchmarks/pipelines.py", "--output", tmp_path, *size, *settings)
    assert output == (tmp_path / "pipelines.md").read_text() + "\n"
    rows = [line for line in output.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 8
    assert "2 unseen phantom patients of 1 cohorts (10 patients each, seeds 0)" in output
    assert "4 slices of 64 pixels" in output


@pytest.mark.long
def test_training_with_few_annotated_slices_is_measured(tmp_path: Path) -> None:
    size = ("--cases", 10, "--slices", 6, "--size", 64, "--seeds", 0, "--every", 2)
    output = ran("benchmarks/sparse.py", "--output", tmp_path, *size, *brief("pose", "crop", "unet"))
    rows = [line for line in output.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| every slice",
        "| others ignored by their value",
        "| others 0, data.undrawn=ignore",
        "| others 0, taken for background",
    ]
    assert "cohorts of 10 (6 slices of 64 pixels), seeds 0;" in output


@pytest.mark.long
def test_parts_of_the_augmentation_are_compared(tmp_path: Path) -> None:
    size = ("--cases", 10, "--slices", 4, "--size", 64, "--seeds", 0)
    # Some of the arms: each trains a model for each start.
    arms = ("jitter", "jitter, mirroring, averaging, both", "jitter, neighbors")
    few = (*size, "--arms", *arms)
    output = ran("benchmarks/augmentation.py", "--output", tmp_path, *few, *brief("pose", "crop", "unet"))
    rows = [line for line in output.splitlines() if line.startswith("| ")][2:]
    cells = [tuple(row.strip("| ").split(" | ")[:2]) for row in rows]
    assert cells == [(start, arm) for start in ("anatomy", "identity") for arm in arms]
    assert "cohorts of 10, seeds 0;" in output


@pytest.mark.slow
def test_rotated_trunks_are_turned_upright_and_others_are_not(tmp_path: Path) -> None:
    """Without the real scans, which have a test of their own."""
    output = ran("benchmarks/header.py", tmp_path, "--cases", 1, "--no-real")
    table = (tmp_path / "header.md").read_text()
    assert table in output
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        kind
        for kind in (
            "phantoms", "drawn chests and shoulders", "drawn pelvises and thighs",
            "heads", "necks", "limbs", "water",
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [row[2:4] for row in rows] == [["1", "1"], ["3", "3"]] * 7


@pytest.mark.long
def test_heights_of_kidneys_are_compared(tmp_path: Path) -> None:
    small = ("--ages", "0.5,30", "--each", 1, "--slices", 6, "--size", 64, "--grid", 64)
    output = ran("benchmarks/homogenized_size.py", tmp_path, *small)
    assert (tmp_path / "homogenized_size.md").read_text() in output
    assert "| volume, adult | " in output


@pytest.mark.long
def test_a_model_of_adults_is_shown_children(tmp_path: Path) -> None:
    small = ("--adults", 3, "--children", 3, "--seeds", 1, "--size", 64, "--workers", 0)
    settings = (*brief("unet"), "--set", "train.folds=3")
    output = ran("benchmarks/adults.py", tmp_path, *small, *settings)
    assert (tmp_path / "adults.md").read_text() in output
    for method in ("as scanned", "adult size", "adult pose", "both", "trained on children"):
        assert f"| isopose's U-Net | {method} | " in output


@pytest.mark.long
def test_poses_are_compared(tmp_path: Path) -> None:
    size = ("--cases", 2, "--turns", 1, "--registered", 1, "--cohort", 4, "--candidates", 1, "--workers", 0)
    ran("benchmarks/pose.py", tmp_path, *size, *brief("pose", also=()))
    output = (tmp_path / "pose.md").read_text()
    for contender in ("moments", "the paper's STN", "isopose, smooth", "SimpleITK, images, affine"):
        assert f"| {contender} | " in output
    assert (tmp_path / "pose.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_killed_commands_are_repeated() -> None:
    output = ran("fuzz/kills.py", "--kills", 1, "--commands", "preprocess,predict")
    assert [line.split(" | ")[::2] for line in output.splitlines()[2:4]] == [
        ["| preprocess", "0 |"], ["| predict", "0 |"],
    ]  # fmt: skip


@pytest.mark.long
def test_a_cohort_survives_a_killed_machine() -> None:
    for needed in ("ray", "moto", "s3fs"):
        pytest.importorskip(needed, reason=f"{needed} is not installed (extra: dev)")
    output = ran("fuzz/cohort.py", "--scans", 15, "--bad", 2)
    assert "13 results, 2 failed, 0 different" in output
    assert "problem" not in output
