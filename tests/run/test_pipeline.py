"""The main job as a whole, on a few images, with small networks."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vizsla.cli.main import main
from vizsla.embed import runtime
from vizsla.embed.compute import has_exact_int8
from vizsla.embed.embeddings import Embeddings, read_manifest
from vizsla.errors import DataError, ModelError, UsageError, flags_named
from vizsla.model.embedder import Embedder
from vizsla.output.submission import read_submission
from vizsla.run import config as run_config
from vizsla.run import pipeline
from vizsla.run.config import RunConfig
from vizsla.run.fused_runs import FusionConfig
from vizsla.run.pipeline import run
from vizsla.run.several_models import run_models
from vizsla.score.by_item import by_item
from vizsla.score.evaluate import evaluate
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.index import in_memory
from vizsla.search.ranking import Ranking
from vizsla.train.job import Decisions
from vizsla.workspace import Run

SEED_KEYS = {
    "model_name": str,
    "top_k": int,
    "top_k_accuracy": float,
    "batch_size": int,
    "is_finetuned": bool,
    "num_classes": int,
    "runtime_seconds": float,
    "loss_function": type(None),
    "num_epochs": type(None),
    "final_train_loss": type(None),
    "pooling_type": str,
}


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def data(small_demo: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_demo, tmp_path / "data")
    return tmp_path / "data"


def config(data: Path, **options: object) -> RunConfig:
    known = {"model": "tiny", "weights": "random", "image_size": 64, "top_k": 5, "figures": 3}
    return RunConfig(data=str(data), home=str(data.parent), **{**known, **options})  # type: ignore[arg-type]


def test_the_configuration_says_how_the_run_was_computed_if_a_runtime_fails(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("there is no compiler")

    monkeypatch.setitem(runtime.START, "compiled", fails)
    done = run(config(data, runtime="compiled", figures=0))
    gallery = Embeddings.open(done.run.folder / "embeddings" / "gallery")
    assert done.run.config["options"]["runtime"] == "torch"
    assert done.run.config["compute_id"] == gallery.compute_id
    assert any("continues with torch" in warning for warning in done.warnings)


def test_a_run_whose_runtime_is_gone_is_not_continued(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(embedder: object, data: object, target: object, this_run: Run, *_: object):
        (this_run.folder / "training").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_improved", interrupted)
    options = {"tuning": {"budget": 4.0}, "precision": "fp32"}
    with pytest.raises(KeyboardInterrupt):
        run(config(data, runtime="openvino", **options))
    monkeypatch.setattr(pipeline, "installed", lambda runtime: runtime == "torch")
    with pytest.raises(UsageError, match=r"openvino, which is not installed here: pip install"):
        run(config(data, **options))


@pytest.mark.skipif(not has_exact_int8(), reason="needs a CPU with VNNI instructions")
def test_a_run_in_int8_trains_its_head_in_another_precision(data: Path) -> None:
    lite = {"model": "efficientnet-lite0", "weights": "pretrained", "image_size": None}
    tuning = {"finetune": "head", "head_steps": 9, "draws": 1, "validate_on": "new-classes"}
    done = run(config(data, **lite, precision="int8", tuning=tuning, figures=0))
    options = done.run.config["options"]
    assert (options["precision"], options["runtime"]) == ("int8", "openvino")
    assert options["tuning"]["precision"] in ("fp32", "bf16")
    for role in ("query", "gallery"):
        manifest = read_manifest(done.run.folder / "embeddings" / role)
        assert manifest["compute"]["precision"] == "int8"
        assert manifest["compute_id"] == done.run.config["compute_id"]


@pytest.mark.skipif(not has_exact_int8(), reason="needs a CPU with VNNI instructions")
@pytest.mark.parametrize(("options", "words"), [
    ({}, "and not for tiny: choose"),
    ({"tuning": {"finetune": "last"}}, "--finetune last changes the network's weights, .* head"),
])  # fmt: skip
def test_what_has_no_int8_is_refused_before_the_work(
    data: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words), flags_named():
        run(config(data, precision="int8", **options))
    assert not (data.parent / "runs").exists()


@pytest.mark.parametrize("pooling", ["gap", "gem"])
def test_run_writes_all_that_the_contest_requires(data: Path, pooling: str) -> None:
    done = run(config(data, pooling=pooling))
    record = json.loads(done.result_path.read_text())
    for key, kind in SEED_KEYS.items():
        assert type(record[key]) is kind, key
    assert list(record)[:2] == ["model_name", "run_id"]
    assert record["pooling_type"] == {"gap": "GAP", "gem": "GeM"}[pooling]
    assert (record["num_classes"], record["is_finetuned"]) == (6, False)
    submission = json.loads(done.submission_path.read_text())
    assert sorted(submission) == sorted(p.name for p in (data / "test/query").iterdir())
    gallery = {p.name for p in (data / "test/gallery").iterdir()}
    assert all(
        len(set(row)) == len(row) == 5 and set(row) <= gallery for row in submission.values()
    )
    assert len(done.figure_paths) == 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in done.figure_paths)
    ranking = Ranking.load(done.run.folder / "ranking.parquet")
    assert ranking.depth == 24 and ranking.to_lists(5) == submission
    assert done.scores is not None and record["top_k_accuracy"] == pytest.approx(
        done.scores.mean("top_k_accuracy@5"), abs=1e-4
    )
    assert "done in" in (done.run.folder / "log.txt").read_text()


def test_without_labels_scores_are_null_and_all_else_is_there(data: Path) -> None:
    (data / "labels.csv").unlink()
    shutil.rmtree(data / "training")
    done = run(config(data))
    record = json.loads(done.result_path.read_text())
    assert done.scores is None
    for key in ("top_k_accuracy", "precision_at_k", "num_classes"):
        assert key in record and record[key] is None
    assert len(json.loads(done.submission_path.read_text())) == 12
    assert len(done.figure_paths) == 3
    assert 0 not in [record[key] for key in record if "accuracy" in key]


@pytest.mark.parametrize("tiles", [None, "2x2"])
def test_broken_images_never_stop_a_run(
    data: Path, caplog: pytest.LogCaptureFixture, tiles: str | None
) -> None:
    query = sorted((data / "test/query").iterdir())[3]
    query.write_bytes(b"")
    sorted((data / "test/gallery").iterdir())[0].write_bytes(b"no image")
    done = run(config(data, tiles=tiles))
    assert len(done.ranking) == 11 and done.ranking.depth == 23
    submission = json.loads(done.submission_path.read_text())
    assert len(submission) == 12 and len(set(submission[query.name])) == 5
    assert any("1 of 12 images" in w for w in done.warnings)
    assert any(query.name in w and "mean query" in w for w in done.warnings)
    assert json.loads(done.result_path.read_text())["warnings"] == done.warnings
    assert query.name in (done.run.folder / "log.txt").read_text()
    assert done.scores is not None and len(done.scores) == 12  # the broken one counts as wrong


def test_again_gives_the_same_ranking(data: Path) -> None:
    first = run(config(data, pooling="gem", figures=0, seed=3))
    repeated = run_config.recorded_config(first.run.folder)
    assert repeated.pooling == "gem" and repeated.device != "auto" and repeated.precision != "auto"
    second = run(dataclasses.replace(repeated, home=str(data.parent / "elsewhere")))
    assert second.ranking.to_lists() == first.ranking.to_lists()
    assert second.submission_path.read_bytes() == first.submission_path.read_bytes()


def test_a_run_trained_by_the_clock_is_repeated_by_its_steps(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuning = {"finetune": "head", "budget": 300.0, "head_steps": 9}
    first = run(config(data, figures=0, tuning=tuning))
    folder = first.run.folder
    decisions = Decisions.read(folder / "training")
    assert decisions is not None and len(decisions["head steps"]) == 9
    assert len(set(decisions["head steps"])) == 9  # seconds of this machine
    second = run(run_config.repeated(run_config.recorded_config(folder), folder))
    assert Decisions.read(second.run.folder / "training") == decisions
    assert second.ranking.to_lists() == first.ranking.to_lists()
    third = run_config.repeated(run_config.recorded_config(second.run.folder), second.run.folder)
    assert third.tuning is not None and third.tuning["replay"] == decisions
    (folder / "training/clock.json").unlink()
    assert "replay" not in (
        run_config.repeated(run_config.recorded_config(folder), folder).tuning or {}
    )
    assert "has no record of its steps" in caplog.text


def test_again_finds_moved_data_and_refuses_other_weights(data: Path, tmp_path: Path) -> None:
    first = run(config(data, figures=0))
    data.rename(tmp_path / "moved")
    repeated = run_config.recorded_config(first.run.folder, data=tmp_path / "moved")
    assert run(repeated).ranking.to_lists() == first.ranking.to_lists()
    with pytest.raises(ModelError, match="another model"):
        run(dataclasses.replace(repeated, seed=7))


def test_again_keeps_to_the_labels_that_there_were(data: Path) -> None:
    (data / "labels.csv").rename(data.parent / "kept.csv")
    first = run(config(data, figures=0))
    (data.parent / "kept.csv").rename(data / "labels.csv")
    assert first.scores is None
    second = run(config(data, figures=0))
    assert run_config.recorded_config(second.run.folder).labels == str(data / "labels.csv")


def test_only_what_lay_inside_the_data_moves_with_it() -> None:
    before = RunConfig(data="/a/data", labels="/b/truth.csv", exclude="/a/data/gone.txt")
    after = run_config.moved_to(before, "/c")
    assert (after.data, after.labels, after.exclude) == ("/c", "/b/truth.csv", "/c/gone.txt")


def test_labels_from_the_folders_own_metadata(data: Path) -> None:
    rows = table(data / "labels.csv")
    expected = run(config(data, figures=0)).scores
    (data / "labels.csv").unlink()
    for role in ("query", "gallery"):
        lines = [f"{row['file']},{row['label']}" for row in rows if row["role"] == role]
        (data / "test" / role / "metadata.csv").write_text("file_name,label\n" + "\n".join(lines))
    found = run(config(data, figures=0)).scores
    assert found is not None and expected is not None
    assert found.mean("map") == expected.mean("map")


def test_all_of_a_gallery_with_a_broken_image(data: Path) -> None:
    broken = sorted((data / "test/gallery").iterdir())[0]
    broken.write_bytes(b"no image")
    done = run(config(data, top_k=24, figures=0))
    submission = json.loads(done.submission_path.read_text())
    assert all(len(set(row)) == 24 and row[-1] == broken.name for row in submission.values())
    assert any("ends with 1 broken" in w for w in done.warnings)


def test_the_log_holds_what_was_said_before_the_run_had_a_folder(
    data: Path, tmp_path: Path
) -> None:
    (data / "training" / "stray.png").write_bytes(b"")
    (tmp_path / "exclude.txt").write_text("gallery/none.png\n")
    done = run(config(data, exclude=str(tmp_path / "exclude.txt"), figures=0))
    log = (done.run.folder / "log.txt").read_text()
    assert "stray.png" in log and "exclude nothing" in log
    assert any("stray.png" in w for w in done.warnings)


def test_a_saved_embedder_and_a_run_are_models_too(data: Path) -> None:
    first = run(config(data, figures=0))
    for model in (first.run.folder, first.run.folder / "embedder"):
        again = run(
            config(data, model=str(model), weights="pretrained", image_size=None, figures=0)
        )
        assert again.ranking.to_lists() == first.ranking.to_lists()
    with pytest.raises(UsageError, match="saved embedder"):
        run(config(data, model=str(first.run.folder), pooling="gem"))


def test_excluded_images_are_left_out(data: Path, tmp_path: Path) -> None:
    gone = sorted(p.name for p in (data / "test/gallery").iterdir())[:2]
    (tmp_path / "exclude.txt").write_text("".join(f"gallery/{name}\n" for name in gone))
    done = run(config(data, exclude=str(tmp_path / "exclude.txt"), figures=0))
    assert done.ranking.gallery_size == 22 and not set(gone) & set(done.ranking.gallery)


def test_contest_points_are_those_of_the_lists_handed_in(data: Path) -> None:
    done = run(config(data, top_k=1, figures=0))
    assert done.scores is not None
    handed_in = evaluate(
        read_submission(done.submission_path), Truth.from_file(data / "labels.csv")
    )
    assert done.scores.mean("contest_points") == handed_in.mean("contest_points")
    assert done.scores.mean("contest_points") < evaluate(
        done.ranking, Truth.from_file(data / "labels.csv")
    ).mean("contest_points")


def test_an_unlabelled_query_is_left_out_everywhere(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (data / "labels.csv").read_text().splitlines()
    gone = next(i for i, line in enumerate(lines) if line.startswith("query,"))
    (data / "labels.csv").write_text("\n".join([*lines[:gone], *lines[gone + 1 :]]))
    done = run(config(data, figures=0))
    assert done.scores is not None and done.scores.unlabelled == 1
    for source in (done.run.folder, done.submission_path):
        for words in (["evaluate"], ["show", "--worst", "2", "-o", str(data.parent / "sheets")]):
            with pytest.raises(SystemExit) as end:
                main([words[0], str(source), "--data", str(data), *words[1:]])
            assert end.value.code == 0, capsys.readouterr().err


def test_show_knows_the_labels_of_a_run(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "labels.csv").rename(data.parent / "truth.csv")
    done = run(config(data, labels=str(data.parent / "truth.csv"), figures=0))
    out = data.parent / "sheets"
    with pytest.raises(SystemExit) as end:
        main(["show", str(done.run.folder), "--data", str(data), "--worst", "2", "-o", str(out)])
    assert end.value.code == 0 and len(list(out.glob("*.png"))) == 2, capsys.readouterr().err


def test_labels_from_file_names(data: Path) -> None:
    rows = table(data / "labels.csv")
    expected = run(config(data, figures=0)).scores
    for n, row in enumerate(rows):
        if row["role"] != "training":
            folder = data / "test" / row["role"]
            path = folder / row["file"]
            path.rename(folder / f"{row['label']}_{n}{path.suffix}")
    (data / "labels.csv").unlink()
    found = run(config(data, labels_from="{label}_{n}", figures=0)).scores
    assert found is not None and expected is not None
    assert found.mean("top_k_accuracy@1") == expected.mean("top_k_accuracy@1")
    assert found.mean("map") == pytest.approx(expected.mean("map"), abs=1e-12)


def test_a_gallery_deeper_than_the_ranking_still_has_its_map(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config(data, figures=0)).scores
    monkeypatch.setattr(pipeline.exact, "FULL_DEPTH", 10)
    monkeypatch.setattr(pipeline.exact, "LIMITED_DEPTH", 7)
    done = run(config(data, figures=0))
    assert done.ranking.depth == 7 and done.scores is not None and whole is not None
    assert done.scores.mean("map") == pytest.approx(whole.mean("map"), abs=1e-12)


def test_wrong_wishes_are_said_before_the_work(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose k from 1 to 24"):
        run(config(data, top_k=25))
    with pytest.raises(UsageError, match="are mutually exclusive"):
        run(config(data, labels=str(data / "labels.csv"), labels_from="{label}_{n}"))
    with pytest.raises(DataError, match="test/query"):
        run(config(tmp_path / "data" / "training"))
    (tmp_path / "other.csv").write_text("file,label\nnot_here.png,a\n")
    with pytest.raises(DataError, match="has a label for none of"):
        run(config(data, labels=str(tmp_path / "other.csv")))
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


@pytest.fixture(scope="module")
def few_photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photos of 6 classes: 2 queries and 4 gallery images of each."""
    whole, few = shared / "data" / "caltech101", tmp_path_factory.mktemp("few") / "data"
    rows = [row for row in table(whole / "labels.csv") if row["role"] != "training"]
    kept = []
    for label in sorted({row["label"] for row in rows})[:6]:
        for role, n in (("query", 2), ("gallery", 4)):
            kept += [r for r in rows if r["label"] == label and r["role"] == role][:n]
    for row in kept:
        target = few / "test" / row["role"] / row["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / "test" / row["role"] / row["file"], target)
    with (few / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["role", "file", "label"])
        writer.writeheader()
        writer.writerows(kept)
    return few


def test_real_weights_with_both_poolings(
    shared: Path, few_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vizsla run` as people call it: GeM and GAP find what they search for, each in its way."""
    words = ["run", str(few_photos), "--model", "mobilenetv2", "-k", "4", "--figures", "2"]
    words += ["--json", "--weights", str(shared / "weights" / "mobilenetv2_100.safetensors")]
    vectors = {}
    for pooling in ("gap", "gem"):
        with pytest.raises(SystemExit) as end:
            main([*words, "--pooling", pooling, "--home", str(tmp_path)])
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        assert "is used with the preprocessing of mobilenetv2" in err
        done = json.loads(out)
        record = json.loads(Path(done["result"]).read_text())
        assert record["pooling_type"] == {"gap": "GAP", "gem": "GeM"}[pooling]
        assert record["weights"] == "file" and len(done["figures"]) == 2
        assert record["top_k_accuracy"] > 0.9 and record["scores"]["map"] > 0.6
        vectors[pooling] = Embeddings.open(Path(done["run"]) / "embeddings" / "query").vectors
    cosines = (vectors["gap"] * vectors["gem"]).sum(axis=1)
    assert cosines.min() > 0.5 and cosines.max() < 0.999


FAMILIES = ["clip-vit-b32", "dinov2-s14", "efficientnet-b0", "resnet18", "googlenet"]


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["gap", "gem"])
@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_runs_whole(data: Path, model: str, pooling: str) -> None:
    done = run(config(data, model=model, pooling=pooling, image_size=None))
    assert done.result_path.is_file() and len(done.figure_paths) == 3
    assert json.loads(done.result_path.read_text())["model_name"] == model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "top_1", "mean_ap"), [("clothing", 0.805, 0.545), ("caltech101", 0.907, 0.682)]
)
def test_figures_on_real_photos(
    shared: Path, tmp_path: Path, name: str, top_1: float, mean_ap: float
) -> None:
    done = run(
        RunConfig(
            data=str(shared / "data" / name), home=str(tmp_path), model="mobilenetv2",
            weights=str(shared / "weights" / "mobilenetv2_100.safetensors"), pooling="gap",
            precision="fp32", figures=4,
        )
    )  # fmt: skip
    assert done.scores is not None
    assert done.scores.mean("top_k_accuracy@1") == pytest.approx(top_1, abs=0.015)
    assert done.scores.mean("map") == pytest.approx(mean_ap, abs=0.01)


# ── items ────────────────────────────────────────────────────────────────────────────────────────


def with_columns(data: Path) -> None:
    """Two gallery images are a product, and all queries of a class one item."""
    rows = table(data / "labels.csv")
    with (data / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "product", "item"])
        writer.writeheader()
        for i, row in enumerate(rows):
            product = f"P{i // 2}" if row["role"] == "gallery" else ""
            writer.writerow({**row, "product": product, "item": f"the {row['label']}"})


def means(scores: Scores) -> dict[str, float | None]:
    return {key: figure.mean for key, figure in scores.figures.items()}


def test_items_are_scored_beside_images(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_columns(data)
    done = run(config(data, group_by="product", query_group="item", query_join="max", figures=0))
    truth = Truth.from_file(data / "labels.csv")
    wanted = evaluate(
        *by_item(done.ranking, truth, group_by="product", query_group="item", query_join="max"),
        ks=(1, 5, 10), top_k=5,
    )  # fmt: skip
    scores = done.item_scores
    assert scores is not None and done.scores is not None and len(scores) == 6 < len(done.scores)
    assert means(scores) == means(wanted)
    items = done.record["items"]
    assert (items["group_by"], items["query_group"], items["query_join"]) == (
        "product", "item", "max"
    )  # fmt: skip
    assert items["map"] == pytest.approx(wanted.mean("map"), abs=1e-6) and items["queries"] == 6
    assert done.record["queries"] == 12 and done.to_dict()["item_scores"]["queries"] == 6
    again = run(run_config.recorded_config(done.run.folder))
    assert again.item_scores is not None and means(again.item_scores) == means(scores)
    words = ["run", str(data), "--model", "tiny", "--weights", "random", "--image-size", "64"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--group-by", "product", "--home", str(data.parent), "--figures", "0", "-q"])
    assert not ended.value.code
    assert "by item (results by product):" in capsys.readouterr().out


def test_items_without_their_columns_or_labels_are_an_error_before_the_work(data: Path) -> None:
    with pytest.raises(DataError, match="no column 'product' of the gallery images"):
        run(config(data, group_by="product"))
    with pytest.raises(DataError, match="no column 'item' of the query images"):
        run(config(data, query_group="item"))
    (data / "labels.csv").unlink()
    with pytest.raises(DataError, match="score items, and no labels are known"):
        run(config(data, group_by="product"))
    assert not (data.parent / "runs").exists()


def test_a_run_with_tiles_finds_images_by_their_parts(data: Path) -> None:
    result = run(config(data, tiles="1+2x2"))
    embeddings = result.run.folder / "embeddings"
    gallery, queries = (Embeddings.open(embeddings / role) for role in ("gallery", "query"))
    assert gallery.tiles is not None and len(gallery.tiles) == 5 and queries.tiles is None
    assert gallery.model_id == queries.model_id
    ranking = Ranking.load(result.run.folder / "ranking.parquet")
    assert ranking.best_tile is not None and len({*ranking.best_tile[:, :5].ravel().tolist()}) > 1
    assert Embedder.load(result.run.folder / "embedder").tiles == gallery.tiles
    with pytest.raises(UsageError, match="with tiles: kreciprocal compares gallery images"):
        run(config(data, tiles="2x2", refine="aqe+kreciprocal"))


def test_a_run_searches_with_tiles_of_its_queries(data: Path) -> None:
    result = run(config(data, tiles="1+2x2", query_tiles="1+2x1"))
    folder = result.run.folder / "embeddings"
    queries, gallery = (Embeddings.open(folder / role) for role in ("query", "gallery"))
    assert queries.tiles is not None and len(queries.tiles) == 3
    assert result.record["query_tiles"] == "1+2x1"
    expected = in_memory(gallery).search(queries, len(gallery), query_tiles="1+2x1")
    assert result.ranking.positions.tolist() == expected.positions.tolist()
    assert np.array_equal(result.ranking.scores, expected.scores)
    assert result.scores is not None and result.scores.mean("map") is not None
    with pytest.raises(UsageError, match="refine re-ranks for one vector of a query: leave it"):
        run(config(data, query_tiles="2x2", refine="aqe"))
    with pytest.raises(UsageError, match="query_tiles is for one model"):
        run_models([config(data, query_tiles="2x2")] * 2, FusionConfig())


def test_a_run_with_tiles_is_refined_and_decided(data: Path) -> None:
    tiled = {"tiles": "1+2x2", "figures": 0}
    done = run(config(data, refine="aqe(n=1)+keep(n=1)", accept=0.5, **tiled))
    ranking = Ranking.load(done.run.folder / "ranking.parquet")
    assert ranking.best_tile is not None and ranking.accepted is not None
    plain = run(config(data, **tiled))
    rows = [(ranking.row(i), plain.ranking.row(i)) for i in range(len(ranking))]
    assert all(ours[0] == before[0] for ours, before in rows)
    assert any(ours != before for ours, before in rows)
    assert Embeddings.open(done.run.folder / "embeddings/calibration").tiles is not None
    chosen = run(config(data, refine="auto", **tiled))
    assert chosen.refinement_choice is not None
    tried = {trial.name.split("(")[0] for trial in chosen.refinement_choice.trials}
    assert "aqe" in tried and not tried & {"dba", "kreciprocal", "diffusion"}
