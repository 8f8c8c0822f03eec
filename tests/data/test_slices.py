"""Sampling of slices in an epoch; each row has its own image, mask, labels, pose and crop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from bodies import write_cohort
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isopose.data.draw import draw_epoch, read_ahead
from isopose.data.fingerprint import fingerprint_of
from isopose.data.samples import Batch, Slices
from isopose.data.store import Store, write_store
from isopose.errors import InputError
from isopose.labels import Labels
from isopose.settings import DataConfig

LABELS = Labels.create({"kidney": 1, "tumor": 2})
THIRDS = {0: 1 / 3, 1: 1 / 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Three cases of two patients with 4, 5 and 6 slices."""
    folder = tmp_path_factory.mktemp("slices")
    cases = write_cohort(folder, 3)
    config = DataConfig(size=64)
    return write_store(folder / "store", cases, fingerprint_of(cases, LABELS, config), LABELS, config)


@pytest.fixture
def slices(store: Store) -> Slices:
    return Slices(store.cases)


def known(slices: Slices) -> Slices:
    """Set poses and crops that encode their row."""
    slices.pose = torch.arange(len(slices) * 5.0).reshape(-1, 5)
    slices.theta2 = torch.arange(len(slices) * 9.0).reshape(-1, 3, 3)
    return slices


def same(a: Batch, b: Batch) -> bool:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(x, y) if x is not None and y is not None else x is y for x, y in pairs)


def check_rows(batch: Batch, slices: Slices, index: np.ndarray) -> None:
    assert batch.rows.tolist() == list(index)
    for position, row in enumerate(index):
        case, z = slices.rows[row]
        image, mask, labels = (torch.from_numpy(array[0]) for array in slices.cases[case].read([z]))
        assert torch.equal(batch.image[position, 0], image)
        assert torch.equal(batch.mask[position, 0], mask.float())
        assert torch.equal(batch.labels[position], labels)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 40),
    densities=st.tuples(*[st.sampled_from([0.0, 0.05, 0.3, 0.7, 0.95, 1.0])] * 2),
    batch_size=st.integers(1, 12),
    iterations=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_at_least_a_third_shows_each_label(rows, densities, batch_size, iterations, seed) -> None:
    presence = np.random.default_rng(seed).random((rows, 2)) < densities
    total = batch_size * iterations
    assume(total >= 2)  # one slice cannot show one label for each of two
    batches = draw_epoch(presence, THIRDS, batch_size, iterations, (seed,))
    assert [len(batch) for batch in batches] == [batch_size] * iterations
    drawn = np.concatenate(batches)
    for label in (0, 1):
        if presence[:, label].any():
            assert presence[drawn, label].sum() >= np.ceil(total / 3)


def test_oversampling_of_a_common_label_leaves_room_for_a_rare_one() -> None:
    presence = np.zeros((50, 2), dtype=bool)
    presence[:, 0] = True
    presence[7, 1] = True
    drawn = np.concatenate(draw_epoch(presence, THIRDS, 10, 9, (1,)))
    assert (drawn == 7).sum() >= 30
    assert presence[drawn, 0].all()


def test_a_label_without_slices_is_skipped() -> None:
    presence = np.array([[True, False], [False, False]] * 6)
    drawn = np.concatenate(draw_epoch(presence, THIRDS, 6, 4, (3,)))
    counts = np.bincount(drawn, minlength=12)
    assert (counts == 2).all()


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 60), total=st.integers(1, 200), seed=st.integers(0, 1000))
def test_all_slices_are_drawn_equally_often(rows, total, seed) -> None:
    counts = np.bincount(
        np.concatenate(draw_epoch(np.zeros((rows, 2), bool), {}, 1, total, (seed,))), minlength=rows
    )
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == total


def test_oversampled_slices_are_drawn_about_equally_often() -> None:
    presence = np.zeros((100, 2), dtype=bool)
    presence[:10, 0] = True
    counts = np.bincount(np.concatenate(draw_epoch(presence, {0: 0.5}, 20, 30, (5,))), minlength=100)
    assert counts[:10].sum() == 300
    assert counts[:10].min() >= 24
    assert counts[:10].max() <= 36
    # The rest stays whole: no slice without the label vanishes from the epoch.
    assert counts[10:].min() >= 1


def test_oversampled_slices_are_spread_over_the_batches() -> None:
    presence = np.zeros((60, 2), dtype=bool)
    presence[:2, 0] = True
    counts = [int(presence[batch, 0].sum()) for batch in draw_epoch(presence, {0: 0.5}, 12, 10, (0,))]
    assert sum(counts) == 60
    assert all(1 <= count <= 11 for count in counts)


def test_the_same_seed_draws_the_same_and_another_epoch_another() -> None:
    presence = np.random.default_rng(0).random((30, 2)) < 0.3

    def draw(*seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in draw_epoch(presence, THIRDS, 6, 5, seed)]

    assert draw(0, 2, 7) == draw(0, 2, 7)
    others = [draw(0, 2, 8), draw(0, 1, 7), draw(1, 2, 7)]
    assert draw(0, 2, 7) not in others
    # Another order of other slices, not the same batches in another order.
    assert sorted(map(sorted, draw(0, 2, 7))) != sorted(map(sorted, draw(0, 2, 8)))


