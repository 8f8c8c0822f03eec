"""Make the roll network that ships with the package, from phantoms only."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file

from isopose.devices import one_thread
from isopose.files import output_folder, sha256, write_json
from isopose.models.folder import versions
from isopose.models.roll import RollNetwork
from isopose.models.shipped import WEIGHTS, compact
from isopose.phantom.roll.calibrate import RollEvidence, calibrate, joined, roll_evidence
from isopose.phantom.roll.pictures import VIEWS, Batches
from isopose.phantom.roll.slabs import draw_slabs
from isopose.phantom.roll.train import train
from isopose.progress import Terminal
from isopose.tensors import write_tensors

#: Seed of a cohort of phantoms that is used for nothing else in this repository.
COHORT = 1_000_003
#: How often each held-out patient is disturbed, for the calibration.
DISTURBED = 4


def main(
    output: Annotated[Path, typer.Argument(help="folder for weights, a report and what is needed to resume")],
    patients: Annotated[int, typer.Option(min=1, help="phantoms to learn from")] = 2400,
    held_out: Annotated[int, typer.Option(min=2, help="further phantoms, to calibrate on")] = 150,
    slices: Annotated[int, typer.Option(min=2, help="of each phantom")] = 10,
    steps: Annotated[int, typer.Option(min=1)] = 10000,
    pictures: Annotated[int, typer.Option(min=1, help=f"a step, each seen {VIEWS} times")] = 40,
    rate: Annotated[float, typer.Option(help="largest learning rate")] = 2e-3,
    weights: Annotated[
        Path | None, typer.Option(help="calibrate these weights again; nothing is trained")
    ] = None,
    workers: Annotated[int, typer.Option(min=0)] = 2,
    seed: int = 0,
) -> None:
    """Draw phantoms of randomized appearance, train on them, calibrate on others; or go on with that."""
    reporter = Terminal()
    output_folder(output)
    numbers = range(patients if weights else 0, patients + held_out)
    with reporter.counting("phantoms") as progress:
        slabs = draw_slabs(output / "slabs", COHORT, numbers, slices, workers, progress)
    unseen = slabs.of(slabs.patient >= patients)
    if weights is None:
        with one_thread():
            state = train(
                Batches(slabs.of(slabs.patient < patients), seed, steps, pictures),
                rate=rate,
                seed=seed,
                workers=min(workers, 1),
                work=output,
                reporter=reporter,
            ).state_dict()
    else:
        state = {name: value.float() for name, value in load_file(weights).items()}
    network = RollNetwork()
    network.load_state_dict(state)
    network.eval()
    disturbed = joined(
        [
            roll_evidence(network, unseen, randomized=True, seed=seed + 100_003 * number)
            for number in range(DISTURBED)
        ]
    )
    network.calibration.copy_(calibrate(disturbed))
    write_tensors(output / WEIGHTS, compact(network))
    report = {
        "made_by": "python -m isopose.phantom.roll",
        "parameters": {
            "cohort": COHORT, "patients": patients, "held_out": held_out, "slices": slices, "steps": steps,
            "pictures": pictures, "rate": rate, "seed": seed, "disturbed": DISTURBED,
        },
        "versions": versions(),
        "weights_sha256": sha256(output / WEIGHTS),
        "calibration": network.calibration.tolist(),
        "held_out_plain": _errors(roll_evidence(network, unseen, randomized=False, seed=seed)),
        "held_out_randomized": _errors(disturbed),
    }  # fmt: skip
    write_json(output / "roll.json", report)
    typer.echo(
        f"weights: {output / WEIGHTS}; how they were made and what they are worth: {output / 'roll.json'}"
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
