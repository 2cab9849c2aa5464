"""Training from end to end on generated images: results, budget, resuming, warnings, errors."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from vizsla import storage
from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.data.splits import split
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, MissingExtraError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.options import TrainConfig, TuneConfig
from vizsla.score.embedder_validation import Validation
from vizsla.train import backbone, candidates
from vizsla.train.job import Budget, Decisions, training_compute
from vizsla.train.selection import TrainResult
from vizsla.train.teacher import Teacher
from vizsla.train.training import train

pytestmark = pytest.mark.usefixtures("short_heads")
SIDE = 16
FAST = {
    "precision": "fp32", "batch_size": 16, "epochs": 3, "learning_rate": 3e-3, "augment": "none",
    "loss": "cross-entropy", "real_weights": False, "workers": 1,
}  # fmt: skip


class Net(nn.Module):
    """Sees stripes, if trained to; its first layer starts as a blur that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 12, 5, 2)
        self.norm = nn.BatchNorm2d(12)
        self.two = nn.Conv2d(12, 16, 3)
        self.drop = nn.Dropout(0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.two(self.drop(self.norm(self.one(images)).relu())).relu()


def embedder(seed: int = 0) -> Embedder:
    torch.manual_seed(seed)
    return Embedder.from_module(Net(), Preprocess((SIDE, SIDE)), name="small", pooling="gap")


def stripes(label: int, rng: np.random.Generator) -> Image.Image:
    """Stripes at an angle that tells the class, of any colour and phase."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = np.pi * label / 8
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 1.3 + rng.uniform(0, 6))
    pixels = (
        128 + 80 * wave[..., None] * rng.uniform(0.6, 1, 3) + rng.normal(0, 30, (SIDE, SIDE, 3))
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """8 classes × 16 images."""
    root, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for label in range(8):
        (root / f"c{label}").mkdir()
        for i in range(16):
            stripes(label, rng).save(root / f"c{label}" / f"{i:02d}.png")
    return ImageSet.from_class_folders(root)


def run(
    images: ImageSet,
    out: Path,
    model: Embedder | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    **options: object,
) -> TrainResult:
    config = TrainConfig(**{**FAST, **options})
    parts = split(images, "seen-classes", share=0.25)
    validation = Validation(images, parts, training_compute(config))
    return train(images.subset(parts.training), model or embedder(), config, validation, out,
                 budget=Budget(config.budget, clock=clock))  # fmt: skip


class Ticking:
    """A clock that moves on by `step` seconds whenever it is read, on any machine."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def weights(model: Embedder) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ── results ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def trained(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return run(images, tmp_path_factory.mktemp("trained"), epochs=12, loss="cross-entropy+supcon")


def test_it_learns_and_keeps_the_best(trained: TrainResult) -> None:
    frozen = trained.candidates[0]
    assert frozen.name == "frozen"
    assert trained.is_improved
    assert trained.kept.value > frozen.value + 0.05
    assert trained.kept.value == max(c.value for c in trained.candidates if c.beats_frozen)
    entered = {c.name for c in trained.candidates}
    assert {"frozen", "centred", "head", "head + 0.3 frozen", "average of weights",
            "0.75 of the way"} <= entered  # fmt: skip
    assert not any("did not move" in sentence for sentence in trained.warnings)


def test_the_record_has_the_keys_of_the_contest(trained: TrainResult) -> None:
    record = json.loads(json.dumps(trained.record()))
    assert record["is_finetuned"] is True
    assert record["num_classes"] == 8
    assert record["loss_function"] == "CrossEntropyLoss+SupConLoss"
    assert record["num_epochs"] == 12
    assert record["final_train_loss"] == pytest.approx(trained.final_train_loss)
    assert record["training"]["candidates"][0]["name"] == "frozen"
    assert "is kept" in trained.verdict
    assert "kept" in trained.text()


def test_a_fitted_projection_does_not_count_as_a_training(trained: TrainResult) -> None:
    kept = dataclasses.replace(trained, closed_forms=frozenset({trained.kept.name}))
    record = kept.record()
    assert (record["is_finetuned"], record["num_epochs"]) == (False, 0)
    assert record["loss_function"] is record["final_train_loss"] is None
    assert "a projection after the unchanged network" in kept.verdict
    assert "unchanged network" not in trained.verdict


def test_it_leaves_log_and_embedder(trained: TrainResult) -> None:
    lines = [json.loads(line) for line in trained.log_path.read_text().splitlines()]
    for key in ("step", "loss", "learning_rates", "images_per_second", "memory_mb"):
        assert key in lines[-1]
    assert lines[-1]["loss"] < lines[0]["loss"]
    again = Embedder.load(trained.folder / "embedder", module=Net())
    assert again.model_id == trained.embedder.model_id
    batch = torch.randn(2, 3, SIDE, SIDE)
    assert torch.allclose(again(batch), trained.embedder(batch), atol=1e-6)


def test_the_given_embedder_is_not_changed(images: ImageSet, tmp_path: Path) -> None:
    model = embedder()
    before = weights(model).clone()
    result = run(images, tmp_path, model, learning_rate=1e-9, head_learning_rate=1e-9, epochs=1)
    assert torch.equal(weights(result.candidates[0].embedder or model), before)


def test_a_short_training_comes_first(images: ImageSet, tmp_path: Path) -> None:
    """As if it were asked for alone, and without changing the long one."""
    both = run(images, tmp_path / "both", epochs=3, short_epochs=1)
    short = run(images, tmp_path / "short", epochs=1)
    long = run(images, tmp_path / "long", epochs=3)
    values = {c.name: c.values for c in both.candidates}
    for prefix, alone in (("short: ", short), ("", long)):
        for name in ("average of weights", "0.75 of the way"):
            own = next(c.values for c in alone.candidates if c.name == name)
            assert np.array_equal(values[prefix + name], own), prefix + name
    kept_short = both.kept.name.startswith("short: ")
    assert both.steps == (short if kept_short else long).steps
    lines = (tmp_path / "both" / "short" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] <= short.steps


def test_no_short_training_where_it_would_take_most_of_the_time(
    images: ImageSet, tmp_path: Path
) -> None:
    result = run(images, tmp_path, epochs=3, short_epochs=2)
    assert not [c for c in result.candidates if c.name.startswith("short")]


@pytest.mark.parametrize(("costs", "pays"), [(0.0, True), (1e9, False)])
def test_a_budget_covers_a_short_training_that_pays(
    costs: float, pays: bool, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "TRAINING_COSTS", costs)  # of an image
    monkeypatch.setattr(candidates, "SAVING_SECONDS", 0.1)
    result = run(images, tmp_path, budget=5.0, short_epochs=0.5, clock=Ticking(0.01))
    names = [c.name for c in result.candidates]
    assert "average of weights" in names and ("short: average of weights" in names) is pays
    assert result.seconds < 5.0


def test_a_short_training_that_has_ended_stays_ended(images: ImageSet, tmp_path: Path) -> None:
    """One that the clock has ended would have time again after a kill."""
    config = TrainConfig(**{**FAST, "budget": 10.0, "short_epochs": 1000.0})
    parts = split(images, "seen-classes", share=0.25)
    validation = Validation(images, parts, training_compute(config))

    def once(tick: float, progress: Callable[[str, int, int], None] | None = None) -> TrainResult:
        part, budget = images.subset(parts.training), Budget(config.budget, clock=Ticking(tick))
        return train(
            part, embedder(), config, validation, tmp_path, budget=budget, progress=progress
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backbone, "TRAINING_COSTS", 0.0)
        with pytest.raises(Killed):
            once(0.02, killer(1, "training (seconds)"))
        log = (tmp_path / "short" / "log.jsonl").read_text()
        patched.setattr(backbone, "TRAINING_COSTS", 1e9)  # decided already
        result = once(0.005)
    assert "short: average of weights" in [c.name for c in result.candidates]
    assert (tmp_path / "short" / "log.jsonl").read_text() == log


@pytest.mark.parametrize("finetune", ["none", "head", "last"])
def test_finetune_decides_which_weights_change(
    finetune: str, images: ImageSet, tmp_path: Path
) -> None:
    model = embedder()
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    result = run(images, tmp_path, model, finetune=finetune, blocks=1)
    for candidate in result.candidates:
        if candidate.embedder is None:
            continue
        for name, p in candidate.embedder.backbone.named_parameters():
            if finetune != "last" or "one" in name or "norm" in name:
                assert torch.equal(p, before[name]), (candidate.name, name)
    assert (result.steps > 0) == (finetune == "last")
    assert (len(result.candidates) == 1) == (finetune == "none")


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "triplet", "miner": "semihard", "micro_batch": 5},
        {"loss": "contrastive", "memory": 64},
        {"loss": "subcenter-arcface(least_margin=5)", "batches": "balanced", "dim": 8},
        {"loss": "proxy-anchor", "augment": "strong", "train_size": 12, "ema_decay": 0},
        {"batch_norm": "trained", "precision": "bf16", "clip": 0, "finetune": "full"},
    ],
)
def test_ways_to_train(options: dict, images: ImageSet, tmp_path: Path) -> None:
    result = run(images, tmp_path, **{**options, "epochs": 1})
    assert result.steps == 6
    assert np.isfinite(result.final_train_loss)
    assert result.embedder.dim in (8, 16, 32, 16 + 8)  # alone, joined, with 8 classes


