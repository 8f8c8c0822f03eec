"""Notes of a study's report about STN1 and STN2 that were shortened or have not learned rotation."""

import json
from pathlib import Path
from typing import Any

import pytest

from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.metrics import Scores
from isopose.files import write_json
from isopose.presets import load_config
from isopose.report.tables import to_markdown
from isopose.study.arms import BY_NAME
from isopose.study.lengths import Length, lengths_of
from isopose.study.plan import Options
from isopose.study.results import ArmResult, StudyRun, load_results
from isopose.study.stns import NOT_MEASURED, lengths_by_arm, notes_of, stn_table

RESULTS = Path(__file__).parents[2] / "docs" / "study" / "results"
WHOLE = {"steps": 12500, "preset_steps": 12500, "slices": 150000, "preset_slices": 150000}
TURNS = {
    "slope": 0.93,
    "degrees_from_moments": 2.0,
    "degrees_from_truth": 2.3,
    "moments_from_truth": 2.2,
    "slices": 100,
    "patients": "validation",
}


def options(**values: Any) -> Options:
    return Options(Path("nowhere"), None, ("paper",), (0,), 1, (), values, None, short_stns=True)


def history(**epochs: int) -> tuple[dict[str, Any], ...]:
    return tuple({"stage": stage, "epoch": n + 1} for stage, count in epochs.items() for n in range(count))


def run(seed: int = 0, epochs: tuple[dict[str, Any], ...] = (), **stn: Any) -> StudyRun:
    return StudyRun(
        folder="", seed=seed, fold=0, history=epochs, measures={}, size={}, evaluation=Evaluation((), ()),
        shown={}, stn=stn,
    )  # fmt: skip


def results(**runs: list[StudyRun]) -> dict[str, ArmResult]:
    return {
        name.replace("_", "-"): ArmResult(BY_NAME[name.replace("_", "-")], tuple(of))
        for name, of in runs.items()
    }


def test_fully_trained_stns_need_no_note() -> None:
    by_arm = results(augmented=[run(lengths={})], pose=[run(lengths={"STN1": WHOLE}, turning=TURNS)])
    lengths = lengths_by_arm(options(), "paper", by_arm)
    assert lengths == {"augmented": {}, "pose": {"STN1": Length(**WHOLE)}}
    assert notes_of("paper", by_arm, lengths) == ()
    table = stn_table(by_arm, lengths)
    assert table is not None
    # What trains none is in no row.
    assert table.rows == (("pose", 0, 0, "12,500 (12,500)", "none", "0.93", "2.3", "2.2", "2.0"),)


def test_a_run_that_has_not_learned_rotation_is_named() -> None:
    still = TURNS | {"slope": 0.04, "degrees_from_truth": None, "moments_from_truth": None}
    whole = {"STN1": WHOLE}
    by_arm = results(pose=[run(lengths=whole, turning=TURNS), run(1, lengths=whole, turning=still)])
    lengths = lengths_by_arm(options(), "paper", by_arm)
    [note] = notes_of("paper", by_arm, lengths)
    assert "STN1 has not learned rotation in pose seed 1 (0.04)" in note
    assert "seed 0" not in note
    table = stn_table(by_arm, lengths)
    assert table is not None
    assert table.rows[1][5:] == ("0.04", "not known", "not known", "2.0")


def test_a_shortened_stn_gets_a_note() -> None:
    """One shortened run of two is enough for a note."""
    short = WHOLE | {"steps": 1000, "slices": 12000}
    few = WHOLE | {"slices": 50000}
    by_arm = results(
        pose=[run(lengths={"STN1": WHOLE}, turning=TURNS), run(1, lengths={"STN1": short}, turning=TURNS)],
        crop_full=[run(lengths={"STN1": WHOLE, "STN2": few}, turning=TURNS)],
    )
    notes = notes_of("paper", by_arm, lengths_by_arm(options(), "paper", by_arm))
    assert notes == (
        "STN1 was shortened in pose (1,000 of 12,500 steps): this does not test the paper's preset.",
        "STN2 was shortened in crop-full (50,000 of 150,000 slices seen): this does not test the "
        "paper's preset.",
    )


