"""Several models in one run, and `fuse`."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from vizsla import storage
from vizsla.cli.main import app
from vizsla.data.data_folders import open_data
from vizsla.embed.compute import has_exact_int8
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.projected import fitted_projection, projected, projection_makers
from vizsla.errors import DataError, ModelError, UsageError
from vizsla.model.closed_forms import closed_forms
from vizsla.model.open_model import load_embedder
from vizsla.model.projection import load_projection, project
from vizsla.options import ModelChoice
from vizsla.run import fused_runs, several_models
from vizsla.run.config import RunConfig
from vizsla.run.finish import RunResult
from vizsla.run.functions import search
from vizsla.run.fused_runs import FusionConfig, fuse_runs, members_of, ranker
from vizsla.run.members import Member
from vizsla.run.several_models import run_models
from vizsla.search import exact
from vizsla.search.chain import Chain
from vizsla.search.fusion import fused, joined
from vizsla.search.ranking import Ranking
from vizsla.workspace import PROJECTION

SEEN = {"validate_on": "seen-classes"}


def configs(data: Path, home: Path, **options: Any) -> list[RunConfig]:
    known = {"weights": "random", "image_size": 32, "top_k": 5, "figures": 2, "validating": SEEN}
    both = ({"model": "tiny", "seed": 0}, {"model": "resnet18", "seed": 1})
    return [
        RunConfig(data=str(data), home=str(home), **{**known, **one, **options}) for one in both
    ]


@pytest.fixture(scope="module")
def joint(tinted: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    home = tmp_path_factory.mktemp("joint")
    return run_models(configs(tinted, home, refine="aqe(n=2)"), FusionConfig(weights="auto"))


def test_each_model_runs_and_they_are_fused(joint: RunResult, tinted: Path) -> None:
    rankings = [Ranking.load(one.run.folder / "ranking.parquet") for one in joint.members]
    record = json.loads(joint.result_path.read_text())
    weights = record["fusion"]["weights"]
    expected = fused(rankings, weights=weights)
    kept = Ranking.load(joint.run.folder / "ranking.parquet")
    assert kept.to_lists() == expected.to_lists()
    assert json.loads(joint.submission_path.read_text()) == kept.to_lists(5)
    assert record["model_name"] == "tiny+resnet18" == joint.model_name
    assert [one["model_name"] for one in record["members"]] == ["tiny", "resnet18"]
    assert [one["run"] for one in record["members"]] == [m.run.id for m in joint.members]
    assert sum(weights) == pytest.approx(1) and record["fusion"]["chosen_on"]["draws"] == 8
    assert record["refine"]["uses"] == "gallery" and "aqe" in record["refine"]["chain"]
    assert (record["validation"]["chosen"], record["validation"]["draws"]) == ("fusion", 8)
    assert record["map"] == pytest.approx(joint.scores.mean("map"), abs=1e-4)  # type: ignore[union-attr]
    assert len(joint.figure_paths) == 2 and not joint.members[0].figure_paths
    assert {"top_k_accuracy", "pooling_type", "loss_function", "data_id"} <= record.keys()
    assert storage.read_sealed_json(joint.result_path)["map"] == record["map"]  # as of any run


def test_the_joint_run_can_be_shown_evaluated_and_reported(joint: RunResult, tinted: Path) -> None:
    folder = str(joint.run.folder)
    for words in (
        ["evaluate", folder, "--calibrate", "--target-precision", "0.5"],
        ["show", folder, "--data", str(tinted), "--random", "1", "-o", f"{folder}/sheets"],
        ["report", folder, "-o", f"{folder}/report.html", "--map", "pca"],
        ["submission", f"{folder}/ranking.parquet", "-k", "3", "-o", f"{folder}/s.json"],
    ):
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    page = (Path(folder) / "report.html").read_text()
    weight = joint.record["members"][0]["weight"]
    assert "Their rankings are joined by zscore" in page and f"{weight:.3f}" in page


def test_why_of_a_joint_run_is_of_its_heaviest_model(
    joint: RunResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["show", str(joint.run.folder), "--random", "1", "-k", "1", "--why"]
    logging.getLogger("vizsla").propagate = True  # which the command line turns off
    with caplog.at_level(logging.INFO, logger="vizsla"):
        done = CliRunner().invoke(app, [*words, "-o", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0 and len(list(tmp_path.glob("*.png"))) == 1
    weights = joint.record["fusion"]["weights"]
    first, second = sorted(joint.members, key=lambda one: -weights[joint.members.index(one)])
    said = next(one for one in caplog.messages if "heat map" in one)
    assert f"joins 2 models, and a heat map is of one: these are of {first.model_name}" in said
    assert f"--model {second.run.folder}: of {second.model_name}" in said


def test_new_vectors_are_ranked_as_the_joint_run_ranked(joint: RunResult) -> None:
    members, fusion = members_of(joint.run.folder)
    assert isinstance(fusion.weights, list)  # as they were chosen
    parts = [[m.embeddings(role) for m in members] for role in ("query", "gallery")]
    assert ranker(members, fusion)(*parts).to_lists() == joint.ranking.to_lists()
    assert members_of(joint.members[0].run.folder)[0] == []


def test_a_joint_run_is_searched_by_all_of_its_models(joint: RunResult, tinted: Path) -> None:
    run, queries = joint.run.folder, tinted / "test" / "query"
    alike = [exact.rank(*map(Member.of(one.run.folder).embeddings, ("query", "gallery")))
             for one in joint.members]  # fmt: skip
    weights = joint.record["fusion"]["weights"]
    expected = fused(alike, weights=weights).to_lists(5)
    found = search(run, queries, top_k=5)
    assert found.to_lists() == expected and found.origin["searched_as"] == "zscore"
    names = [queries / name for name in found.queries]
    pictures = [Image.open(name) for name in names]
    stored = Embeddings.open(run / "embeddings" / "query")
    for given, atol in (([str(name) for name in names], 1e-4), (stored, 1e-4), (pictures, 3e-3)):
        np.testing.assert_allclose(search(run, given, top_k=5).scores, found.scores, atol=atol)
    for options, message in (
        ({"model": "tiny"}, "is searched by its 2 models: leave out model and"),
        ({"query_tiles": "1+2x2"}, "2 models, which see whole queries: leave out query_tiles"),
        ({"refine": "aqe"}, "was fused by zscore: leave it out, or fuse the runs by concat"),
    ):
        with pytest.raises(UsageError, match=message):
            search(run, queries, **options)
    with pytest.raises(UsageError, match=f"run of 2 models: give .*{joint.members[0].run.id}, "):
        load_embedder(ModelChoice(model=str(run)))


def test_a_joint_run_is_repeated(joint: RunResult) -> None:
    found = several_models.joint_configs(joint.run.folder)
    assert found is not None
    again, fusion = found
    assert [c.model for c in again] == ["tiny", "resnet18"] and fusion.weights == "auto"
    second = run_models(again, fusion)
    assert second.ranking.to_lists() == joint.ranking.to_lists()
    assert several_models.joint_configs(joint.members[0].run.folder) is None


def test_a_joint_run_is_repeated_on_data_that_moved(joint: RunResult, tinted: Path) -> None:
    found = several_models.joint_configs(joint.run.folder, data="elsewhere")
    assert found is not None
    for config in found[0]:
        assert config.data == str(Path("elsewhere").absolute())
        assert config.labels == str(Path("elsewhere").absolute() / "labels.csv")


def test_concat_whitens_and_refines_the_joint_vectors(joint: RunResult) -> None:
    members = [Member.of(one.run.folder) for one in joint.members]
    plain = fuse_runs(members, FusionConfig("concat", [3, 1], whiten="none"))
    vectors = [[m.embeddings(r).vectors for r in ("query", "gallery")] for m in members]
    cosines = sum(w * q @ g.T for w, (q, g) in zip((0.75, 0.25), vectors, strict=True))
    order = np.argsort(-cosines, axis=1, kind="stable")
    agree = (plain.ranking.positions == order).mean()
    assert agree > 0.98  # but for ties in the last bits
    white = fuse_runs(members, FusionConfig("concat", whiten="shrunk", refine="auto"))
    assert (
        white.refinement_choice is not None and white.ranking.to_lists() != plain.ranking.to_lists()
    )
    assert white.record()["whiten"] == "shrunk"


def test_a_head_of_the_joint_vectors_is_fitted_to_the_classes(
    joint: RunResult, tinted: Path, tmp_path: Path
) -> None:
    members = [Member.of(one.run.folder) for one in joint.members]
    fusion = FusionConfig("concat", [3, 1], whiten="classes 0.1")
    found = fuse_runs(members, fusion)
    images = open_data(tinted).training
    assert images is not None
    training = joined([m.embed(images, "training", None) for m in members], [3, 1])
    classes = np.unique(training.labels, return_inverse=True)[1]
    head = closed_forms(training.vectors, classes)["classes 0.1"]
    queries, gallery = (
        project(head, joined([m.embeddings(role) for m in members], [3, 1]).vectors)
        for role in ("query", "gallery")
    )
    order = np.argsort(-(queries @ gallery.T).numpy(), axis=1, kind="stable")
    assert (found.ranking.positions == order).mean() > 0.98  # but for ties in the last bits
    plain = fuse_runs(members, FusionConfig("concat", [3, 1], whiten="none")).ranking
    assert found.ranking.to_lists() != plain.to_lists()
    config = dataclasses.replace(members[0].config, home=str(tmp_path))
    run = several_models.joint_run(members, config, fusion).run
    kept = load_projection(run.folder / PROJECTION)
    assert Embeddings.open(run.folder / "embeddings" / "query").model_id.endswith("/classes 0.1")
    np.testing.assert_array_equal(
        project(kept, training.vectors).numpy(), project(head, training.vectors).numpy()
    )
    (run.folder / PROJECTION).write_bytes(b"no projection")
    with pytest.raises(ModelError, match=r"projection.safetensors is no saved projection"):
        load_projection(run.folder / PROJECTION)


def test_a_model_beside_the_head_of_the_others_keeps_its_own_cosines(
    joint: RunResult, tinted: Path, tmp_path: Path
) -> None:
    members = [Member.of(one.run.folder) for one in joint.members]
    fusion = FusionConfig("concat", [3, 1], whiten="whitened 0.9", beside=1)
    config = dataclasses.replace(members[0].config, home=str(tmp_path))
    run = several_models.joint_run(members, config, fusion).run
    images = open_data(tinted).training
    assert images is not None
    training = members[0].embed(images, "training", None)  # the head learns from the first alone
    classes = np.unique(training.labels, return_inverse=True)[1]
    head = closed_forms(training.vectors, classes)["whitened 0.9"]
    cosines = []
    for member, by in zip(members, (head, torch.nn.Identity()), strict=True):
        queries, gallery = (
            F.normalize(by(torch.from_numpy(member.embeddings(role).vectors)), dim=1).detach()
            for role in ("query", "gallery")
        )
        cosines.append(queries @ gallery.T)
    queries, gallery = (
        Embeddings.open(run.folder / "embeddings" / role).vectors for role in ("query", "gallery")
    )
    expected = 0.75 * cosines[0] + 0.25 * cosines[1]
    np.testing.assert_allclose(queries @ gallery.T, expected.numpy(), atol=1e-5)
    both = joined([member.embeddings("query") for member in members], [3, 1]).vectors
    kept = load_projection(run.folder / PROJECTION)
    np.testing.assert_allclose(project(kept, both).numpy(), queries, atol=1e-6)
    parts = [
        [projected(members[0].embeddings(role), head, "whitened 0.9"), members[1].embeddings(role)]
        for role in ("query", "gallery")
    ]
    ranked = fused_runs.ranked_by_joined([0.75, 0.25], "m", Chain())(*parts)
    stored = Ranking.load(run.folder / "ranking.parquet")
    assert ranked.queries == stored.queries and ranked.origin["model_id"] == "m"
    np.testing.assert_allclose(ranked.scores, stored.scores, atol=1e-5)
    assert run.config["fusion"]["beside"] == 1  # it is repeated so
    with pytest.raises(UsageError, match="give fewer than there are models"):
        fuse_runs(members, dataclasses.replace(fusion, beside=2))


def test_validation_chooses_the_projection_of_joint_vectors(joint: RunResult) -> None:
    members = [Member.of(one.run.folder) for one in joint.members]
    done = several_models.joint_run(members, members[0].config, FusionConfig("concat"))
    choice = done.fusion_choice
    assert choice is not None and choice.without in choice.report.references
    assert {t.name for t in choice.report.references} == {"tiny alone", "resnet18 alone"}
    names = {trial.name for trial in choice.report.trials}
    assert {"concat(none)", "concat(centred)", "concat(whitened 0.6)"} <= names
    safe = [t for t in choice.report.trials if t.is_safe and not t.is_reference]
    best = max(safe, key=lambda trial: trial.value)
    assert best.name == f"concat({choice.whiten})"
    assert done.record["fusion"]["whiten"] == choice.whiten
    assert f"projection {choice.whiten}" in choice.lines()[-1]
    _, fusion = members_of(done.run.folder)
    assert fuse_runs(members, fusion).ranking.to_lists() == done.ranking.to_lists()


def test_a_projection_is_chosen_on_images_that_it_was_not_fitted_to(
    joint: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [Member.of(one.run.folder) for one in joint.members]
    fitted_to: list[set[str]] = []
    make = fused_runs.projection_makers

    def noted(training: Embeddings, **options: Any) -> Any:
        fitted_to.append(set(training.ids))
        return make(training, **options)

    monkeypatch.setattr(fused_runs, "projection_makers", noted)
    held: list[set[str]] = []
    choose = fused_runs.choose_projection

    def chosen(vectors: Embeddings, on: Any, *args: Any, **options: Any) -> Any:
        used = {vectors.ids[i] for draw in on.draws for i in (*draw.query, *draw.gallery)}
        held.append(used)
        return choose(vectors, on, *args, **options)

    monkeypatch.setattr(fused_runs, "choose_projection", chosen)
    found = fuse_runs(members, FusionConfig("concat", refine="auto"))
    assert held[0] and fitted_to[0] and not held[0] & fitted_to[0]
    assert found.refinement_choice is not None
    assert found.refinement_choice.report.tried_on == found.fusion_choice.report.tried_on  # type: ignore[union-attr]


def test_a_head_that_was_chosen_is_fitted_to_whatever_images_there_are() -> None:
    few = Embeddings.from_arrays(np.eye(4), labels=["a", "b", "c", "d"])
    assert [*projection_makers(few)] == ["centred"]  # nothing else is offered
    for kind in ("whitened 0.6", "classes 0.1"):
        vectors = project(fitted_projection(few, kind), few.vectors).numpy()
        assert np.isfinite(vectors).all()
    with pytest.raises(DataError, match="no training image has a label"):
        fitted_projection(Embeddings.from_arrays(np.eye(4)), "centred")


def test_where_no_projection_can_be_chosen_there_is_none(
    joint: RunResult, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise DataError("too few classes")

    monkeypatch.setattr(fused_runs, "held_out", refused)
    members = [Member.of(one.run.folder) for one in joint.members]
    found = fuse_runs(members, FusionConfig("concat"))
    assert found.fusion.whiten == "none" and found.projection is None
    assert "no projection of the joint vectors can be chosen: too few classes" in caplog.text


def test_fuse_writes_a_ranking(joint: RunResult, tmp_path: Path) -> None:
    folders = [str(one.run.folder) for one in joint.members]

    def fuse(*words: str) -> Any:
        words = ("fuse", *folders, "-o", str(tmp_path / "f.parquet"), *words)
        return CliRunner().invoke(app, list(words), catch_exceptions=False)

    rankings = [Ranking.load(Path(folder) / "ranking.parquet") for folder in folders]
    assert fuse("--fusion", "rrf", "--depth", "6").exit_code == 0
    kept = Ranking.load(tmp_path / "f.parquet")
    assert kept.to_lists() == fused(rankings, method="rrf", depth=6).to_lists()
    result = fuse("--fusion-weights", "auto", "--json")
    assert json.loads(result.stdout)["fusion"]["chosen_on"]["candidates"]
    result = fuse("--fusion", "auto", "--json")
    fusion = json.loads(result.stdout)["fusion"]
    tried = {one["fusion"].split("(")[0] for one in fusion["chosen_on"]["candidates"]}
    assert tried == {"zscore", "minmax", "rrf", "calibrated"} and fusion["method"] in tried
    kept = Ranking.load(tmp_path / "f.parquet")
    assert kept.origin["fusion"]["method"] == fusion["method"]
    result = fuse("--fusion", "concat")
    assert result.exit_code == 0 and "fused by concat, weights 0.5, 0.5" in result.stdout
    for words, message in [
        (["--fusion", "vote"], "zscore, minmax, rrf, calibrated, concat, auto"),
        (["--fusion-weights", "1,2,3"], "3 weights for 2"),
        (["--fusion-weights", "a,b"], "a number for each model"),
        (["--refine", "aqe"], "refine each run instead"),
        (["--fusion", "concat", "--fusion-weights", "auto"], "leave it out of concat"),
        (["--fusion", "concat", "--fusion-whiten", "bleach"], "shrunk"),
    ]:
        with pytest.raises(UsageError, match=message):
            fuse(*words)
    submission = joint.members[1].submission_path
    words = ["fuse", folders[0], str(submission), "--fusion", "rrf", "-o", str(tmp_path / "g")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    with pytest.raises(UsageError, match="two runs or rankings"):
        CliRunner().invoke(app, ["fuse", folders[0], "-o", "x"], catch_exceptions=False)
    with pytest.raises(DataError, match="itself made of several"):
        Member.of(joint.run.folder)


def test_run_takes_several_models(tinted: Path, tmp_path: Path) -> None:
    shared = ["run", str(tinted), "--image-size", "32", "--figures", "0", "--home", str(tmp_path)]
    models = ["--model", "tiny", "--model", "resnet18", "--weights", "random"]
    result = CliRunner().invoke(app, [*shared, *models, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["model_name"] == "tiny+resnet18" and len(found["members"]) == 2
    assert len(list((tmp_path / "results").glob("*.json"))) == 3
    assert len(list((tmp_path / "submissions").glob("sub_tiny-resnet18_*.json"))) == 1
    with pytest.raises(UsageError, match="3 --weights for 2 --model"):
        CliRunner().invoke(app, [*shared, *models, *["--weights", "random"] * 2],
                           catch_exceptions=False)  # fmt: skip
    if has_exact_int8():  # refused before a run of the first one
        known = {"model": "efficientnet-lite0", "weights": "pretrained", "image_size": None}
        both = configs(tinted, tmp_path / "int8", precision="int8")
        with pytest.raises(UsageError, match="and not for resnet18: choose"):
            run_models([dataclasses.replace(both[0], **known), both[1]], FusionConfig())
        assert not (tmp_path / "int8").exists()
    with pytest.raises(UsageError, match="twice or more"):
        words = ["--model", "tiny", "--weights", "random", "--fusion", "rrf"]
        CliRunner().invoke(app, [*shared, *words], catch_exceptions=False)


def test_broken_images_do_not_stop_it(tinted: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tinted, data)
    query = sorted((data / "test/query").iterdir())[0]
    query.write_bytes(b"")
    sorted((data / "test/gallery").iterdir())[3].write_bytes(b"no image")
    done = run_models(configs(data, tmp_path, figures=0), FusionConfig("rrf"))
    submission = json.loads(done.submission_path.read_text())
    assert len(submission) == 16 and len(set(submission[query.name])) == 5
    assert done.scores is not None and len(done.scores) == 16


def test_tiles_count_in_a_joint_ranking_and_are_never_left_out_in_silence(
    tinted: Path, tmp_path: Path
) -> None:
    untiled, tiled = configs(tinted, tmp_path, figures=0)
    both = [untiled, dataclasses.replace(tiled, tiles="2x2")]
    with pytest.raises(UsageError, match="vectors of whole images, but tiles is 2x2"):
        run_models(both, FusionConfig("concat"))
    assert not (tmp_path / "runs").exists()
    done = run_models(both, FusionConfig("rrf"))
    rankings = [member.ranking for member in done.members]
    assert [ranking.tiles is None for ranking in rankings] == [True, False]
    assert done.ranking.to_lists() == fused(rankings, method="rrf").to_lists()
    assert any("tiles count in this ranking, but not when" in line for line in done.warnings)
    with pytest.raises(UsageError, match=r"but tiles is 1\+2x2"):
        fuse_runs([Member.of(one.run.folder) for one in done.members], FusionConfig("concat"))


def test_runs_on_other_images_are_not_fused(joint: RunResult, tinted: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tinted, data)
    sorted((data / "test/gallery").iterdir())[0].unlink()
    from vizsla.run.pipeline import run

    other = run(configs(data, tmp_path, figures=0)[0])
    members = [Member.of(joint.members[0].run.folder), Member.of(other.run.folder)]
    with pytest.raises(DataError, match="ranked other images"):
        fuse_runs(members, FusionConfig())
    assert len(Embeddings.open(other.run.folder / "embeddings/gallery")) == 23
    assert exact.default_depth(23) == 23
