"""A model that travels with its run, so that no machine can have another one."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from isopose.cluster.places import Place
from isopose.errors import InputError
from isopose.models.folder import load_model

#: Of the files that a model is read from.
NAMES = ("model.json", "weights.safetensors")


@dataclass(frozen=True)
class PackedModel:
    """The files of a model's folder."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, place: Place) -> "PackedModel":
        """Pack a model, once it is known to be whole.

        Raises:
            InputError: no model, or a damaged one.
        """
        with ExitStack() as held:
            folder = place.local
            if folder is None:
                folder = Path(held.enter_context(TemporaryDirectory(prefix="isopose-"))) / "model"
                folder.mkdir()
                for name in NAMES:
                    if (place / name).exists():
                        (place / name).fetch(folder / name)
            try:
                load_model(folder)
            except InputError as error:
                raise InputError(str(error).replace(str(folder), str(place))) from None
            return cls({name: (folder / name).read_bytes() for name in NAMES})

    def unpack(self) -> TemporaryDirectory[str]:
        """Return a folder with the model, for as long as it is held."""
        place = TemporaryDirectory(prefix="isopose-")
        for name, content in self.files.items():
            (Path(place.name) / name).write_bytes(content)
        return place
