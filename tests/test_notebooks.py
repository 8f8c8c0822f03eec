"""The notebooks run from top to bottom; they contain their own assertions."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws(path: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra: dev)")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra: dev)")
    notebook = nbformat.read(path, as_version=4)
    kept = [cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code"]
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    # It is kept with its outputs, and nothing of the machine that it was run on is in them.
    assert any(kept)
    text = path.read_text(encoding="utf-8")
    assert not any(word in text for word in ("/tmp/", "/home/", "/root/", "Error"))


def test_all_notebooks_are_found() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["homogenize", "train_and_predict"]
