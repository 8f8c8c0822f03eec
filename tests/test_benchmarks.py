"""The benchmarks' own parts that need no training: their configurations, errors and tables."""

import importlib.util
import json
import math
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bright import make_scene
from isopose.config import HomogenizeConfig
from isopose.data.fingerprint import fingerprint_of
from isopose.demo import SMALL_PRESET
from isopose.evaluation.evaluate import CaseScores, Evaluation
from isopose.evaluation.metrics import Scores
from isopose.geometry.volume import Volume
from isopose.homogenize.estimator import open_estimator
from isopose.homogenize.warping import homogenized_image, homogenized_labels, restored_labels
from isopose.io.datasets import open_dataset
from isopose.io.images import read_labels, read_volume, write_image
from isopose.phantom import render, sample_case, write_cohort
from isopose.phantom.pose import Pose
from isopose.phantom.scan import sample_scan
from isopose.presets import load_config

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As when it is run: what lies beside it can be imported.
        patch.syspath_prepend(FOLDER)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pipelines():
    return load("pipelines")


@pytest.fixture(scope="module")
def augmentation():
    return load("augmentation")


def test_every_arm_is_a_configuration_with_the_same_unet_and_data(pipelines):
    configs = {
        arm: load_config(base=pipelines.merged(SMALL_PRESET, change))
        for arm, change in pipelines.ARMS.items()
    }
    assert len({config.model_dump_json() for config in configs.values()}) == len(configs)
    small = load_config(base=SMALL_PRESET)
    assert {config.data for config in configs.values()} == {small.data}
    for config in (config for config in configs.values() if config.dims == 2):
        assert config.unet == small.unet
        assert config.crop.optimizer.iterations == SMALL_PRESET["crop"]["optimizer"]["iterations"]
    # Of volumes as many slices are seen.
    [volumes] = [config for config in configs.values() if config.dims == 3]
    assert slices_seen(volumes, 20) == slices_seen(small, 1)
    assert {config.stn for config in configs.values()} == {"separate", "joint"}


def slices_seen(config, in_each):
    steps = config.unet.optimizer
    return steps.epochs * steps.iterations * steps.batch_size * in_each


def test_merging_results_keeps_other_entries(pipelines):
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert pipelines.merged(base, {"a": {"c": {"f": 4}}, "e": 5}) == {
        "a": {"b": 1, "c": {"d": 2, "f": 4}},
        "e": 5,
    }
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


def test_the_roll_is_compared_with_the_phantoms_own(pipelines, tmp_path):
    angle = math.radians(-170.0)
    turned = [[math.cos(angle), -math.sin(angle), 0, 5], [math.sin(angle), math.cos(angle), 0, 5]]
    truth = {"cases": [{"case": "a", "world_from_canonical": [*turned, [0, 0, 1, 0], [0, 0, 0, 1]]}]}
    (tmp_path / "phantom.json").write_text(json.dumps(truth))
    slices = [{"roll_degrees": roll} for roll in (-170.0, 175.0, -160.0)]
    (tmp_path / "a.json").write_text(json.dumps({"slices": slices}))
    np.testing.assert_allclose(pipelines.roll_errors(tmp_path, tmp_path, ["a"]), [0.0, 15.0, 10.0], atol=1e-9)
    # A volume has one for all its slices.
    (tmp_path / "a.json").write_text(json.dumps({"roll_degrees": 178.0}))
    np.testing.assert_allclose(pipelines.roll_errors(tmp_path, tmp_path, ["a"]), [12.0], atol=1e-9)


def test_the_table_contains_the_measurements(pipelines):
    def result(kidney, overlap):
        return {
            "dice": {"kidney": kidney, "tumor": [0.5, None]},
            "overlap": overlap,
            "roll": [1.0, 2.0, 3.0],
            "training": {"joint": 10.0, "unet": 100.0},
            "prediction": 0.5,
            "parameters": 12345,
        }

    results = {"one": [result([0.8, 0.9], 0.7), result([0.9, 1.0], 0.8)]}
    results["one"][1]["training"]["joint"] = 20.0
    table = pipelines.table(results, Namespace(seeds=[0, 1], cases=10, slices=20, size=192))
    line = next(line for line in table.splitlines() if line.startswith("| one"))
    assert line == (
        "| one | 0.900 (0.082) | 0.500 (0.000) | 0.75 | 2.0 / 3.0 | joint 15 + unet 100 | 0.5 | 12,345 |"
    )
    assert table.count("\n| ---") == 1
    assert "4 unseen phantom patients of 2 cohorts (10 patients each, seeds 0 1)" in table


