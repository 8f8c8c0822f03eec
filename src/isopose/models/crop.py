"""STN2: from a homogenized slice or volume to theta2, the region of interest."""

from torch import Tensor, nn

from isopose.geometry.box import BOX_SIZES, matrix_from_box, whole_frame
from isopose.models.localization import Localization
from isopose.settings import CropConfig


class CropTransformer(nn.Module):
    """Regress the corners of a box and return the matrix of the crop, which is square in plane.

    The localization network's outputs are added to the corners of the box ``start``; Eq. 2 trains it.
    Without a network every slice gets the box ``start``.

    Args:
        config: whether the box is learned, and the network's size.
        joint: build no network here: one joint network gives pose and crop (``models/pipeline.py``).
        dims: 3 for volumes, whose boxes are ``(6,)`` (:mod:`isopose.geometry.box`).
    """

    #: ``(4,)``, of volumes ``(6,)``: the initial box, at first the whole frame (the paper).
    start: Tensor

    def __init__(self, config: CropConfig, *, joint: bool = False, dims: int = 2) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("start", whole_frame(dims))
        has_network = config.enabled and config.learned and not joint
        depth = config.depth if dims == 3 else None
        self.localization = Localization(config.size, BOX_SIZES[dims], depth) if has_network else None

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Estimate theta2, ``homogenized_from_crop``.

        Args:
            image: homogenized, ``(N, 1, size, size)`` or ``(N, 1, depth, size, size)``.
            mask: the same shape, foreground.

        Returns:
            ``(N, 3, 3)``; of volumes ``(N, 4, 4)``.
        """
        if self.localization is None:
            return matrix_from_box(self.start.expand(image.shape[0], -1))
        return self.square(self.localization(image, mask))

    def square(self, raw: Tensor) -> Tensor:
        """Return theta2 from regressed changes of the initial box's corners.

        Args:
            raw: ``(N, 4)``, of volumes ``(N, 6)``.

        Returns:
            ``(N, 3, 3)``; of volumes ``(N, 4, 4)``.
        """
        return matrix_from_box(self.start + raw)
