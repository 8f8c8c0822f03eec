"""Quotes in the documentation (settings, defaults, commands, files, names, numbers) agree with the code."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quotes import prose
from quotes_commands import wrong_commands, wrong_options, wrong_scripts, wrong_tests
from quotes_names import (
    FIGURE,
    wrong_figures,
    wrong_names,
    wrong_paths,
    wrong_sizes,
    wrong_surroundings,
    wrong_versions,
)
from quotes_settings import DEFAULTS, quoted_settings, wrong_defaults, wrong_settings
from scripts import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page != ROOT / "docs" / "study" / "report.md"),
]
FINDERS: tuple[Callable[[str], list[str]], ...] = (
    wrong_settings,
    wrong_defaults,
    wrong_commands,
    wrong_options,
    wrong_scripts,
    wrong_tests,
    wrong_names,
    wrong_figures,
    wrong_sizes,
    wrong_surroundings,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_quotes_on_every_page_are_correct(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    finders = FINDERS if page.name != "ecosystem.md" else (*FINDERS, wrong_versions)
    wrong = [problem for finder in finders for problem in finder(text)]
    wrong += wrong_paths(text, page)
    assert not wrong, "\n".join([f"{page.relative_to(ROOT)}:", *wrong])


def test_every_finder_matches_enough_quotes() -> None:
    """If pages change their notation, a check must not silently find nothing to compare."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    flat = " ".join(prose(text).split())
    assert sum(1 for _ in quoted_settings(text)) > 300
    assert sum(len(pattern.findall(flat)) for pattern in DEFAULTS) >= 4
    assert len(FIGURE.findall(flat)) >= 5
    assert "network of 622 KB" in flat