def test_views_apply_to_candidates_and_not_to_training(images: ImageSet, tmp_path: Path) -> None:
    sizes: list[int] = []
    model = embedder().with_views("flip")
    model.backbone.network.register_forward_hook(lambda m, x, y: sizes.append(len(x[0])))
    result = run(images, tmp_path, model, epochs=1)
    flipped = [c.embedder for c in result.candidates if c.embedder is not None]
    assert all(str(e.views) == "flip,1" for e in flipped)
    assert str(Embedder.load(tmp_path / "embedder", module=Net()).views) == "flip,1"
    training = [e for e in sizes if e == FAST["batch_size"]]
    assert len(training) == result.steps


def test_the_verdict_when_the_frozen_model_is_kept(images: ImageSet, tmp_path: Path) -> None:
    class Falling:
        """Each embedder scores worse than the one before."""

        calls = 0

        def __call__(self, model: Embedder) -> np.ndarray:
            self.calls += 1
            return np.full(10, 1 / self.calls)

    config = TrainConfig(**{**FAST, "epochs": 1})
    result = train(images, embedder(), config, Falling(), tmp_path)
    assert not result.is_improved
    assert result.verdict.startswith("the frozen model is kept")
    assert result.record()["loss_function"] is None
    assert torch.equal(weights(result.embedder), weights(embedder()))


