"""Choosing on vectors where it is known which refinement helps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vizsla import embed
from vizsla.choose import refinement
from vizsla.choose.refinement import (
    SCREENING_QUERIES,
    RefinementChoice,
    choose_chain,
    choose_chain_on_images,
    neighbourhood_sizes,
    saved_chain,
)
from vizsla.choose.validation import ValidationSet, validation_draws, validation_set
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Draw, Target
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import StorageError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.options import TuneConfig
from vizsla.search.chain import parse_chain

Curled = Callable[[ImageSet], Embeddings]
Labelled = Callable[[int, int], ImageSet]


@pytest.fixture(scope="module")
def validation(images: ImageSet) -> ValidationSet:
    draws = validation_draws(images, TuneConfig(), Target(24, 72, 9.0), frozen=True)
    return validation_set(images, images.ids, draws)


@pytest.mark.parametrize("uses", ["queries", "gallery", "nothing"])
def test_progress_rises_to_about_the_expected_number(
    uses: str, images: ImageSet, validation: ValidationSet, curled: Curled
) -> None:
    reports: list[tuple[int, int]] = []
    choice = choose_chain(
        curled(images),
        validation,
        uses=uses,
        progress=lambda done, total: reports.append((done, total)),
    )
    done, totals = zip(*reports, strict=True)
    tried = len(reports) - 1  # a chain compares images for long
    assert tried >= len(choice.trials) * len(validation.draws) and list(done) == sorted(done)
    assert len(set(totals)) == 1 and done[-1] == totals[-1] > done[-2]
    assert 0.8 * tried <= totals[-1] <= 1.25 * tried


def test_what_helps_is_chosen_and_reported(
    images: ImageSet, validation: ValidationSet, tmp_path: Path, curled: Curled
) -> None:
    choice = choose_chain(curled(images), validation)
    base, kept = choice.trials[0], choice.chosen
    assert base.name == "none" and kept is not base
    assert kept.value == max(t.value for t in choice.trials if t.is_safe)
    assert kept.map > base.map + 0.03 and kept.gain > kept.error and kept.risk <= 0.1
    text = "\n".join(choice.lines())
    assert "kept: " + str(choice.chain).replace(",", ", ") in " ".join(text.split())
    assert len(text.splitlines()) <= 30 < len(choice.all_lines()) and "uses" in text
    assert f"{len(choice.trials)} were tried (-v lists them)" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    rows = choice.record()["candidates"]
    assert {"refinement", "top1", "points", "map", "gain", "gain_error", "risk", "uses"} <= set(
        rows[0]
    )
    assert [row["refinement"] for row in rows if row["verdict"] == "kept"] == [str(choice.chain)]
    choice.save(tmp_path / "refinement.json")
    assert saved_chain(tmp_path / "refinement.json") == str(choice.chain)
    assert saved_chain(tmp_path / "absent.json") is None
    (tmp_path / "refinement.json").write_text("{}")
    with pytest.raises(StorageError):
        saved_chain(tmp_path / "refinement.json")


def test_balance_is_chosen_for_a_catalogue_with_hubs(labelled: Labelled) -> None:
    """One picture of each class is the gallery, and some are near to every query."""
    images = labelled(60, 4)
    rng = np.random.default_rng(3)
    centres = np.repeat(rng.standard_normal((60, 24)), 4, axis=0)
    shared = 6 * np.eye(24)[0]
    is_gallery = np.arange(240) % 4 == 0
    amount = np.where(is_gallery, rng.uniform(0, 1.5, 240), 1.0)[:, None]
    noise = np.where(is_gallery, 0, 0.8)[:, None] * rng.standard_normal((240, 24))
    vectors = Embeddings.from_arrays(centres + amount * shared + noise, images.ids, images.labels)
    draw = Draw(np.flatnonzero(~is_gallery), np.flatnonzero(is_gallery))
    on = validation_set(images, images.ids, [draw])
    choice = choose_chain(vectors, on)
    assert "balance" in str(choice.chain) and choice.chosen.top1 > choice.without.top1 + 0.1
    assert "balance" not in str(choose_chain(vectors, on, uses="gallery").chain)


def test_only_the_best_on_a_few_draws_are_compared_on_all(
    images: ImageSet, validation: ValidationSet, curled: Curled, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[int] = []
    choice = choose_chain(
        curled(images), validation, progress=lambda done, total: reports.append(done)
    )
    few, draws = -(-SCREENING_QUERIES // 24), len(validation.draws)
    assert 2 * few <= draws and choice.screened > 30
    assert f"{choice.screened} others were worse on a few draws" in "\n".join(choice.lines())
    screened = (len(reports) - 1 - len(choice.trials) * draws) / few
    assert screened == int(screened) < choice.screened + len(choice.trials)  # `none` is not
    monkeypatch.setattr(refinement, "SCREENING_QUERIES", 10**6)
    without = choose_chain(curled(images), validation)
    assert without.screened == 0 and "a few draws" not in "\n".join(without.lines())
    assert choice.chosen.value > without.chosen.value - choice.chosen.error


def test_vectors_of_more_dimensions_than_images_give_the_same(
    images: ImageSet, validation: ValidationSet, curled: Curled
) -> None:
    """Their cosines are computed in as many dimensions as there are images."""
    plain = curled(images)
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((2 * len(plain), plain.dim)))[0]
    wide = Embeddings.from_arrays(plain.vectors @ turned.T, plain.ids, images.labels)
    first, second = (choose_chain(one, validation, uses="gallery") for one in (plain, wide))
    assert first.chain == second.chain
    assert first.chosen.value == pytest.approx(second.chosen.value, abs=1e-3)


def test_only_what_is_allowed_is_tried(
    images: ImageSet, validation: ValidationSet, curled: Curled
) -> None:
    vectors = curled(images)
    gallery = choose_chain(vectors, validation, uses="gallery")
    assert {trial.uses for trial in gallery.trials} == {"nothing", "gallery"}
    nothing = choose_chain(vectors, validation, uses="nothing")
    assert str(nothing.chain) == "none" and len(nothing.trials) == 1
    with pytest.raises(UsageError, match="choose one of"):
        choose_chain(vectors, validation, uses="everything")


def test_the_same_is_chosen_again(
    images: ImageSet, validation: ValidationSet, curled: Curled
) -> None:
    first, second = (choose_chain(curled(images), validation, uses="gallery") for _ in range(2))
    assert [t.name for t in first.trials] == [t.name for t in second.trials]
    assert [t.value for t in first.trials] == [t.value for t in second.trials]
    assert first.chain == second.chain


def test_where_nothing_helps_none_stays(images: ImageSet, validation: ValidationSet) -> None:
    """Vectors that are right already: no refinement can gain."""
    rows = np.eye(16)[[int(name[:2]) for name in images.ids]]
    choice = choose_chain(Embeddings.from_arrays(rows, images.ids, images.labels), validation)
    assert str(choice.chain) == "none"
    text = " ".join(choice.lines())
    tried = len(choice.trials) - 1
    assert text.startswith(f"no refinement is kept of {tried} tried on training images, in ")
    assert ", gained nothing (-v lists them)" in text
    assert len(choice.lines()) <= 5 and "kept: none" not in text


@pytest.fixture
def crops(scene: Callable[..., Image.Image], tmp_path: Path) -> ImageSet:
    """8 classes of 6 images: crops of one scene each."""
    rng = np.random.default_rng(0)
    ids = []
    for c in range(8):
        whole = scene(c, (300, 240))
        (tmp_path / f"{c:02}").mkdir()
        for i in range(6):
            x, y = (int(side) for side in rng.integers(0, 60, 2))
            whole.crop((x, y, x + 200, y + 160)).save(tmp_path / f"{c:02}/{i:02}.png")
            ids.append(f"{c:02}/{i:02}.png")
    return ImageSet(tmp_path, ids, pa.table({"label": [name[:2] for name in ids]}))


def test_verify_is_kept_where_it_helps_and_refused_elsewhere(
    crops: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2", reason="needs the extra local")
    rows = np.random.default_rng(1).standard_normal((len(crops), 8))
    plain = Embeddings.from_arrays(rows, crops.ids, model_id="m")

    def chosen(images: ImageSet) -> RefinementChoice:
        return choose_chain_on_images(
            images, TuneConfig(), Target(8, 24, 4.0), frozen=True, uses="nothing",
            embed=lambda some: replace(
                plain.subset([crops.ids.index(name) for name in some.ids]), root=crops.root
            ),
        )  # fmt: skip

    kept = chosen(crops)
    assert kept.chain.verify and kept.chosen.top1 > kept.trials[0].top1 + 0.3
    assert "milliseconds a query, once the features are there: verify" in "\n".join(kept.lines())
    assert "milliseconds" not in str(kept.record())  # a time is in no artefact
    other = crops.attributes.set_column(0, "label", [[f"{i % 8}" for i in range(len(crops))]])
    refused = chosen(replace(crops, attributes=other))  # labels that no image shows
    assert str(refused.chain) == "none" and any("verify" in t.name for t in refused.trials)
    monkeypatch.setattr(refinement, "SCREENING_QUERIES", 1)  # the first draw
    assert chosen(crops).chain == kept.chain
    early = chosen(replace(crops, attributes=other))  # is slow, so it is not tried on all draws
    assert str(early.chain) == "none" and early.screened >= 3
    assert not any("verify" in t.name for t in early.trials)


def test_tokens_are_tried_where_the_model_is_known_and_small_enough(
    crops: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cv2", reason="needs the extra local")
    embedder = Embedder.build("tiny", weights="random", image_size=32)
    vectors = embed(crops, embedder)

    def tried() -> tuple[RefinementChoice, set[str]]:
        found = choose_chain_on_images(
            crops, TuneConfig(), Target(8, 24, 4.0), frozen=True, uses="gallery",
            embed=lambda some: replace(
                vectors.subset([vectors.ids.index(name) for name in some.ids]), root=crops.root
            ),
        )  # fmt: skip
        steps = {step for trial in found.trials for step in parse_chain(trial.name).steps}
        return found, {step.name for step in steps} | {
            step["features"] for step in steps if step.name == "verify"
        }

    choice, names = tried()
    assert {"maxsim", "verify", "sift", "tokens"} <= names
    assert "maxsim(n=50) " in choice.cost
    monkeypatch.setattr(refinement, "MOST_TOKEN_WORK", 1e5)
    names = tried()[1]
    assert "sift" in names and not {"maxsim", "tokens"} & names


def test_sizes_of_neighbourhoods_follow_the_class() -> None:
    assert neighbourhood_sizes(24) == [12, 20, 24, 36]
    assert neighbourhood_sizes(4) == [3, 4, 6, 20]
    assert max(neighbourhood_sizes(500)) == 60
