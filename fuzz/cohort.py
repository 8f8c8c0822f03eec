"""``python fuzz/cohort.py``: a cohort on a cluster of which a machine is killed; nothing lost, nothing twice.

    python fuzz/cohort.py --scans 2000 --bad 20

Scans are phantoms, each with its own noise; some are no scans. They lie, like the results, on a local S3
server, and are predicted by two machines (Ray nodes, processes here) of which one is killed in the middle and
another joins later. Then one process predicts the same scans from a disk, and the label maps must have the
same bytes. The command is given once more, and must do nothing.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from kills import SETTINGS
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from isopose.cluster.places import Place
from isopose.files import sha256

ISOPOSE = (sys.executable, "-m", "isopose")
#: Of a node's memory that Ray keeps for itself.
STORE = 100 << 20


def main() -> None:
    """Run it, and print what was found; ends with 1 where something is lost, twice or different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scans", type=int, default=2000)
    parser.add_argument("--bad", type=int, default=20, help="of them, which are no scans")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="isopose-cohort-") as place:
        problems = _run(Path(place), given.scans, given.bad, given.seed)
    for problem in problems:
        print(f"problem: {problem}")
    sys.exit(1 if problems else 0)


def _run(root: Path, count: int, bad: int, seed: int) -> list[str]:
    bucket = _storage()
    scans, broken = _scans(root, count, bad, seed)
    for path in sorted(scans.iterdir()):
        (bucket / f"scans/{path.name}").publish(path)
    output = bucket / "out"
    command = [*ISOPOSE, "predict", root / "model", bucket / "scans", "--output", output, "--ray"]

    size: dict[str, Any] = {"object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **size})
    machines = [cluster.add_node(num_cpus=1, **size) for _ in range(2)]
    started = time.monotonic()
    run = _start([*command, cluster.address])
    _wait(run, output, count * 2 // 5)
    killed_at = _done(output)
    cluster.remove_node(machines.pop(), allow_graceful=False)
    _wait(run, output, count * 3 // 5)
    cluster.add_node(num_cpus=1, **size)
    _, output_text = run.communicate()
    seconds = time.monotonic() - started
    retried = output_text.count("trying again")
    print(f"{count} scans in {seconds:.0f} s, a machine killed after {killed_at}; {retried} tried again")

    problems = _compare(root, scans, broken, output, output_text, run.returncode)
    before = output.files()
    started = time.monotonic()
    again = _start([*command, cluster.address])
    _, output_text = again.communicate()
    print(f"given again: {time.monotonic() - started:.0f} s")
    after = output.files()
    changed = [name for name in after if before.get(name) != after[name] and not name.startswith("cohort/")]
    if changed or f"{count - len(broken)} of {count} are done already" not in output_text:
        problems.append(f"given again, it changed {len(changed)} files: {changed[:3]}")
    cluster.shutdown()
    return problems


def _compare(
    root: Path, scans: Path, broken: set[str], output: Place, output_text: str, code: int | None
) -> list[str]:
    names = {path.name.removesuffix(".nii.gz") for path in scans.iterdir()}
    files = [name for name in output.files() if "/" not in name]
    expected = sorted(f"{name}{end}" for name in names - broken for end in (".json", ".nii.gz"))
    problems = [] if sorted(files) == expected else [f"{len(files)} files, expected {len(expected)}"]
    lines = [line for line in output_text.splitlines() if line.startswith("isopose: ")]
    if code != 2 or sorted(line.split("/")[-1].split(".")[0] for line in lines) != sorted(broken):
        problems.append(f"code {code}, {len(lines)} scans reported, expected {len(broken)}")
    if "Traceback" in output_text:
        problems.append("a traceback")
    ledger = [name for name in output.files() if name.startswith("cohort/done-")]
    rows = [json.loads(row)["name"] for text in output.read(ledger).values() for row in text.splitlines()]
    if sorted(rows) != sorted(names - broken):
        problems.append(f"{len(rows)} entries in the lists of finished scans, {len(set(rows))} different")

    started = time.monotonic()
    alone = _start([*ISOPOSE, "predict", root / "model", scans, "--output", root / "alone"])
    alone.communicate()
    print(f"one process, from a disk: {time.monotonic() - started:.0f} s")
    different = 0
    for name in sorted(names - broken):
        (output / f"{name}.nii.gz").fetch(root / "one.nii.gz")
        different += sha256(root / "one.nii.gz") != sha256(root / "alone" / f"{name}.nii.gz")
    print(f"{len(names - broken)} results, {len(broken)} failed, {different} different")
    return problems + ([f"{different} label maps are different"] if different else [])


def _storage() -> Place:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    import s3fs

    s3fs.S3FileSystem().mkdir("cohort")
    return Place("s3://cohort")


def _scans(root: Path, count: int, bad: int, seed: int) -> tuple[Path, set[str]]:
    """Scans and a model."""
    (root / "settings.toml").write_text(SETTINGS)
    quietly: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    size = ("--cases", "24", "--slices", "6", "--size", "64", "--seed", str(seed), "--workers", "2")
    subprocess.run([*ISOPOSE, "phantom", root / "kids", *size], **quietly)
    options = ("--config", root / "settings.toml", "--fold", "all")
    subprocess.run([*ISOPOSE, "fit", root / "kids", "--model", root / "model", *options], **quietly)
    random = np.random.default_rng(seed)
    images = [sitk.ReadImage(path) for path in sorted((root / "kids").glob("images*/*.nii.gz"))]
    folder = root / "scans"
    folder.mkdir()
    broken = {f"scan_{number:05d}" for number in random.choice(count, bad, replace=False)}
    for number in range(count):
        path = folder / f"scan_{number:05d}.nii.gz"
        if path.name.removesuffix(".nii.gz") in broken:
            path.write_bytes(random.bytes(int(random.integers(0, 4000))))
            continue
        image = images[number % len(images)]
        voxels = sitk.GetArrayFromImage(image)
        noisy = sitk.GetImageFromArray((voxels + random.normal(0, 8, voxels.shape)).astype(np.int16))
        noisy.CopyInformation(image)
        sitk.WriteImage(noisy, path)
    shutil.rmtree(root / "kids")
    return folder, broken


def _start(command: list[object]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _done(output: Place) -> int:
    return sum(name.endswith(".json") and "/" not in name for name in output.files())


def _wait(run: "subprocess.Popen[str]", output: Place, results: int) -> None:
    while _done(output) < results and run.poll() is None:
        time.sleep(3.0)


if __name__ == "__main__":
    main()
