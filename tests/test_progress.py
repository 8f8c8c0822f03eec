import re

import pytest

from isopose.progress import Silent, Terminal


def lines(capsys):
    captured = capsys.readouterr()
    assert captured.out == "", "progress must not mix with results"
    return captured.err.splitlines()


def test_a_log_has_one_line_for_each_piece_of_work(capsys):
    with Terminal().counting("preprocess") as progress:
        for done in range(1, 4):
            progress(done, 3)
    assert lines(capsys) == ["preprocess: done"]


def test_failed_work_is_not_reported_as_done(capsys):
    def fail():
        with Terminal().counting("preprocess") as progress:
            progress(1, 3)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert lines(capsys) == []


def test_messages_are_printed_verbatim(capsys):
    text = "reference: [bold]case_0003[/bold], slice 17 " + "x" * 300
    Terminal().say(text)
    assert lines(capsys) == [text]


def test_each_epoch_has_its_numbers_and_the_time_left(capsys, monkeypatch):
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr("isopose.progress.time.monotonic", lambda: next(clock))
    with Terminal().stage("unet", epochs=8, iterations=5, done=3) as stage:
        for epoch in (4, 5):
            for _ in range(5):
                stage.step()
            row = {"stage": "unet", "epoch": epoch, "seconds": 1.0, "learning_rate": 0.1, "loss": 1 / epoch}
            stage.epoch(row | {"validation": 0.5})
    first, second = lines(capsys)
    # Four epochs are left after 10 s for one, then three after 30 s for two.
    assert re.split(r"\s{2,}", first) == [
        "train unet", "epoch 4/8", "loss 0.2500", "validation 0.5000", "at most 40 s left",
    ]  # fmt: skip
    assert "loss 0.2000" in second
    assert second.endswith("at most 45 s left")


def test_silent_prints_nothing(capsys):
    reporter = Silent()
    reporter.say("a")
    with reporter.counting("b") as progress, reporter.stage("c", 1, 1, 0) as stage:
        progress(1, 1)
        stage.step()
        stage.epoch({"epoch": 1})
    assert lines(capsys) == []
