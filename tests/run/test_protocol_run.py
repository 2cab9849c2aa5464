"""A run by a protocol, with the truth of Oxford's form and queries cropped by their boxes."""

import json
import shutil
from pathlib import Path

import pytest

from vizsla.cli.main import main
from vizsla.run import finished_run
from vizsla.run.config import RunConfig
from vizsla.run.pipeline import run
from vizsla.score.evaluate import evaluate


@pytest.fixture
def folder(small_demo: Path, tmp_path: Path) -> Path:
    """Four queries, twelve gallery images; names without extensions, as in the published file."""
    queries = sorted((small_demo / "test/query").iterdir())[:4]
    gallery = sorted((small_demo / "test/gallery").iterdir())[:12]
    (tmp_path / "jpg").mkdir()
    (tmp_path / "data/test/gallery").mkdir(parents=True)
    for path in queries:
        shutil.copy(path, tmp_path / "jpg")
    for path in gallery:
        shutil.copy(path, tmp_path / "data/test/gallery")
    gnd = [{"easy": [i], "hard": [i + 4], "junk": [i + 8], "bbx": [2, 2, 40, 40]}
           for i in range(4)]  # fmt: skip
    content = {"imlist": [path.stem for path in gallery], "qimlist": [p.stem for p in queries],
               "gnd": gnd}  # fmt: skip
    (tmp_path / "gnd.json").write_text(json.dumps(content))
    return tmp_path


def test_a_run_and_its_report_by_a_protocol(folder: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["crop", str(folder / "gnd.json"), "--images", str(folder / "jpg"),
              "-o", str(folder / "data/test/query")])  # fmt: skip
    assert ended.value.code in (0, None)
    config = RunConfig(
        data=str(folder / "data"), truth=str(folder / "gnd.json"), protocol="oxford-medium",
        home=str(folder), figures=1, device="cpu", runtime="torch",
    )  # fmt: skip
    result = run(config)
    scores = result.scores
    assert scores is not None and scores.protocol == "oxford-medium"
    assert scores.n_relevant.tolist() == [2, 2, 2, 2]
    assert list(scores.shown) == ["AP(interpolated)", "mP@1", "mP@5", "mP@10"]
    assert result.record["scores"]["AP(interpolated)"] == round(scores.mean("AP(interpolated)"), 6)
    truth = finished_run.known_truth_of_run(result.run.folder)
    hard = finished_run.score_run(result.run.folder, truth, protocol="oxford-hard")[2]
    assert hard.n_relevant.tolist() == [1, 1, 1, 1]
    again = evaluate(result.ranking, truth, protocol="oxford-medium")
    assert again.mean("mP@5") == scores.mean("mP@5")
    page = finished_run.report(result.run.folder, folder / "report.html", projection="pca")
    text = page.read_text()
    assert "scored by oxford-medium" in text and "AP(interpolated)" in text
    assert text.count('<li class="junk"') > 0
    assert 'id="confusion"' not in text  # there are no classes
    levels = text[text.index('id="levels"') :]
    for level, n in (("easy", 1), ("medium", 2), ("hard", 1)):
        at = finished_run.score_run(result.run.folder, truth, protocol=f"oxford-{level}")[2]
        figure = at["AP(interpolated)"]
        assert at.n_relevant.tolist() == [n] * 4 and figure.low is not None
        cell = f"{figure.mean:.3f} ({figure.low:.3f} to {figure.high:.3f})"
        assert cell in levels[levels.index(f">{level}<") :]
