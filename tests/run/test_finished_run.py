"""A run that is there already: its scores once more, and a cut-off from its training images."""

import colorsys
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vizsla import storage
from vizsla.cli.main import app
from vizsla.errors import DataError
from vizsla.run import finished_run, pipeline
from vizsla.run.config import RunConfig, recorded_config
from vizsla.score.calibration import Calibration
from vizsla.score.scores import Scores
from vizsla.search.ranking import Ranking
from vizsla.workspace import open_run, result_file_of

CLASSES = 8


def paint(path: Path, label: int, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.array(colorsys.hsv_to_rgb(label / CLASSES, 0.8, 0.8)) * 255
    pixels = np.clip(colour + rng.normal(size=(24, 24, 3)) * 60, 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained and frozen, on classes that are colours; the training classes are others."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    rows = ["role,file,label"]
    for label in range(CLASSES):
        for i in range(6):
            paint(home / f"data/training/t{label}/{i}.png", label, rng)
        for role, n in (("query", 2), ("gallery", 3)):
            for i in range(n):
                paint(home / f"data/test/{role}/{label}_{i}.png", label, rng)
                rows.append(f"{role},{label}_{i}.png,{label}")
    (home / "data/labels.csv").write_text("\n".join(rows) + "\n")
    config = RunConfig(
        data=str(home / "data"), model="tiny", weights="random", figures=0, home=str(home)
    )
    return pipeline.run(config).run.folder


def test_a_run_is_repeated_without_its_sheets(run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs" / run_folder.name
    shutil.copytree(run_folder, copy)
    config = dict(open_run(copy).config)
    config["options"] = {**config["options"], "figures": 2, "home": str(tmp_path)}
    open_run(copy).write_config(config)
    words = ["run", "--again", str(copy), "--figures", "0", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["figures"] == []
    words[3:5] = []
    assert len(json.loads(CliRunner().invoke(app, words).stdout)["figures"]) == 2


def test_the_scores_of_a_run_come_out_again(run_folder: Path) -> None:
    truth = finished_run.known_truth_of_run(run_folder)
    ranking, _, scores = finished_run.score_run(run_folder, truth, ks=(1, 5, 10), cluster="label")
    stored = Scores.load(run_folder / "scores.json")
    assert scores.queries == stored.queries and len(ranking) == 16
    assert scores.per_query("map") == stored.per_query("map")
    assert scores["map"].low != stored["map"].low


def test_one_image_is_searched_in_a_run(run_folder: Path) -> None:
    query = run_folder.parent.parent / "data/test/query/3_0.png"
    done = CliRunner().invoke(app, ["search", str(run_folder), str(query), "-k", "2", "--json"])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["rankings"].values()
    stored = Ranking.load(run_folder / "ranking.parquet").to_lists(2)
    assert [hit["id"] for hit in found] == stored["3_0.png"]


def test_a_run_of_another_k_is_scored_as_it_was(run_folder: Path, tmp_path: Path) -> None:
    rows = (run_folder.parent.parent / "data/labels.csv").read_text().splitlines()[1:]
    images, labels = zip(*(row.rsplit(",", 1) for row in rows), strict=True)
    drawn = np.random.default_rng(0).permutation(labels)  # so that not every first rank is right
    rows = [f"{image},{label}" for image, label in zip(images, drawn, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["role,file,label", *rows]))
    config = dataclasses.replace(
        recorded_config(run_folder),
        top_k=2,
        home=str(tmp_path),
        labels=str(tmp_path / "labels.csv"),
    )
    result = pipeline.run(config)
    stored, folder = result.scores, result.run.folder
    assert stored is not None
    truth = finished_run.known_truth_of_run(folder)
    *_, scores = finished_run.score_run(folder, truth)
    assert scores.top_k == 2 and scores["contest_points"] == stored["contest_points"]
    assert scores.to_dict() == stored.to_dict()
    *_, other = finished_run.score_run(folder, truth, ks=(10,))
    assert other.mean("contest_points") > stored.mean("contest_points")


def test_decisions_are_learned_on_training_images_alone(run_folder: Path) -> None:
    learned = finished_run.calibrate_run(run_folder, sure=0.5)
    assert learned.learned_on.count("training") == 1 and 40 < learned.queries <= 48
    held = run_folder / "embeddings" / "calibration"
    assert (held / "manifest.json").is_file()
    before = (held / "shard-00000.parquet").stat().st_mtime_ns
    assert finished_run.calibrate_run(run_folder, sure=0.5) == learned
    assert (held / "shard-00000.parquet").stat().st_mtime_ns == before
    assert Calibration.load(run_folder / "calibration.json") == learned


def test_a_tuned_run_learns_only_from_what_it_has_not_seen(run_folder: Path) -> None:
    run = open_run(run_folder)
    config, result = run.config, result_file_of(run_folder)
    record = storage.read_json(result)
    tuning = {"validate_on": "new-classes", "share": 0.6}
    run.write_config({**config, "options": {**config["options"], "tuning": tuning}})
    storage.write_sealed_json(result, {**record, "training": {"kept": "last"}})
    try:
        assert finished_run.calibrate_run(run_folder, sure=0.5).queries < 48 * 0.7
    finally:
        run.write_config(config)
        storage.write_sealed_json(result, record)


def test_a_run_without_labels_says_what_to_give(run_folder: Path) -> None:
    labels, run = run_folder.parent.parent / "data" / "labels.csv", open_run(run_folder)
    text, config = labels.read_text(), run.config
    labels.unlink()
    run.write_config({**config, "options": {**config["options"], "labels": None}})
    try:
        with pytest.raises(DataError, match="no labels were known: give labels"):
            finished_run.known_truth_of_run(run_folder)
    finally:
        labels.write_text(text)
        run.write_config(config)


def test_vectors_of_an_earlier_call_that_do_not_fit_are_made_again(run_folder: Path) -> None:
    held = run_folder / "embeddings" / "calibration"
    learned = finished_run.calibrate_run(run_folder, sure=0.5)
    manifest = storage.read_sealed_json(held / "manifest.json")
    storage.write_sealed_json(held / "manifest.json", {**manifest, "compute_id": "another"})
    assert finished_run.calibrate_run(run_folder, sure=0.5) == learned
    assert storage.read_sealed_json(held / "manifest.json") == manifest


def test_a_run_warns_of_labels_that_are_none(run_folder: Path, tmp_path: Path) -> None:
    data = Path(open_run(run_folder).config["options"]["data"])
    names = {role: sorted((data / "test" / role).iterdir()) for role in ("query", "gallery")}
    rows = [f"{role},{path.name},{role}{i}" for role in names for i, path in enumerate(names[role])]
    (tmp_path / "labels.csv").write_text("\n".join(["role,file,label", *rows]) + "\n")
    config = RunConfig(
        data=str(data), model="tiny", weights="random", figures=0, home=str(tmp_path),
        labels=str(tmp_path / "labels.csv"),
    )  # fmt: skip
    result = pipeline.run(config)
    assert any("there is nothing to find: every query has" in w for w in result.warnings)