#: A finder, a page on which all is so, the same with something that is not, and what must be said of it.
FALSE = [
    (wrong_settings, "`unet.base_features=16`", "`unet.base_feature=16`", "no such setting"),
    (wrong_settings, "`data.size=256`", "`data.size=200`", "data.size=200"),
    (wrong_settings, "`unet.optimizer`", "`unet.optimiser`", "no such setting"),
    (
        wrong_settings,
        "```\nisopose fit D --set dims=3\n```",
        "```\nisopose fit D --set dims=4\n```",
        "dims=4",
    ),
    (
        wrong_defaults,
        "With `crop.per=volume`, the default,",
        "With `crop.per=slice`, the default,",
        "volume",
    ),
    (wrong_defaults, "reaches `predict.min_pose_dice` (0.8)", "`predict.min_pose_dice` (0.7)", "0.8"),
    (
        wrong_defaults,
        "the default start (`pose.start=anatomy`)",
        "the default (`pose.start=moments`)",
        "anatomy",
    ),
    (
        wrong_defaults,
        "default threshold is 0.9 (`predict.min_confidence`)",
        "default threshold is 0.8 (`predict.min_confidence`)",
        "0.9",
    ),
    (wrong_defaults, "the frame has 256 pixels", "the frame has\n192 pixels by default", "it is 256"),
    (wrong_defaults, "384 × 384 pixels (`--size`)", "256 × 256 pixels (`--size`)", "it is 384"),
    (
        wrong_commands,
        "```\nisopose fit D --model M\n```",
        "```\nisopose train D --model M\n```",
        "no such command",
    ),
    (
        wrong_commands,
        "```\nA=1 isopose fit D --model M &\n```",
        "```\nA=1 isopose fit D --mode M &\n```",
        "--mode",
    ),
    (
        wrong_commands,
        "```\ntorchrun -m isopose fit D \\\n --model M\n```",
        "```\ntorchrun -m isopose fit D \\\n --models M\n```",
        "--models",
    ),
    (wrong_options, "`isopose fit --memory 4GB`", "`isopose fit --ram 4GB`", "no --ram"),
    (wrong_options, "`isopose wrap I --output O -- x --y`", "`isopose wrap I --out O -- x --y`", "no --out"),
    (wrong_options, "`--homogenized`", "`--homogenised`", "no command has it"),
    (
        wrong_scripts,
        "`python benchmarks/limit.py --output OUT --sizes 128`",
        "`python benchmarks/limit.py --output OUT --size 128`",
        "--size",
    ),
    (
        wrong_scripts,
        "`python benchmarks/pose.py OUT --turns 3`",
        "`python benchmarks/pose.py OUT --turns x`",
        "x",
    ),
    (wrong_scripts, "`python fuzz --inputs 20`", "`python fuzz --input 20`", "--input"),
    (
        wrong_scripts,
        "`python docs/make_pictures.py demo`",
        "`python docs/make_picture.py demo`",
        "no such script",
    ),
    (
        wrong_tests,
        "`pytest tests/test_devices.py -k gpu`",
        "`pytest tests/test_devices.py -k abacus`",
        "no test",
    ),
    (
        wrong_tests,
        "`pytest tests/test_devices.py`",
        "`pytest tests/test_device.py`",
        "tests/test_device.py",
    ),
    (wrong_names, "`isopose.errors.InputError`", "`isopose.errors.InputsError`", "not in the package"),
    (
        wrong_names,
        "::: isopose.api.pipeline.Result",
        "::: isopose.api.pipeline.Results",
        "not in the package",
    ),
    (wrong_names, "`Homogenizer(size=192)`", "`Homogenizer(pixels=192)`", "no argument pixels"),
    (
        wrong_names,
        "`Pipeline.load(f, device='cuda:1')`",
        "`Pipeline.load(f, gpu=1)`",
        "no argument gpu",
    ),
    (wrong_names, "`upright.warnings`", "`upright.doubts`", "has no doubts"),
    (
        wrong_figures,
        "6 degrees (`scan/prior.py: CORRECT_WITHIN`)",
        "5 degrees (`scan/prior.py: CORRECT_WITHIN`)",
        "it is 6",
    ),
    (
        wrong_figures,
        "4 % air (`data/fingerprint.py: FRAME_MARGIN`)",
        "5 % air (`data/fingerprint.py: FRAME_MARGIN`)",
        "it is 4",
    ),
    (
        wrong_figures,
        "twice the side: nothing is cut (`homogenize/scan.py: MAX_GRID_SIDES`)",
        "3 times (`homogenize/scan.py: MAX_GRID_SIDES`)",
        "it is 2",
    ),
    (wrong_sizes, "a network of 622 KB", "a network of 600 KB", "622082 bytes"),
    (
        wrong_sizes,
        "(`models/roll.py: RollNetwork`, 0.3 million weights)",
        "(`models/roll.py: RollNetwork`, 0.4 million weights)",
        "0.4 million",
    ),
    (
        wrong_surroundings,
        "`pip install 'isopose[serve]'`",
        "`pip install 'isopose[server]'`",
        "no extra server",
    ),
    (wrong_versions, "| MONAI 1.6 | SimpleITK 2.5 |", "| MONAI 1.6 | SimpleITK 2.4 |", "SimpleITK 2.4"),
    (wrong_surroundings, "`make demo`", "`make demos`", "no target demos"),
    (wrong_surroundings, "`ISOPOSE_MAX_GB`", "`ISOPOSE_MAXIMUM_GB`", "read nowhere"),
]


def name_of(value: object) -> str:
    """Return the name of a test case, the same in every process."""
    return str(getattr(value, "__name__", value))[:40]


@pytest.mark.parametrize(("finder", "true", "false", "message"), FALSE, ids=name_of)
def test_wrong_quotes_are_detected(
    finder: Callable[[str], list[str]], true: str, false: str, message: str
) -> None:
    assert finder(f"A page.\n\n{true}\n") == []
    problems = finder(f"A page.\n\n{false}\n")
    assert problems
    assert message in problems[0]


def test_a_missing_file_is_detected() -> None:
    page = ROOT / "docs" / "page.md"
    true = "`src/isopose/api/`, `tests/test_demo.py`, `models/pose.py`, `heap.py: give_back`, [x](index.md#a)"
    assert wrong_paths(true, page) == []
    for false in (
        "`src/isopose/apis/`",
        "`tests/test_demos.py`",
        "`models/poses.py`",
        "`heaps.py: x`",
        "[x](indices.md)",
    ):
        assert wrong_paths(f"{true} {false}", page), false
