"""`vizsla best`: a complete run at all times, whatever is tried, fails or is interrupted."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import vizsla
from vizsla import storage
from vizsla.choose.validation import Trial
from vizsla.cli.main import app
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import held_out, target_of
from vizsla.errors import DataError, UsageError
from vizsla.model import hub
from vizsla.model.embedder import Embedder
from vizsla.options import TuneConfig
from vizsla.run import functions
from vizsla.run.best import search as searching
from vizsla.run.best.best_so_far import FINISHING, LOADING, BestSoFar, Tried
from vizsla.run.best.candidates import Candidate, HeldOut, Network
from vizsla.run.best.journal import (
    NO_TIME,
    Journal,
    Step,
    TimeIsUp,
    in_words,
    most_gained,
    steps_lines,
    steps_table,
    without_time,
)
from vizsla.run.best.result import BestResult
from vizsla.run.best.search import BestConfig, best
from vizsla.run.config import RunConfig
from vizsla.run.inputs import folders_of
from vizsla.run.pipeline import run
from vizsla.run.train import train
from vizsla.score.run_table import RunTable
from vizsla.search.ranking import Ranking
from vizsla.train import optimizer
from vizsla.web.search.models import SearchRequest
from vizsla.web.search.server import GallerySource, prepare
from vizsla.web.search.service import ServerState
from vizsla.workspace import Run, open_run

SEEN = {"validate_on": "seen-classes"}


MODELS: dict[str, str] = {}  # name → the folder of a small network


@pytest.fixture(scope="module", autouse=True)
def networks(tmp_path_factory: pytest.TempPathFactory) -> None:
    for seed, name in enumerate(("first", "second")):
        folder = tmp_path_factory.mktemp("networks") / name
        Embedder.build("tiny", weights="random", image_size=32, seed=seed).save(folder)
        MODELS[name] = str(folder)


def config(data: Path, home: Path, budget: float = 100.0, **options: Any) -> BestConfig:
    run = RunConfig(
        data=str(data), home=str(home), top_k=5,
        **{"validating": SEEN, "figures": 0, **options},
    )  # fmt: skip
    return BestConfig(run, [*MODELS.values()], ("pretrained",), budget)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch, short_heads: None) -> Iterator[None]:
    """Time stands still, so that no test depends on the machine; nothing is fine-tuned."""
    monkeypatch.setattr(searching, "LEAST_TUNING", 1000.0)
    monkeypatch.setattr(Journal, "__post_init__", _stopped)
    yield


def _stopped(self: Journal) -> None:
    self.clock = lambda: 0.0
    self.started = self.saved = 0.0


def files_of(run: Run) -> list[Path]:
    record = storage.read_sealed_json(run.result_file)  # type: ignore[arg-type]
    submission = run.submission_path(record["model_name"])
    return [run.folder / "ranking.parquet", submission, run.result_file]  # type: ignore[list-item]


def require_complete(run: Run, queries: int = 16) -> None:
    ranking = Ranking.load(run.folder / "ranking.parquet")
    assert len(ranking) == queries
    assert json.loads(files_of(run)[1].read_text()) == ranking.to_lists(5)


@pytest.fixture(scope="module")
def done(tinted: Path, networks: None, tmp_path_factory: pytest.TempPathFactory) -> BestResult:
    home = tmp_path_factory.mktemp("best")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "LEAST_TUNING", 1000.0)
        patch.setattr(Journal, "__post_init__", _stopped)
        return best(config(tinted, home, figures=2))


def test_the_best_run_is_complete_and_was_chosen_step_by_step(done: BestResult) -> None:
    require_complete(done.run)
    stages = [step.stage for step in done.steps]
    assert stages[:3] == ["frozen", "head", "frozen"] and "chain" in stages  # of seen classes
    assert done.steps[0].gain is None and done.steps[0].verdict == "kept"
    assert all(step.verdict for step in done.steps)  # why it is kept or not
    kept = [step for step in done.steps if step.verdict == "kept"]
    assert all(step.gain is None or step.gain > 0 for step in kept)
    assert len(done.figures) == 2 and all(path.is_file() for path in done.figures)
    assert done.scores is not None and done.scores.mean("map") is not None
    text = done.text()
    assert "tried on training images" in text and f"run         {done.run.folder}" in text
    assert max(map(len, text.split("\nbest:")[0].splitlines())) <= 80
    page = done.page.read_text()
    assert "What was tried" in page and str(done.candidate).split(",")[0] in page
    assert done.to_dict()["best"] == done.candidate.to_dict()


def test_models_without_a_head_are_compared_with_each_other(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Candidate((Network(folder),)) for folder in MODELS.values())
    head = dataclasses.replace(first, head="centred")
    value = {first: 0.5, head: 0.9, second: 0.6}

    def trial(self: HeldOut, candidate: Candidate, *args: Any) -> Trial:
        values = np.linspace(-0.1, 0.1, 40) + value[candidate]
        return Trial(str(candidate), values, values, values)

    monkeypatch.setattr(HeldOut, "trial", trial)
    monkeypatch.setattr(BestSoFar, "reserve", lambda *args: 0.0)
    journal = Journal(tmp_path / "best.json", 100.0)
    so_far = BestSoFar(config(tinted, tmp_path).run, tmp_path, journal, None)
    for candidate in value:
        so_far.attempt("head" if candidate is head else "frozen", str(candidate), candidate)
        so_far.first = so_far.singles[first.networks[0]]
    gains = [(step.gain, step.verdict) for step in journal.steps]
    assert gains == [(None, "kept"), (0.4, "kept"), (0.1, "below best")]


@pytest.mark.parametrize("gain", [0.1, 0.001, -0.1])
def test_networks_see_the_border_of_images_if_the_first_one_is_better_so(
    gain: float, tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trial(self: HeldOut, candidate: Candidate, report: Any) -> Trial:
        framed = [network.framing for network in candidate.networks]
        random = np.random.default_rng(1 if "cover" in framed else 0).uniform(-0.1, 0.1, 40)
        values = random - random.mean() + 0.5 + (gain if "cover" in framed else 0)
        return Trial(str(candidate), values, values, values)

    monkeypatch.setattr(HeldOut, "trial", trial)
    asked = dataclasses.replace(config(tinted, tmp_path), models=["tiny"], weights=["random"])
    found = best(asked)
    step = found.steps[1]
    assert (step.stage, step.name, step.verdict) == (
        "framing", "tiny (random) cover", "kept for all" if gain > 0 else "worse",
    )  # fmt: skip
    heads = [step.name for step in found.steps if step.stage == "head"]
    assert heads and all(("cover" in name) == (gain > 0) for name in heads)
    (network,) = found.candidate.networks
    assert network.framing == ("cover" if gain == 0.1 else None)
    record = storage.read_sealed_json(found.run.result_file)
    assert record["framing"] == network.framing


@pytest.mark.parametrize(("validate_on", "count"), [("seen-classes", 1), ("new-classes", 2)])
def test_squashed_images_are_joined_as_long_as_they_gain(
    validate_on: str, count: int, tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = tuple(Network("tiny", "random", views=views) for views in (None, "flip"))
    settings = config(tinted, tmp_path)
    so_far = BestSoFar(settings.run, tmp_path, Journal(tmp_path / "best.json", 100.0), None)
    so_far.held.others = []  # type: ignore[assignment]
    so_far.held.drawn = SimpleNamespace(images=[])  # type: ignore[assignment]

    def trial(self: HeldOut, candidate: Candidate, report: Any) -> Trial:
        squashed = sum(network.framing == "squash" for network in candidate.networks)
        values = np.linspace(0.4, 0.6, 40) + 0.1 * squashed
        return Trial(str(candidate), values, values, values)

    monkeypatch.setattr(HeldOut, "trial", trial)
    search = searching._Search(settings, so_far)
    monkeypatch.setattr(search, "_most_promising", lambda count: list(networks[:count]))
    search.validating = {"validate_on": validate_on}
    both = Candidate(networks, (0.5, 0.5), head="whitened 0.9")
    so_far.attempt("head", "of both", both)
    so_far.first = so_far.plain.trial  # type: ignore[union-attr]
    assert search._join_squashed()
    best_one = so_far.plain.candidate  # type: ignore[union-attr]
    squashed = [dataclasses.replace(network, framing="squash") for network in networks]
    assert best_one.networks == (*networks, *squashed[:count])
    assert best_one.weights == pytest.approx([1 / (2 + count)] * (2 + count))
    assert best_one.head == "whitened 0.9"
    monkeypatch.setattr(searching, "SQUASHED_SHARE", -1.0)
    assert not search._join_squashed()  # it would take too much of the budget


@pytest.mark.parametrize("validate_on", ["seen-classes", "new-classes"])
def test_networks_have_stages_under_a_head_of_seen_classes(
    validate_on: str, tinted: Path, tmp_path: Path
) -> None:
    settings = config(tinted, tmp_path, validating={"validate_on": validate_on})
    settings = dataclasses.replace(
        settings, models=("tiny", MODELS["first"]), weights=("random", "pretrained")
    )
    done = best(settings)
    heads = [step.name for step in done.steps if step.stage == "head"]
    assert ("tiny (random) stages" in heads[0]) == (validate_on == "seen-classes"), heads
    assert not any("first stages" in step.name for step in done.steps)  # it is an embedder
    require_complete(done.run)


def test_a_slow_first_model_is_not_tried_again_with_the_border_of_images(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "FROZEN_SHARE", -1.0)
    asked = dataclasses.replace(config(tinted, tmp_path), models=["tiny"], weights=["random"])
    assert "framing" not in {step.stage for step in best(asked).steps}


def test_slow_models_come_after_a_head_and_a_chain(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: BestResult
) -> None:
    monkeypatch.setattr(searching, "FROZEN_SHARE", -1.0)
    found = best(config(tinted, tmp_path))
    tried = [(step.stage, step.name) for step in found.steps]
    second = tried.index(("frozen", MODELS["second"]))
    assert {"head", "chain"} <= {stage for stage, _ in tried[:second]}
    late = {step.stage for step in found.steps[second:]}
    assert "head" in late and found.steps[second].value is not None
    with_two = [step.name for step in done.steps if step.stage == "head"][-1]
    assert with_two in [step.name for step in found.steps if step.stage == "head"]


@pytest.mark.parametrize(
    ("validate_on", "seconds", "early"),
    [("seen-classes", 39, True), ("seen-classes", 41, False),
     ("new-classes", 2, True), ("new-classes", 4, False)],
)  # fmt: skip
def test_a_head_of_the_first_model_comes_first_where_it_is_cheap_or_gains_most(
    validate_on: str, seconds: float, early: bool, tinted: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = config(tinted, tmp_path)
    so_far = BestSoFar(settings.run, tmp_path, Journal(tmp_path / "best.json", 100.0), None)
    so_far.held.others = []  # type: ignore[assignment]
    monkeypatch.setattr(so_far, "seconds", lambda *args: seconds)
    search = searching._Search(settings, so_far)
    search.validating = {"validate_on": validate_on}
    assert search._head_gains_early(Network(MODELS["first"])) == early


@pytest.mark.parametrize("seconds", [0.001, 10.0])
def test_the_speed_of_a_single_other_model_is_measured_first(
    seconds: float, tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow one comes after heads and chains; all its images would take the whole budget."""
    settings = config(tinted, tmp_path)
    so_far = BestSoFar(settings.run, tmp_path, Journal(tmp_path / "best.json", 100.0), None)
    so_far.held.drawn = SimpleNamespace(images=[None] * 50)  # type: ignore[assignment]
    tried: list[str] = []

    def timed(self: HeldOut, network: Network, report: Any) -> None:
        self.times[network.key] = seconds

    def on_few_images(self: HeldOut, network: Network, report: Any) -> float:
        assert seconds < 1  # a slow one is not tried on any
        return 0.5

    monkeypatch.setattr(HeldOut, "timed", timed)
    monkeypatch.setattr(HeldOut, "first_impression", on_few_images)
    monkeypatch.setattr(so_far, "attempt", lambda stage, name, what: tried.append(name))
    first, second = (Network(folder) for folder in MODELS.values())
    slower = searching._Search(settings, so_far)._try_frozen([first, second])
    assert (slower, tried) == (([second], []) if seconds > 1 else ([], [str(second)]))