def test_rows_are_the_slices_with_a_body(store: Store) -> None:
    bare = replace(store.cases[1].record, body_fraction=(0.2, 0.0, 0.3, 0.0, 0.1))
    slices = Slices([store.cases[0], replace(store.cases[1], record=bare)])
    assert slices.rows.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 2], [1, 4]]
    presence = store.cases[0].record.presence + tuple(bare.presence[z] for z in (0, 2, 4))
    assert slices.presence.tolist() == [list(row) for row in presence]
    patients = [store.cases[0].record.patient] * 4 + [bare.patient] * 3
    assert slices.patients == patients


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_shuffled_rows_of_several_cases_come_in_the_order_asked_for(store: Store, data) -> None:
    slices = known(Slices(store.cases))
    index = np.array(data.draw(st.lists(st.integers(0, len(slices) - 1), min_size=1, max_size=9)))
    batch = slices.read(index)
    check_rows(batch, slices, index)
    assert torch.equal(batch.pose[:, 0], torch.from_numpy(index * 5.0).float())
    assert torch.equal(batch.theta2[:, 0, 0], torch.from_numpy(index * 9.0).float())


def test_every_row_once_in_order(slices: Slices) -> None:
    batches = list(slices.batches(4))
    assert [len(batch.rows) for batch in batches] == [4, 4, 4, 3]
    for number, batch in enumerate(batches):
        check_rows(batch, slices, np.arange(4 * number, min(4 * number + 4, 15)))
        assert batch.pose is None
        assert batch.theta2 is None


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_prefetching_gives_the_batches_of_plain_reading(slices: Slices, depth: int) -> None:
    index = [np.random.default_rng(n).permutation(len(slices))[:4] for n in range(7)]
    ahead = list(read_ahead(slices, index, depth=depth))
    assert len(ahead) == 7
    assert all(same(a, slices.read(rows)) for a, rows in zip(ahead, index, strict=True))


def test_an_error_while_prefetching_is_raised(slices: Slices, tmp_path) -> None:
    broken = replace(slices.cases[2], folder=tmp_path)
    slices.cases = (*slices.cases[:2], broken)
    batches = read_ahead(slices, [np.array([0]), np.array([5]), np.array([14]), np.array([1])])
    # What comes before the broken one is given out all the same.
    assert [next(batches).rows.tolist(), next(batches).rows.tolist()] == [[0], [5]]
    with pytest.raises(InputError, match=rf"^{broken.record.id}: "):
        next(batches)


def test_stopping_early_reads_at_most_the_prefetched_batches(slices: Slices, monkeypatch) -> None:
    started: list[int] = []
    plain = slices.read
    monkeypatch.setattr(slices, "read", lambda rows: (started.append(int(rows[0])), plain(rows))[1])
    batches = read_ahead(slices, [np.array([n]) for n in range(10)], depth=2)
    next(batches)
    batches.close()
    assert started[0] == 0
    assert max(started) <= 2


def test_subsets_keep_the_pose_and_crop_of_each_row(slices: Slices) -> None:
    known(slices)
    labeled = slices.labeled()
    expected = np.flatnonzero(slices.presence.any(axis=1))
    assert 0 < len(expected) < len(slices)
    spread = slices.spread(4)
    # 15 rows, evenly: 0, 4.67, 9.33, 14.
    for part, rows in (
        (labeled, expected),
        (spread, np.array([0, 5, 9, 14])),
        (slices.subset(np.array([8, 2])), [8, 2]),
    ):
        assert part.rows.tolist() == slices.rows[rows].tolist()
        assert part.presence.tolist() == slices.presence[rows].tolist()
        assert part.patients == [slices.patients[row] for row in rows]
        backwards = np.arange(len(part))[::-1].copy()
        batch = part.read(backwards)
        assert torch.equal(batch.image, slices.read(np.asarray(rows)[backwards]).image)
        assert torch.equal(batch.pose[:, 0], torch.tensor([5.0 * row for row in rows])[backwards])
        assert torch.equal(batch.theta2[:, 0, 0], torch.tensor([9.0 * row for row in rows])[backwards])
    assert len(slices.spread(99)) == len(slices)


def test_to_moves_every_tensor() -> None:
    batch = Batch(torch.arange(2), torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4), torch.ones(2, 4, 4))
    moved = batch.to(torch.device("meta"))
    assert all(tensor.device.type == "meta" for tensor in (moved.rows, moved.image, moved.mask, moved.labels))
    assert moved.pose is None


def test_a_part_of_a_batch_is_the_same_slices_of_everything() -> None:
    rows = torch.arange(4)
    image = torch.randn(4, 1, 2, 2)
    batch = Batch(rows, image, image > 0, rows.view(4, 1, 1).expand(4, 2, 2), torch.randn(4, 5))
    part = batch.select(torch.tensor([3, 1]))
    assert part.rows.tolist() == [3, 1]
    for name in ("image", "mask", "labels", "pose"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[[3, 1]])
    assert part.theta2 is None


def test_a_part_of_volumes_is_the_same_volumes_of_everything() -> None:
    volumes = tuple(torch.randn(1, 1, depth, 4, 4) for depth in (2, 3, 5))
    labels = tuple(volume[0] > 0 for volume in volumes)
    matrices, theta2 = torch.randn(3, 4, 4), torch.randn(3, 4, 4)
    batch = Batch(torch.arange(3), volumes, volumes, labels, None, theta2, matrices)
    part = batch.select(torch.tensor([2, 0]))
    assert [volume.shape[2] for volume in part.image] == [5, 2]
    assert torch.equal(part.labels[0], labels[2])
    assert torch.equal(part.stack_from_frame, batch.stack_from_frame[[2, 0]])
    assert torch.equal(part.theta2, batch.theta2[[2, 0]])
    assert part.pose is None
