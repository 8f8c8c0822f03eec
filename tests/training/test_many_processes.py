"""``torchrun … -m isopose fit``: the same training on two processes as on one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isopose.models.folder import load_model
from isopose.phantom import write_cohort

pytestmark = pytest.mark.long

SETTINGS = """
[data]
size = 64
[crop.optimizer]
epochs = 2
iterations = 4
batch_size = 8
[pose.optimizer]
epochs = 2
iterations = 4
batch_size = 8
[unet.optimizer]
epochs = 2
iterations = 6
batch_size = 8
parts = 2
[train]
precision = "32-true"
"""

#: Validates a trained model's crop and U-Net on all slices of its store, in odd batches.
JUDGE = """
import json, sys
from pathlib import Path
from lightning_fabric import Fabric
from isopose.data.samples import Slices
from isopose.data.store import open_store
from isopose.models.folder import load_model
from isopose.ranks import launched, leave, rank, strategy_for
from isopose.training.loop import Stage, _validate
from isopose.training.objectives import CropObjective
from isopose.training.segmentation import SegmentationObjective
from isopose.training.transforms import poses_of, transforms_of

here, machines = launched()
fabric = Fabric(accelerator="cpu", devices=here, num_nodes=machines, strategy=strategy_for("cpu"))
fabric.launch()
model = load_model(Path(sys.argv[1]))
(store,) = (Path(sys.argv[1]) / "work" / "store").glob("*/store.json")
slices = Slices(open_store(store.parent).cases)
slices.pose = poses_of(model.pipeline, slices, fabric.device)
slices.pose, slices.theta2 = transforms_of(model.pipeline, slices, fabric.device)
numbers = []
for objective in (CropObjective(model.pipeline), SegmentationObjective(model.pipeline, model.labels)):
    config = model.config.unet.optimizer.model_copy(update={"batch_size": 7})
    stage = Stage("x", objective, config, slices, slices, {}, (0,))
    numbers.append(_validate(stage, fabric, objective))
Path(f"{sys.argv[2]}-{rank()}.json").write_text(json.dumps(numbers))
leave()
"""


def start(*command: object, processes: int | None = None) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m"]
    if processes:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launcher += [] if str(command[0]).endswith(".py") else ["-m"]
    elif str(command[0]).endswith(".py"):
        launcher = [sys.executable]
    # As torchrun sets it: sums over another number of threads are rounded otherwise.
    return subprocess.Popen(
        [*launcher, *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*command: object, processes: int | None = None, fails: bool = False) -> str:
    process = start(*command, processes=processes)
    output, _ = process.communicate(timeout=300)
    assert (process.returncode != 0) == fails, output[-3000:]
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    write_cohort(root / "data", cases=6, slices=8, size=64, seed=3, test_fraction=0)
    (root / "settings.toml").write_text(SETTINGS)
    run(*fit(root, "one"))
    return root


def fit(root: Path, name: str, *more: str) -> list[object]:
    return [
        "isopose",
        "fit",
        root / "data",
        "--model",
        root / name,
        "--config",
        root / "settings.toml",
        *more,
    ]


def losses(folder: Path) -> dict[str, list[float]]:
    rows = load_model(folder).info.history
    return {
        stage: [row["loss"] for row in rows if row["stage"] == stage] for stage in ("pose", "crop", "unet")
    }


AUGMENTED = ("pose.start=identity", "pose.learned=false", "crop.enabled=false", "unet.augmentation=nnunet")


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--preset", "paper"),
        [part for setting in AUGMENTED for part in ("--set", setting)],
    ],
    ids=["default", "paper", "augmented"],
)
def test_training_in_two_processes_equals_one(folder, more, request):
    name = f"two-{request.node.callspec.id}"
    output = run(*fit(folder, name, *more), processes=2)
    assert output.count("model: ") == 1
    one = folder / "one"
    if more:
        one = folder / f"one-{name}"
        run(*fit(folder, one.name, *more))
    expected, result = losses(one), losses(folder / name)
    for stage in ("pose", "crop"):
        assert result[stage] == pytest.approx(expected[stage], rel=1e-3)
    # Rounding grows from step to step; another number of threads changes it as much.
    assert result["unet"] == pytest.approx(expected["unet"], rel=0.02)
    assert load_model(folder / name).info.training == load_model(one).info.training


def test_validation_is_the_same_for_any_number_of_processes(folder):
    (folder / "validate.py").write_text(JUDGE)
    run(folder / "validate.py", folder / "one", folder / "alone")
    run(folder / "validate.py", folder / "one", folder / "shared", processes=3)
    alone = json.loads((folder / "alone-0.json").read_text())
    assert [sorted(numbers)[0] for numbers in alone] == ["box overlap", "dice"]
    for rank in range(3):
        assert json.loads((folder / f"shared-{rank}.json").read_text()) == alone


def test_batches_that_cannot_be_divided_are_refused(folder):
    output = run(*fit(folder, "odd", "--set", "unet.optimizer.batch_size=6"), processes=2, fails=True)
    assert (
        "unet.optimizer.batch_size: expected a multiple of 4 (unet.optimizer.parts times processes), got 6"
        in output
    )
    assert not (folder / "odd").exists()


def test_a_killed_process_ends_the_training_which_resumes_on_any_number(folder):
    longer = ("--set", "unet.optimizer.epochs=4", "--set", "unet.optimizer.iterations=60")
    process = start(*fit(folder, "killed", *longer), processes=2)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("train unet  epoch 1/4"):
            break
    (victim,) = [pid for pid in _children(process.pid) if b"\0RANK=1\0" in _environment(pid)]
    os.kill(victim, signal.SIGKILL)
    output = "".join(lines) + process.stdout.read()
    assert process.wait(timeout=60) != 0
    assert (
        "another process of this training is lost" in output or "stopped; finished results are kept" in output
    )
    assert not (folder / "killed" / "model.json").exists()
    run(*fit(folder, "killed", *longer, "--resume"))
    rows = load_model(folder / "killed").info.history
    assert [row["epoch"] for row in rows if row["stage"] == "unet"] == [1, 2, 3, 4]


def _children(pid: int) -> list[int]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        path = Path(f"/proc/{pid}/task/{pid}/children")
        if not path.exists():
            pytest.skip("needs /proc")
        children = [int(child) for child in path.read_text().split()]
        if children:
            return children
    raise AssertionError("torchrun has no process")


def _environment(pid: int) -> bytes:
    # From the first variable on each ends with a zero byte; LOCAL_RANK= and the like end in the same letters.
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
