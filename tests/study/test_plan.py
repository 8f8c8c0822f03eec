"""Planning of a study: configurations of arms, runs, folds, and its folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isopose.config import Config
from isopose.errors import InputError
from isopose.files import read_json, write_json
from isopose.geometry.volume import Volume
from isopose.phantom import write_cohort
from isopose.presets import load_config
from isopose.settings import DataConfig
from isopose.study import nnunet, plan
from isopose.study.arms import ARMS, BY_NAME, SOURCE
from isopose.study.plan import (
    STAGES,
    Options,
    arms_of,
    check_options,
    claim_study,
    config_of,
    held_out,
    jobs_of,
    known_widths,
    measure_widths,
    notes_of_length,
    patients_of,
    settle_epochs,
)


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "children"
    return write_cohort(folder, cases=6, slices=4, size=64, test_fraction=0.34)


@pytest.fixture(autouse=True)
def without_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate that the extra is not installed."""
    monkeypatch.setattr(nnunet, "available", lambda: False)


@pytest.fixture
def options(children: Path) -> Options:
    return Options(
        dataset=children,
        labels=None,
        presets=("default", "paper"),
        seeds=(0, 1),
        folds=1,
        settings=("data.size=128", "pose.size=64", "crop.size=64"),
        values={"unet": {"base_features": 8}},
        source=None,
    )


def of(options: Options, preset: str, arm: str) -> Config:
    return config_of(options, preset, BY_NAME[arm], 3)


def differing(a: Config, b: Config) -> set[str]:
    one, other = a.model_dump(), b.model_dump()
    result = set()
    for section, values in one.items():
        if isinstance(values, dict):
            result |= {f"{section}.{k}" for k, v in values.items() if v != other[section][k]}
        elif values != other[section]:
            result.add(section)
    return result


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_arms_differ_only_in_the_settings_that_name_them(options: Options, preset: str) -> None:
    plain, pose = of(options, preset, "plain"), of(options, preset, "pose")
    assert differing(plain, of(options, preset, "augmented")) == {"unet.augmentation"}
    assert differing(pose, of(options, preset, "pose-mirror")) == {"unet.mirror", "predict.mirror"}
    assert differing(of(options, preset, "crop-full"), of(options, preset, "crop-half")) == {"unet.input"}
    assert differing(pose, of(options, preset, "crop-full")) == {"crop.enabled"}
    assert differing(pose, of(options, preset, "moments")) <= {"pose.start", "pose.learned"}
    default = of(options, preset, "default")
    config = load_config(preset, settings=options.settings)
    assert (default.unet.mirror, default.predict.mirror) == (config.unet.mirror, config.predict.mirror)
    assert default.unet.augmentation == config.unet.augmentation
    assert not plain.pose_estimated
    assert pose.pose_estimated
    assert plain.unet_size == pose.unet_size == 128


def test_settings_apply_to_all_arms_and_stages_have_equal_steps(options: Options) -> None:
    half = replace(options, scale=0.5)
    for preset in options.presets:
        steps = set()
        for arm in (*ARMS, SOURCE):
            config = config_of(half, preset, arm, 3)
            whole = load_config(preset)
            assert (config.data.size, config.unet.base_features, config.train.seed) == (128, 8, 3)
            for stage in STAGES:
                optimizer = getattr(config, stage).optimizer
                # No arm stops early: none has fewer steps than another.
                assert optimizer.min_epochs == optimizer.patience == optimizer.epochs
            # The budget's part is of the U-Net alone.
            assert config.pose.optimizer.epochs == whole.pose.optimizer.epochs
            assert config.crop.optimizer.epochs == whole.crop.optimizer.epochs
            optimizer = config.unet.optimizer
            steps.add((optimizer.epochs, optimizer.iterations, optimizer.batch_size))
        assert len(steps) == 1
    assert of(half, "default", "pose").unet.optimizer.epochs == 50
    assert of(options, "default", "pose").unet.optimizer.epochs == 100