def test_the_length_of_older_runs_comes_from_their_history() -> None:
    """A run of ten epochs of 100 batches, made by a version without a measurement of STN1."""
    study_options = options(pose={"optimizer": {"epochs": 10, "iterations": 100}})
    by_arm = results(
        pose=[run(epochs=history(pose=10, unet=3))], plain=[run(epochs=history(unet=3))],
        direct=[run()], nnunet=[run(epochs=history(unet=3))],
    )  # fmt: skip
    lengths = lengths_by_arm(study_options, "paper", by_arm)
    assert lengths["pose"]["STN1"] == Length(1000, 12500, 12000, 150000)
    assert lengths["plain"] == lengths["direct"] == {}
    assert "nnunet" not in lengths
    [note] = notes_of("paper", by_arm, lengths)
    assert "STN1 was shortened in pose (1,000 of 12,500 steps)" in note
    table = stn_table(by_arm, lengths)
    assert table is not None
    assert table.rows == (("pose", 0, 0, "1,000 (12,500)", "none", *(NOT_MEASURED,) * 4),)


def test_stn_lengths_follow_the_history_and_the_arm() -> None:
    config = load_config("paper")
    lengths = lengths_of(config, BY_NAME["crop-half"], history(pose=50, crop=3, unet=1))
    assert lengths["STN1"] == Length(12500, 12500, 150000, 150000)
    assert lengths["STN2"] == Length(750, 12500, 9000, 150000)
    moments = load_config("paper", settings=list(BY_NAME["moments"].settings))
    assert lengths_of(moments, BY_NAME["moments"]) == {}
    # The default preset's pose needs no training, its crop does.
    assert set(lengths_of(load_config(), BY_NAME["crop-full"])) == {"STN2"}


def test_stns_of_the_published_study_are_reported(tmp_path: Path) -> None:
    """The published study was made by a version without these records and keeps its own report."""
    known = json.loads((RESULTS / "study.json").read_text())["of"]["values"]
    by_arm = load_results(RESULTS)
    assert all(run.stn == {} for run in by_arm["paper"]["pose"].runs)
    lengths = lengths_by_arm(options(**known), "paper", by_arm["paper"])
    notes = notes_of("paper", by_arm["paper"], lengths)
    report = (RESULTS.parent / "report.md").read_text()
    assert len(notes) == 2
    for note in notes:
        assert note.partition(":")[0] in report
    table = stn_table(by_arm["paper"], lengths)
    assert table is not None
    rows = [line for line in to_markdown(table).splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(table.rows)
    assert "\n".join(rows) in report


def test_the_record_of_a_runs_stn_is_read_back(tmp_path: Path) -> None:
    scores = Scores(dice=0.5, surface_dice=0.5, hd95_mm=1.0, truth_ml=10.0, prediction_ml=10.0)
    evaluation = Evaluation(("kidney",), (CaseScores("a", "a", {"kidney": scores}),))
    stn = {"lengths": {"STN1": WHOLE}, "turning": TURNS}
    write_json(
        tmp_path / "runs" / "paper" / "pose" / "seed-0-fold-0" / "result.json",
        {"arm": "pose", "history": [], "size": {}, "measures": {"memory": {}, "predict": {}},
         "evaluation": evaluation.to_json(), "stn": stn},
    )  # fmt: skip
    by_arm = load_results(tmp_path)["paper"]
    assert by_arm["pose"].runs[0].stn == stn
    assert lengths_by_arm(options(), "paper", by_arm)["pose"]["STN1"] == Length(**WHOLE)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_every_table_with_a_shortened_stn_has_a_note(preset: str) -> None:
    tex = (RESULTS.parent / "tables.tex").read_text()
    third = tex[tex.index(f"Table 3: the crop and the size of the U-Net's input ({preset} preset)") :]
    whose = "the paper's" if preset == "paper" else "the default"
    assert f"this says nothing about {whose} preset." in third[: third.index("end{table}")]