# ── budget ───────────────────────────────────────────────────────────────────────────────────────


def test_a_budget_is_kept(images: ImageSet, tmp_path: Path) -> None:
    result = run(images, tmp_path, budget=12.0, clock=Ticking(0.02))
    assert result.steps > 10
    assert 0.5 * 12 < result.seconds < 12
    assert sum(result.spent.values()) == pytest.approx(result.seconds, abs=0.1)
    lines = result.scores_text().splitlines()
    rows = lines[next(i for i, line in enumerate(lines) if line.startswith("time")) + 1 :]
    share = result.spent["steps of training"] / sum(result.spent.values())
    assert any(r.startswith("steps of training") and r.endswith(f"{share:.0%}") for r in rows)
    assert sum(float(r.split()[-1].rstrip("%")) for r in rows) == pytest.approx(100, abs=3)
    recorded = {row["part"]: row["seconds"] for row in result.record()["training"]["time"]}
    assert recorded["steps of training"] == round(result.spent["steps of training"], 1)


def test_a_budget_too_short_for_the_backbone_says_so(images: ImageSet, tmp_path: Path) -> None:
    result = run(images, tmp_path, budget=0.5)
    assert any("leaves no time" in sentence for sentence in result.warnings)


def test_an_overrun_budget_is_reported_with_its_causes(images: ImageSet, tmp_path: Path) -> None:
    part, config = images.subset(range(0, 128, 2)), TrainConfig(**{**FAST, "budget": 0.2})

    clock = Ticking(0.001)

    def slow(model: Embedder) -> np.ndarray:
        clock.now += 0.4
        return np.full(60, 0.5)

    result = train(
        part, embedder(), config, slow, tmp_path, budget=Budget(config.budget, clock=clock)
    )
    warning = next(s for s in result.warnings if "more than the budget" in s)
    assert f"took {result.seconds:.0f} s" in warning
    assert "embedding 64 training images alone" in warning
    assert warning in result.record()["training"]["warnings"]
    roomy = dataclasses.replace(config, budget=600.0, finetune="none")
    other = train(part, embedder(), roomy, slow, tmp_path / "roomy")
    assert not warned(other, "more than the budget")


