"""Ensembles of models: their members, their folder, and the work that the members share.

``model.json`` of a model with several members lists their folders, which lie beside it, and the hashes of
their weights; each member is a complete model. No file can execute code.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from isopose.errors import InputError
from isopose.files import hash_of, read_json, write_json
from isopose.inference.postprocess import Rule, rules_from_json
from isopose.labels import Labels
from isopose.models.folder import FORMAT, Model, load_model, members_of, versions

#: Views of each crop that a model predicts: False: unchanged, True: mirrored about the body's midline.
Views = tuple[bool, ...]


@dataclass(frozen=True)
class Ensemble:
    """Models whose probabilities are averaged; one model is an ensemble of one.

    Args:
        members: of any kind, with the same labels.
        rules: for cleaning up the label map.

    Raises:
        InputError: the members have different labels, channels, modalities or planes.
    """

    members: tuple[Model, ...]
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        _check_compatible({f"member {n}": member for n, member in enumerate(self.members, start=1)})
        modalities = {member.modality.upper() for member in self.members}
        planes = {member.config.data.plane for member in self.members}
        for values, noun, expected in ((modalities, "", "modality"), (planes, " slices", "plane")):
            if len(values) > 1:
                raise InputError(
                    f"models of {' and '.join(sorted(values))}{noun}: expected one {expected}; use each alone"
                )

    @property
    def lead(self) -> Model:
        """The first member, whose poses and crops are recorded and drawn."""
        return self.members[0]

    @property
    def views(self) -> tuple[Views, ...]:
        """The views of each crop that each member predicts, by its ``predict.mirror``.

        A single model that mirrors predicts both. Several models predict one view each, in turn: the mean
        over the models then still covers both views, in half of the time.
        """
        mirroring = [number for number, member in enumerate(self.members) if member.config.averaged]
        if len(mirroring) == 1:
            return tuple((False, True) if m.config.averaged else (False,) for m in self.members)
        mirrored = {number: bool(order % 2) for order, number in enumerate(mirroring)}
        return tuple((mirrored.get(number, False),) for number in range(len(self.members)))

    @property
    def labels(self) -> Labels:
        """The labels of all members."""
        return self.lead.labels

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the images of a scan, in the order in which all members take them."""
        return self.lead.channels

    @property
    def weights_sha256(self) -> str:
        """The hash of the weights; for several members the hash of the list of their hashes."""
        if len(self.members) == 1:
            return self.lead.weights_sha256
        return hash_of([member.weights_sha256 for member in self.members])

    def map_members(self, function: Callable[[Model], Model]) -> "Ensemble":
        """Return an ensemble with a function applied to each member."""
        return replace(self, members=tuple(map(function, self.members)))

    def with_clean_up(self, enabled: bool) -> "Ensemble":
        """Return the ensemble with its rules for cleaning up, or without them if ``enabled`` is False."""
        return self if enabled else replace(self, rules=())

    @cached_property
    def preprocessing_hashes(self) -> tuple[str, ...]:
        """For each member the hash of everything that determines how it preprocesses a scan."""
        return tuple(
            hash_of([member.fingerprint.to_json(), member.config.data.model_dump(mode="json")])
            for member in self.members
        )

    @cached_property
    def slice_pose_hashes(self) -> tuple[str, ...]:
        """For each member the hash of everything that determines its pose estimates of single slices."""
        return tuple(
            hash_of([preprocessing, _pose_inputs(member)])
            for preprocessing, member in zip(self.preprocessing_hashes, self.members, strict=True)
        )


