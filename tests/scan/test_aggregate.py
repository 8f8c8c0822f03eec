import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isopose.scan import aggregate
from isopose.scan.aggregate import common_values, median, pooled_evidence, smooth_values

Z_MM = torch.arange(21) * 5.0


def evidence(angle: torch.Tensor, length: torch.Tensor | float = 1.0) -> torch.Tensor:
    return (
        torch.stack([angle.cos(), angle.sin()], dim=1) * torch.as_tensor(length).expand(len(angle))[:, None]
    )


def angle_of(vectors: torch.Tensor) -> torch.Tensor:
    return torch.atan2(vectors[:, 1], vectors[:, 0])


@settings(max_examples=30, deadline=None)
@given(middle=st.floats(-math.pi, math.pi), shift=st.floats(-3.0, 3.0))
def test_pooling_is_continuous_at_half_a_turn(middle, shift):
    spread = torch.linspace(-0.3, 0.3, 21)
    mean, _ = pooled_evidence(evidence(middle + spread), Z_MM, math.inf)
    turned, _ = pooled_evidence(evidence(middle + spread + shift), Z_MM, math.inf)
    assert torch.cos(angle_of(mean) - middle).min() > 1 - 1e-6
    assert torch.cos(angle_of(turned) - middle - shift).min() > 1 - 1e-6


def test_a_confident_slice_outweighs_uncertain_ones():
    angle, sure = torch.full((21,), 2.0), torch.full((21,), 0.1)
    angle[10], sure[10] = 0.2, 100.0
    mean, count = pooled_evidence(evidence(angle, sure), Z_MM, math.inf)
    assert angle_of(mean)[0].item() == pytest.approx(0.2, abs=0.03)
    assert count.tolist() == pytest.approx([21.0] * 21)


def test_contradicting_slices_cancel_out():
    angle = torch.cat([torch.zeros(10), torch.full((10,), math.pi)])
    mean, _ = pooled_evidence(evidence(angle, 50.0), Z_MM[:20], math.inf)
    assert mean.norm(dim=1).max() < 1e-4


def test_neighbors_are_weighted_by_distance():
    angle = torch.zeros(21)
    angle[:5] = 1.0
    mean, count = pooled_evidence(evidence(angle), Z_MM, 5.0)
    assert angle_of(mean)[0] > 0.95
    assert angle_of(mean)[20] < 1e-6
    # A Gaussian of one slice's width is worth 2 sqrt(pi) slices, half of it at the end.
    assert count[10].item() == pytest.approx(2.0 * math.sqrt(math.pi), rel=1e-3)
    assert count[0] < 0.7 * count[10]


def test_values_of_a_scan_are_weighted_medians():
    values = torch.tensor([[1.0, 10.0], [2.0, 30.0], [100.0, 20.0]])
    assert common_values(values, torch.ones(3)).tolist() == [2.0, 20.0]
    assert common_values(values, torch.tensor([5.0, 1.0, 1.0])).tolist() == [1.0, 10.0]


@pytest.mark.parametrize("count", [1, 2, 7, 10])
def test_the_unweighted_median_agrees_with_pytorch(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    assert median(values) == values.median()


def test_smoothing_keeps_linear_changes_and_removes_jumps():
    line = torch.stack([0.01 * Z_MM, 3.0 - 0.02 * Z_MM], dim=1)
    kept = smooth_values(line, torch.ones(21), Z_MM, 20.0)
    assert torch.allclose(kept, line, atol=0.02)
    spike = torch.zeros(21, 1)
    spike[10] = 1.0
    assert smooth_values(spike, torch.ones(21), Z_MM, 20.0).max() < 0.15
    light = torch.ones(21)
    light[10] = 1e-3
    assert smooth_values(spike, light, Z_MM, 20.0).max() < 1e-3


def test_one_slice_and_slices_at_one_position_keep_their_mean():
    assert smooth_values(torch.tensor([[2.0]]), torch.ones(1), torch.zeros(1), 20.0).item() == pytest.approx(
        2.0
    )
    same = smooth_values(torch.tensor([[1.0], [3.0]]), torch.ones(2), torch.zeros(2), 20.0)
    assert same[:, 0].tolist() == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize("pairs", [1, 84, 21 * 7])
def test_long_scans_are_processed_in_parts_with_the_same_result(pairs, monkeypatch):
    torch.manual_seed(0)
    values, weight = torch.randn(21, 3), torch.rand(21)
    whole = smooth_values(values, weight, Z_MM, 15.0), *pooled_evidence(values[:, :2], Z_MM, 15.0)
    monkeypatch.setattr(aggregate, "PAIRS_PER_CHUNK", pairs)
    parts = smooth_values(values, weight, Z_MM, 15.0), *pooled_evidence(values[:, :2], Z_MM, 15.0)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
