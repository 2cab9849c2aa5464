"""--accept, from a run to what other commands do with its calibration."""

import colorsys
import dataclasses
import json
import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vizsla
from vizsla import storage
from vizsla.cli.main import app
from vizsla.data.data_folders import open_data
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target, held_out
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.projection import AnyProjection
from vizsla.options import GalleryOptions
from vizsla.run import accepting, finished_run, functions, fused_runs, pipeline, several_models
from vizsla.run.accepting import CALIBRATION, Accept, ClosedForm
from vizsla.run.config import RunConfig, recorded_config
from vizsla.run.finish import RunResult
from vizsla.run.fused_runs import FusionConfig
from vizsla.run.members import Member
from vizsla.score.calibration import Calibration
from vizsla.search import exact
from vizsla.search.ranking import Ranking
from vizsla.train.selection import Candidate as TrainedCandidate
from vizsla.web.search.models import SearchRequest
from vizsla.web.search.server import GallerySource, prepare
from vizsla.web.search.service import ServerState

CLASSES, ABSENT = 24, 6  # colours; of the test classes so many are not in the gallery
CLASS_NAMES = {f"t{i}" for i in range(CLASSES)}  # of the training images


def paint(path: Path, label: int, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hue, value = label % 12 / 12, 0.9 if label < 12 else 0.5
    colour = np.array(colorsys.hsv_to_rgb(hue, 0.9, value)) * 255
    pixels = np.clip(colour + rng.normal(size=(24, 24, 3)) * 10, 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    rows = ["role,file,label,thing"]
    for label in range(CLASSES):
        for i in range(8):
            paint(home / f"data/training/t{label}/{i}.png", label, rng)
    for label in range(12):
        for role, n in (("query", 2), ("gallery", 3 * (label >= ABSENT))):
            for i in range(n):
                paint(home / f"data/test/{role}/{label}_{i}.png", label, rng)
                rows.append(f"{role},{label}_{i}.png,{label},the {label}")
    (home / "data/labels.csv").write_text("\n".join(rows) + "\n")
    return home


def config(home: Path, **more: object) -> RunConfig:
    options = {"model": "tiny", "weights": "random", "figures": 0, "accept": 0.7, **more}
    return RunConfig(data=str(home / "data"), home=str(home), **options)


@pytest.fixture(scope="module")
def accepted(home: Path) -> RunResult:
    return pipeline.run(config(home))


def test_a_run_decides_what_is_there(accepted: RunResult) -> None:
    ranking, scores = accepted.ranking, accepted.scores
    assert ranking.accepted is not None and scores is not None
    absent = np.array([int(name.split("_")[0]) < ABSENT for name in ranking.queries])
    assert (ranking.accepted[~absent] > 0).mean() > (ranking.accepted[absent] > 0).mean() + 0.4
    assert scores["known_auroc"].mean == pytest.approx(1, abs=0.2)
    stored = Ranking.load(accepted.run.folder / "ranking.parquet")
    assert stored.accepted is not None and stored.probability is not None
    assert stored.accepted.tolist() == ranking.accepted.tolist()
    assert np.array_equal(stored.probability, ranking.probability, equal_nan=True)
    record = json.loads(accepted.result_path.read_text())
    assert record["accept"]["sure"] == 0.7 and "accepted_precision" in record["scores"]
    assert (
        accepted.to_dict()["accept"]["cutoff"]["estimate"] == ranking.origin["accept"]["estimate"]
    )
    lists = json.loads(accepted.submission_path.read_text())
    assert {len(row) for row in lists.values()} == {10}  # a contest wants k of each


def test_decisions_made_later_are_those_of_the_run(home: Path, tmp_path: Path) -> None:
    first = pipeline.run(config(home))
    assert first.calibration is not None and first.ranking.evidence is not None
    assert first.calibration.model.needs_evidence
    file = first.run.folder / "ranking.parquet"
    stored = dataclasses.replace(Ranking.load(file), accepted=None, probability=None)
    again = Accept.parse(f"{first.run.folder}@0.7").load(file).decide(stored)
    assert again.accepted is not None and first.ranking.accepted is not None
    assert again.accepted.tolist() == first.ranking.accepted.tolist()
    later = pipeline.run(config(home, accept=None))  # decided afterwards
    assert later.ranking.evidence is None
    learned = finished_run.calibrate_run(later.run.folder, sure=0.7)
    assert learned.levels == first.calibration.levels
    decided = learned.decide(Ranking.load(later.run.folder / "ranking.parquet"))
    assert np.array_equal(decided.accepted, again.accepted)


def test_without_other_images_decisions_are_by_scores_alone(home: Path) -> None:
    alone = pipeline.run(config(home, refine_uses="nothing"))
    assert alone.ranking.evidence is None and alone.calibration is not None
    assert not alone.calibration.model.needs_evidence
    by_gallery = pipeline.run(config(home, refine_uses="gallery"))
    assert by_gallery.ranking.evidence is not None
    assert by_gallery.ranking.origin["queries_near"] == 0.0


def test_items_are_decided_by_the_mean_of_their_pictures(home: Path) -> None:
    done = pipeline.run(config(home, query_group="thing", group_by="thing"))
    items = done.item_scores
    assert items is not None and len(items) == 12 and done.scores is not None
    answered, absent = items.mean("accepted_recall"), items.mean("unknown_answered")
    assert answered is not None and absent is not None and answered > 0.5 > absent
    with pytest.raises(UsageError, match="by the mean of their scores: leave out"):
        pipeline.run(config(home, query_group="thing", query_join="max"))


def test_the_report_shows_decisions(accepted: RunResult, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    words = ["report", str(accepted.run.folder), "-o", str(page), "--map", "pca"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert re.search(r"sure from an estimate of [\d.]+\d\. For the others", text)
    assert "queries have an accepted match" in text and "Are the probabilities true?" in text
    assert ' below">' in text and " accepted</p>" in text


def test_a_run_is_repeated_with_its_decisions(accepted: RunResult) -> None:
    second = pipeline.run(recorded_config(accepted.run.folder))
    assert second.ranking.accepted is not None and accepted.ranking.accepted is not None
    assert second.ranking.accepted.tolist() == accepted.ranking.accepted.tolist()


def test_a_saved_calibration_decides_another_run(accepted: RunResult, home: Path) -> None:
    file = f"{accepted.run.folder}@0.3"
    other = pipeline.run(config(home, accept=file))
    assert other.calibration == accepted.calibration.with_sure(0.3)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="the calibration is for scores of model"):
        pipeline.run(config(home, accept=file, seed=1))
    with pytest.raises(DataError, match=r"this ranking is of model .* refined by aqe"):
        pipeline.run(config(home, accept=file, refine="aqe"))


def test_several_models_decide_together(home: Path) -> None:
    configs = [config(home), config(home, seed=1)]
    joint = several_models.run_models(configs, FusionConfig("calibrated"))
    assert joint.calibration is not None and joint.ranking.accepted is not None
    assert joint.calibration.made_by["fusion"] == "calibrated"
    assert all((one.run.folder / CALIBRATION).is_file() for one in joint.members)
    assert all(one.calibration is None for one in joint.members)
    assert Calibration.load(joint.run.folder / CALIBRATION) == joint.calibration
    found = several_models.joint_configs(joint.run.folder)
    assert found is not None and {one.accept for one in found[0]} == {0.7}


def test_searches_of_a_refined_or_joint_run_are_decided_by_their_own_scores(home: Path) -> None:
    refined = pipeline.run(config(home, refine="aqe"))
    joint = several_models.run_models(
        [config(home, refine="aqe"), config(home, seed=1)], FusionConfig("minmax", [3, 1])
    )
    for done in (refined, joint):
        assert done.calibration is not None and done.calibration.of_searches is not None
        assert Calibration.load(done.run.folder / CALIBRATION) == done.calibration
    own = refined.calibration
    assert own is not None and own.cutoff is not None
    found = vizsla.search(refined.run.folder, home / "data/test/query", accept=0.6)
    plain = own.for_scores_of({"model_id": refined.record["model_id"]})
    assert plain.made_by["refine"] == "none" != own.made_by["refine"]
    assert found.accepted is not None and plain.with_sure(0.6).cutoff is not None
    cutoff = plain.with_sure(0.6).to_dict()["cutoff"]
    assert found.origin["accept"] == {"sure": 0.6, "estimate": cutoff["estimate"]}
    folder, accept = joint.run.folder, str(joint.run.folder) + "@0.6"
    with closing(
        prepare(GallerySource(folder, GalleryOptions(accept=accept)), ServerState())
    ) as engine:
        assert engine.calibration is not None
        assert engine.calibration.made_by["searched_as"] == "minmax"
        answered = []
        for absent in (False, True):
            label = 0 if absent else ABSENT
            hits = engine.answer(
                SearchRequest(k=3), [(home / f"data/test/query/{label}_0.png").read_bytes()]
            ).results
            answered.append(bool(hits[0].accepted))
        assert answered == [True, False]


def test_fuse_decides_by_what_it_learns_or_by_a_file(home: Path, tmp_path: Path) -> None:
    runs = [str(pipeline.run(config(home, accept=None, seed=seed)).run.folder) for seed in (0, 1)]
    out, file = tmp_path / "f.parquet", tmp_path / "c.json"

    def fuse(*words: str) -> Ranking:
        words = ("fuse", *runs, "-o", str(out), "--json", *words)
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert json.loads(done.stdout)["accept"]["queries"] > 50
        return Ranking.load(out)

    by = ("--fusion", "calibrated")
    learned = fuse("--accept", "0.7", *by, "--write-calibration", str(file))
    assert learned.accepted is not None and 0 < (learned.accepted > 0).mean() < 1
    again = fuse("--accept", f"{file}@0.7", *by, "--depth", "5")
    assert again.accepted is not None
    assert again.accepted.tolist() == np.minimum(learned.accepted, 5).tolist()
    with pytest.raises(DataError, match=r"fused by calibrated .* this ranking is .* by minmax"):
        fuse("--accept", str(file), "--fusion", "minmax")
    with pytest.raises(UsageError, match="option of --accept"):
        fuse("--write-calibration", str(file))


def test_whitening_that_was_fitted_to_the_images_it_learns_from_is_refused(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match=r"give (--)?whiten none"):
        pipeline.run(config(home, whiten="shrunk"))
    white = pipeline.run(config(home, whiten="shrunk", accept=None))
    folders = [pipeline.run(config(home, accept=None)).run.folder, white.run.folder]
    with pytest.raises(UsageError, match=r"give (--)?whiten none"):  # one is enough
        fused_runs.joint_calibration(
            [Member.of(f) for f in folders], FusionConfig(), 0.7, white.ranking
        )
    tried = fused_runs.fuse_runs([Member.of(f) for f in folders], FusionConfig("auto"))
    assert tried.fusion.method != "calibrated" and "does not try calibrated" in caplog.text


@pytest.mark.parametrize("kind", ["new-classes", "seen-classes"])
def test_a_tuned_model_with_few_held_out_classes_is_warned_of(
    kind: str,
    accepted: RunResult,
    home: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_class = []

    class Judged:
        def calibration(self, **options: Any) -> Calibration | None:
            by_class.append(options["by_class"])
            return accepted.calibration

    monkeypatch.setattr(accepting, "judged_draws", lambda *_: Judged())
    is_new = kind == "new-classes"  # else all classes were trained on
    for tuned in (False, True):
        accepting.learn_calibration(
            config(home, tuning={"finetune": "head", "validate_on": kind}),
            open_data(home / "data"), Target(24, 18), [],
            tuned=tuned, sure=0.7, rank=exact.rank,
        )  # fmt: skip
        warned = bool(re.search(r"only the \d classes .* hold out more", caplog.text))
        assert warned is by_class[-1] is (tuned and is_new)
        assert (accepting.KNOWN_CLASSES in caplog.text) is (tuned and not is_new)


@pytest.fixture
def fitted_to(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The training images that each projection is fitted to again, while a calibration learns."""
    found: list[list[str]] = []
    fit = accepting.fitted_projection

    def noted(vectors: Embeddings, kind: str) -> AnyProjection:
        found.append(list(vectors.ids))
        return fit(vectors, kind)

    monkeypatch.setattr(accepting, "fitted_projection", noted)
    return found


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[accepting.Part]:
    """What a calibration learns from."""
    found: list[accepting.Part] = []
    judge = accepting.judged_draws

    def noted(vectors: Any, images: Any, draws: Any, rank: Any) -> Any:
        found.append(accepting.Part(vectors, images, draws))
        return judge(vectors, images, draws, rank)

    monkeypatch.setattr(accepting, "judged_draws", noted)
    return found


def classes_of(ids: Iterable[str]) -> set[str]:
    return {name.split("/")[0] for name in ids}


def asked_and_found(part: accepting.Part) -> tuple[set[str], set[str]]:
    """The queries and the galleries of the draws."""
    ids = part.images.ids
    queries, galleries = (
        {ids[i] for draw in part.draws for i in getattr(draw, side)}
        for side in ("query", "gallery")
    )
    return queries, galleries


def assert_seen_classes_are_new_images(
    fitted_to: list[list[str]], judged: list[accepting.Part]
) -> None:
    """No projection has seen an image of its draws; only classes that it has not seen are absent
    from the galleries."""
    assert len(fitted_to) == 5
    for ids, part in zip(fitted_to, judged, strict=True):
        queries, galleries = asked_and_found(part)
        assert not (queries | galleries) & {*ids} and classes_of(galleries) <= classes_of(ids)
        for draw in part.draws:
            asked, gallery = (
                [part.images.ids[i] for i in side] for side in (draw.query, draw.gallery)
            )
            absent = [name for name in asked if classes_of([name]) - classes_of(ids)]
            assert 2 * len(absent) == len(asked) > 0
            assert classes_of({*asked} - {*absent}) <= classes_of(gallery)


@pytest.mark.parametrize("kind", ["new-classes", "seen-classes"])
def test_a_projection_is_fitted_again_without_the_classes_of_the_queries(
    kind: str,
    home: Path,
    fitted_to: list[list[str]],
    judged: list[accepting.Part],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuning = {"finetune": "head", "validate_on": kind, "head_steps": 1}
    is_whitened = property(lambda candidate: candidate.name == "whitened 0.9")
    monkeypatch.setattr(TrainedCandidate, "beats_frozen", is_whitened)
    done = pipeline.run(config(home, tuning=tuning))
    assert done.tuned is not None and done.tuned.kept.name == "whitened 0.9"
    assert len(fitted_to) == 5 and all(len(classes_of(ids)) in (19, 20) for ids in fitted_to)
    assert set.union(*map(classes_of, fitted_to)) == CLASS_NAMES
    found = done.calibration
    assert found is not None and found.by_class is (kind == "new-classes")
    assert found.made_by["model_id"] == done.ranking.origin["model_id"]
    if kind == "new-classes":
        assert 6 * CLASSES < found.queries <= 8 * CLASSES  # most of the training images
    else:
        assert_seen_classes_are_new_images(fitted_to, judged)
    again = finished_run.calibrate_run(done.run.folder, sure=0.7)
    assert again == found
    embedder = Embedder.load(done.run.folder / "embedder")
    own = config(home, tuning=tuning)
    assert ClosedForm.of(embedder, own, no_vectors) is not None
    for other in ({"dim": 4}, {"model": str(home)}):
        assert ClosedForm.of(embedder, dataclasses.replace(own, **other), no_vectors) is None


@pytest.mark.parametrize(("kind", "refine"), [("new-classes", "aqe"), ("seen-classes", "none")])
def test_the_head_of_joined_vectors_is_fitted_again(
    kind: str,
    refine: str,
    home: Path,
    fitted_to: list[list[str]],
    judged: list[accepting.Part],
) -> None:
    configs = [config(home, seed=seed, validating={"validate_on": kind}) for seed in (0, 1)]
    fusion = FusionConfig("concat", whiten="classes 0.3", refine=refine)
    done = several_models.run_models(configs, fusion)
    found = done.calibration
    assert found is not None and found.by_class is (kind == "new-classes")
    assert found.made_by["model_id"] == done.ranking.origin["model_id"]
    assert found.made_by["model_id"].endswith("/classes 0.3")
    assert (done.ranking.evidence is None) is bool(found.of_searches) is (refine != "none")
    if kind == "seen-classes":
        assert_seen_classes_are_new_images(fitted_to, judged)
    else:
        for ids, part in zip(fitted_to, judged[:5], strict=True):
            assert classes_of(asked_and_found(part)[0]) == CLASS_NAMES - classes_of(ids)
        absent = np.array([int(name.split("_")[0]) < ABSENT for name in done.ranking.queries])
        assert done.ranking.accepted is not None and done.ranking.probability is not None
        first = done.ranking.probability[:, 0]  # whether 0.7 is reached differs by processor
        assert first[~absent].mean() > first[absent].mean() + 0.4
    assert finished_run.calibrate_run(done.run.folder, sure=0.7) == found
    searched = functions.search(done.run.folder, home / "data" / "test" / "query", accept=0.7)
    assert searched.accepted is not None and searched.probability is not None
    accept = f"{done.run.folder}@0.7"
    source = GallerySource(done.run.folder, GalleryOptions(accept=accept))
    with closing(prepare(source, ServerState())) as engine:  # a search is not refined
        own = found.of_searches or found.without_evidence
        assert engine.calibration == own.with_sure(0.7)


def test_beside_a_tuned_network_a_head_is_fitted_to_what_that_was_trained_on(
    home: Path,
    fitted_to: list[list[str]],
    judged: list[accepting.Part],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Member, "is_tuned", property(lambda one: one.config.tuning is not None))
    tuning = {"finetune": "head", "validate_on": "new-classes", "head_steps": 1, "share": 0.4}
    done = [
        pipeline.run(config(home, accept=None, seed=seed, tuning=tuning if seed else None))
        for seed in (0, 1)
    ]
    members = [Member.of(one.run.folder) for one in done]
    fusion = FusionConfig("concat", [1, 1], whiten="whitened 0.9", beside=1)
    joint = several_models.joint_run(members, config(home), fusion)
    training = open_data(home / "data").training
    assert training is not None and joint.calibration is not None and joint.calibration.by_class
    parts = held_out(training, members[1].config.training, Target(24, 18))
    (ids,), (part,) = fitted_to, judged
    assert ids == training.subset(parts.training).ids
    assert classes_of(asked_and_found(part)[0]).isdisjoint(classes_of(ids))
    assert len(part.vectors) == 2 and part.vectors[1].ids == part.images.ids
    other = Member.of(pipeline.run(config(home, accept=None, tuning=tuning)).run.folder)
    with pytest.raises(DataError, match="so that none is new to all"):
        fused_runs.joint_calibration([*members, other], fusion, 0.7, joint.ranking)


def test_a_projection_is_not_fitted_again_where_a_part_of_the_classes_is_too_small(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []

    def frozen(images: ImageSet) -> Embeddings:
        embedded.append(len(images))
        return Embeddings(images.ids, np.eye(len(images), 8), images.attributes, "m")

    def parts(fewest: int) -> int:
        monkeypatch.setattr(accepting, "FEWEST_CLASSES", fewest)
        closed_form = ClosedForm("whitened 0.9", "m", frozen)
        data, new = (
            open_data(home / "data"),
            config(home, validating={"validate_on": "new-classes"}),
        )
        return len(accepting._cross_fitted(new, data, Target(24, 18), [closed_form]))

    assert parts(13) == 0 and not embedded
    assert parts(12) == 2 and embedded == [8 * CLASSES] * 2
    monkeypatch.setattr(accepting, "_draws", no_draws)
    assert parts(12) == 0 and len(embedded) == 2


def no_vectors(images: ImageSet) -> Embeddings:
    raise AssertionError


def no_draws(*_: Any, **options: Any) -> Any:
    raise DataError("no class has enough images")


def test_a_run_without_a_calibration_says_how_to_get_one(home: Path) -> None:
    plain = pipeline.run(config(home, accept=None))
    assert plain.ranking.accepted is None
    with pytest.raises(DataError, match=r"evaluate .*calibrate` learns it"):
        Accept.parse(0.9).load(plain.run.folder)
    done = CliRunner().invoke(app, ["evaluate", str(plain.run.folder), "--calibrate"])
    assert done.exit_code == 0, done.output
    assert "precision of accepted" in done.output
    assert Accept.parse(0.9).load(plain.run.folder).sure == 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [(95, "between 0 and 1"), ("none.json", "there is no file none.json"),
     ("none.json@0.9", "there is no file none.json"), ("none.json@90%", "there is no file none.js"),
     (".@150%", "between 0 and 1"), ("@0.9", "there is no file @0.9")],
)  # fmt: skip
def test_what_is_no_probability_and_no_file_is_refused(text: float | str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Accept.parse(text)


def test_a_file_that_is_no_calibration_is_refused(accepted: RunResult) -> None:
    folder = accepted.run.folder
    assert Accept.parse(f"{folder}@60%") == Accept.parse(f"{folder / CALIBRATION}@0.6")
    with pytest.raises(StorageError, match=r"ranking\.parquet is not JSON"):
        Accept.parse(str(folder / "ranking.parquet")).load()
    with pytest.raises(DataError, match="is no calibration that this version reads"):
        Accept.parse(str(folder / "scores.json")).load()


def test_decisions_need_enough_training_images_before_the_work(home: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test").symlink_to(home / "data/test")
    with pytest.raises(DataError, match="or run without accept"):
        pipeline.run(config(tmp_path))
    training = tmp_path / "data/training"
    for label in range(8):
        paint(training / f"t{label}/0.png", label, np.random.default_rng(label))
    with pytest.raises(DataError, match="no class has enough images for a query and a gallery"):
        pipeline.run(config(tmp_path))
    two = [config(tmp_path, seed=seed) for seed in (0, 1)]
    with pytest.raises(DataError, match="no class has enough images for a query and a gallery"):
        several_models.run_models(two, FusionConfig())
    for label in range(8):
        paint(training / f"t{label}/1.png", label, np.random.default_rng(9))
    tuning = {"finetune": "head", "validate_on": "new-classes"}  # which holds out two of eight
    with pytest.raises(DataError, match="2 classes: to learn when nothing is there"):
        pipeline.run(config(tmp_path, tuning=tuning))
    assert not (tmp_path / "runs").exists()


def submission(*words: str) -> str:
    done = CliRunner().invoke(app, ["submission", *words])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def test_submissions_hold_what_is_accepted(accepted: RunResult, tmp_path: Path) -> None:
    run, out = str(accepted.run.folder), str(tmp_path / "s.json")
    text = submission(run, "-k", "5", "--accept", "0.7", "-o", out)
    lists = json.loads(Path(out).read_text())
    taken = dict(zip(accepted.ranking.queries, accepted.ranking.accepted, strict=True))  # type: ignore[arg-type]
    assert {q: len(row) for q, row in lists.items()} == {q: min(5, n) for q, n in taken.items()}
    answered = sum(n > 0 for n in taken.values())
    assert 0 < answered < 24 and f"{answered} of 24 queries have an accepted match" in text
    csv = tmp_path / "s.csv"
    new = ["--accept", "0.7", "--new-label", "new", "--format", "kaggle", "-o", str(csv)]
    submission(run, *new)
    assert csv.read_text().count(",new\n") == 24 - answered


@pytest.mark.parametrize(
    ("words", "message"),
    [("--new-label new", "give --accept too"),
     ("--accept 0.7 --new-label new", "gallery images only; trec, kaggle allow it"),
     ("--accept 0.7 --format trec", "no place for a query without images.*one of json, records"),
     ("--accept 0.7 --format kaggle --new-label 7_0.png", "is also a gallery image")],
)  # fmt: skip
def test_forms_without_a_place_for_new_ones_are_refused(
    accepted: RunResult, tmp_path: Path, words: str, message: str
) -> None:
    data = str(Path(accepted.run.folder).parent.parent / "data")
    args = [*words.split(), "--data", data, "-o", str(tmp_path / "s")]
    done = CliRunner().invoke(app, ["submission", str(accepted.run.folder), *args])
    assert isinstance(done.exception, UsageError)
    assert re.search(message, str(done.exception))


def test_a_ranking_is_cut_to_what_is_accepted(accepted: RunResult) -> None:
    ranking = accepted.ranking
    assert ranking.accepted is not None
    cut = ranking.only_accepted()
    assert cut.lengths.tolist() == ranking.accepted.tolist() and cut.depth == max(ranking.accepted)
    assert ranking.head(1).accepted.tolist() == np.minimum(ranking.accepted, 1).tolist()  # type: ignore[union-attr]
    whole = dataclasses.replace(ranking, accepted=None, probability=None)
    assert whole.is_accepted.all() and whole.only_accepted().to_lists() == whole.to_lists()
    frame = ranking.to_pandas()
    assert frame["accepted"].sum() == ranking.accepted.sum()
    with pytest.raises(DataError, match="accepted has shape"):
        dataclasses.replace(ranking, accepted=np.zeros(3, int))
    assert storage.read_sealed_table(accepted.run.folder / "ranking.parquet").num_columns == 7


def test_a_run_is_searched_with_its_decisions(accepted: RunResult, home: Path) -> None:
    run = accepted.run.folder
    answered = accepted.ranking.accepted
    assert answered is not None
    known, absent = (
        home / "data/test/query" / accepted.ranking.queries[i]
        for i in (np.where(answered > 0, answered, 99).argmin(), answered.argmin())
    )
    label = known.name[:2]
    words = ["search", str(run), str(known), str(absent), "-k", "18", "--accept", "0.7"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output + str(done.exception)
    found = list(json.loads(done.stdout)["rankings"].values())
    hits = next(row for row in found if row[0]["id"].startswith(label))
    assert hits[0]["accepted"] and hits[0]["probability"] > hits[-1]["probability"]
    table = CliRunner().invoke(app, words).output
    assert "── accepted up to here ──" in table and f" %  {label}" in table
    kept = Calibration.load(run / "calibration.json")
    cutoff = kept.without_evidence.to_dict()["cutoff"]  # a search has scores alone
    assert f"accepted from an estimate of {cutoff['estimate']:.4f}" in table
    hits = vizsla.search(run, home / "data/test/query", accept=f"{run}@0.7", top_k=4)
    assert hits.accepted is not None and 0 < (hits.accepted > 0).mean() < 1
    strict = CliRunner().invoke(app, [*words[:-1], "0.9999"])
    assert strict.output.count("── none of these is accepted ──") == 2
    with pytest.raises(DataError, match="refined by aqe"):
        vizsla.search(run, known, accept=0.7, refine="aqe", top_k=4)
    with pytest.raises(UsageError, match="learns from images that show one item"):
        vizsla.search(run / "embeddings/gallery", known, accept=0.7)
