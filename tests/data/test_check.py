import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from io_helpers import raw_slices, rotation, write_series
from isopose.data import check
from isopose.data.check import Problem, check_dataset
from isopose.geometry.volume import Volume
from isopose.io.cases import Case, dataset_of
from isopose.io.images import write_image
from isopose.labels import Labels
from isopose.settings import DataConfig

SPACING = (0.8, 0.8, 3.0)


def grid(spacing=SPACING, turn=None):
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if turn is None else rotation(turn)) * spacing
    return matrix


def scan(seed, shape=(6, 96, 96)):
    array = np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)
    array[0, 0, 0] = -1000
    return array


def mark(shape=(6, 96, 96)):
    array = np.zeros(shape, np.uint8)
    array[2:4, 5:9, 5:9], array[4, 6:9, 6:9] = 1, 2
    return array


@pytest.fixture
def cohort(tmp_path):
    """Function that adds a case, valid unless arguments make it invalid."""
    cases = []

    def add(name, image=None, label=None, matrix=None, label_matrix=None, **fields):
        matrix = grid() if matrix is None else matrix
        array = scan(len(cases)) if image is None else image
        write_image(Volume(array, matrix), tmp_path / f"{name}.nii.gz")
        label = mark(array.shape) if label is None else label
        write_image(
            Volume(label, matrix if label_matrix is None else label_matrix), tmp_path / f"{name}_l.nrrd"
        )
        case = Case(name, tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_l.nrrd", name)
        cases.append(replace(case, **fields))
        return cases[-1]

    def dataset(**further):
        labels = Labels.create({"kidney": 1, "tumor": 2, **further})
        return dataset_of("d", "manifest", tmp_path, labels, cases)

    add.dataset = dataset
    return add


def only(problems, case, severity, *words):
    """Return the only problem of a case."""
    (problem,) = [p for p in problems if p.case == case]
    assert problem.severity == severity
    assert "\n" not in problem.message
    for word in words:
        assert word in problem.message, problem.message


def test_the_body_mask_comes_from_the_ct_channel(cohort, tmp_path):
    """PET is the first channel and has no air of -1000 HU."""
    case = cohort("c0")
    pet = tmp_path / "pet.nii.gz"
    uptake = 0.5 + scan(0).astype(np.float32) / 1e5
    write_image(Volume(uptake, grid()), pet)
    both = replace(case, image=pet, further=(case.image,))
    dataset = replace(cohort.dataset(), cases=(both,), channels=("PET", "CT"))
    named = DataConfig(pose_channel="CT")

    assert check_dataset(dataset, config=named) == []
    write_image(Volume(np.zeros(scan(0).shape, np.float32), grid()), pet)
    only(check_dataset(dataset, config=named), "c0", "error", "channel PET: every voxel is 0.0")


def test_a_valid_dataset_has_no_problem(cohort):
    for i in range(6):
        cohort(f"c{i}")
    assert check_dataset(cohort.dataset()) == []


def test_every_problem_is_reported_with_its_case(cohort, tmp_path):
    cohort("a_sound")
    cohort("b_gone").image.unlink()
    cohort("c_nolabel").label.unlink()
    cut = cohort("d_cut").image
    cut.write_bytes(cut.read_bytes()[:-200])
    cohort("e_small", image=scan(50, (2, 96, 96)), label=mark((6, 96, 96))[2:4])
    cohort("f_grid", label=mark((5, 96, 96)))
    moved = grid()
    moved[0, 3] = 5
    cohort("g_moved", label_matrix=moved)
    odd = mark()
    odd[0, 0, :2], odd[0, 1, 0] = 9, 7
    cohort("h_unknown", label=odd)
    cohort("i_empty", label=np.zeros((6, 96, 96), np.uint8))
    nan = scan(51).astype(np.float32)
    nan[1, 2, 3] = np.nan
    cohort("j_nan", image=nan)
    cohort("k_flat", image=np.full((6, 96, 96), -1000, np.int16))
    cohort("l_fraction", label=mark() * np.float32(0.5))
    write_series(tmp_path / "m_gap", raw_slices(6), skip=(3,))
    write_series(tmp_path / "n_mixed" / "x", raw_slices(6))
    write_series(tmp_path / "n_mixed" / "y", raw_slices(6), series="1.2.9")
    for name in ("m_gap", "n_mixed"):
        cohort(name)
    dataset = cohort.dataset()
    dataset = replace(
        dataset,
        cases=tuple(
            replace(c, image=tmp_path / c.id) if c.id in ("m_gap", "n_mixed") else c for c in dataset.cases
        ),
    )
    problems = check_dataset(dataset)
    only(problems, "b_gone", "error", "image: ", "no such file")
    only(problems, "c_nolabel", "error", "label: ", "no such file")
    only(problems, "d_cut", "error", "truncated or corrupt")
    only(problems, "e_small", "error", "2 axial slices", "at least 3")
    only(problems, "f_grid", "error", "96 x 96 x 5 voxels", "96 x 96 x 6")
    only(problems, "g_moved", "error", "5.00 mm apart")
    only(problems, "h_unknown", "error", "7 (1 voxels), 9 (2 voxels)", "[1, 2]")
    only(problems, "i_empty", "error", "every voxel is background")
    only(problems, "j_nan", "error", "not finite")
    only(problems, "k_flat", "error", "every voxel is -1000")
    only(problems, "l_fraction", "error", "whole numbers")
    only(problems, "m_gap", "error", "slices are missing (about 1)")
    only(problems, "n_mixed", "error", "got 2")
    assert len(problems) == 13
    assert [p.case for p in problems] == sorted(p.case for p in problems)


def test_a_case_can_have_several_problems(cohort):
    case = cohort("a", label=np.zeros((6, 96, 96), np.uint8))
    case.image.unlink()
    messages = [p.message for p in check_dataset(cohort.dataset()) if p.case == "a"]
    assert len(messages) == 2
    assert "no such file" in messages[0]
    assert "background" in messages[1]


def test_values_outside_hounsfield_units_are_reported(cohort):
    base = scan(3)
    cohort("a_offset", image=base + 1024)
    cohort("b_normal", image=(base / 500.0).astype(np.float32))
    high = base.astype(np.int32)
    high[2, 2, 2] = 60000
    cohort("c_high", image=high)
    problems = check_dataset(cohort.dataset())
    only(problems, "a_offset", "warning", "offset (often -1024)")
    only(problems, "b_normal", "warning", "neither windowed nor normalized")
    only(problems, "c_high", "warning", "60000")


def test_unusual_grids(cohort):
    for i in range(5):
        cohort(f"c{i}")
    cohort("s_sagittal", matrix=grid((5.0, 0.8, 0.8)))
    cohort("q_thin", matrix=grid((0.98, 0.98, 0.5)))
    cohort("t_tilted", matrix=grid(turn=(25, 0, 0)))
    cohort("u_unit", matrix=grid((0.08, 0.08, 0.3)))
    problems = check_dataset(cohort.dataset())
    assert {p.severity for p in problems} == {"warning"}
    sagittal = [p.message for p in problems if p.case == "s_sagittal"]
    assert "5.00 x 0.80 x 0.80 mm" in sagittal[0]
    assert not [p for p in problems if p.case == "q_thin"]
    only(problems, "t_tilted", "warning", "25 degrees")
    size, off = [p.message for p in problems if p.case == "u_unit"]
    assert "8 x 8 mm" in size
    assert "0.08 x 0.08 x 0.30" in off
    assert "0.80 x 0.80 x 3.00" in off


def test_duplicated_images_are_reported(cohort, tmp_path):
    array = scan(9)
    cohort("a", image=array)
    # The same scan in another storage order and type.
    matrix = grid() @ [[-1, 0, 0, 95], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    cohort("b", image=array[:, :, ::-1].astype(np.float32), label=mark()[:, :, ::-1], matrix=matrix)
    cohort("c", image=array, patient="a")
    problems = check_dataset(cohort.dataset())
    only(problems, "b", "error", "'a'", "leak")
    only(problems, "c", "warning", "'a'", "remove one")
    assert len(problems) == 2


def test_problems_of_the_whole_dataset_are_reported(cohort):
    plain = mark()
    plain[plain == 2] = 1
    cohort("a", label=plain, patient="P")
    cohort("b", label=None, patient="P", split="test")
    cohort("c", split="test")
    dataset = cohort.dataset()
    unlabeled = tuple(replace(c, label=None) if c.id in "bc" else c for c in dataset.cases)
    problems = check_dataset(replace(dataset, cases=unlabeled))
    texts = [(p.case, p.severity, p.message) for p in problems]
    assert [t[:2] for t in texts] == [("d", "warning"), ("d", "warning"), ("d", "error")]
    assert "'tumor' (2) occurs in no case" in texts[0][2]
    assert "2 test cases have no label" in texts[1][2]
    assert "one patient" in texts[2][2]
    none = tuple(replace(c, label=None, split=None, patient=c.id) for c in dataset.cases)
    problems = check_dataset(replace(dataset, cases=none))
    assert [p.case for p in problems] == ["a", "b", "c", "d"]
    assert "no case has a label" in problems[-1].message


def test_any_number_of_workers_gives_the_same_and_progress_is_reported(cohort):
    cohort("a")
    cohort("b", label=np.zeros((6, 96, 96), np.uint8))
    cohort("c").image.unlink()
    calls = []
    expected = check_dataset(cohort.dataset(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert [type(p) for p in expected] == [Problem, Problem]
    calls.clear()
    assert check_dataset(cohort.dataset(), workers=2, progress=lambda *n: calls.append(n)) == expected
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_dead_worker_is_reported_in_one_line(cohort, monkeypatch):
    cohort("a")
    cohort("b", label=np.zeros((6, 24, 24), np.uint8))
    expected = [p for p in check_dataset(cohort.dataset()) if p.case == "b"]
    monkeypatch.setattr(check, "_inspect", die_of_a)
    for workers in (1, 2):
        problems = check_dataset(cohort.dataset(), workers=workers)
        only(problems, "a", "error", "a worker process died at this case", "fewer workers")
        assert [p for p in problems if p.case == "b"] == expected


def die_of_a(case, original=check._inspect, **settings):
    if case.id == "a":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(case, **settings)


def test_out_of_memory_fails_only_its_own_case(cohort, monkeypatch):
    cohort("a")
    cohort("b")

    def read(path, original=check.read_volume, **named):
        if path.name == "a.nii.gz":
            raise MemoryError
        return original(path, **named)

    monkeypatch.setattr(check, "read_volume", read)
    problems = check_dataset(cohort.dataset())
    only(problems, "a", "error", "out of memory: too large for the memory of this machine")
    assert {p.case for p in problems if p.severity == "error"} == {"a"}


def test_unannotated_slices_give_a_warning_unless_they_are_ignored(cohort):
    sparse = np.zeros((14, 96, 96), np.uint8)
    sparse[1::4, 5:9, 5:9], sparse[5, 7, 7] = 1, 2
    cohort("sparse", scan(0, sparse.shape), sparse)
    marked = np.where(sparse.any(axis=(1, 2), keepdims=True), sparse, 9).astype(np.uint8)
    cohort("marked", scan(1, sparse.shape), marked)
    cohort("unknown", scan(2, sparse.shape), np.full(sparse.shape, 9, np.uint8))
    problems = check_dataset(cohort.dataset(ignore=9))
    only(problems, "sparse", "warning", "one slice in 4", "data.undrawn=ignore")
    only(problems, "unknown", "error", "every voxel is background or ignored")
    assert [problem for problem in problems if problem.case == "marked"] == []