@pytest.mark.parametrize(("name", "sizes"), [("dinov2-s14", [294, 364]), ("resnet18", [288, 352])])
def test_larger_images_are_whole_patches(
    name: str, sizes: list[int], tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tinted, tmp_path)
    so_far = BestSoFar(settings.run, tmp_path, Journal(tmp_path / "best.json", 100.0), None)
    so_far.held.drawn = SimpleNamespace(images=[None] * 50)  # type: ignore[assignment]
    values = np.linspace(0.4, 0.6, 40)
    trial = Trial("", values, values, values)
    so_far.singles[Network(name)] = trial
    so_far.plain = Tried(Candidate((Network(name),)), trial)
    tried: list[int | None] = []

    def attempt(stage: str, name: str, what: Candidate, *, needs: float) -> None:
        tried.append(what.networks[0].image_size)
        so_far.plain = Tried(what, trial)  # is better

    monkeypatch.setattr(so_far, "attempt", attempt)
    searching._Search(settings, so_far)._try_larger_and_mirrored()
    assert tried == [*sizes, sizes[-1]]


def test_a_head_takes_the_networks_that_there_is_time_for(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here those whose vectors are there, although a better one is not among them."""
    a, b, c = (Network(MODELS["first"], name=name) for name in "abc")
    tried: list[tuple[str, float]] = []
    settings = config(tinted, tmp_path)
    so_far = BestSoFar(settings.run, tmp_path, Journal(tmp_path / "best.json", 100.0), None)
    so_far.held.others = [None] * 10  # type: ignore[assignment]
    search = searching._Search(settings, so_far)
    monkeypatch.setattr(search, "_most_promising", lambda count: [a, b, c])
    monkeypatch.setattr(so_far, "reserve", lambda *args: 0.0)
    monkeypatch.setattr(HeldOut, "is_embedded", lambda self, one, role: one in (b, c))
    monkeypatch.setattr(so_far, "seconds", lambda *args: 99.0)

    def attempt(stage: str, name: str, what: Any, *, needs: float, like: Candidate) -> bool:
        assert [str(one) for one in like.networks] == name[len("head after ") :].split(" + ")
        tried.append((name, needs))
        return needs < 50

    monkeypatch.setattr(so_far, "attempt", attempt)
    monkeypatch.setattr(so_far, "complete", lambda: None)
    search._head()
    assert tried[0] == ("head after a + b + c", 99.0) and tried[-1] == ("head after b + c", 0.0)
    late = [Step("head", name, verdict=NO_TIME) for name, _ in tried[:-1]]
    assert without_time(late) == "no time for: head after a + b + c"


def test_time_is_kept_for_what_is_tried_but_not_where_the_run_is_complete(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Candidate((Network(folder),)) for folder in MODELS.values())
    values = np.linspace(0.4, 0.6, 40)
    trial = Trial("", values, values, values)
    monkeypatch.setattr(HeldOut, "trial", lambda self, candidate, report: trial)
    journal = Journal(tmp_path / "best.json", 100.0)
    so_far = BestSoFar(config(tinted, tmp_path).run, tmp_path, journal, None)
    so_far.attempt("frozen", "first", first)
    assert so_far.reserve() == so_far.reserve(first) > 0
    journal.best = {"candidate": first.to_dict(), "run": "r"}
    assert so_far.reserve() == 0
    journal.clock = lambda: 99.0  # a second is left
    found: list[str] = []

    def what() -> Candidate:
        so_far.report("working", 1, 2)  # stops the step if time is kept back
        found.append("tried")
        return second

    so_far.attempt("head", "without", what)
    so_far.attempt("head", "with", what, like=second)
    assert found == ["tried"]
    assert [(step.name, step.needs) for step in so_far.skipped] == [
        ("with", pytest.approx(99.0 + so_far.reserve(second)))
    ]


def test_a_tuned_network_is_joined_and_re_ranked_before_larger_images(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Network(str(shutil.copytree(MODELS["second"], tmp_path / "tuned")), name="second last")
    at_larger: list[str] = []

    def fine_tune(self: searching._Search, count: int) -> None:
        self.so_far.attempt("fine-tuned", str(tuned), Candidate((tuned,)))

    def larger(self: searching._Search) -> None:
        at_larger.extend(step.stage for step in self.journal.steps)

    monkeypatch.setattr(searching._Search, "_fine_tune", fine_tune)
    monkeypatch.setattr(searching._Search, "_try_larger_and_mirrored", larger)
    alone = Candidate((tuned,))
    monkeypatch.setattr(BestSoFar, "_is_kept", lambda self, tried: tried.candidate != alone)
    trial = HeldOut.trial

    def better_beside(self: HeldOut, candidate: Candidate, report: Any) -> Trial:
        found = trial(self, candidate, report)
        return dataclasses.replace(found, ap_values=found.ap_values + candidate.beside)

    monkeypatch.setattr(HeldOut, "trial", better_beside)
    chosen = SimpleNamespace(chain="aqe(n=1)")  # what gains differs by processor
    monkeypatch.setattr(HeldOut, "chosen_chain", lambda *_, **__: chosen)
    found = best(config(tinted, tmp_path))
    assert at_larger[at_larger.index("fine-tuned") :] == ["fine-tuned", "joined", "chain"]
    assert (found.candidate.beside_head, found.candidate.chain) == ((tuned,), "aqe(n=1)")
    require_complete(found.run)


def test_the_search_holds_out_what_a_given_model_was_not_trained_on(
    trained_on: list[set[str]], tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [MODELS["first"]]
    for seed in (3, 4):
        out = tmp_path / str(seed)
        tuning = {"finetune": "head", "head_steps": 2, "share": 0.4, "validate_on": "seen-classes"}
        given = RunConfig(data=str(tinted), model=folders[0], seed=seed, tuning=tuning)
        train(given, out)
        folders.append(str(out / "embedder"))
    found: list[TuneConfig] = []
    images: list[set[str]] = []

    def draw(self: HeldOut, config: TuneConfig, *args: Any) -> None:
        assert self.data.training is not None
        parts = held_out(self.data.training, config, target_of(self.data.query, self.data.gallery))
        images.append({self.data.training.ids[i] for i in parts.held_out})
        found.append(config)
        raise DataError("enough")

    monkeypatch.setattr(HeldOut, "draw", draw)
    settings = config(tinted, tmp_path, seed=1, validating=None)
    for models in (folders[:1], folders, folders[::-1], folders[1:2]):
        done = best(dataclasses.replace(settings, models=models))
        (left_out,) = [step.name for step in done.steps] or [None]
        kept = 4 if models[0] == folders[2] else 3
        expected = None if len(models) < 3 else folders[2] if kept == 3 else folders[1]
        assert left_out == expected
        if len(found) > 1:
            assert images[-1] and not images[-1] & trained_on[kept - 3]
    assert found[0].seed == 1  # that of its trainings
    asked = dataclasses.replace(settings.run, validating={"validate_on": "new-classes"})
    done = best(dataclasses.replace(settings, run=asked, models=folders[:2]))
    assert [step.name for step in done.steps] == [folders[1]]  # what is asked for comes first
    assert found[-1].validate_on == "new-classes"


def test_a_tuned_network_speaks_for_the_one_that_it_was_tuned_from(
    tinted: Path, tmp_path: Path
) -> None:
    settings = config(tinted, tmp_path)
    so_far = BestSoFar(settings.run, tmp_path, Journal(tmp_path / "best.json", 100.0), None)
    plain, own = Network("resnet50"), Network("resnet50", weights="w")
    for network, value in (
        (plain, 0.5), (own, 0.4), (Network("runs/a", name=f"{own} last"), 0.9),
    ):  # fmt: skip
        values = np.full(4, value)
        so_far.singles[network] = Trial("", values, values, values)
    search = searching._Search(settings, so_far)
    assert search._most_promising(2, tuned=False) == [own, plain]


def test_a_network_that_was_tuned_is_not_tuned_again(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tinted, tmp_path)
    tuned = tmp_path / "runs" / "20261130-160014-31a6"
    storage.write_json(tuned / "config.json", {})
    runs: list[RunConfig] = []

    def run(config: RunConfig, report: Any) -> Any:
        runs.append(config)
        return SimpleNamespace(run=SimpleNamespace(folder=tuned))

    monkeypatch.setattr(searching, "run", run)
    so_far = BestSoFar(settings.run, tmp_path, Journal(tmp_path / "best.json", 100.0), None)
    search = searching._Search(settings, so_far)
    search.validating = SEEN
    tried: list[str] = []

    def no_time(self: HeldOut, candidate: Candidate, report: Any) -> Any:
        tried.append(candidate.networks[0].model)
        raise TimeIsUp

    monkeypatch.setattr(HeldOut, "trial", no_time)
    for _ in range(2):
        search._tune(Network(MODELS["first"]), 60.0)
    assert len(runs) == 1 and tried == [str(tuned)] * 2


def test_large_transformers_get_adapters_on_a_gpu(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    settings = config(tinted, tmp_path)
    so_far = BestSoFar(settings.run, tmp_path, Journal(tmp_path / "best.json", 100.0), None)
    search = searching._Search(settings, so_far)
    transformer = Network("timm:test_vit", "random")
    networks = [transformer, Network(MODELS["first"])]
    assert [search._trained_part(one) for one in networks] == ["last", "last"]
    monkeypatch.setattr(HeldOut, "compute", lambda *_: SimpleNamespace(kind="cuda"))
    assert [search._trained_part(one) for one in networks] == ["full", "full"]  # small ones
    monkeypatch.setattr(optimizer, "LARGE", 0)
    assert [search._trained_part(one) for one in networks] == ["lora", "full"]


def test_a_network_is_tuned_longer_where_much_more_time_was_given(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.linspace(0.4, 0.6, 40)
    trial, network = Trial("", values, values, values), Network(MODELS["first"])
    tuned: list[tuple[float, int]] = []
    monkeypatch.setattr(searching, "LEAST_TUNING", 10.0)
    monkeypatch.setattr(
        searching._Search, "_tune", lambda self, network, *plan: tuned.append(plan)
    )  # fmt: skip
    monkeypatch.setattr(BestSoFar, "complete", lambda self: None)
    monkeypatch.setattr(BestSoFar, "reserve", lambda self, *args: 0.0)

    def call(budget: float) -> list[tuple[float, int]]:
        tuned.clear()
        settings = config(tinted, tmp_path, budget)
        so_far = BestSoFar(settings.run, tmp_path, Journal.open(tmp_path, budget), None)
        so_far.held.drawn = SimpleNamespace(images=[])  # type: ignore[assignment]
        so_far.held.others = []  # type: ignore[assignment]
        so_far.plain, so_far.singles = Tried(Candidate((network,)), trial), {network: trial}
        searching._Search(settings, so_far)._fine_tune(1)
        so_far.journal.save()
        return list(tuned)

    kept_back = 2 * LOADING + FINISHING
    first, longer = (98.0 - kept_back, 0), (980.0 - kept_back, 1)
    assert call(100.0) == [first]
    assert call(150.0) == [first]  # which computes nothing again
    assert call(1000.0) == [first, longer]
    assert call(1000.0) == [first, longer]
    network = dataclasses.replace(network, framing="cover")  # which no earlier plan was for
    assert call(4000.0) == [(3920.0 - kept_back, 0)]


def test_a_fine_tuning_that_sees_too_few_images_is_not_tried(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "LEAST_TUNING", 0.0)
    monkeypatch.setattr(searching, "TRAINING_COST", 1e9)
    monkeypatch.setattr(searching, "run", _never)
    found = best(config(tinted, tmp_path))
    (step,) = [step for step in found.steps if step.stage == "fine-tuned"]
    assert step.verdict == NO_TIME and step.needs is not None and step.needs > 100
    assert "also a fine-tuning would be tried" in "\n".join(found.notes())


def test_compare_shows_what_validation_said_of_each_run(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = HeldOut.trial

    def better_joined(self: HeldOut, candidate: Candidate, report: Any) -> Trial:
        found = trial(self, candidate, report)
        return dataclasses.replace(found, ap_values=found.ap_values + len(candidate.networks))

    monkeypatch.setattr(HeldOut, "trial", better_joined)  # so that each model has a run of its own
    done = best(config(tinted, tmp_path))
    ranked = vizsla.compare([str(tmp_path / "results")])
    assert isinstance(ranked, RunTable)
    found = {row.run: row.validation for row in ranked.rows}
    own = found[done.run.id]
    assert own is not None and own.chosen == "best" and own == done.validation
    assert round(own.map, 4) in [step.map for step in done.steps if step.verdict == "kept"]
    alone = [one for run, one in found.items() if run != done.run.id]  # without their chains
    assert alone and {one.id for one in alone if one} == {own.id}


def test_the_best_run_is_repeated_by_its_command(
    done: BestResult, tinted: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [*done.again.split()[1:], "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    again = Ranking.load(Path(json.loads(result.stdout)["run"]) / "ranking.parquet")
    assert again.to_lists() == Ranking.load(done.run.folder / "ranking.parquet").to_lists()


def test_a_head_of_one_model_is_a_complete_run(tinted: Path, tmp_path: Path) -> None:
    shared = config(tinted, tmp_path).run
    so_far = BestSoFar(shared, tmp_path / "best", Journal(tmp_path / "best.json", 100.0), None)
    candidate = Candidate((Network(MODELS["first"]),), head="centred")
    done = so_far._run_of_candidate(candidate, lambda stage, done, total: None)
    require_complete(done)
    folder, of_one = done.folder, Ranking.load(done.folder / "ranking.parquet")
    (first,) = (run for run in (tmp_path / "runs").iterdir() if run != folder)
    assert Ranking.load(first / "ranking.parquet").to_lists() != of_one.to_lists()
    again = vizsla.run(again=folder, progress=False).run.folder
    assert Ranking.load(again / "ranking.parquet").to_lists() == of_one.to_lists()
    with closing(prepare(GallerySource(folder), ServerState())) as engine:
        for query in list(of_one.to_lists())[:4]:
            image = (tinted / "test" / "query" / query).read_bytes()
            search = SearchRequest(query=(engine.upload([image])[0].name,), k=5)
            found = [hit.id for hit in engine.answer(search).results]
            assert found == of_one.to_lists()[query][:5]


def test_the_earlier_chain_is_tried_where_there_is_no_time_to_choose_one(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: list[Candidate] = []

    def chosen_once(self: HeldOut, candidate: Candidate, *args: Any, **kwargs: Any) -> Any:
        plain.append(candidate)
        if len(plain) > 1:
            raise TimeIsUp
        return SimpleNamespace(chain="aqe(n=2,alpha=1)")

    monkeypatch.setattr(HeldOut, "chosen_chain", chosen_once)
    monkeypatch.setattr(BestSoFar, "_is_kept", lambda self, tried: True)
    done = best(config(tinted, tmp_path))
    assert len(plain) == 2 and plain[1].head != "none"
    chains = {step.name: step.verdict for step in done.steps if step.stage == "chain"}
    assert chains == {"aqe": "kept", f"chain after {plain[1]}": NO_TIME}
    tried = [step for step in done.steps if step.stage == "chain" and step.value is not None]
    assert len(tried) == 2


def test_the_same_call_continues_and_computes_nothing_again(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = best(config(tinted, tmp_path))
    runs = sorted((tmp_path / "runs").iterdir())
    monkeypatch.setattr(searching, "run", _never)
    second = best(config(tinted, tmp_path))
    assert second.is_unchanged and not first.is_unchanged
    assert "nothing new was tried" in second.text() and "nothing new" not in first.text()
    assert sorted((tmp_path / "runs").iterdir()) == runs
    assert second.run == first.run and second.candidate == first.candidate
    assert [dataclasses.replace(s, seconds=0, needs=None) for s in second.steps] == [
        dataclasses.replace(s, seconds=0, needs=None) for s in first.steps
    ]


def test_a_continued_search_knows_how_long_each_step_takes(tinted: Path, tmp_path: Path) -> None:
    settings, network = config(tinted, tmp_path), Network(MODELS["first"])

    def continued() -> BestSoFar:
        return BestSoFar(settings.run, tmp_path, Journal.open(tmp_path, 100.0), None)

    def stopped(stage: str, done: int, total: int) -> None:
        if stage.startswith("embedding") and done:
            raise TimeIsUp

    before = continued()
    assert before.seconds(network, 100) == 0 and before.run_seconds == FINISHING
    with pytest.raises(TimeIsUp):
        before.held.embedded(network, before.held.data.query, "test", stopped)
    before.times |= {"heads": 3.0, "run": 9.0, "chain": 4.0}
    before.journal.save()
    after = continued()
    assert after.seconds(network, 100) == before.seconds(network, 100) > 0
    after.held.embedded(network, after.held.data.query, "test", lambda *_: None)
    assert after.seconds(network, 100) == before.seconds(network, 100)  # though it took less
    assert after.run_seconds == 9.0
    search = searching._Search(settings, after)
    assert search.chain_seconds == 4.0 and search._seconds_of_heads == 9.0


def test_vectors_from_the_cache_do_not_make_a_network_look_fast(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(MODELS["first"])
    shared = dataclasses.replace(config(tinted, tmp_path).run, cache=str(tmp_path / "cache"))
    gallery = folders_of(shared).gallery
    assert gallery is not None

    def embedded(images: ImageSet, folder: str) -> float:
        held = HeldOut(shared, folders_of(shared), tmp_path / folder, {})
        held.embedded(network, images, "test", lambda *_: None)
        return held.times[network.key]

    def timed(self: HeldOut, network: Network, report: Any) -> Any:
        self.times[network.key] = 1000.0
        return self.runtime(network)

    assert embedded(gallery.subset(np.arange(len(gallery) // 2)), "first") > 0
    monkeypatch.setattr(HeldOut, "timed", timed)
    assert embedded(gallery.subset(np.arange(len(gallery) // 2)), "second") == 1000
    assert 0 < embedded(gallery, "third") < 1000  # half of them are new


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing is to be run")


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6])
def test_an_interruption_leaves_a_complete_run_and_the_search_continues(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, done: BestResult
) -> None:
    calls = 0
    trial = HeldOut.trial

    def interrupted(self: HeldOut, *args: Any) -> Trial:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return trial(self, *args)

    monkeypatch.setattr(HeldOut, "trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        best(config(tinted, tmp_path))
    (file,) = (tmp_path / "best").glob("*/best.json")
    content = storage.read_sealed_json(file)
    require_complete(open_run(tmp_path / "runs" / content["best"]["run"]))
    after = best(config(tinted, tmp_path))
    require_complete(after.run)
    assert [s.name for s in after.steps if s.stage != "head"] == [
        s.name for s in done.steps if s.stage != "head"
    ]


@pytest.mark.parametrize("failure", [RuntimeError, KeyError, AttributeError])
def test_a_candidate_that_fails_is_listed_and_the_others_go_on(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    embedded = HeldOut.embedded

    def broken(self: HeldOut, network: Network, *args: Any) -> Any:
        if network.model == MODELS["second"]:
            raise failure("no memory for this")
        return embedded(self, network, *args)

    monkeypatch.setattr(HeldOut, "embedded", broken)
    found = best(config(tinted, tmp_path))
    verdicts = {step.name: step.verdict for step in found.steps if step.stage == "frozen"}
    assert verdicts == {
        MODELS["first"]: "kept", MODELS["second"]: f"failed: {failure('no memory for this')}"
    }  # fmt: skip
    require_complete(found.run)
    monkeypatch.setattr(HeldOut, "embedded", embedded)  # now there is memory
    found = best(config(tinted, tmp_path))
    again = [s for s in found.steps if (s.stage, s.name) == ("frozen", MODELS["second"])]
    assert len(again) == 1 and again[0].value is not None


def test_models_whose_folders_have_one_name_are_all_tried(tinted: Path, tmp_path: Path) -> None:
    folders = [tmp_path / place / "embedder" for place in ("a", "b")]
    for source, folder in zip(MODELS.values(), folders, strict=True):
        shutil.copytree(source, folder)
    both = dataclasses.replace(config(tinted, tmp_path / "home"), models=[*map(str, folders)])
    found = best(both)
    assert [s.name for s in found.steps if s.stage == "frozen"] == [*map(str, folders)]
    assert found.steps[0].value != found.steps[1].value


def test_weights_files_of_one_name_are_refused(tinted: Path, tmp_path: Path) -> None:
    asked = BestConfig(config(tinted, tmp_path).run, ["tiny"] * 2, ["a/best.pth", "b/best.pth"])
    with pytest.raises(UsageError, match=r"tiny \(best\) is given twice"):
        best(asked)


def test_a_given_run_is_not_taken_for_the_ranking_of_its_model(
    tinted: Path, tmp_path: Path
) -> None:
    settings = config(tinted, tmp_path)
    old = run(dataclasses.replace(settings.run, model=MODELS["first"], refine="dba+aqe")).run
    before = {path: path.read_bytes() for path in files_of(old)}
    asked = dataclasses.replace(settings, models=[str(old.folder)])
    plain = dataclasses.replace(asked, run=dataclasses.replace(asked.run, refine_uses="nothing"))
    found = best(plain)
    assert found.run != old
    assert found.candidate.chain == "none"
    assert {path: path.read_bytes() for path in files_of(old)} == before
    require_complete(found.run)


def test_a_best_run_that_was_removed_is_made_again(tinted: Path, tmp_path: Path) -> None:
    first = best(config(tinted, tmp_path))
    record = first.run.result_file
    assert record is not None
    record.unlink()
    shutil.rmtree(first.run.folder)
    second = best(config(tinted, tmp_path))
    require_complete(second.run)
    assert second.candidate.chain == first.candidate.chain


def test_what_stops_the_whole_command_twice_is_left_out(tmp_path: Path) -> None:
    for _ in range(2):
        journal = Journal.open(tmp_path, 10.0)
        assert journal.begin("frozen: a")  # and the process is killed
    assert not Journal.open(tmp_path, 10.0).begin("frozen: a")
    assert Journal.open(tmp_path, 10.0).begin("frozen: b")


def test_what_is_interrupted_by_hand_is_tried_again_however_often(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [Network(folder) for folder in MODELS.values()]

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(HeldOut, "trial", stopped)
    monkeypatch.setattr(HeldOut, "timed", stopped)
    for _ in range(3):
        journal, settings = Journal.open(tmp_path, 100.0), config(tinted, tmp_path)
        so_far = BestSoFar(settings.run, tmp_path, journal, None)
        with pytest.raises(KeyboardInterrupt):
            so_far.attempt("frozen", "first", Candidate((networks[0],)))
        with pytest.raises(KeyboardInterrupt):
            searching._Search(settings, so_far)._better_half(networks)
        journal.save()
    assert not Journal.open(tmp_path, 100.0).begun


def test_a_first_model_that_cannot_be_compared_is_the_result(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: HeldOut, *_: Any) -> Trial:
        raise RuntimeError("no memory")

    monkeypatch.setattr(HeldOut, "trial", broken)
    for _ in range(2):
        found = best(config(tinted, tmp_path))
        assert found.candidate == Candidate((Network(MODELS["first"]),))
        assert found.held_out == f"{MODELS['first']}: failed: no memory"
        words = " ".join(found.text().split())
        assert words.startswith("nothing could be chosen, so this is the first model as it is: ")


def test_a_first_model_that_takes_the_whole_budget_is_the_result(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "spent", lambda self: 50.0 * (self.best is not None))
    found = best(config(tinted, tmp_path, budget=40.0))
    require_complete(found.run)
    assert not found.steps and found.candidate == Candidate((Network(MODELS["first"]),))
    words = " ".join(found.text().split())
    assert "it took the whole budget; with --budget 2m others would be compared with it" in words
    page = found.page.read_text()
    assert "What was tried" not in page and "it took the whole budget" in page
    words = " ".join(best(config(tinted, tmp_path, budget=40.0)).text().split())
    assert "no step fits into what earlier calls left of it" in words
    monkeypatch.setattr(Journal, "spent", lambda self: 0.0)
    again = best(dataclasses.replace(config(tinted, tmp_path), budget=120.0))
    assert "head" in {step.stage for step in again.steps}


def test_without_time_only_the_first_model_is_run(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "spent", lambda self: 50.0 * (self.best is not None))
    stages: list[str] = []
    found = best(config(tinted, tmp_path, budget=49.0), lambda stage, *_: stages.append(stage))
    require_complete(found.run)
    (name,) = {stage for stage in stages if stage.startswith("loading ")}
    assert stages.index(name) < stages.index(name.replace("loading", "embedding"))
    assert found.candidate == Candidate((Network(MODELS["first"]),))
    assert {s.verdict for s in found.steps[1:]} == {"no time"}
    notes = "\n".join(found.notes())
    assert "enough for frozen models only: " in notes
    (needed,) = [s.needs for s in found.steps if s.stage == "fine-tuned"]
    assert needed is not None and needed > 1000  # LEAST_TUNING
    minutes = math.ceil(1.1 * needed / 60)
    assert f"--budget {minutes}m also a fine-tuning would be tried" in notes


def test_the_same_command_ends_well_when_its_time_is_used_up(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = best(config(tinted, tmp_path))
    assert "head" in {step.stage for step in first.steps}
    for spent in (99.0, 500.0):
        monkeypatch.setattr(Journal, "spent", lambda self, spent=spent: spent)
        again = best(config(tinted, tmp_path))
        assert (again.run, again.candidate) == (first.run, first.candidate)
        assert again.held_out == first.held_out


def test_a_step_ends_when_its_time_is_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "best.json", 10.0)
    now = 0.0
    journal.clock = lambda: now
    seen: list[tuple[str, int, int]] = []
    report = journal.guarded(lambda *args: seen.append(args), until=5.0)
    report("embedding", 1, 2)
    now = 5.5
    with pytest.raises(TimeIsUp):
        report("embedding", 2, 2)
    assert seen == [("embedding", 1, 2)]
    assert storage.read_sealed_json(journal.path)["spent"] == 5.5  # noted before it ended


def test_the_time_before_an_interruption_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "best.json", 10.0)
    journal.clock = lambda: 7.0
    journal.save()
    assert Journal.open(tmp_path, 10.0).left() == pytest.approx(3.0)
    assert Journal.open(tmp_path, 60.0).left() == pytest.approx(53.0)  # more time was given


def test_the_steps_that_gained_most_come_first() -> None:
    steps = [
        Step("frozen", "a", value=0.5, verdict="kept"),
        Step("frozen", "b", value=0.6, gain=0.1, error=0.01, verdict="kept"),
        Step("chain", "c", value=0.9, gain=0.3, error=0.01, verdict="kept"),
        Step("head", "d", value=0.95, gain=0.9, error=0.01),
    ]
    assert [step.name for step in most_gained(steps)] == ["c", "b"]
    assert steps_table(steps).rows[2][4] == "+0.300 ± 0.010"
    assert [in_words(step) for step in most_gained(steps)] == ["re-ranking by c", "the model b"]
    late = [Step("frozen", "e", verdict=NO_TIME), Step("chain", "chain after e", verdict=NO_TIME)]
    assert steps_table([*steps, *late]).rows == steps_table(steps).rows
    assert without_time([*steps, *late]) == "no time for: frozen e; chain after e"
    assert without_time(steps) == ""


def test_joined_vectors_have_the_weighted_cosines(tinted: Path, tmp_path: Path) -> None:
    reported: list[str] = []

    def report(stage: str, done: int, total: int) -> None:
        reported.append(stage)

    shared = config(tinted, tmp_path).run
    held = HeldOut(shared, folders_of(shared), tmp_path, {})
    a, b = (Network(folder) for folder in MODELS.values())
    test = [held.embedded(a, held.data.query, "test", report).vectors] * 2
    held.draw(TuneConfig.from_options(SEEN), a, test, report)
    held.trial(Candidate((a,)), report)
    assert reported.count("ranking held-out images") == len(held.on.draws)  # each may be the last
    assert held.trial(Candidate((a,)), report) is held.trial(Candidate((a,)), report)
    assert reported.count("ranking held-out images") == len(held.on.draws)  # ranks nothing again
    one, two, both = (
        held.vectors(candidate, report).vectors
        for candidate in (Candidate((a,)), Candidate((b,)), Candidate((a, b), (0.25, 0.75)))
    )
    assert np.allclose(both @ both.T, 0.25 * one @ one.T + 0.75 * two @ two.T, atol=1e-6)
    of_two = held.vectors(Candidate((a, b), (0.5, 0.5), head="centred"), report).vectors
    beside = Candidate((a, b, a), (0.3, 0.3, 0.4), head="centred", beside=1)
    found = held.vectors(beside, report).vectors
    assert np.allclose(found @ found.T, 0.6 * of_two @ of_two.T + 0.4 * one @ one.T, atol=1e-5)
    held.forget_heads(beside)
    assert list(held._heads) == [beside.of_head]  # that of the two


@pytest.mark.parametrize("verdict", ["no time to make it a run", f"failed: {'out of memory ' * 8}"])
def test_a_long_verdict_leaves_names_their_room(verdict: str) -> None:
    name = "mobilenetv2 (mobilenetv2_100) cover + efficientnet-lite0 cover, whitened 0.6"
    known = {"top1": 0.6, "map": 0.7, "value": 0.65, "gain": 0.014, "error": 0.021}
    steps = [
        Step("framing", "efficientnet-lite0 cover", **known, seconds=30, verdict="unsure"),
        Step("run", name, verdict=verdict),
    ]
    lines = steps_lines(steps)
    assert max(map(len, lines)) <= 80 and len(lines) <= 16
    assert sum("efficientnet-lite0" in line for line in lines) == 2


def test_a_candidate_is_named_and_written_down_whole() -> None:
    tuned = Network("runs/a", name="resnet18 last")
    pair = Candidate((Network("tiny", "files/own.pth"), tuned), (0.4, 0.6), "aqe(n=3)")
    assert str(pair) == "tiny (own) + resnet18 last, aqe(n=3)"
    assert Candidate.of(json.loads(json.dumps(pair.to_dict()))) == pair
    third = dataclasses.replace(
        pair,
        networks=(*pair.networks, tuned),
        weights=(0.2, 0.3, 0.5),
        head="classes 0.3",
        beside=1,
    )
    assert str(third) == "tiny (own) + resnet18 last, classes 0.3, beside resnet18 last, aqe(n=3)"
    assert "projected by classes 0.3, joined with resnet18 last, re-ranked" in third.readable
    assert third.of_head.weights == (0.4, 0.6) and third.of_head.networks == pair.networks
    assert Candidate.of(json.loads(json.dumps(third.to_dict()))) == third


def test_labels_of_the_test_part_change_nothing(tinted: Path, tmp_path: Path) -> None:
    blind = tmp_path / "data"
    shutil.copytree(tinted, blind)
    (blind / "labels.csv").unlink()
    known = best(config(tinted, tmp_path / "a"))
    unknown = best(config(blind, tmp_path / "b"))
    assert unknown.scores is None and known.candidate.chain == unknown.candidate.chain
    rankings = [
        Ranking.load(found.run.folder / "ranking.parquet").to_lists() for found in (known, unknown)
    ]
    assert rankings[0] == rankings[1]
    assert "No labels of the test part are known" in unknown.text()


def test_what_is_wrong_is_said_before_the_work(tinted: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 weights for 2 model"):
        best(dataclasses.replace(config(tinted, tmp_path), weights=("random",) * 3))
    bare = tmp_path / "bare"
    for role in ("query", "gallery"):
        (bare / "test" / role).mkdir(parents=True)
        for i in range(2):
            name = next((tinted / "test" / role).glob(f"*-{i}.png"))
            (bare / "test" / role / name.name).write_bytes(name.read_bytes())
    two = config(bare, tmp_path)
    two = dataclasses.replace(two, run=dataclasses.replace(two.run, top_k=2))
    found = best(two)  # nothing to choose on, so the first model it is
    assert found.run.result_file is not None
    assert len(Ranking.load(found.run.folder / "ranking.parquet")) == 2
    assert found.candidate == Candidate((Network(MODELS["first"]),)) and not found.steps
    text = " ".join(found.text().split())
    assert text.startswith("nothing could be chosen, so this is the first model as it is: ")
    assert found.held_out.endswith(f"there are none in {bare}/training/<class>/")
    assert best(two).run == found.run


def test_models_that_cannot_be_had_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(self: Any) -> None:
        asked.append(self)
        raise OSError("no network")

    monkeypatch.setattr(hub.Repository, "cached", lambda self: None)
    monkeypatch.setattr(hub.Repository, "require_reachable", unreachable)
    assert hub.obtainable(["dinov2-s14", "efficientnet-lite0", "clip-vit-b16"]) == [
        "efficientnet-lite0"
    ]
    assert len(asked) == 1  # an address that does not answer is not asked again


def test_the_command_and_the_function_take_the_same_options(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[BestConfig] = []

    def noted(config: BestConfig, progress: Any) -> BestResult:
        given.append(config)
        raise UsageError("noted")

    monkeypatch.setattr(searching, "best", noted)
    monkeypatch.setattr(functions, "search_best", noted)
    CliRunner().invoke(app, ["best", str(tinted), "--budget", "2m", "--optimise", "points", "-q",
                             "--model", "tiny", "--weights", "random", "-k", "3",
                             "--cache", "v"])  # fmt: skip
    with pytest.raises(UsageError, match="noted"):
        vizsla.best(
            tinted, budget="2m", optimise="points", model="tiny", weights="random", top_k=3,
            cache="v",
        )  # fmt: skip
    assert given[0] == given[1] and given[0].budget == 120.0
    assert given[0].run.cache == "v"
    assert given[0].run.training.optimise == "points"
    assert given[0].run.training.validate_on == "auto"
    with pytest.raises(UsageError, match="budget"):
        vizsla.best(tinted, budget="2")


def test_a_small_sample_of_the_queries_keeps_images_of_their_classes() -> None:
    from vizsla.data.splits import Draw
    from vizsla.run.best import candidates

    labels = np.repeat(np.array(list("abcdefgh")), 100)
    rows = np.arange(800)
    draw = Draw(rows[::2], rows[1::2])
    small = candidates._small_draw(draw, labels, 0)
    assert len(small.query) == candidates.FEW_QUERIES and set(small.query) <= set(draw.query)
    assert set(small.gallery) <= set(draw.gallery)
    assert {*labels[small.query]} <= {*labels[small.gallery]}