def test_the_setting_that_names_an_arm_overrides_the_users(options: Options) -> None:
    config = replace(options, settings=(*options.settings, "pose.start=moments", "unet.augmentation=off"))
    assert of(config, "default", "plain").pose.start == "identity"
    assert of(config, "default", "augmented").unet.augmentation == "nnunet"


def test_a_numbered_gpu_is_refused_for_nnunet(options: Options) -> None:
    """nnU-Net's trainer always uses the first visible GPU."""
    second = replace(options, settings=(*options.settings, "train.device=cuda:1"))
    assert of(second, "default", "pose").train.device == "cuda:1"
    with pytest.raises(InputError, match=r"train.device=cuda:1: nnU-Net .* CUDA_VISIBLE_DEVICES=1"):
        of(second, "default", "nnunet")


def test_runs_combine_arms_and_seeds_without_duplicates(options: Options) -> None:
    arms = arms_of(options, None)
    assert not any(arm.source for arm in arms)
    jobs, twins = jobs_of(options, arms)
    # The paper's preset has no jitter, and is itself the crop of full size.
    assert twins == {"paper/jitter": "plain", "paper/default": "crop-full"}
    assert len(jobs) == 2 * (2 * len(arms) - 2)
    assert len({job.place for job in jobs}) == len(jobs)
    some, _ = jobs_of(options, arms_of(options, ["pose", "plain"]))
    assert [job.arm for job in some] == ["plain", "plain", "pose", "pose"] * 2


def test_transfer_needs_a_source(options: Options, children: Path) -> None:
    with pytest.raises(InputError, match="add --source"):
        arms_of(options, ["decoder"])
    with_source = replace(options, source=children)
    assert [arm.name for arm in arms_of(with_source, None) if arm.source] == [
        "direct", "direct-homogenized", "first2-last2", "decoder", "all",
    ]  # fmt: skip
    jobs, twins = jobs_of(with_source, arms_of(with_source, None))
    assert {job.arm for job in jobs} == {arm.name for arm in ARMS if not arm.peer}
    assert set(twins) == {"paper/jitter", "paper/default"}


