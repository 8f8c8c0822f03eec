"""STN2: from a homogenized slice to theta2, the square region of interest."""

from torch import Tensor, nn

from isopose.config import CropConfig
from isopose.geometry.box import BOX_SIZES, matrix_from_box, whole_frame
from isopose.models.localization import Localization


class CropTransformer(nn.Module):
    """Regress the corners of a box and make the square crop's matrix of them.

    The network is STN1's with four outputs, added to the corners of ``start``; Eq. 2 trains it. Without a
    network every slice gets the box ``start``.

    Args:
        config: whether the box is learned, and the network's size.
        start: ``(4,)`` box that the regression starts from; the paper's identity is the whole frame.
        joint: the corners come from the network that also poses, see ``models/pipeline.py``; so none here.
        dims: 3 for volumes, whose boxes are ``(6,)`` (:mod:`isopose.geometry.box`).
    """

    start: Tensor

    def __init__(
        self, config: CropConfig, start: Tensor | None = None, *, joint: bool = False, dims: int = 2
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("start", whole_frame(dims) if start is None else start.float())
        alone = config.enabled and config.learned and not joint
        depth = config.depth if dims == 3 else None
        self.localization = Localization(config.size, BOX_SIZES[dims], depth) if alone else None

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """theta2 ``(N, 3, 3)`` of homogenized images and masks ``(N, 1, size, size)``.

        Of volumes ``(N, 4, 4)``, from ``(N, 1, depth, size, size)``.
        """
        if self.localization is None:
            return matrix_from_box(self.start.expand(image.shape[0], -1))
        return self.square(self.localization(image, mask))

    def square(self, raw: Tensor) -> Tensor:
        """theta2 ``(N, 3, 3)`` of what a network regressed, ``(N, 4)``: changes of the start's corners.

        Of volumes ``(N, 4, 4)`` of ``(N, 6)``.
        """
        return matrix_from_box(self.start + raw)
