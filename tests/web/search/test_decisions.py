"""`serve --accept`: what is accepted, in answers of the API and on the page."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.web.conftest import png
from vizsla import SearchClient
from vizsla.errors import DataError, UsageError
from vizsla.options import GalleryOptions
from vizsla.score.calibration import Calibration
from vizsla.score.match_model import MatchModel
from vizsla.score.precision_levels import Level
from vizsla.web.search.models import SearchRequest
from vizsla.web.search.server import GallerySource, prepare
from vizsla.web.search.service import ServerState

RED = (200, 30, 40)


def calibration(cut: float, model_id: str = "m") -> Calibration:
    """Accepts scores from `cut` on."""
    level = Level(cut, 0.5, 1000, 1.0, 0.99, 1.0, 0.97)
    return Calibration(
        0.95, {"model_id": model_id, "refine": "none"}, "some images", 2000, 0.5, None,
        MatchModel((1.0, 0.0, 0.0, 0.0, 0.0, 0.0)), (level,),
        ((-1.0, 0.01), (cut - 0.001, 0.6), (cut, 0.97), (1.0, 0.99)),
    )  # fmt: skip


def scores_of(served: Any, image: bytes) -> list[float]:
    with SearchClient(served.url) as client:
        return [hit.score for hit in client.search(image, k=24)]


def named_scores(served: Any, image: bytes) -> tuple[list[str], list[float]]:
    with SearchClient(served.url) as client:
        hits = client.search(image, k=24)
    return [hit.id for hit in hits], [hit.score for hit in hits]


@pytest.fixture
def deciding(served: Any) -> Any:
    """Accepts the four nearest images of a red one."""
    scores = scores_of(served, png(RED))
    served.engine.calibration = calibration((scores[3] + scores[4]) / 2)
    return served


def test_hits_have_a_probability_and_a_decision(deciding: Any) -> None:
    with SearchClient(deciding.url) as client:
        hits = client.search(png(RED), k=6)
    assert [hit.accepted for hit in hits] == [True] * 4 + [False] * 2
    chances = [hit.probability for hit in hits]
    assert chances == sorted(chances, reverse=True) and chances[3] >= 0.97 > 0.6 >= chances[4]


def test_only_searches_by_whole_images_are_decided(deciding: Any) -> None:
    with SearchClient(deciding.url) as client:
        assert client.search(id="red/red-0.png", k=1)[0].accepted is True
        for more in (
            {"id": ["red/red-0.png", "red/red-1.png"], "query_join": "max"},
            {"id": "red/red-0.png", "not_id": "blue/blue-0.png"},
            {"id": "red/red-0.png", "right": "red/red-1.png"},
        ):
            hit = client.search(k=1, **more)[0]
            assert hit.accepted is None and hit.probability is None


def test_several_images_are_decided_by_the_mean_of_their_scores(deciding: Any) -> None:
    images = [png(RED), png((190, 60, 30))]
    each = [dict(zip(*named_scores(deciding, image), strict=True)) for image in images]
    with SearchClient(deciding.url) as client:
        hits = client.search(images, k=24)
    means = [np.mean([scores[hit.id] for scores in each]) for hit in hits]
    cut = deciding.engine.calibration.cutoff.score
    assert [hit.accepted for hit in hits] == [mean >= cut for mean in means]
    assert len({hit.accepted for hit in hits}) == 2
    assert any(hit.score >= cut > mean for hit, mean in zip(hits, means, strict=True))


def test_groups_are_decided_by_the_scores_of_images(deciding: Any) -> None:
    """What a list tells is told by its images, whatever form its results have."""
    found = deciding.engine.calibration
    of_list = MatchModel((0.0, 0.0, 1.0, 0.0, 0.0, 0.0))  # the mean of the ten nearest
    deciding.engine.calibration = dataclasses.replace(found, model=of_list)
    with SearchClient(deciding.url) as client:
        plain, short, grouped = (
            client.search(png(RED), **options)
            for options in ({"k": 24}, {"k": 2}, {"k": 2, "group_by": "label"})
        )
    assert plain[0].probability == short[0].probability == grouped[0].probability


def test_without_a_calibration_nothing_is_decided(served: Any) -> None:
    with SearchClient(served.url) as client:
        assert client.search(png(RED), k=1)[0].accepted is None


def test_the_page_greys_out_what_is_not_accepted(deciding: Any) -> None:
    text = deciding.get("/?id=red/red-0.png&k=12", headers={"Accept": "text/html"}).text
    accepted = text.count('<li class="tile" ')
    assert 1 <= accepted < 12 and text.count('<li class="tile below"') == 12 - accepted
    assert text.count('class="end"') == 1 and "very likely the same (99 %)" in text
    assert f">{accepted} match" in text
    plain = deciding.get("/?seed=1", headers={"Accept": "text/html"}).text
    assert 'class="end"' not in plain and "the same (" not in plain


def test_the_page_says_that_it_is_not_in_the_gallery(deciding: Any) -> None:
    deciding.engine.calibration = calibration(1.5)
    text = deciding.get("/?id=red/red-0.png&k=12", headers={"Accept": "text/html"}).text
    assert ">Perhaps not in the gallery</h1>" in text and '<li class="tile" ' not in text
    assert "none is sure enough, since 95 % of what is accepted must be right" in text
    deciding.engine.calibration = deciding.engine.calibration.with_sure(0.999)  # nothing ever is
    text = deciding.get("/?id=red/red-0.png&k=12", headers={"Accept": "text/html"}).text
    assert ">Not sure</h1>" in text and "with a lower --accept" in text
    assert "not in the gallery" not in text


def test_on_a_screen_they_are_grey(deciding: Any, visit: Callable[..., Any]) -> None:
    for size in ({"width": 1280, "height": 900}, {"width": 390, "height": 800}):
        with visit(f"{deciding.url}/?id=red/red-0.png&k=12", viewport=size) as page:
            seen = page.locator(".tile.below .picture").first
            assert float(seen.evaluate("e => getComputedStyle(e).opacity")) < 1
            assert page.locator(".tile:not(.below)").count() >= 1
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_scores_of_another_model_are_refused_at_the_start(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    calibration(0.5, "other").save(file)
    options = GalleryOptions(model="tiny", weights="random", accept=str(file), device="cpu")
    with pytest.raises(DataError, match="is for scores of model other"):
        prepare(GallerySource(pictures, options), ServerState())


def test_they_are_learned_from_items_of_the_gallery(pictures: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    rows = [f"{name},S{i // 4}" for i, name in enumerate(names)]
    (tmp_path / "skus.csv").write_text("\n".join(["file,sku", *rows]))
    options = GalleryOptions(
        model="tiny", weights="random", accept=0.5, device="cpu", labels=str(tmp_path / "skus.csv")
    )
    engine = prepare(GallerySource(pictures, options), ServerState())
    try:
        assert engine.calibration is not None and "column sku" in engine.calibration.learned_on
        (first,) = engine.answer(SearchRequest(id=(names[0],), k=1)).results
        assert first.accepted is not None and first.probability is not None
    finally:
        engine.close()
    with pytest.raises(UsageError, match="and needs a column that says which do"):
        prepare(GallerySource(pictures, replace(options, labels=None)), ServerState())
