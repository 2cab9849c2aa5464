"""The notebooks of examples/ run as they stand, show what their text says, and warn of nothing."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SHOWN = {  # the HTML that some cell of it shows
    "catalogue": ("<b>ImageSet</b>", "<b>Ranking</b>", "<img src=", "category"),
    "contest": ("<b>Run</b>", "<b>Training</b>", "95 % interval", "<img src="),
    "own_embeddings": ("<b>Scores</b>", "<b>Differences</b>", "large is better", "rank 1"),
}


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS} == SHOWN.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*TCP without encryption:RuntimeWarning")
def test_notebooks_run_as_they_stand(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(EXAMPLES.parent / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    html = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    assert all(part in html for part in SHOWN[path.stem])
    assert not [output for output in outputs if output.output_type == "stream"]