def test_a_training_under_a_clock_is_repeated_step_by_step(
    images: ImageSet, tmp_path: Path
) -> None:
    first = run(images, tmp_path / "a", budget=12.0, short_epochs=0.5, clock=Ticking(0.02))
    decisions = Decisions.read(tmp_path / "a")
    kept = "short: steps" if first.kept.name.startswith("short: ") else "steps"
    assert decisions is not None and len(decisions[kept]) == first.steps
    assert len(decisions["steps"]) > 10
    config = TrainConfig(**{**FAST, "budget": 12.0, "short_epochs": 0.5, "replay": decisions})
    parts = split(images, "seen-classes", share=0.25)
    validation = Validation(images, parts, training_compute(config))
    again = train(images.subset(parts.training), embedder(), config, validation, tmp_path / "b")
    assert [c.name for c in again.candidates] == [c.name for c in first.candidates]
    for one, other in zip(first.candidates, again.candidates, strict=True):
        assert np.array_equal(one.values, other.values), one.name
    assert torch.equal(weights(first.embedder), weights(again.embedder))
    assert Decisions.read(tmp_path / "b") == decisions
    run(images, tmp_path / "c", budget=12.0, short_epochs=0.5, clock=Ticking(0.01))
    faster = Decisions.read(tmp_path / "c")
    assert faster is not None and len(faster["steps"]) > len(decisions["steps"])


# ── resuming ─────────────────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    pass


def killer(step: int, at: str = "training") -> Callable[[str, int, int], None]:
    calls = 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal calls
        if stage == at:
            calls += 1
            if calls == step:
                raise Killed

    return progress


