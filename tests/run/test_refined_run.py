"""`run` with refinements: given, chosen, repeated, refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vizsla.choose.refinement import RefinementChoice
from vizsla.choose.validation import Trial, Trials
from vizsla.cli.main import app
from vizsla.data.data_folders import open_data
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings, read_manifest
from vizsla.embed.inference import embed
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.projection import project, whitening
from vizsla.run.config import RunConfig, recorded_config
from vizsla.run.pipeline import run
from vizsla.search import exact
from vizsla.search.chain import parse_chain, rank_refined
from vizsla.search.ranking import Ranking


def config(data: Path, home: Path, **options: object) -> RunConfig:
    known = {"model": "tiny", "weights": "random", "image_size": 32, "top_k": 5, "figures": 0}
    return RunConfig(data=str(data), home=str(home), **{**known, **options})  # type: ignore[arg-type]


def test_a_given_chain_orders_the_ranking(tinted: Path, tmp_path: Path) -> None:
    done = run(config(tinted, tmp_path, refine="dba(n=2)+kreciprocal(k1=5,k2=2)"))
    parts = [Embeddings.open(done.run.folder / "embeddings" / r) for r in ("query", "gallery")]
    expected = rank_refined(*parts, parse_chain("dba(n=2)+kreciprocal(k1=5,k2=2)"))
    kept = Ranking.load(done.run.folder / "ranking.parquet")
    assert kept.to_lists() == expected.to_lists()
    assert json.loads(done.submission_path.read_text()) == expected.to_lists(5)
    record = json.loads(done.result_path.read_text())["refine"]
    last = "kreciprocal(k1=5,k2=2,weight=0.3,together=true,program=true)"
    assert record["chain"] == f"dba(n=2,alpha=0)+{last}"
    assert record["uses"] == "queries" and "the other queries" in record["uses_in_words"]
    assert record["chosen_on"] is None
    assert done.scores is not None and done.scores.mean("map") is not None


def test_auto_chooses_without_the_truth_of_the_test_part(tinted: Path, tmp_path: Path) -> None:
    options = {"refine": "auto", "validating": {"validate_on": "seen-classes"}}
    done = run(config(tinted, tmp_path, **options))
    choice = done.refinement_choice
    assert isinstance(choice, RefinementChoice) and choice.chain == done.chain
    record = json.loads(done.result_path.read_text())["refine"]
    assert record["chain"] == str(done.chain)
    assert record["chosen_on"]["candidates"] and record["chosen_on"]["draws"] >= 8
    assert "refinement chosen on" in (done.run.folder / "log.txt").read_text()
    held = Embeddings.open(done.run.folder / "embeddings" / "validation")
    assert set(held.ids) <= {f"{p.parent.name}/{p.name}" for p in tinted.glob("training/*/*")}
    blind = tmp_path / "blind"
    shutil.copytree(tinted, blind)
    (blind / "labels.csv").unlink()  # the choice is the same without any truth
    other = run(config(blind, tmp_path / "other", **options))
    assert other.refinement_choice is not None and other.scores is None
    assert other.refinement_choice.record() == choice.record()
    validation = json.loads(other.result_path.read_text())["validation"]
    assert other.validation is not None and other.validation.record() == validation
    assert validation["map"] == pytest.approx(choice.chosen.map, abs=1e-6)
    assert (validation["draws"], validation["chosen"]) == (
        record["chosen_on"]["draws"],
        "refinement",
    )


@pytest.mark.parametrize("kept", [0, 1])
def test_a_run_says_what_the_chosen_chain_gave(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(Trials, "best", lambda trials: [*trials.by_name.values()][kept])
    options = {"refine": "auto", "validating": {"validate_on": "seen-classes"}}
    done = run(config(tinted, tmp_path, **options))
    choice = done.refinement_choice
    assert choice is not None and choice.chosen is choice.trials[kept]
    lines = done.gain_lines()
    if kept == 0:
        assert lines == [] and not done.chain.steps
    else:
        none = choice.without
        assert f"validation: top-1 {none.top1:.4f} → {choice.chosen.top1:.4f}" in lines[0]
        assert lines[1].startswith("refinement gave on the test part: top-1")


def test_a_given_chain_is_compared_with_none(tinted: Path, tmp_path: Path) -> None:
    plain = run(config(tinted, tmp_path))
    done = run(config(tinted, tmp_path, refine="dba(n=2)+kreciprocal(k1=5,k2=2)"))
    (line,) = done.gain_lines()
    assert plain.scores is not None and done.scores is not None
    before, after = plain.scores.mean("map"), done.scores.mean("map")
    assert (
        "refinement gave on the test part: " in line and f"mAP {before:.4f} → {after:.4f}" in line
    )


def test_again_keeps_to_what_was_chosen(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"refine": "auto", "refine_uses": "gallery"}
    done = run(config(tinted, tmp_path, validating={"validate_on": "seen-classes"}, **options))
    repeated = recorded_config(done.run.folder)
    assert repeated.refine == str(done.chain)
    second = run(repeated)
    assert second.refinement_choice is None and second.ranking.to_lists() == done.ranking.to_lists()


def test_what_cannot_be_is_said_before_the_work(tinted: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a step"):
        run(config(tinted, tmp_path, refine="fly"))
    with pytest.raises(UsageError, match="allows other gallery images"):
        run(config(tinted, tmp_path, refine="kreciprocal", refine_uses="gallery"))
    bare = tmp_path / "bare"
    shutil.copytree(tinted / "test", bare / "test")
    with pytest.raises(DataError, match="without refine auto"):
        run(config(bare, tmp_path, refine="auto"))
    assert not (tmp_path / "runs").exists()


def test_the_command_says_in_a_sentence_that_nothing_was_kept(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "is_safe", property(lambda self: self.baseline is None))
    words = ["run", str(tinted), "--model", "tiny", "--weights", "random", "--image-size", "32",
             "--figures", "0", "--home", str(tmp_path), "-k", "5", "--refine", "auto",
             "--validate-on", "seen-classes"]  # fmt: skip
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert re.search(r"no refinement is kept of \d+ tried on training images, in \d+ draws", text)
    (folder,) = (tmp_path / "runs").iterdir()
    log = (folder / "log.txt").read_text().splitlines()
    assert any(line.split()[-3:] == ["gain", "risk", "refinement"] for line in log)
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert "Contests may forbid what these use" in " ".join(shown.replace("│", " ").split())


def test_a_refined_ranking_is_not_completed_by_cosines(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the end of a refined ranking nothing is known, so mAP is null, not that of cosines."""
    monkeypatch.setattr(exact, "FULL_DEPTH", 10)
    monkeypatch.setattr(exact, "LIMITED_DEPTH", 8)
    done = run(config(tinted, tmp_path, refine="aqe"))
    assert done.ranking.depth == 8 and done.scores is not None
    assert done.scores.mean("map") is None
    plain = run(config(tinted, tmp_path))
    assert plain.scores is not None and plain.scores.mean("map") is not None
    assert np.isfinite(plain.scores.mean("map") or np.nan)