def test_seconds_survive_an_interrupted_run(pipelines, tmp_path):
    for epoch in (1, 2):
        meter = pipelines.Meter(tmp_path / "seconds.json", "")
        with meter.stage("joint", 2, 1, epoch - 1) as report:
            meter.since -= 7.0
            report.epoch({"stage": "joint", "epoch": epoch})
    assert pipelines.Meter(tmp_path / "seconds.json", "").total("joint") == pytest.approx(14.0, abs=1.0)
    assert meter.total("unet") == 0


def test_the_round_trip_is_measured(tmp_path):
    spec = importlib.util.spec_from_file_location("homogenize", FOLDER / "homogenize.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path, patients=1, slices=4, size=64)
    written = json.loads((tmp_path / "homogenize.json").read_text())
    assert set(written["rows"]) == {f"{per}, {size}" for per, size in module.WAYS}
    assert written["roll_error_degrees_worst"] < 6
    [row] = written["rows"]["volume, 384"]
    assert row["dice"]["kidney"] > 0.99
    assert row["width"] == pytest.approx(0.92, abs=0.08)
    lines = (tmp_path / "homogenize.md").read_text().splitlines()
    assert len(lines) == 2 + len(module.WAYS)
    assert f"| volume, 384 | {row['dice']['kidney']:.4f} / " in lines[2]
    assert module.dice(np.array([True, True]), np.array([True, False])) == pytest.approx(2 / 3)


def test_kidneys_of_all_ages_become_about_equally_high(tmp_path, monkeypatch):
    """A child of ten weeks and an adult of 40 years."""
    module = load("homogenized_size")
    monkeypatch.setattr(module, "WAYS", module.WAYS[:1])
    module.main(tmp_path, ages="0.2,40", each=1, slices=20, size=64, grid=128)
    written = json.loads((tmp_path / "homogenized_size.json").read_text())
    [(method, variation)] = written["summary"].items()
    child, adult = written["rows"][method]
    assert adult["native_mm"] > 2 * child["native_mm"]
    assert child["homogenized_mm"] > child["native_mm"]
    assert adult["homogenized_mm"] < adult["native_mm"]
    assert variation["homogenized"] < variation["native"] / 2
    assert variation["native"] == pytest.approx(module.variation([child["native_mm"], adult["native_mm"]]))
    assert variation["dice_worst"] > 0.98
    lines = (tmp_path / "homogenized_size.md").read_text().splitlines()
    assert lines[2].startswith(f"| volume, child | {100 * variation['native']:.1f} % | ")
    # Without, nothing changes along the body.
    volume, kidneys = module.patient(0.2, 0, 64, 20)
    flat = module.open_estimator(None, module.HomogenizeConfig(size=128, scale_z=False))
    row = module.measured(flat, 0.2, volume, kidneys)
    assert row.homogenized_mm == pytest.approx(row.native_mm)


def test_augmentation_arms_differ_only_in_the_settings_that_name_them(augmentation):
    for start in augmentation.STARTS:
        trained = {arm: load_config(base=augmentation.changes(start, arm)) for arm in augmentation.ARMS}
        for arm, config in trained.items():
            assert config.pose.start == start
            assert not config.predict.mirror
            assert config.unet.mirror == arm.mirror
            parts = config.unet.intensity.model_dump()
            assert parts.pop("random_convolutions") == arm.convolutions
            changed = bool(arm.intensities or arm.elastic or arm.convolutions)
            assert (config.unet.augmentation == "homogenized") == changed
            assert any(parts.values()) == all(parts.values()) == arm.intensities
            assert (config.unet.elastic > 0) == arm.elastic
            assert config.unet.context == arm.context
            default = load_config(base=dict(SMALL_PRESET))
            jitter = (config.unet.pose_jitter, config.crop.jitter_shift, config.crop.jitter_scale)
            usual = (default.unet.pose_jitter, default.crop.jitter_shift, default.crop.jitter_scale)
            assert jitter == (usual if arm.jitter else (0.0, 0.0, 0.0))
        # Arms of one model are trained alike, and no two models are.
        models = {arm.model: config.model_dump_json() for arm, config in trained.items()}
        assert len(set(models.values())) == len(models) == 10
        assert all(models[arm.model] == config.model_dump_json() for arm, config in trained.items())


def test_the_table_of_augmentation_pairs_patients_of_the_same_seed(augmentation):
    def numbers(kidney, tumor):
        return {"dice": {"kidney": kidney, "tumor": tumor}, "training": 100.0, "prediction": 0.5}

    results = {
        ("anatomy", "jitter"): {0: numbers([0.8, 0.9], [0.5, None]), 1: numbers([0.7, 0.6], [0.5, 0.7])},
        ("anatomy", "mirroring"): {1: numbers([0.8, 0.8], [0.6, 0.8])},
        ("identity", "jitter"): {},
    }
    lines = augmentation.table(results, Namespace(cases=10, slices=20, size=192)).splitlines()
    assert lines[2] == "| anatomy | jitter | 4 | 0.750 (0.129) | 0.567 (0.115) |  |  | 100 | 0.5 |"
    # Differences are 0.1 and 0.2: mean 0.15, standard deviation 0.071, standard error 0.05.
    cells = ["anatomy", "mirroring", "2", "0.800 (0.000)", "0.700 (0.141)"]
    cells += ["+0.150 ± 0.050", "+0.100 ± 0.000", "100", "0.5"]
    assert lines[3] == f"| {' | '.join(cells)} |"
    assert lines[1].count("|") == lines[0].count("|") == lines[2].count("|")
    assert not any("identity" in line for line in lines)
    assert "cohorts of 10, seeds 0, 1;" in "\n".join(lines)


def test_pose_and_crop_are_reused_from_a_finished_arm(augmentation, monkeypatch, tmp_path):
    """Only from an arm with the same start that has finished these stages."""
    seen = {}

    def fit(dataset, folder, config, **rest):
        checkpoints = folder / "work" / "checkpoints"
        seen[folder.parent.name, config.pose.start] = {p.name: p.read_text() for p in checkpoints.glob("*")}
        checkpoints.mkdir(parents=True, exist_ok=True)
        (checkpoints / "crop.safetensors").write_text(config.pose.start)
        if config.unet.mirror or config.unet.pose_jitter:
            (checkpoints / "unet.safetensors").write_text("begun")

    monkeypatch.setattr(augmentation, "fit", fit)
    for start in ("anatomy", "identity"):
        for arm in augmentation.ARMS[:3]:
            augmentation.trained(tmp_path, None, tmp_path / "store", start, arm, 0)
        assert seen["still-mirror-0", start] == seen["jitter-mirror-0", start] == {}
        assert seen["jitter-mirror-0.5", start] == {"crop.safetensors": start}


def test_the_time_of_a_training_step_is_split_by_operator():
    limit = load("limit")
    step = limit.training_step(64, 2, 4, "32-true")
    shares = limit.shares(step)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert set(shares) == {*limit.GROUPS, "other"}
    assert shares["convolution"] > 0
    assert shares["batch norm"] > 0
    assert shares["resampling"] > 0
    took, rate, peak = limit.resampling(64, 2, slices=2)
    assert rate == pytest.approx(4 * 6 * 2 * 64 * 64 / 1e9 / took)
    assert peak > 0


@pytest.mark.parametrize("more", [[], ["dims=3", "unet.depth=8"]])
def test_measured_and_predicted_memory_of_training_are_reported(more):
    memory = load("memory")
    result = memory.measure(["data.size=64", "unet.input=full", "unet.base_features=4", *more])
    assert result["peak"] > result["before"] - 1 > 0
    assert result["foreseen"] > 1
    for case in memory.CASES:
        load_config(settings=list(case))


def test_the_time_of_a_prediction_is_split_by_step(make_model, tmp_path):
    parts = load("parts")
    write_image(make_scene().volume, tmp_path / "scan.nii.gz")
    seen = parts.predicted(parts.for_prediction(make_model(real_unet=True)), tmp_path / "scan.nii.gz")
    assert set(seen) == {*parts.STEPS, parts.REST}
    assert all(seconds > 0 for seconds in seen.values()), seen


def test_nested_steps_are_counted_once(monkeypatch):
    parts = load("parts")
    clock = [0]

    def takes(seconds):
        clock[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "mktime", lambda: takes(10))
    monkeypatch.setattr(time, "gmtime", lambda: (takes(5), time.mktime()))
    parts.STEPS = {"outer": ("time.gmtime",), "inner": ("time.mktime",)}
    with parts.timed() as steps:
        time.gmtime()
        time.mktime()
    assert steps == {"outer": 5, "inner": 20}


def test_the_overhead_of_wrapping_is_measured(tmp_path):
    wrapping = load("wrapping")
    write_image(make_scene().volume, tmp_path / "scan.nii.gz")
    wall, cpu = wrapping.wrapped(tmp_path / "scan.nii.gz")
    for times in (wall, cpu):
        assert all(seconds > 0 for seconds in times.values()), times
        own = sum(times[step] for step in (*wrapping.OWN, wrapping.ELSE))
        assert times[wrapping.REST] == pytest.approx(own)
        assert times[wrapping.WHOLE] == pytest.approx(
            sum(times[step] for step in wrapping.STEPS) + times["all else"]
        )
    # The command is a program of its own, whose time this process does not take.
    assert cpu["the command"] > 0.1
    lines = wrapping.table([(wall, cpu), (dict.fromkeys(wall, 0.0), dict.fromkeys(cpu, 2.0))])
    assert f"| the whole | {wall['the whole'] / 2:.2f} | {cpu['the whole'] / 2 + 1:.2f} |" in lines
    assert len(lines.splitlines()) == 2 + len(wall)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_small_on_a_cpu():
    gpu = load("gpu")
    device = gpu.torch.device("cpu")
    rows = {part: list(gpu.PARTS[part](device, True)) for part in ("step", "memory", "weights", "prediction")}
    assert {part: len(measured) for part, measured in rows.items()} == {
        "step": 4, "memory": 2, "weights": 1, "prediction": 2,
    }  # fmt: skip
    # Two kinds of convolution: not the same sums, and nearly the same weights.
    [same] = rows["weights"]
    assert same.holds
    assert 0 < float(same.value.split()[2]) < 1e-3
    # Nothing is expected of a CPU's speed.
    assert [row.holds for part in ("step", "memory", "prediction") for row in rows[part]] == [None] * 8
    assert gpu.asked(gpu.torch.device("cuda"), "at most 1", False) == ("at most 1", False)


def test_a_failed_or_skipped_part_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    gpu = load("gpu")

    def run(command, *, timeout, **_):
        part = command[command.index("--one") + 1]
        if part == "memory":
            raise gpu.subprocess.TimeoutExpired(command, timeout)
        failed = part == "weights"
        return Namespace(
            returncode=int(failed),
            stdout=f'["{part} measured", "7 ms", "at most 9", true]\nnot a row\n',
            stderr="Traceback\nRuntimeError: no kernel\n" if failed else "",
        )

    monkeypatch.setattr(gpu.subprocess, "run", run)
    gpu.main(tmp_path, device="cpu")
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert lines[0].startswith("CPU, PyTorch ")
    assert lines[4:] == [
        "| step measured | 7 ms | at most 9 | yes |",
        "| memory | stopped: no time is left | a result | **no** |",
        "| weights measured | 7 ms | at most 9 | yes |",
        "| weights | failed: RuntimeError: no kernel | a result | **no** |",
        "| prediction measured | 7 ms | at most 9 | yes |",
        "| full measured | 7 ms | at most 9 | yes |",
        "| compiled | left out on a CPU, where benchmarks/limit.py --compile measures it |  |  |",
    ]
    monkeypatch.setattr(gpu, "LIMIT", 0.0)
    gpu.main(tmp_path, device="cpu", only=["step"])
    assert "| step | left out: no time is left |  |  |" in (tmp_path / "gpu.md").read_text()


def test_children_are_brought_to_an_adults_size_or_pose_separately(tmp_path):
    adults = load("adults")
    folder = write_cohort(tmp_path / "c", cases=1, slices=6, size=64, seed=5, test_fraction=0.0)
    volume = read_volume(next((folder / "imagesTr").glob("*.nii.gz")))
    labels = read_labels(next((folder / "labelsTr").glob("*.nii.gz")))
    estimator = open_estimator(None, HomogenizeConfig(reference="adult", size=128))
    transforms = {
        method: adults.brought(estimator, volume, *parts)
        for method, parts in adults.WAYS.items()
        if parts is not None
    }
    poses = {method: np.array(transform.poses) for method, transform in transforms.items()}
    body = {}
    for method, transform in transforms.items():
        image = homogenized_image(volume, transform)
        body[method] = float((image.array > -300).sum(axis=(1, 2)).mean()) * estimator.pixel_mm**2
        back = restored_labels(homogenized_labels(labels, transform), transform).array
        assert 2.0 * ((back > 0) & (labels.array > 0)).sum() > 0.9 * (
            (back > 0).sum() + (labels.array > 0).sum()
        )
    own = float((volume.array > -300).sum(axis=(1, 2)).mean()) * volume.spacing[0] * volume.spacing[1]
    assert body["adult pose"] == pytest.approx(own, rel=0.05)
    assert body["adult size"] == pytest.approx(body["both"], rel=0.05)
    assert body["both"] > 1.5 * own
    assert np.array_equal(poses["adult pose"][:, 0], poses["both"][:, 0])
    assert not poses["adult size"][:, 0].any()
    assert np.abs(poses["both"][:, 0]).max() > 0.01
    assert transforms["adult pose"].grid.z_scale == 1.0
    assert transforms["both"].grid.z_scale > 1.2


def test_the_table_of_adults_counts_who_gets_worse():
    adults = load("adults")

    def result(*dice):
        cases = tuple(
            CaseScores(
                f"c{n}",
                f"c{n}",
                {t: Scores(d, d, 1.0, 10.0, 10.0) for t in ("kidney", "tumor")},
                1.0,
            )
            for n, d in enumerate(dice)
        )
        return Evaluation(("kidney", "tumor"), cases)

    table = adults.table_of({"one": {"as scanned": [result(0.5, 0.9)], "both": [result(0.8, 0.85)]}})
    assert "| one | both | 82.5 (3.5) / 82.5 / 80.0 | 82.5 (3.5) / 82.5 / 80.0 | 1 / 1 |" in table
    assert "| one | both | 0 to 2 years | 2 | 82.5 | 82.5 |" in table


def test_sparse_labels_keep_every_nth_slice(tmp_path):
    module = load("sparse")
    whole = open_dataset(write_cohort(tmp_path / "cohort", cases=2, slices=7, size=32, test_fraction=0.5))
    for marked, value in ((True, 3), (False, 0)):
        sparse = module.thinned(whole, tmp_path / str(marked), 3, marked)
        assert sparse.labels.ignore == (3 if marked else None)
        for case, before in zip(sparse.cases, whole.cases, strict=True):
            if case.split == "test":
                assert case == before
                continue
            kept, all_drawn = (read_labels(path).array for path in (case.label, before.label))
            np.testing.assert_array_equal(kept[[1, 4]], all_drawn[[1, 4]])
            assert set(np.unique(kept[[0, 2, 3, 5, 6]])) == {value}
    assert len({arm.name for arm in module.ARMS}) == len(module.ARMS)


def test_the_table_of_sparse_labels_pairs_patients(tmp_path):
    module = load("sparse")
    full = {"dice": {"kidney": [0.9, 0.8], "tumor": [0.5, None]}, "slices": 60}
    less = {"dice": {"kidney": [0.8, 0.6], "tumor": [0.25, None]}, "slices": 10}
    results = {module.ARMS[0].name: [full, full], module.ARMS[1].name: [less, full]}
    arguments = Namespace(seeds=[3, 4], cases=4, slices=7, size=32, every=6)
    lines = module.table(results, arguments).splitlines()
    assert lines[2].startswith("| every slice | 60 | 0.850 (0.058) | 0.500 (0.000) |  |  |")
    # Kidneys: -0.1, -0.2, 0 and 0.
    assert lines[3].startswith("| others ignored by their value | 35 | 0.775 ")
    assert lines[3].endswith("| -0.075 ± 0.048 | -0.125 ± 0.125 |")
    assert "seeds 3 4" in " ".join(lines)


def test_the_true_roll_of_a_rotated_patient_includes_the_lean(tmp_path):
    scans, errors = load("pose_scans"), load("pose_errors")
    dataset = open_dataset(
        write_cohort(tmp_path / "cohort", cases=2, slices=4, size=64, seed=3, test_fraction=0.0)
    )
    fingerprint = fingerprint_of(dataset.cases, dataset.labels, scans.DATA, workers=0)
    anatomy = sample_case(5, 1, size=96, slices=6).anatomy
    lean = Pose("supine", True, math.radians(7.0), 0.0, 0.0, (0.0, 0.0, 0.0))
    rng = np.random.default_rng(0)
    grid = sample_scan(rng, anatomy, lean, 96, 6)
    image, _ = render(anatomy, lean, grid, rng)
    no_truth = (np.zeros(6), None, None)
    lying = scans._scan("one_0000", Volume(image, grid.world_from_index), fingerprint, no_truth)
    turned = replace(lying, name="one_0001", roll=lying.roll + math.radians(-30.0))

    [judged] = errors.leaning([turned], errors.leans_by_symmetry([lying]))

    assert np.degrees(judged.roll) == pytest.approx(-30.0 + 7.0, abs=2.0)