def test_arms_of_nnunet_need_the_installed_package(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(arm.peer for arm in arms_of(options, None))
    with pytest.raises(InputError, match=r"add the extra: pip install 'isopose\[nnunet\]'"):
        arms_of(options, ["pose", "nnunet"])
    monkeypatch.setattr(nnunet, "available", lambda: True)
    names = [arm.name for arm in arms_of(options, None) if arm.peer]
    assert names == [
        "nnunet", "nnunet-plain", "nnunet-homogenized", "nnunet-homogenized-unturned", "nnunet-pose",
        "nnunet-resenc", "nnunet-3d",
    ]  # fmt: skip
    # Each is a run of its own, though their settings are the augmented arm's; and it has no preset.
    jobs, twins = jobs_of(options, arms_of(options, ["augmented", *names]))
    assert twins == {}
    assert [job.preset for job in jobs if job.arm != "augmented"] == ["default"] * 2 * 7
    assert [job.preset for job in jobs if job.arm == "augmented"] == ["default"] * 2 + ["paper"] * 2


def test_a_study_of_mr_leaves_out_what_finds_poses_in_ct_and_takes_no_source_of_ct(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = shutil.copytree(options.dataset, tmp_path / "mr")
    described = read_json(children / "dataset.json") | {"channel_names": {"0": "MR"}}
    write_json(children / "dataset.json", described)
    of_mr = replace(options, dataset=children)
    monkeypatch.setattr(nnunet, "available", lambda: True)
    monkeypatch.setattr(nnunet, "require", lambda: None)
    names = [[arm.name for arm in arms_of(one, None)] for one in (options, of_mr)]
    assert [name for name in names[0] if name not in names[1]] == ["nnunet-pose"]
    with pytest.raises(InputError, match="'nnunet-pose' needs CT"):
        arms_of(of_mr, ["nnunet-pose"])
    with pytest.raises(InputError, match="the source has the channels CT, the dataset MR: expected the same"):
        check_options(replace(of_mr, source=options.dataset))


def test_body_widths_use_the_configured_modality(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting ``data.modality`` overrides the dataset; every scan is measured once."""
    modalities = []

    def find(volume: Volume, data: DataConfig, modality: str) -> np.ndarray:
        modalities.append((data.body_threshold_hu, modality))
        return np.ones(volume.array.shape, bool)

    monkeypatch.setattr(plan, "find_body", find)
    settings = (*options.settings, "data.modality=mr", "data.body_threshold_hu=-300")
    data = of(replace(options, settings=settings), "default", "pose").data
    dataset = patients_of(options, 0)
    for _ in range(2):
        measure_widths(tmp_path, [dataset], data, lambda *_: None)
    assert modalities == [(-300, "mr")] * len(held_out(dataset))
    assert set(known_widths(tmp_path, dataset)) == set(held_out(dataset))


def test_a_test_case_without_a_body_is_named(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(volume: Volume, data: DataConfig, modality: str) -> np.ndarray:
        raise InputError("no body found above -400 HU")

    monkeypatch.setattr(plan, "find_body", find)
    dataset = patients_of(options, 0)
    case = next(case.id for case in dataset.cases if case.id in held_out(dataset))
    with pytest.raises(InputError, match=f"^{case}, a test case: no body found above -400 HU; repair it or"):
        measure_widths(tmp_path, [dataset], of(options, "default", "pose").data, lambda *_: None)


def test_folds_test_every_patient_once_and_never_one_that_trains(options: Options) -> None:
    folded = replace(options, folds=3)
    seen: list[str] = []
    for fold in range(3):
        dataset = patients_of(folded, fold)
        held = held_out(dataset)
        assert len(held) == 2
        assert len(dataset.cases) == 6
        assert {case.split for case in dataset.cases if case.id not in held} == {None}
        seen += held
    assert sorted(seen) == [f"phantom_{n:03d}" for n in range(6)]
    # One fold: the dataset's own test cases.
    assert held_out(patients_of(options, 0)) == ["phantom_004", "phantom_005"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"presets": ("default", "other")}, "preset 'other' is unknown"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"presets": ()}, "--presets"),
        ({"settings": ("unet.base_feature=3",)}, "no such setting"),
        ({"settings": ("train.fold=2",)}, "--folds"),
        ({"settings": ("preset=paper",)}, "--presets"),
        ({"folds": 7}, "7 folds need as many labeled patients"),
    ],
)
def test_invalid_studies_are_refused_in_one_line(options: Options, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_options(replace(options, **change))


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (("pose.optimizer.epochs=10",), {}, "STN1 of the arm pose (paper preset) for 2500 steps and 30000"),
        (("pose.optimizer.iterations=20",), {}, "STN1 of the arm pose (paper preset) for 1000 steps"),
        (
            ("pose.optimizer.batch_size=4",),
            {},
            "STN1 of the arm pose (paper preset) for 12500 steps and 50000",
        ),
        (
            ("crop.optimizer.epochs=5",),
            {},
            "STN2 of the arm crop-full (default preset) for 500 steps and 8000",
        ),
        (
            (),
            {"crop": {"optimizer": {"iterations": 50}}},
            "STN2 of the arm crop-full (default preset) for 1500",
        ),
        ((), {"pose": {"optimizer": {"epochs": 10}}}, "STN1 of the arm pose (paper preset) for 2500 steps"),
        (("pose.learned=false",), {}, "STN1 of the arm pose (paper preset) for 0 steps"),
        (("crop.learned=false",), {}, "STN2 of the arm crop-full (default preset) for 0 steps"),
        (("crop.enabled=false",), {}, "STN2 of the arm crop-full (default preset) for 0 steps"),
    ],
)
def test_settings_that_shorten_an_stn_are_refused_unless_allowed(
    options: Options, settings: tuple[str, ...], values: dict, message: str
) -> None:
    """An earlier study trained STN1 for a twelfth of its steps and reported it as the paper's preset."""
    config = replace(options, settings=(*options.settings, *settings), values={**options.values, **values})
    with pytest.raises(InputError, match="a study shortens only the U-Net") as error:
        check_options(config)
    assert message in str(error.value)
    assert "--short-stns" in str(error.value)
    assert "\n" not in str(error.value)
    check_options(replace(config, short_stns=True))


def test_settings_that_do_not_shorten_the_stns_are_accepted(options: Options) -> None:
    for settings in (
        ("pose.optimizer.epochs=100", "pose.optimizer.iterations=125"),
        ("pose.optimizer.epochs=50", "pose.optimizer.momentum=0.9", "crop.optimizer.epochs=60"),
        ("pose.optimizer.batch_size=24", "crop.optimizer.batch_size=16"),
        # The U-Net may be as short as anyone likes; what ends a stage early is set by the study itself.
        ("unet.optimizer.epochs=1", "unet.optimizer.iterations=1", "unet.optimizer.batch_size=2"),
        ("pose.optimizer.min_epochs=1", "pose.optimizer.patience=1"),
    ):
        check_options(replace(options, settings=(*options.settings, *settings)))


def test_a_former_study_with_shortened_stns_is_reported(options: Options, tmp_path: Path) -> None:
    """An earlier version did not record which stages were shortened."""
    claim_study(tmp_path / "study", options)
    path = tmp_path / "study" / "study.json"
    write_json(path, read_json(path) | {"scale": 0.25})
    assert "shortened STN1 and STN2 as well" in " ".join(notes_of_length(tmp_path / "study"))
    settle_epochs(tmp_path / "study", replace(options, scale=0.25))
    assert notes_of_length(tmp_path / "study") == ()


def test_a_dataset_without_labeled_test_cases_needs_folds(options: Options, tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "no-test", cases=3, slices=4, size=64, test_fraction=0.0)
    with pytest.raises(InputError, match="add --folds 5"):
        check_options(replace(options, dataset=folder))
    check_options(replace(options, dataset=folder, folds=3))


def test_unknown_arms_are_refused(options: Options) -> None:
    with pytest.raises(InputError, match="'posed' is unknown; expected some of plain, jitter"):
        arms_of(options, ["posed"])


def test_a_study_folder_refuses_another_study_or_length(options: Options, tmp_path: Path) -> None:
    assert claim_study(tmp_path / "study", options) == (options, False)
    # Broken off before its length was settled.
    assert claim_study(tmp_path / "study", options) == (options, False)
    settle_epochs(tmp_path / "study", replace(options, scale=0.25))
    again, settled = claim_study(tmp_path / "study", replace(options, seeds=(0, 1, 2), presets=("default",)))
    assert (again.scale, settled) == (0.25, True)
    # The same patients elsewhere are the same; others under the same names are not.
    moved = shutil.copytree(options.dataset, tmp_path / "elsewhere")
    assert claim_study(tmp_path / "study", replace(options, dataset=moved))[1]
    others = write_cohort(tmp_path / "others", cases=6, slices=4, size=64, seed=9, test_fraction=0.34)
    with pytest.raises(InputError, match="a study of other dataset"):
        claim_study(tmp_path / "study", replace(options, dataset=others))
    (moved / "labelsTr" / "phantom_001.nii.gz").unlink()
    with pytest.raises(InputError, match="phantom_001: no such label file"):
        claim_study(tmp_path / "study", replace(options, dataset=moved))
    # What --short-stns allows is in the settings: it is no other study for it.
    assert claim_study(tmp_path / "study", replace(options, short_stns=True))[1]
    with pytest.raises(InputError, match="a study of other settings"):
        claim_study(tmp_path / "study", replace(options, settings=("data.size=96",)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.txt").write_text("photos")
    with pytest.raises(InputError, match="not empty and no study"):
        claim_study(tmp_path / "full", options)
