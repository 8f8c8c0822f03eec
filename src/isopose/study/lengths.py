"""The training lengths of STN1 and STN2 in a study's arms, compared with their preset.

A study shortens only the U-Net. STN1 learns size first and rotation last, so a shortened STN1 does not test
the method, even if its masks overlap well.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isopose.config import Config
from isopose.errors import InputError
from isopose.presets import load_config
from isopose.study.arms import Arm

#: Names of the transformers, by the section of their settings.
STNS = {"STN1": "pose", "STN2": "crop"}


@dataclass(frozen=True)
class Length:
    """The training length of one transformer in a run and in the run's preset.

    Args:
        steps: number of batches.
        preset_steps: number of batches in the preset.
        slices: number of slices seen, with repetitions.
        preset_slices: number of slices seen in the preset.
    """

    steps: int
    preset_steps: int
    slices: int
    preset_slices: int

    @property
    def short(self) -> bool:
        """Whether it is trained in fewer steps or on fewer slices than in its preset."""
        return self.steps < self.preset_steps or self.slices < self.preset_slices

    def to_json(self) -> dict[str, int]:
        """Return plain values."""
        return asdict(self)


def lengths_of(
    config: Config, arm: Arm, history: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Length]:
    """Return the lengths of STN1 and STN2 in an arm, as far as the arm or its preset trains them.

    Args:
        config: configuration of the run.
        arm: its own settings are applied to the preset as well, so that they do not count as shortening.
        history: one row per epoch of a finished run; without it the lengths are those of the configuration.
    """
    preset = load_config(config.preset, settings=list(arm.settings))
    done = Counter(row["stage"] for row in history) if history is not None else None
    found = {}
    for name, section in STNS.items():
        steps, slices = _count_trained(config, section, done)
        preset_steps, preset_slices = _count_trained(preset, section, None)
        if steps or preset_steps:
            found[name] = Length(steps, preset_steps, slices, preset_slices)
    return found


def _count_trained(config: Config, section: str, done: Mapping[str, int] | None) -> tuple[int, int]:
    """Return steps and slices of a transformer's training: of the finished epochs if given, else of all."""
    # No arm has stn=joint, because many arms have no crop.
    learns = {"pose": config.pose.learned, "crop": config.crop.enabled and config.crop.learned}
    if not learns[section]:
        return 0, 0
    optimizer = getattr(config, section).optimizer
    epochs = optimizer.epochs if done is None else done.get(section, 0)
    steps = epochs * optimizer.iterations
    return steps, steps * optimizer.batch_size


def refuse_short(config: Config, arm: Arm) -> None:
    """Check that settings leave STN1 and STN2 of an arm as long as its preset has them.

    Raises:
        InputError: one is shorter.
    """
    for name, length in lengths_of(config, arm).items():
        if length.short:
            section = STNS[name]
            raise InputError(
                f"these settings train {name} of the arm {arm.name} ({config.preset} preset) for "
                f"{length.steps} steps and {length.slices} slices, the preset for {length.preset_steps} and "
                f"{length.preset_slices}: a study shortens only the U-Net. Leave {section}.optimizer.epochs, "
                f"iterations, batch_size and {section}.learned as they are, or add --short-stns; the report "
                "then says so"
            )
