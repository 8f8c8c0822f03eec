"""Transforms of all slices are computed in batches of slices."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isopose.geometry.frame import Frame
from isopose.training import transforms


def slices_of(*sizes: int) -> SimpleNamespace:
    frames = [Frame((0.0, 0.0), 300.0, size) for size in sizes]
    return SimpleNamespace(cases=[SimpleNamespace(record=SimpleNamespace(frame=one)) for one in frames])


@pytest.mark.parametrize(("sizes", "expected"), [((64,), 32), ((256,), 32), ((256, 512), 8), ((4096,), 1)])
def test_batches_have_at_most_the_pixels_of_32_slices_of_256(sizes, expected) -> None:
    assert transforms.batch_size_of(slices_of(*sizes)) == expected


def test_poses_are_estimated_in_limited_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "slice_poses", lambda _, __, batches, ___: batches)
    result = transforms.slices_of_scan(None, slices_of(512), np.arange(3, 23), 0.5, torch.device("cpu"))
    assert [len(rows) for rows in result] == [8, 8, 4]
    assert np.concatenate(result).tolist() == list(range(3, 23))
