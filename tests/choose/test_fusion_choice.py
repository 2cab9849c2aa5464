from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vizsla.choose.fusion_choice import choose_fusion
from vizsla.choose.validation import EmbeddedDraws, embedded_draws
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import UsageError
from vizsla.options import TuneConfig
from vizsla.search.chain import Chain, parse_chain

CLASSES, EACH = 14, 10


@pytest.fixture(scope="module")
def images() -> ImageSet:
    ids = sorted(f"{c:02}/{i:02}.png" for c in range(CLASSES) for i in range(EACH))
    return ImageSet(Path("x"), ids, pa.table({"label": [name[:2] for name in ids]}))


def model(images: ImageSet, noise: float, seed: int) -> Embeddings:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLASSES, 20))
    rows = centres[[int(name[:2]) for name in images.ids]]
    rows = rows + noise * rng.standard_normal(rows.shape)
    return Embeddings.from_arrays(rows, images.ids, images.labels, model_id=f"m{seed}")


def drawn(images: ImageSet, first: Embeddings) -> EmbeddedDraws:
    return embedded_draws(images, TuneConfig(), Target(20, 70), frozen=True, embed=lambda _: first)


def test_a_useless_model_gets_little_and_two_good_ones_help_each_other(images: ImageSet) -> None:
    good, also, bad = model(images, 1.2, 1), model(images, 1.2, 2), model(images, 30, 3)
    choice = choose_fusion([good, bad], [Chain(), Chain()], drawn(images, good))
    assert choice.weights[0] > 0.75 and sum(choice.weights) == pytest.approx(1)
    both = choose_fusion([good, also], [Chain(), Chain()], drawn(images, good))
    alone = [t for t in both.report.trials if t.name in ("zscore(1,0)", "zscore(0,1)")]
    assert 0.2 < both.weights[0] < 0.8
    assert both.report.chosen.value > max(t.value for t in alone) + 0.02
    three = choose_fusion(
        [good, bad, also], [parse_chain("aqe"), Chain(), Chain()], drawn(images, good)
    )
    assert three.weights[1] < 0.2
    assert three.report.chosen.value >= three.report.trials[0].value
    assert "kept: " in three.lines()[-1] and three.record()["candidates"][0]["fusion"]


def test_the_method_that_fits_the_scores_is_kept(images: ImageSet) -> None:
    """One model is bad, and only calibrated is told so, by probabilities that say nothing."""
    good, bad = model(images, 1.2, 1), model(images, 3, 2)

    def certain(scores: np.ndarray) -> np.ndarray:
        return np.clip(scores, 0.01, 0.99)

    def useless(scores: np.ndarray) -> np.ndarray:
        return np.full_like(scores, 0.5)

    methods = {"zscore": None, "rrf": None, "calibrated": [certain, useless]}
    choice = choose_fusion(
        [good, bad], [Chain(), Chain()], drawn(images, good), methods=methods, weights=[1, 1]
    )
    assert choice.method == "calibrated" and choice.weights == [0.5, 0.5]
    assert choice.lines()[-1] == "kept: calibrated, weights 0.5, 0.5"
    names = [trial.name for trial in choice.report.trials]
    assert names == ["zscore(0.5,0.5)", "rrf(0.5,0.5)", "calibrated(0.5,0.5)"]


def test_models_may_lack_images(images: ImageSet) -> None:
    whole = model(images, 1.2, 1)
    kept = [i for i in range(len(images)) if i % 9]
    part = Embeddings.from_arrays(whole.vectors[kept], [images.ids[i] for i in kept])
    choice = choose_fusion(
        [whole, part], [Chain(), Chain()], drawn(images, whole), methods={"rrf": None}
    )
    assert sum(choice.weights) == pytest.approx(1)
    with pytest.raises(UsageError, match="one for each"):
        choose_fusion([whole], [], drawn(images, whole))
