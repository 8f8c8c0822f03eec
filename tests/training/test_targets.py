"""Choice and pose of the reference, and target boxes of the crop."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isopose.data.samples import Batch
from isopose.errors import InputError
from isopose.geometry.box import MIN_CROP, box_of_mask
from isopose.geometry.frame import Frame
from isopose.geometry.pose import identity_pose, matrix_from_pose
from isopose.geometry.symmetry import symmetry_axis
from isopose.geometry.warp import invert, warp
from isopose.labels import IGNORED
from isopose.settings import CropConfig, PoseConfig
from isopose.training.targets import choose_reference, crop_targets, where_labeled

SIZE = 96
AIR = -2.0


def torso(width: float, *, roll: float = 0.0, flank: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)):
    """A slice ``(S, S)`` and its mask: ellipse and spine, turned by ``roll`` degrees, one flank bulging."""
    y, x = torch.meshgrid(*(((torch.arange(SIZE) * 2 + 1) / SIZE - 1,) * 2), indexing="ij")
    mask = (x / width) ** 2 + (y / (0.7 * width)) ** 2 < 1
    mask |= ((x + 0.8 * width) / (0.15 + flank)) ** 2 + (y / 0.15) ** 2 < float(flank > 0)
    image = torch.where(mask, 0.0, AIR)
    image[((x / 0.14) ** 2 + ((y - 0.4 * width) / 0.14) ** 2 < width**2) & mask] = 3.0
    turn = matrix_from_pose(torch.tensor([[-math.radians(roll), 0.0, 0.0, *shift]]))
    turned = warp(image[None, None], turn, (SIZE, SIZE), fill=AIR)
    return turned[0, 0].numpy(), (warp(mask[None, None].float(), turn, (SIZE, SIZE))[0, 0] > 0.5).numpy()


class Drawn:
    """A stand-in for a stored case of five slices, of which slices 1 and 3 are labeled."""

    def __init__(self, name: str, width: float, *, labeled: tuple[int, ...] = (1, 3), **how) -> None:
        slices = [torso(width if z == 3 or not labeled else 0.2, **how) for z in range(5)]
        self.image, self.mask = (np.stack(part) for part in zip(*slices, strict=True))
        self.record = SimpleNamespace(
            id=name,
            presence=tuple((z in labeled, False) for z in range(5)),
            body_fraction=tuple(float(mask.mean()) for mask in self.mask),
            frame=Frame((0.0, 0.0), 300.0, SIZE),
        )

    def read(self, slices):
        return self.image[slices].astype(np.float32), self.mask[slices].astype(np.uint8), None


@pytest.fixture(scope="module")
def cohort() -> list[Drawn]:
    return [
        Drawn("newborn", 0.3),
        Drawn("leaning", 0.62, roll=16.0),
        Drawn("lopsided", 0.6, flank=0.25),
        Drawn("good", 0.58, roll=-4.0, shift=(0.1, -0.06)),
        Drawn("also leaning", 0.56, roll=-20.0),
        Drawn("large", 0.9),
    ]


def test_the_reference_has_median_size_and_is_upright_and_symmetric(cohort: list[Drawn]) -> None:
    """The newborn and the large one are the most upright and symmetric of all, but of another size."""
    reference = choose_reference(cohort, PoseConfig(size=SIZE), AIR)
    assert (reference.case, reference.chosen) == ("good", "automatically")
    assert reference.slice == 3
    pixels = cohort[3].mask[3].sum()
    assert reference.area_cm2 == pytest.approx(pixels * (30.0 / SIZE) ** 2, rel=1e-5)
    assert math.degrees(reference.lean) == pytest.approx(-4.0, abs=1.5)
    # The order of the cases does not matter.
    again = choose_reference(cohort[::-1], PoseConfig(size=SIZE), AIR)
    assert again.case == "good"
    assert torch.equal(again.mask, reference.mask)


def test_a_patient_of_another_size_is_not_chosen_as_reference(cohort: list[Drawn]) -> None:
    without = [case for case in cohort if case.record.id not in ("good", "lopsided")]
    assert choose_reference(without, PoseConfig(size=SIZE), AIR).case in ("leaning", "also leaning")


def test_a_named_reference_is_used(cohort: list[Drawn]) -> None:
    reference = choose_reference(cohort, PoseConfig(size=SIZE, reference="leaning"), AIR)
    assert (reference.case, reference.chosen) == ("leaning", "by the user")
    assert math.degrees(reference.lean) == pytest.approx(16.0, abs=1.5)
    with pytest.raises(InputError, match=r"'nobody' is not among the 6 training cases"):
        choose_reference(cohort, PoseConfig(size=SIZE, reference="nobody"), AIR)


def test_without_labels_the_middle_slice_of_the_body_is_the_reference(cohort: list[Drawn]) -> None:
    bare = Drawn("bare", 0.5, labeled=())
    bare.record.body_fraction = (0.0, 0.3, 0.3, 0.3, 0.3)
    assert choose_reference([bare], PoseConfig(size=SIZE), AIR).slice == 3


def test_a_labeled_slice_without_a_body_is_no_reference(cohort: list[Drawn]) -> None:
    bodiless = Drawn("bodiless", 0.5, labeled=(0, 1, 3))
    bodiless.mask[1] = False
    bodiless.record.body_fraction = (0.3, 0.0, 0.3, 0.3, 0.3)
    reference = choose_reference([bodiless], PoseConfig(size=SIZE, reference="bodiless"), AIR)
    assert reference.slice == 3
    bodiless.record.body_fraction = (0.0, 0.0, 0.3, 0.0, 0.3)
    assert choose_reference([bodiless], PoseConfig(size=SIZE), AIR).slice == 4


@pytest.mark.parametrize(("fill", "size"), [(0.92, 96), (0.7, 64)])
def test_the_reference_is_made_upright_centered_and_fills_the_frame(
    cohort: list[Drawn], fill: float, size: int
) -> None:
    config = PoseConfig(size=size, reference="leaning", fill=fill)
    reference = choose_reference([Drawn("leaning", 0.45, roll=16.0, shift=(0.2, -0.15))], config, AIR)
    assert reference.mask.shape == reference.image.shape == (1, 1, size, size)
    x0, y0, x1, y1 = box_of_mask(reference.mask[:, 0] >= 0.5)[0][0].tolist()
    pixel = 2.0 / size
    assert (x0 + x1, y0 + y1) == pytest.approx((0.0, 0.0), abs=2 * pixel)
    assert max(x1 - x0, y1 - y0) / 2.0 == pytest.approx(fill, abs=1.5 * pixel)
    # A true similarity: the ellipse keeps its proportion.
    assert (y1 - y0) / (x1 - x0) == pytest.approx(0.7, abs=0.04)
    upright = symmetry_axis(reference.image, (reference.mask > 0.5).float())
    assert abs(math.degrees(upright.angle.item())) < 1.5
    # The image went the same way: bright spine on the axis in the lower half, air in the corners.
    spine = (reference.image[0, 0] > 2.0).nonzero().float().mean(dim=0)
    assert spine[1].item() == pytest.approx(size / 2 - 0.5, abs=1.5)
    assert spine[0].item() > 0.6 * size
    assert reference.image[0, 0, 0, 0].item() == pytest.approx(AIR)


def test_without_fill_the_reference_keeps_its_pose(cohort: list[Drawn]) -> None:
    reference = choose_reference(cohort, PoseConfig(size=SIZE, fill=None, reference="leaning"), AIR)
    assert reference.lean == 0.0
    assert np.allclose(reference.mask[0, 0].numpy(), cohort[1].mask[3], atol=1e-3)
    assert np.allclose(reference.image[0, 0].numpy(), cohort[1].image[3], atol=1e-3)


def labeled_batch() -> Batch:
    labels = torch.zeros(4, SIZE, SIZE, dtype=torch.uint8)
    labels[0, 24:48, 12:72] = 1
    labels[0, 40:60, 60:72] = 2
    labels[1, 50:54, 30:35] = 2
    labels[3, 0:96, 0:96] = 1
    empty = torch.zeros(4, 1, SIZE, SIZE)
    return Batch(torch.arange(4), empty, empty, labels)


def targets_of(batch: Batch, pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return crop_targets(batch.labels, matrix_from_pose(pose), CropConfig(size=SIZE, margin=0.1))


def test_target_boxes_by_hand() -> None:
    theta, has_box = targets_of(labeled_batch(), identity_pose(4))
    assert has_box.tolist() == [True, True, False, True]
    # Columns 12 to 72 of 96 and rows 24 to 60 hold both labels: the longer side is 60, with 6 on each side.
    side, x, y = 72 / 96, (12 + 72) / 96 - 1, (24 + 60) / 96 - 1
    assert torch.allclose(theta[0], torch.tensor([[side, 0, x], [0, side, y], [0, 0, 1.0]]), atol=1e-6)
    # A small tumor: never below a quarter of the frame, and around the tumor's center.
    assert theta[1, 0, 0].item() == theta[1, 1, 1].item() == MIN_CROP
    assert theta[1, :2, 2].tolist() == pytest.approx([(30 + 35) / 96 - 1, (50 + 54) / 96 - 1], abs=1e-6)
    # Never more than the frame.
    assert torch.allclose(theta[3], torch.eye(3), atol=1e-6)


def test_target_boxes_contain_the_labels_in_any_pose() -> None:
    """All labels of the slice lie in its crop, with the margin, in whatever pose it is seen."""
    batch = labeled_batch()
    pose = torch.tensor([[0.4, 0.2, 0.1, 0.1, -0.05]]).expand(4, 5)
    theta, has_box = targets_of(batch, pose)
    assert has_box.tolist() == [True, True, False, True]
    rows, columns = (batch.labels[0] > 0).nonzero(as_tuple=True)
    points = torch.stack([(2 * columns + 1) / SIZE - 1, (2 * rows + 1) / SIZE - 1, torch.ones(len(rows))])
    in_crop = (invert(theta[0]) @ invert(matrix_from_pose(pose[0])) @ points)[:2]
    reach = in_crop.abs().amax(dim=1)
    # The longer side reaches 1 / 1.2 of the crop's, give or take a pixel.
    assert reach.max().item() == pytest.approx(1 / 1.2, abs=0.05)
    plain = targets_of(batch, identity_pose(4))[0]
    assert not torch.allclose(theta[0], plain[0], atol=0.05)


def test_labels_outside_the_frame_give_no_target() -> None:
    away = torch.tensor([[0.0, 0.0, 0.0, 2.5, 0.0]]).expand(4, 5)
    assert targets_of(labeled_batch(), away)[1].tolist() == [False] * 4


def test_ignored_pixels_give_no_target() -> None:
    """A slice that is ignored in part has the box of its labels, one that is ignored wholly has none."""
    batch = labeled_batch()
    expected = targets_of(batch, identity_pose(4))[0]
    batch.labels[:2][batch.labels[:2] == 0] = IGNORED
    batch.labels[2:] = IGNORED
    theta, has_box = targets_of(batch, identity_pose(4))
    assert has_box.tolist() == [True, True, False, False]
    assert torch.allclose(theta[:2], expected[:2], atol=0.03)


def test_the_box_of_a_partly_annotated_volume_is_that_of_its_labels() -> None:
    labels = torch.full((1, 24, SIZE, SIZE), IGNORED, dtype=torch.uint8)
    labels[:, 3::6] = 0
    labels[:, 9:16:6, 24:48, 12:72] = 1
    config = CropConfig(size=SIZE, depth=8)
    seen = where_labeled((labels,), torch.eye(4)[None], config)
    assert seen.shape == (1, 8, SIZE, SIZE)
    rows, columns = seen[0].any(dim=0).nonzero(as_tuple=True)
    bounds = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
    assert np.allclose(bounds, [24, 48, 12, 72], atol=1)
    # Slices 9 and 15 of 24 lie in the thick slices 3 and 5 of 8; the prefilter reaches one further.
    assert seen[0].any(dim=(1, 2)).nonzero().flatten().tolist() == [2, 3, 4, 5]