def _pose_inputs(model: Model) -> list[Any]:
    """Return the settings of a model's pose estimates, and the hash of the networks that make them."""
    settings = model.config.pose.model_dump(mode="json", exclude={"reference", "optimizer"})
    predict = model.config.predict
    weights = hashlib.sha256()
    for name, tensor in sorted(model.pipeline.pose.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return [settings, predict.batch_size, predict.min_pose_dice, weights.hexdigest()]


def ensemble_of(model: Model | Ensemble) -> Ensemble:
    """Return one model as an ensemble of one, and an ensemble as it is."""
    return model if isinstance(model, Ensemble) else Ensemble((model,))


def is_model(path: Path) -> bool:
    """Return whether a path is the folder of a model, of one member or of several."""
    return (path / "model.json").is_file()


def load_ensemble(folders: Sequence[Path], device: torch.device | str = "cpu") -> Ensemble:
    """Read one or several model folders; of a model with several members all are read.

    A model's rules for cleaning up apply to its own members only, so with several folders there are none.

    Raises:
        InputError: no model, a damaged one, one that lacks members, or models with different labels or
            channels.
    """
    members: list[Model] = []
    leads: dict[str, Model] = {}
    rules: tuple[Rule, ...] = ()
    for folder in folders:
        names = members_of(folder)
        loaded = _load_members(folder, names, device) if names else [load_model(folder, device)]
        rules = _read_rules(folder, loaded[0].labels) if names else ()
        leads[str(folder)] = loaded[0]
        members += loaded
    _check_compatible(leads)
    return Ensemble(tuple(members), rules if len(folders) == 1 else ())


def _load_members(folder: Path, names: Mapping[str, str], device: torch.device | str) -> list[Model]:
    """Load the members of a model, and check the hashes of their weights.

    Raises:
        InputError: a member is missing or not the one that the model names.
    """
    models = []
    for name, weights_sha256 in names.items():
        if not is_model(folder / name):
            raise InputError(
                f"{folder}: {name}, one of its {len(names)} members, is missing; copy the whole folder"
            )
        models.append(load_model(folder / name, device))
        if models[-1].weights_sha256 != weights_sha256:
            raise InputError(
                f"{folder / name}: not the member that {folder / 'model.json'} names; copy the whole folder"
            )
    _check_compatible({str(folder / name): model for name, model in zip(names, models, strict=True)})
    return models


def _read_rules(folder: Path, labels: Labels) -> tuple[Rule, ...]:
    """Read the rules for cleaning up of a model with several members."""
    manifest = folder / "model.json"
    try:
        rules = rules_from_json(read_json(manifest)["clean_up"])
        unknown = [rule.label for rule in rules if rule.label not in labels.values]
        if unknown:
            raise ValueError(f"clean_up: no label {unknown[0]!r}")
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{manifest}: damaged model ({reason}); copy it again or train again") from None
    return rules


def save_ensemble(
    folder: Path, ensemble: Ensemble, names: Sequence[str], evidence: Mapping[str, Any]
) -> None:
    """Write the manifest of a model with several members, whose folders exist already.

    Args:
        folder: that holds the members' folders.
        ensemble: the members, and the rules for cleaning up.
        names: of the members' folders, in the order of the members.
        evidence: scores by which the rules were chosen, see
            :attr:`isopose.evaluation.cleaning.Decision.evidence`.
    """
    write_json(
        folder / "model.json",
        {
            "format": FORMAT,
            "versions": versions(),
            "labels": ensemble.labels.to_json(),
            "members": [
                {"folder": name, "weights_sha256": member.weights_sha256}
                for name, member in zip(names, ensemble.members, strict=True)
            ],
            "clean_up": [rule.to_json() for rule in ensemble.rules],
            "clean_up_dice": evidence,
        },
    )


def _check_compatible(models: Mapping[str, Model]) -> None:
    """Raise an InputError if models, given by their names, differ in labels or channels."""
    (lead, first), *others = models.items()
    for name, other in others:
        for describe, verb, needed in (
            (_label_list, "marks", "the same labels"),
            (_channel_list, "sees", "the same channels in the same order"),
        ):
            if describe(other) != describe(first):
                raise InputError(
                    f"{name}: {verb} {describe(other)}, and {lead} {describe(first)}; models that predict "
                    f"together need {needed}"
                )


def _label_list(model: Model) -> str:
    ordered = sorted(model.labels.values.items(), key=itemgetter(1))
    return ", ".join(f"{label}={value}" for label, value in ordered)


def _channel_list(model: Model) -> str:
    return ", ".join(model.channels)