@pytest.mark.parametrize(
    ("loss", "stage"),
    [
        ("cross-entropy", "training"),
        ("contrastive", "training"),
        ("supcon", "short training"),
        ("cross-entropy+teacher", "training"),
    ],
)
def test_a_killed_training_ends_as_an_uninterrupted_one(
    loss: str, stage: str, images: ImageSet, tmp_path: Path
) -> None:
    options = {**FAST, "epochs": 6, "loss": loss, "augment": "medium", "batch_norm": "trained"}
    options |= {"short_epochs": 2}
    options |= {"memory": 64} if loss == "contrastive" else {}
    parts = split(images, "seen-classes", share=0.25)
    part = images.subset(parts.training)
    teacher = teacher_of(images) if "teacher" in loss else None

    def once(out: Path, progress: Callable[[str, int, int], None] | None = None) -> TrainResult:
        config = TrainConfig(**options, save_seconds=0.0)
        validation = Validation(images, parts, training_compute(config))
        return train(
            part, embedder(), config, validation, out, progress=progress,
            teacher=teacher,
        )  # fmt: skip

    whole = once(tmp_path / "whole")
    with pytest.raises(Killed):
        once(tmp_path / "broken", killer(3 if stage == "training" else 2, stage))
    for folder in ("short", "") if stage == "training" else ("short",):
        assert (tmp_path / "broken" / folder / "checkpoint" / "state.json").exists()
    again = once(tmp_path / "broken")
    assert again.steps == whole.steps == (12 if whole.kept.name.startswith("short") else 36)
    assert again.final_train_loss == whole.final_train_loss
    for one, other in zip(whole.candidates, again.candidates, strict=True):
        assert one.name == other.name
        assert np.array_equal(one.values, other.values), one.name
    assert torch.equal(weights(whole.embedder), weights(again.embedder))
    steps = [json.loads(line)["step"] for line in again.log_path.read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_an_interrupted_training_continues_within_the_time_left(
    images: ImageSet, tmp_path: Path
) -> None:
    config = TrainConfig(**{**FAST, "budget": 9.0})
    parts = split(images, "seen-classes", share=0.25)
    validation = Validation(images, parts, training_compute(config))
    first = Budget(config.budget, clock=Ticking(0.02))

    def killed(stage: str, done: int, total: int) -> None:
        if stage == "training (seconds)" and first.spent() > 4:
            raise Killed

    with pytest.raises(Killed):
        train(images.subset(parts.training), embedder(), config, validation, tmp_path,
              budget=first, progress=killed)  # fmt: skip
    saved = storage.read_sealed_json(tmp_path / "checkpoint" / "state.json")["state"]["keys"]
    clock = Ticking(0.02)
    result = run(images, tmp_path, budget=9.0, clock=clock)
    assert result.seconds == pytest.approx(clock.now + dict(saved)["clock"], abs=0.1)
    assert 3 < dict(saved)["clock"] < first.spent() and result.seconds < 9.0


def test_other_settings_do_not_continue_a_training(images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        config = TrainConfig(**FAST, save_seconds=0.0)
        parts = split(images, "seen-classes", share=0.25)
        validation = Validation(images, parts, training_compute(config))
        part = images.subset(parts.training)
        train(part, embedder(), config, validation, tmp_path, progress=killer(2))
    result = run(images, tmp_path, learning_rate=1e-3)
    assert result.steps == 18
    first = json.loads(result.log_path.read_text().splitlines()[0])
    assert first["step"] == 1


# ── warnings ─────────────────────────────────────────────────────────────────────────────────────


def warned(result: TrainResult, words: str) -> bool:
    return any(words in sentence for sentence in result.warnings)


def test_nothing_moves_at_rate_zero(images: ImageSet, tmp_path: Path) -> None:
    result = run(images, tmp_path, learning_rate=0.0, epochs=1)
    assert warned(result, "trained weights did not move")


def test_a_loss_that_is_not_finite_stops_training_with_the_last_good_weights(
    images: ImageSet, tmp_path: Path
) -> None:
    result = run(images, tmp_path, learning_rate=1e30, clip=0, ema_decay=0)
    assert warned(result, "training stopped there")
    assert torch.isfinite(weights(result.embedder)).all()


def test_a_loss_at_chance_gives_a_warning(images: ImageSet, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixed = [str(label) for label in rng.permutation(images.labels or [])]
    blank = images.with_labels(mixed)
    result = run(blank, tmp_path, learning_rate=1e-12, loss="cross-entropy(scale=0.01)", epochs=1)
    assert warned(result, "within 1 % of chance")


def test_wrong_preprocessing_gives_a_warning(images: ImageSet, tmp_path: Path) -> None:
    model = embedder()
    with torch.no_grad():
        model.backbone.network.two.bias.fill_(1e4)  # the same vector for every image, nearly
    result = run(images, tmp_path, model, real_weights=True, finetune="none")
    assert warned(result, "weights or the preprocessing are wrong")
    result = run(images, tmp_path, model, real_weights=True, epochs=1, learning_rate=1e-9)
    assert warned(result, "collapsed") or result.kept.name != "frozen"


# ── bad input ────────────────────────────────────────────────────────────────────────────────────


def labelled(images: ImageSet, labels: list[str]) -> ImageSet:
    return images.subset(range(len(labels))).with_labels(labels)


def flat(model: Embedder) -> np.ndarray:
    return np.full(4, 0.5)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a"] * 8, "one class"),
        ([str(i) for i in range(8)], "class of its own"),
        ([], "no images"),
    ],
)
def test_nothing_to_learn_from_is_an_error(
    labels: list[str], words: str, images: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        train(labelled(images, labels), embedder(), TrainConfig(**FAST), flat, tmp_path)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "a", "b", "b", "c"], "1 of 3 classes have one image"),
        (["Cat", "Cat", "cat", "cat"], "upper and lower case"),
        (["a", "a", "b"], "1 of 2 classes"),  # smaller than one batch
    ],
)
@pytest.mark.parametrize("loss", ["cross-entropy", "triplet"])
def test_unusual_labels_train_with_a_warning(
    loss: str, labels: list[str], words: str, images: ImageSet, tmp_path: Path
) -> None:
    config = TrainConfig(**{**FAST, "loss": loss, "epochs": 1})
    result = train(labelled(images, labels), embedder(), config, flat, tmp_path)
    assert warned(result, words)
    assert result.steps >= 1


