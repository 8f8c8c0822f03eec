import numpy as np
import pytest
import torch

from isopose.geometry.box import box_of_mask
from isopose.geometry.moments import moments
from isopose.geometry.symmetry import symmetry_axis
from isopose.models.shipped import REFERENCES, WEIGHTS, load_reference, shipped_sha256
from isopose.phantom.growth import reference_size
from isopose.phantom.roll.reference import PATIENTS, draw_outline, main

each = pytest.mark.parametrize("name", REFERENCES)


def test_the_shipped_files_equal_those_of_the_command(tmp_path) -> None:
    from safetensors.torch import load_file

    main(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*REFERENCES.values()}
    for name, file in REFERENCES.items():
        produced, shipped = load_file(tmp_path / "new" / file), load_reference(name)
        assert set(produced) == {"mask", "side_mm"}
        torch.testing.assert_close(produced["mask"].float(), shipped.mask, atol=2e-3, rtol=0)
        assert float(produced["side_mm"]) == pytest.approx(shipped.side_mm, rel=1e-5)


@pytest.mark.parametrize(("name", "age_years"), [("child", 2.0), ("adult", 30.0)])
def test_the_reference_is_a_patient_of_its_age_in_true_size(name, age_years) -> None:
    size, drawn_mm = reference_size(age_years), PATIENTS[name][1]
    box, _ = box_of_mask(draw_outline(name)[:, 0] >= 0.5)
    x0, y0, x1, y1 = (box[0] * drawn_mm / 2).tolist()
    assert x1 - x0 == pytest.approx(size.width, rel=0.01)
    # Lying on its back it is a little less deep than standing.
    assert 0.9 * size.depth < y1 - y0 <= size.depth
    reference = load_reference(name)
    assert reference.side_mm * 0.92 == pytest.approx(size.width, rel=0.01)
    area_mm2 = float(reference.mask.mean()) * reference.side_mm**2
    drawn_mm2 = float(draw_outline(name).mean()) * drawn_mm**2
    assert area_mm2 == pytest.approx(drawn_mm2, rel=0.005)


@each
def test_the_reference_is_upright_symmetric_centered_and_fills_the_frame(name) -> None:
    mask = load_reference(name).mask
    assert mask.shape == (1, 1, 96, 96)
    assert mask.dtype == torch.float32
    assert 0.0 <= float(mask.min()) < float(mask.max()) <= 1.0
    torch.testing.assert_close(mask, mask.flip(3), atol=0.01, rtol=0)
    [box] = box_of_mask(mask[:, 0] >= 0.5)[0].tolist()
    np.testing.assert_allclose([box[0] + box[2], box[1] + box[3]], 0.0, atol=0.03)
    assert (box[2] - box[0]) / 2 == pytest.approx(0.92, abs=0.02)
    assert abs(float(moments(mask).angle)) < 0.01
    axis = symmetry_axis(mask, mask)
    assert abs(float(axis.angle)) < 0.01
    # The back, on which it lies, is flatter than the belly: more of the body near +y.
    rows = mask[0, 0].sum(dim=1)
    top, bottom = (int(line) for line in (0.92 * 48 * np.array([-0.7, 0.7]) + 48))
    assert float(rows[bottom]) > float(rows[top])


def test_shipped_files_have_distinct_hashes() -> None:
    hashes = [shipped_sha256(WEIGHTS["ct"]), *(shipped_sha256(file) for file in REFERENCES.values())]
    assert {len(one) for one in hashes} == {64}
    assert len(set(hashes)) == len(hashes)
    assert shipped_sha256(WEIGHTS["ct"]) == hashes[0]