def test_whitening_and_views_are_kept_in_the_embedder(tinted: Path, tmp_path: Path) -> None:
    plain = run(config(tinted, tmp_path))
    done = run(config(tinted, tmp_path, whiten="shrunk", dim=6, views="flip"))
    kept, first = (Embedder.load(r.run.folder / "embedder") for r in (done, plain))
    assert kept.dim == 6 and str(kept.views) == "flip,1" and kept.model_id != first.model_id
    gallery = Embeddings.open(done.run.folder / "embeddings/gallery")
    assert gallery.dim == 6 and gallery.model_id == kept.model_id
    training = Embeddings.open(done.run.folder / "embeddings/training")
    expected = project(whitening(training.vectors, "shrunk", 6), training.vectors)
    written = read_manifest(done.run.folder / "embeddings/training")["compute"]
    compute = resolve_compute(precision=written["precision"])
    images = open_data(tinted).training
    assert images is not None
    vectors = embed(images, kept, tmp_path / "t", compute=compute)
    np.testing.assert_allclose(vectors.vectors, expected, atol=1e-5)
    record = json.loads(done.result_path.read_text())
    assert (record["whiten"], record["dim"], record["views"]) == ("shrunk", 6, "flip,1")
    repeated = run(recorded_config(done.run.folder))
    assert repeated.ranking.to_lists() == done.ranking.to_lists()
    with pytest.raises(DataError, match="choose from 1 to 23"):
        run(config(tinted, tmp_path, whiten="plain", dim=24))
    with pytest.raises(UsageError, match="none, plain, shrunk"):
        run(config(tinted, tmp_path, whiten="bleach"))


def test_embed_whitens_by_embeddings(tinted: Path, tmp_path: Path) -> None:
    def embedded(*words: str) -> None:
        options = ["--model", "tiny", "--weights", "random", "--image-size", "32"]
        result = CliRunner().invoke(app, ["embed", *words, *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    train, query = str(tinted / "training"), str(tinted / "test/query")
    embedded(train, "--class-folders", "-o", str(tmp_path / "t.emb"))
    white = ["--whiten", "plain", "--dim", "5", "--whiten-on", str(tmp_path / "t.emb")]
    embedded(query, "-o", str(tmp_path / "q.emb"), *white, "--save-embedder", str(tmp_path / "e"))
    saved = Embedder.load(tmp_path / "e")
    found = Embeddings.open(tmp_path / "q.emb")
    assert found.dim == 5 and found.model_id == saved.model_id
    with pytest.raises(UsageError, match="together with"):
        embedded(query, "-o", str(tmp_path / "x.emb"), "--whiten", "plain")
    with pytest.raises(DataError, match="cannot be compared"):
        embedded(query, "-o", str(tmp_path / "x.emb"), "--views", "flip", *white)
