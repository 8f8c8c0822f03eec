"""Make a roll network that ships with the package, from phantoms only."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor

from isopose.choices import Contrast
from isopose.devices import one_thread
from isopose.files import output_folder, sha256, write_json
from isopose.models.folder import versions
from isopose.models.roll import RollNetwork
from isopose.models.shipped import WEIGHTS, compact_state
from isopose.phantom.levels import sample_level_slab
from isopose.phantom.randomized import Slab, sample_slab
from isopose.phantom.roll.calibrate import RollEvidence, calibrate, joined_evidence, roll_evidence
from isopose.phantom.roll.pictures import VIEWS, Batches
from isopose.phantom.roll.slabs import Slabs, concatenated, draw_slabs
from isopose.phantom.roll.train import train
from isopose.progress import Terminal
from isopose.tensors import write_tensors


@dataclass(frozen=True)
class Kind:
    """One kind of body that the network sees.

    Args:
        sample: draws a patient's slices.
        cohort: seed of a cohort that is used for nothing else in this repository.
        share: number of bodies for each phantom of the abdomen.
    """

    sample: Callable[..., Slab]
    cohort: int
    share: float


#: The abdomen of the cohorts' phantoms, the rest of the trunk, and bodies without a visible roll.
KINDS = {
    "abdomen": Kind(sample_slab, 1_000_003, 1.0),
    "chest": Kind(partial(sample_level_slab, level="chest"), 1_000_033, 0.5),
    "pelvis": Kind(partial(sample_level_slab, level="pelvis"), 1_000_037, 0.4),
    "unknown": Kind(partial(sample_level_slab, level="unknown"), 1_000_039, 0.15),
}
#: Number of the first held-out phantom of the abdomen, independent of the number of training phantoms.
HELD_OUT_FROM = 2400
#: Number of random disturbances of each held-out patient, for the calibration.
DISTURBANCES = 4


def main(
    output: Annotated[Path, typer.Argument(help="folder for weights, a report and the files to resume from")],
    patients: Annotated[
        int, typer.Option(min=1, help="phantoms of the abdomen to learn from; other levels have their share")
    ] = 800,
    held_out: Annotated[
        int, typer.Option(min=2, help="others to calibrate on; other levels have their share")
    ] = 150,
    slices: Annotated[int, typer.Option(min=2, help="of each phantom")] = 10,
    steps: Annotated[int, typer.Option(min=1)] = 6000,
    pictures: Annotated[int, typer.Option(min=1, help=f"a step, each seen {VIEWS} times")] = 40,
    rate: Annotated[float, typer.Option(help="largest learning rate")] = 2e-3,
    start: Annotated[Path | None, typer.Option(help="weights to go on from; none: random ones")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="calibrate these weights again; nothing is trained")
    ] = None,
    contrast: Annotated[
        Contrast, typer.Option(help="of the pictures: ct, or any, for a network that sees MR")
    ] = "ct",
    workers: Annotated[int, typer.Option(min=0)] = 2,
    seed: int = 0,
) -> None:
    """Draw phantoms of randomized appearance, train on them, and calibrate on others; resumable."""
    reporter = Terminal()
    output_folder(output)
    unseen = {
        name: _draw(output, name, (HELD_OUT_FROM, HELD_OUT_FROM + held_out), slices, workers, reporter)
        for name in KINDS
    }
    if weights is None:
        seen = [_draw(output, name, (0, patients), slices, workers, reporter) for name in KINDS]
        with one_thread():
            state = train(
                Batches(concatenated(seen), seed, steps, pictures, contrast),
                start=None if start is None else _read(start),
                rate=rate,
                seed=seed,
                workers=min(workers, 1),
                work=output,
                reporter=reporter,
            ).state_dict()
    else:
        state = _read(weights)
    network = RollNetwork()
    network.load_state_dict(state)
    network.eval()
    disturbed = joined_evidence(
        [
            roll_evidence(
                network,
                concatenated(list(unseen.values())),
                randomized=True,
                seed=seed + 100_003 * number,
                contrast=contrast,
            )
            for number in range(DISTURBANCES)
        ]
    )
    network.calibration.copy_(calibrate(disturbed))
    made = output / WEIGHTS[contrast]
    write_tensors(made, compact_state(network))
    report = {
        "made_by": "python -m isopose.phantom.roll",
        "parameters": {
            "cohorts": {name: [kind.cohort, kind.share] for name, kind in KINDS.items()},
            "patients": patients, "held_out": held_out, "slices": slices, "steps": steps,
            "pictures": pictures, "rate": rate, "seed": seed, "disturbed": DISTURBANCES, "contrast": contrast,
            "start_sha256": None if start is None else sha256(start),
        },
        "versions": versions(),
        "weights_sha256": sha256(made),
        "calibration": network.calibration.tolist(),
        "held_out_plain": {
            name: _errors(roll_evidence(network, slabs, randomized=False, seed=seed, contrast=contrast))
            for name, slabs in unseen.items()
            if name != "unknown"
        },
        "held_out_randomized": _errors(disturbed),
    }  # fmt: skip
    described = made.with_suffix(".json")
    write_json(described, report)
    typer.echo(f"weights: {made}; how they were trained, and their errors: {described}")


def _read(weights: Path) -> dict[str, Tensor]:
    """Read stored weights as float32."""
    return {name: value.float() for name, value in load_file(weights).items()}


def _draw(
    output: Path, name: str, numbers: tuple[int, int], slices: int, workers: int, reporter: Terminal
) -> Slabs:
    """Draw the bodies of one kind with numbers from the first up to the second, times the kind's share."""
    kind = KINDS[name]
    first, last = (round(kind.share * number) for number in numbers)
    with reporter.counting(name) as progress:
        return draw_slabs(
            output / "slabs",
            kind.cohort,
            range(first, max(last, first + 1)),
            slices,
            workers,
            progress,
            kind.sample,
        )


def _errors(seen: RollEvidence) -> dict[str, Any]:
    """Return statistics of the errors."""
    degrees = np.degrees(seen.error.abs().numpy())
    return {
        "slices": len(degrees),
        "median_degrees": float(np.median(degrees)),
        "p90_degrees": float(np.percentile(degrees, 90)),
        "p99_degrees": float(np.percentile(degrees, 99)),
        "worst_degrees": float(degrees.max()),
        "side_swaps": int((degrees > 90).sum()),
    }


if __name__ == "__main__":
    torch.multiprocessing.set_sharing_strategy("file_system")
    typer.run(main)
