"""A model as bytes that are sent to the workers, so that all machines use the same one."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from isopose.cluster.places import Place
from isopose.errors import InputError
from isopose.models.folder import load_model

#: Names of a model's files.
MODEL_FILES = ("model.json", "weights.safetensors")


@dataclass(frozen=True)
class PackedModel:
    """The files of a model's folder."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, place: Place) -> "PackedModel":
        """Check and pack a model.

        Raises:
            InputError: there is no model, or it is damaged.
        """
        with ExitStack() as stack:
            folder = place.local
            if folder is None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="isopose-"))) / "model"
                folder.mkdir()
                for name in MODEL_FILES:
                    if (place / name).exists():
                        (place / name).fetch(folder / name)
            try:
                load_model(folder)
            except InputError as error:
                raise InputError(str(error).replace(str(folder), str(place))) from None
            return cls({name: (folder / name).read_bytes() for name in MODEL_FILES})

    def unpack(self) -> TemporaryDirectory[str]:
        """Return a temporary folder with the model; it is removed with the returned object."""
        folder = TemporaryDirectory(prefix="isopose-")
        for name, content in self.files.items():
            (Path(folder.name) / name).write_bytes(content)
        return folder
