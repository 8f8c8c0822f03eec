"""A trained model as one object that segments images on their own grids."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from isopose.api.images import Image, as_volumes, like
from isopose.devices import choose_device
from isopose.inference.ensemble import Ensemble, ensemble_of, load_ensemble
from isopose.inference.predict import predict
from isopose.inference.record import volumes_ml
from isopose.models.folder import Model, for_prediction


@dataclass(frozen=True, eq=False)
class Result:
    """The segmentation of one image.

    Args:
        labels: stored label values, uint8, on the image's grid, of the image's type (for a path: SimpleITK).
        probabilities: images by class (background and all labels), of the same type; empty unless requested.
        volumes_ml: volume of each label and union, ml.
        warnings: one line each.
        removed_ml: volume that cleaning up removed from each label with a rule, ml.
    """

    labels: Any
    probabilities: dict[str, Any]
    volumes_ml: dict[str, float]
    warnings: tuple[str, ...]
    removed_ml: dict[str, float] = field(default_factory=dict)


class Pipeline:
    """A trained model, or several as one, that segments images in memory, as ``isopose predict`` does files.

    Example:
        >>> pipeline = Pipeline.load("model")  # doctest: +SKIP
        >>> pipeline.predict("scan.nii.gz").volumes_ml  # doctest: +SKIP
        {'kidney': 95.1, 'tumor': 40.2, 'kidney+tumor': 135.3}
    """

    def __init__(self, model: Model | Ensemble) -> None:
        self._model = ensemble_of(model).map_members(for_prediction)

    @classmethod
    def load(
        cls, folder: Path | str | Sequence[Path | str], device: str = "auto", *, clean_up: bool = True
    ) -> Self:
        """Load the model in a folder that ``isopose fit`` wrote, or the models in several.

        Args:
            folder: of the model; or those of models with the same labels, whose probabilities are averaged.
            device: auto, cpu, cuda, a GPU by its number (cuda:1), mps.
            clean_up: apply the rules for cleaning up that a model of all folds has.

        Raises:
            InputError: no model, a damaged or altered one or one of another format, different labels, or no
                such device.
        """
        folders = [folder] if isinstance(folder, Path | str) else folder
        ensemble = load_ensemble([Path(path) for path in folders], choose_device(device))
        return cls(ensemble.with_clean_up(clean_up))

    @property
    def labels(self) -> dict[str, int]:
        """Names and stored values of the labels."""
        return dict(self._model.labels.values)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the images of a scan, in the order in which :meth:`predict` takes them."""
        return self._model.channels

    def predict(self, image: Image | list[Image], *, probabilities: bool = False) -> Result:
        """Segment one scan.

        Args:
            image: any size, spacing and orientation, CT in Hounsfield units or MR, as the model was trained;
                of several channels a list of images on one grid, or a MetaTensor ``(channels, x, y, z)``.
            probabilities: return probabilities as well.

        Raises:
            InputError: no body is found, another number of channels than the model sees, or an image cannot
                be read.
        """
        volumes, convert = as_volumes(image), like(image[0] if isinstance(image, list) else image)
        volume = volumes[0]
        prediction = predict(self._model, volumes, probabilities=probabilities)
        maps = () if prediction.probabilities is None else prediction.probabilities
        classes = ("background", *self._model.labels.names)[: len(maps)]
        return Result(
            convert(prediction.labels),
            {name: convert(volume.with_array(values)) for name, values in zip(classes, maps, strict=True)},
            volumes_ml(prediction.labels, self._model.labels),
            prediction.warnings,
            dict(prediction.removed_ml),
        )
