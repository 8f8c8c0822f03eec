"""Full and read-only disks: one line, no partial files, existing files unchanged."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isopose.files import sha256
from isopose.models.folder import save_model
from isopose.phantom import write_cohort

pytestmark = pytest.mark.long

#: Kilobytes that are left on the disk.
LEFT = (0, 60)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_model) -> Path:
    """A cohort and a model."""
    root = tmp_path_factory.mktemp("faults")
    write_cohort(root / "data", cases=3, slices=6, size=96, seed=3, test_fraction=0)
    (root / "model").mkdir()
    save_model(root / "model", make_model(real_unet=True))
    return root


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def commands(prepared: Path, out: Path) -> dict[str, list[str]]:
    data = str(prepared / "data")
    return {
        "phantom": ["phantom", str(out), "--cases", "2", "--slices", "8", "--size", "128"],
        "fit": ["fit", data, "--model", str(out), "--fold", "all", "--set", "data.size=64",
                "--set", "unet.optimizer.epochs=1", "--set", "unet.optimizer.iterations=2",
                "--set", "crop.enabled=false", "--set", "unet.input=full"],
        "predict": ["predict", str(prepared / "model"), f"{data}/imagesTr", "--output", str(out), "--steps",
                    "--probabilities"],
        "homogenize": ["homogenize", data, str(out)],
        "evaluate": ["evaluate", f"{data}/labelsTr", f"{data}/labelsTr", "--output", str(out)],
    }  # fmt: skip


def run(arguments: list[str], gigabytes: int | None = None) -> tuple[int, str]:
    limit = (resource.RLIM_INFINITY if gigabytes is None else gigabytes << 30,) * 2
    process = subprocess.run(
        [sys.executable, "-m", "isopose", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        # Not the address space, of which PyTorch's CUDA build takes gigabytes for its libraries alone.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limit),
    )
    return process.returncode, process.stderr


def test_out_of_memory_names_the_settings_to_lower(prepared, tmp_path):
    out = tmp_path / "model"
    command = [*commands(prepared, out)["fit"], "--set", "unet.optimizer.batch_size=4096"]
    code, output = run(command, gigabytes=3)
    assert code == 1, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith(
        "isopose: out of memory; lower the batch size (--set unet.optimizer.batch_size=4)"
    )
    assert not (out / "model.json").exists()
    assert not list(tmp_path.rglob(".*.partial.*"))


def whole(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["phantom", "fit", "predict", "homogenize", "evaluate"])
def test_a_full_disk_gives_one_line_and_leaves_no_partial_files(name, prepared, disk):
    out = disk / name
    (disk / "other.txt").write_text("was here before")
    failed = 0
    for left in LEFT:
        subprocess.run(["rm", "-rf", out, disk / "filler"], check=True)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(max(0, free - left * 1024)))
        code, output = run(commands(prepared, out)[name])
        assert code in (0, 1, 2), output
        assert "Traceback" not in output
        lines = [line for line in output.splitlines() if line.startswith("isopose: ")]
        if code:
            failed += 1
            assert len(lines) == 1, output
            assert "space" in lines[0] or "full" in lines[0] or "choose another" in lines[0], output
        assert not [path for path in disk.rglob("*") if ".partial." in path.name], output
        assert (disk / "other.txt").read_text() == "was here before"
    assert failed, "the disk was never full"
    (disk / "filler").unlink()
    subprocess.run(["rm", "-rf", out], check=True)


def test_existing_results_survive_a_full_disk_and_the_next_run_completes(prepared, disk):
    """Results of a first run are kept; a second scan, for which there was no space, completes later."""
    out = disk / "predicted"
    model, images = str(prepared / "model"), sorted((prepared / "data" / "imagesTr").glob("*.nii.gz"))
    assert run(["predict", model, str(images[0]), "--output", str(out)])[0] == 0
    before = whole(out)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(free))
    code, output = run(["predict", model, *map(str, images), "--output", str(out)])
    assert code in (1, 2), output
    assert before.items() <= whole(out).items()
    (disk / "filler").unlink()
    assert run(["predict", model, *map(str, images), "--output", str(out)])[0] == 0
    after = whole(out)
    assert before.items() <= after.items()
    assert len([name for name in after if name.endswith(".nii.gz")]) == len(images)
    subprocess.run(["rm", "-rf", out], check=True)


def test_a_read_only_disk_gives_one_line(prepared, disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        for name, arguments in commands(prepared, disk / "out").items():
            code, output = run(arguments)
            assert code in (1, 2), (name, output)
            lines = [line for line in output.splitlines() if line.startswith("isopose: ")]
            assert len(lines) == 1, (name, output)
            assert "Read-only" in lines[0], (name, output)
            assert "Traceback" not in output
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert not (disk / "out").exists()
