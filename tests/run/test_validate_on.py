"""`--validate-on auto` in runs: what is embedded for it, what is decided and written down."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla.choose.seen_classes import SeenShare
from vizsla.data.data_folders import open_data
from vizsla.data.demo import make_demo
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.run import earlier_training, validate_on
from vizsla.run.accepting import CALIBRATION
from vizsla.run.config import RunConfig, recorded_config
from vizsla.run.fused_runs import AUTO, FusionConfig
from vizsla.run.inputs import folders_of
from vizsla.run.members import Member
from vizsla.run.pipeline import run
from vizsla.run.several_models import run_models
from vizsla.run.train import train
from vizsla.score.calibration import Calibration

KINDS = [(0.9, "seen-classes"), (0.2, "new-classes")]
HEAD = {"finetune": "head", "head_steps": 2, "share": 0.6}


def config(data: Path, home: Path, **options: Any) -> RunConfig:
    known = {"model": "tiny", "weights": "random", "image_size": 32, "top_k": 5, "figures": 0}
    return RunConfig(data=str(data), home=str(home), **{**known, **options})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, low: float) -> list[tuple[int, list[str], int]]:
    """The calls of the estimate: training images, their classes, test images."""
    found: list[tuple[int, list[str], int]] = []

    def estimate(
        training: np.ndarray,
        labels: list[str],
        test: np.ndarray,
        *,
        all_labels: list[str],
        seed: int,
    ) -> SeenShare:
        assert len(set(all_labels)) == 4
        found.append((len(training), sorted(set(labels)), len(test)))
        return SeenShare(1.0, low, 1.1)

    monkeypatch.setattr(validate_on, "seen_share", estimate)
    return found


def nothing_more(*_: object, **__: object) -> Embeddings:
    raise AssertionError("images were embedded for the estimate alone")


ALL = (24, ["any", "blue", "green", "red & <b>"], 40)  # of the tinted images


@pytest.mark.parametrize(("low", "kind"), KINDS)
def test_a_choice_without_training_is_decided_by_the_vectors_that_it_needs(
    kind: str, asked: list[Any], tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate_on, "embed", nothing_more)
    done = run(config(tinted, tmp_path, refine="auto"))
    assert asked == [ALL]
    assert {p.name for p in (done.run.folder / "embeddings").iterdir()} == {
        "query", "gallery", "validation",
    }  # fmt: skip
    assert recorded_config(done.run.folder).training.validate_on == kind
    assert f"validating on {kind}" in (done.run.folder / "log.txt").read_text()


@pytest.mark.parametrize("low", [0.9])
def test_nothing_is_asked_where_nothing_is_chosen(
    asked: list[Any], tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate_on, "embed", nothing_more)
    done = run(config(tinted, tmp_path, refine="aqe"))
    assert not asked
    assert {p.name for p in (done.run.folder / "embeddings").iterdir()} == {"query", "gallery"}


@pytest.mark.parametrize(("low", "kind"), KINDS)
def test_a_training_is_decided_by_a_sample(
    kind: str, asked: list[Any], tinted: Path, tmp_path: Path
) -> None:
    done = run(config(tinted, tmp_path, tuning=HEAD))
    assert asked == [ALL]
    written = recorded_config(done.run.folder)
    assert written.training.validate_on == kind
    assert written.training.learning_rate == {"seen-classes": 2e-4, "new-classes": 1e-4}[kind]
    assert f"held out ({kind})" in (done.run.folder / "log.txt").read_text()


@pytest.mark.parametrize("low", [0.9])
def test_a_folder_without_a_test_part_is_validated_on_new_classes(
    asked: list[Any], tinted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="vizsla")
    train(config(tinted / "training", tmp_path, tuning=HEAD), tmp_path / "out")
    assert not asked and "there is no test part to compare with" in caplog.text
    assert "held out (new-classes)" in caplog.text


@pytest.mark.parametrize(("low", "kind"), KINDS)
def test_fusion_weights_are_decided_by_the_first_models_vectors(
    kind: str, asked: list[Any], tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate_on, "embed", nothing_more)
    both = [config(tinted, tmp_path, seed=seed) for seed in (0, 1)]
    joint = run_models(both, FusionConfig(weights="auto"))
    assert asked == [ALL]
    assert f"validating on {kind}" in (joint.run.folder / "log.txt").read_text()
    chosen_on = json.loads(joint.result_path.read_text())["fusion"]["chosen_on"]
    assert chosen_on["draws"] >= 8


@pytest.mark.parametrize(("low", "kind"), KINDS[:1])
def test_test_images_that_are_query_and_gallery_count_once(kind: str, asked: list[Any]) -> None:
    labels = [str(i % 4) for i in range(40)]
    rows = np.random.default_rng(0).standard_normal((40, 8))
    training = Embeddings.from_arrays(rows, [*map(str, range(40))], labels)
    test = np.random.default_rng(1).standard_normal((30, 8))
    validate_on.validate_on_by_vectors(training, [test, test], all_labels=labels)
    assert asked[0][2] == 30


# ── domains ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos as queries and drawings as gallery; no training image says which it is."""
    folder = make_demo(tmp_path_factory.mktemp("drawn") / "data", classes=8)
    rows = (folder / "labels.csv").read_text().splitlines()
    kept = [row for row in rows if not row.startswith("training")]
    (folder / "labels.csv").write_text("\n".join(kept))
    return folder


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and the domains of the training images are known."""
    return make_demo(tmp_path_factory.mktemp("named") / "data", classes=8)


@pytest.mark.parametrize("options", [{"refine": "auto"}, {"tuning": HEAD}, {"accept": 0.5}])
def test_queries_and_gallery_of_validation_look_like_those_of_the_test_part(
    options: dict[str, Any], named: Path, tmp_path: Path
) -> None:
    done = run(config(named, tmp_path, **options))
    found = recorded_config(done.run.folder)
    assert (found.training.query_domain, found.training.gallery_domain) == ("photo", "drawn")
    assert found.domains is None
    text = (done.run.folder / "log.txt").read_text()
    assert "queries of the domain photo, a gallery of the domain drawn" in text


@pytest.mark.parametrize("refine", ["auto", "aqe"])
def test_decisions_are_learned_from_queries_and_a_gallery_that_look_so(
    refine: str, named: Path, tmp_path: Path
) -> None:
    done = run(config(named, tmp_path, refine=refine, accept=0.5))
    images = open_data(named).training
    assert images is not None
    domains = images.attributes["domain"].to_pylist()
    learned = Calibration.load(done.run.folder / CALIBRATION)
    assert learned.queries <= domains.count("photo") < len(domains)
    validation, calibration = (
        Embeddings.open(done.run.folder / "embeddings" / role)
        for role in ("validation", "calibration")
    )
    assert validation.ids == calibration.ids
    np.testing.assert_array_equal(validation.vectors, calibration.vectors)


@pytest.mark.parametrize("options", [{"refine": "auto"}, {"tuning": HEAD}, {"accept": 0.5}])
def test_images_without_a_domain_are_assigned_and_this_is_kept(
    options: dict[str, Any], drawn: Path, named: Path, tmp_path: Path
) -> None:
    done = run(config(drawn, tmp_path, **options))
    found = recorded_config(done.run.folder)
    assert found.training.query_domain == "like the queries" and found.domains is not None
    images, truth = folders_of(found).training, open_data(named).training
    assert images is not None and truth is not None
    like = {"photo": "like the queries", "drawn": "like the gallery"}
    right = [
        like[str(b)] == a
        for a, b in zip(
            images.attributes["domain"].to_pylist(),
            truth.attributes["domain"].to_pylist(),
            strict=True,
        )
    ]
    assert np.mean(right) > 0.95
    second = run(found)  # decides nothing, and keeps what it was given
    assert second.ranking.to_lists() == done.ranking.to_lists()
    kept = folders_of(recorded_config(second.run.folder)).training
    assert kept is not None and kept.attributes.equals(images.attributes)


def test_many_images_are_all_assigned_though_a_sample_decides(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate_on, "MOST_POOL", 60)
    monkeypatch.setattr(validate_on, "TRAINING_IMAGES", 50)
    done = run(config(drawn, tmp_path, refine="auto"))
    found = recorded_config(done.run.folder)
    assert found.training.query_domain == "like the queries"
    images = folders_of(found).training
    assert images is not None and len(images) > 60
    assert None not in images.attributes["domain"].to_pylist()


def test_a_training_part_of_one_kind_is_said(drawn: Path, tmp_path: Path) -> None:
    data = shutil.copytree(drawn, tmp_path / "data")
    for path in data.glob("training/*/photo_*"):
        path.unlink()
    done = run(config(data, tmp_path, refine="auto"))
    assert recorded_config(done.run.folder).training.query_domain is None
    text = (done.run.folder / "log.txt").read_text()
    assert "too few training classes have images of both kinds" in text


# ── models that were trained before ──────────────────────────────────────────────────────────────


def trained(data: Path, out: Path, model: Path | None = None, **options: Any) -> dict[str, Any]:
    """The model that a head was fitted after, on all but what is held out."""
    seed = options.pop("seed", 0)
    start = of(model) if model else {}
    train(config(data, out, seed=seed, tuning={**HEAD, **options}, **start), out)
    return of(out / "embedder")


def of(folder: Path) -> dict[str, Any]:
    return {"model": str(folder), "weights": "pretrained", "image_size": None}


SPLITS = [
    {"validate_on": "seen-classes", "seed": 1, "share": 0.4},
    {"validate_on": "new-classes", "seed": 1},
]


@pytest.mark.parametrize("options", SPLITS)
def test_choices_of_a_model_that_was_trained_use_images_that_its_training_held_out(
    options: dict[str, Any], trained_on: list[set[str]], tinted: Path, tmp_path: Path
) -> None:
    model = trained(tinted, tmp_path / "out", **options)
    (seen,) = trained_on
    chosen = run(config(tinted, tmp_path, refine="auto", tiles="auto", **model)).run.folder
    embeddings = chosen / "embeddings"
    for role in ("validation", "validation-tiles"):
        assert not seen & set(Embeddings.open(embeddings / role).ids)
    decided = recorded_config(chosen).training
    assert (decided.validate_on, decided.seed) == (options["validate_on"], options["seed"])
    run(config(tinted, tmp_path, tuning={**HEAD, "share": None}, **model))
    assert trained_on == [seen, seen]


def test_decisions_of_a_model_that_was_trained_are_learned_from_what_was_held_out(
    trained_on: list[set[str]], tinted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(tinted, tmp_path / "out", **SPLITS[0])
    done = run(config(tinted, tmp_path, accept=0.5, **model))
    assert not trained_on[0] & set(Embeddings.open(done.run.folder / "embeddings/calibration").ids)
    assert "learned on classes that the model was trained on" in caplog.text


def test_assigned_domains_of_a_training_are_used_again(
    trained_on: list[set[str]], drawn: Path, tmp_path: Path
) -> None:
    first = run(config(drawn, tmp_path, tuning={**HEAD, "share": 0.3}))
    again = trained(drawn, tmp_path / "out", share=0.3)
    (seen,) = {frozenset(ids) for ids in trained_on}
    for model in (of(first.run.folder), again):
        done = run(config(drawn, tmp_path, refine="auto", **model))
        assert recorded_config(done.run.folder).training.query_domain == "like the queries"
        assert not seen & set(Embeddings.open(done.run.folder / "embeddings/validation").ids)


def test_a_run_counts_as_tuned_only_on_images_that_its_model_has_seen(
    trained_on: list[set[str]], tinted: Path, named: Path, tmp_path: Path
) -> None:
    model = trained(tinted, tmp_path / "a")
    for folder, is_tuned in ((named, False), (tinted, True)):
        done = run(config(folder, tmp_path, **model))
        assert "kept" in json.loads(done.result_path.read_text())["training"]
        assert Member.of(done.run.folder).is_tuned == is_tuned


def test_models_that_held_out_different_images_are_not_validated_together(
    trained_on: list[set[str]], tinted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = [
        trained(tinted, tmp_path / kind, validate_on=kind)
        for kind in ("seen-classes", "new-classes")
    ]
    assert trained_on[0] != trained_on[1]
    run_models([config(tinted, tmp_path, **model) for model in models[:1] * 2], FusionConfig(AUTO))
    assert "may have been trained" not in caplog.text
    with pytest.raises(DataError, match="held out different images, so that none is new to all"):
        run_models([config(tinted, tmp_path, **model) for model in models], FusionConfig(AUTO))


def test_other_images_than_those_of_a_training_are_all_new(
    trained_on: list[set[str]], tinted: Path, named: Path, tmp_path: Path
) -> None:
    first = trained(tinted, tmp_path / "a", **SPLITS[0])
    embedder = Embedder.load(first["model"])
    for folder, is_new in ((named, True), (tinted, False)):
        images = open_data(folder).training
        assert images is not None
        assert (earlier_training.held_out_before(embedder.origin, images) == {}) == is_new
    second = trained(named, tmp_path / "b", Path(first["model"]), validate_on="new-classes")
    origin = Embedder.load(second["model"]).origin
    found = [
        earlier_training.held_out_before(origin, images)
        for images in (open_data(tinted).training, open_data(named).training)
        if images is not None
    ]
    assert [own and own["validate_on"] for own in found] == ["seen-classes", "new-classes"]
    assert len(trained_on) == 2


@pytest.mark.usefixtures("trained_on")
def test_it_warns_where_images_that_a_training_has_seen_may_be_held_out(
    tinted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(tinted, tmp_path / "out", **SPLITS[0])
    warning = "may have been trained on images that validation holds out"
    asked = {"validate_on": "new-classes"}
    run(config(tinted, tmp_path, validating=asked, **model))  # chooses nothing
    assert warning not in caplog.text
    run(config(tinted, tmp_path, tiles="auto", validating=asked, **model))
    assert caplog.text.count(warning) == 1
    caplog.clear()
    embedder = Embedder.load(model["model"])
    assert embedder.origin.training is not None
    del embedder.origin.training["trained_on"]  # as of an earlier version
    embedder.save_origin(model["model"])
    run(config(tinted, tmp_path, tiles="auto", **model))
    assert caplog.text.count(warning) == 1