def test_ten_thousand_classes_work() -> None:
    from vizsla.train.losses import build_loss

    loss = build_loss("cross-entropy+0.5*supcon", 10_000, 16)
    z = F.normalize(torch.randn(8, 16), dim=1)
    assert torch.isfinite(loss(z, torch.arange(8) // 2))


def test_broken_images_are_left_out(images: ImageSet, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "data"
    shutil.copytree(images.root, root)
    (root / "c0" / "00.png").write_bytes(b"no image")
    result = run(ImageSet.from_class_folders(root), tmp_path / "out", epochs=1)
    assert result.steps == 6
    if result.broken:  # else it was held out
        assert result.broken[0][0] == "c0/00.png"


def test_pixels_that_are_not_finite_are_an_error(images: ImageSet, tmp_path: Path) -> None:
    model = embedder()
    bad = Preprocess((SIDE, SIDE), mean=(float("nan"), 0.0, 0.0))
    model.preprocess = model.backbone.preprocess = bad
    with pytest.raises(DataError):
        train(images, model, TrainConfig(**FAST), flat, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"finetune": "all"}, {"batch_norm": "on"}, {"batch_size": 1}, {"epochs": 0},
        {"memory": 3}, {"budget": -1.0},
    ],
)  # fmt: skip
def test_wrong_use(options: dict) -> None:
    with pytest.raises(UsageError):
        TrainConfig(**{**FAST, **options})


# ── adapters, text ───────────────────────────────────────────────────────────────────────────────


def photos(tmp_path: Path) -> ImageSet:
    rng = np.random.default_rng(0)
    for label in range(4):
        (tmp_path / "photos" / f"c{label}").mkdir(parents=True)
        for i in range(6):
            stripes(label, rng).resize((40, 40)).save(tmp_path / "photos" / f"c{label}/{i}.png")
    return ImageSet.from_class_folders(tmp_path / "photos")


def test_a_model_that_reads_text_keeps_doing_so(tiny_clip: str, tmp_path: Path) -> None:
    model = Embedder.build(tiny_clip, weights="random", pooling="native")
    config = TrainConfig(**{**FAST, "epochs": 1})
    rising = iter(np.linspace(0.1, 0.9, 90))
    result = train(photos(tmp_path), model, config, lambda m: np.full(4, next(rising)), tmp_path)
    assert result.is_improved
    texts = result.embedder.encode_text(["a dog", "a cat"])
    assert texts.shape == (2, result.embedder.dim)
    again = Embedder.load(tmp_path / "embedder")
    assert again.reads_text
    assert torch.allclose(again.encode_text(["a dog"]), texts[:1], atol=1e-5)


def test_adapters_are_merged(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = Embedder.build("timm:test_vit", weights="random", image_size=160)
    names = set(model.state_dict())
    config = TrainConfig(**{**FAST, "finetune": "lora", "epochs": 1, "learning_rate": 1e-2})
    rising = iter(np.linspace(0.1, 0.9, 90))
    result = train(photos(tmp_path), model, config, lambda m: np.full(4, next(rising)), tmp_path)
    assert {n for n in result.embedder.state_dict() if "lora" in n} == set()
    assert names <= set(result.embedder.state_dict())
    assert not any("did not move" in sentence for sentence in result.warnings)
    assert Embedder.load(tmp_path / "embedder").model_id == result.embedder.model_id


def test_tensorboard_reads_what_is_logged(images: ImageSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(images, tmp_path, tensorboard=True, epochs=1)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [json.loads(line) for line in result.log_path.read_text().splitlines()]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([r["loss"] for r in logged])
    assert "images_per_second" in events.Tags()["scalars"]


def test_a_missing_extra_names_itself(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"vizsla\[lora\]"):
        train(images, embedder(), TrainConfig(**FAST, finetune="lora"), flat, tmp_path)


# ── a teacher ────────────────────────────────────────────────────────────────────────────────────


def teacher_of(images: ImageSet, model_id: str = "good") -> Teacher:
    """Vectors that tell the classes, with some noise."""
    codes = np.unique(images.labels or [], return_inverse=True)[1]
    noise = np.random.default_rng(0).normal(0, 0.1, (len(images), 8))
    vectors = (np.eye(8)[codes] + noise).astype(np.float32)
    found = Embeddings(images.ids, vectors, images.attributes, model_id)
    return Teacher("vectors", model_id, lambda images, report: found)


def test_a_student_learns_from_a_teacher_alone(images: ImageSet, tmp_path: Path) -> None:
    """No label enters the loss; validation still needs them."""
    config = TrainConfig(**{**FAST, "epochs": 12, "loss": "teacher", "head_steps": 1})
    parts = split(images, "seen-classes", share=0.25)
    validation = Validation(images, parts, training_compute(config))
    result = train(images.subset(parts.training), embedder(), config, validation, tmp_path,
                   teacher=teacher_of(images))  # fmt: skip
    tuned = next(c for c in result.candidates if c.name == "average of weights")
    assert tuned.gain > max(0.05, 2 * tuned.error)
    assert result.record()["training"]["teacher"] == {"name": "vectors", "model_id": "good"}


def test_teacher_and_term_go_together(images: ImageSet, tmp_path: Path) -> None:
    model = embedder()
    for loss, teacher, words in (
        ("teacher", None, "needs a teacher"),
        ("supcon", teacher_of(images), "does not use a teacher"),
        ("supcon+teacher", teacher_of(images, model.model_id), "a better one"),
    ):
        config = TrainConfig(**{**FAST, "loss": loss})
        with pytest.raises(UsageError, match=words):
            train(images, model, config, lambda e: np.zeros(9), tmp_path, teacher=teacher)
    losses = [
        TuneConfig.from_options({"teacher": "t", **more}).loss
        for more in ({}, {"loss": "supcon"}, {"loss": "supcon+0.3*teacher"})
    ]
    assert losses[0] == f"{TuneConfig.loss}+teacher"
    assert losses[1:] == ["supcon+teacher", "supcon+0.3*teacher"]
    with pytest.raises(UsageError, match="trains a student"):
        TuneConfig.from_options({"teacher": "t", "finetune": "none"})
