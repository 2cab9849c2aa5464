"""The report: what stands in it, and how a real browser shows it."""

import html
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from vizsla import storage
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.output import embedding_map, report_page
from vizsla.output.report_page import score_name
from vizsla.run import finished_run
from vizsla.run.config import RunConfig
from vizsla.run.pipeline import run
from vizsla.score.validation_scores import ValidationScores

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def small_run(data: Path, home: Path, **options: object) -> Path:
    known = {"model": "tiny", "weights": "random", "image_size": 64, "top_k": 5, "figures": 0}
    config = RunConfig(data=str(data), home=str(home), **{**known, **options})  # type: ignore[arg-type]
    return run(config).run.folder


@pytest.fixture(scope="module")
def page(tinted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with a broken gallery image and the log of a training."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tinted, home / "data")
    (home / "data/test/gallery/z<i>broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    folder = small_run(home / "data", home)
    (folder / "training").mkdir()
    lines = [json.dumps({"step": i, "loss": 1 / i}) for i in range(1, 6)]
    (folder / "training/log.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "lo')
    return finished_run.report(folder, home / "report.html")


def text_of(page: Path) -> str:
    body = re.sub(r"<(style|script).*?</\1>|<wbr>", "", page.read_text(), flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


# ── what stands in it ────────────────────────────────────────────────────────────────────────────


def test_every_part_is_there(page: Path) -> None:
    whole, text = page.read_text(), text_of(page)
    for part in ("warnings", "scores", "curves", "classes", "confusion", "sheets", "map", "broken",
                 "configuration"):  # fmt: skip
        assert f'<section id="{part}"' in whole, part
    scores = json.loads(next(page.parent.glob("results/*.json")).read_text())
    assert f"{scores['scores']['top_k_accuracy@1']:.3f}" in text
    low, high = scores["intervals"]["map"]
    assert f"{low:.3f} to {high:.3f}" in text
    for title in ("By cut-off k", "Scores of right and wrong images", "Training loss", "recall@k"):
        assert title in text, title
    assert "z<i>broken.png" in text and "broken" in text.lower()
    assert "random" in text and "tiny" in text and "gap" in text


@pytest.mark.parametrize(
    ("kept", "text"), [("discriminant", "frozen, with a projection"), ("frozen", "frozen")]
)
def test_the_subtitle_names_what_was_fitted(kept: str, text: str) -> None:
    data: Any = SimpleNamespace(
        run=SimpleNamespace(id="20260131-235959-0a1b"), ranking=[], gallery=[],
        config={"options": {}}, record={"is_finetuned": False, "training": {"kept": kept}},
    )  # fmt: skip
    assert text in report_page._subtitle(data)


def test_nothing_comes_from_elsewhere(page: Path) -> None:
    whole = page.read_text()
    assert "http://" not in whole and "https://" not in whole.replace("https://github", "")
    assert set(re.findall(r'src="([^:"]+):', whole)) == {"data"}
    assert "<b>" not in re.sub(r"<b>[\d.–]+</b>", "", whole.split("<main>")[1].split("<script>")[0])


def test_the_configuration_names_the_model_that_made_the_vectors(
    tinted: Path, tmp_path: Path
) -> None:
    """Here a whitened one, of weights from a file; a minute has a unit."""
    weights = tmp_path / "mine.safetensors"
    network = Embedder.build("tiny", weights="random", image_size=64).backbone.network
    save_file(network.state_dict(), weights)
    folder = small_run(tinted, tmp_path, weights=str(weights), dim=4)
    kept = json.loads((folder / "embedder/config.json").read_text())["model_id"]
    config = storage.read_sealed_json(folder / "config.json")
    start = config["embedder"]["model_id"]
    config["options"]["tuning"] = {"budget": 60.0}
    storage.write_sealed_json(folder / "config.json", config)
    rows = text_of(finished_run.report(folder, tmp_path / "r.html")).split("Configuration")[-1]
    text = " ".join(rows.split())
    assert f" model id {kept} " in text and f" model id before fitting {start} " in text
    assert f" weights {weights} " in text
    assert " tuning.budget 60 s " in text and re.search(r" duration [\d.]+ s ", text)
    assert " runtime torch " in text


def test_the_chain_that_was_chosen_is_in_the_configuration(tinted: Path, tmp_path: Path) -> None:
    folder = small_run(tinted, tmp_path, refine="aqe(n=2,alpha=0)")
    config = storage.read_sealed_json(folder / "config.json")
    config["options"]["refine"] = "auto"  # as if it had been chosen
    storage.write_sealed_json(folder / "config.json", config)
    rows = text_of(finished_run.report(folder, tmp_path / "r.html")).split("Configuration")[-1]
    assert " refine auto " in (text := " ".join(rows.split()))
    assert " refine, resolved aqe(n=2,alpha=0) " in text


def test_columns_and_items_of_a_table_are_in_the_report(tinted: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tinted, data)
    first, *rows = (data / "labels.csv").read_text().splitlines()
    prices = [f"{row},Gröup {i // 3},{i + 0.5}" for i, row in enumerate(rows)]
    (data / "labels.csv").write_text("\n".join([f"{first},group,price", *prices]))
    folder = small_run(data, tmp_path, group_by="group")
    whole = finished_run.report(folder, tmp_path / "r.html")
    usual, text = whole.read_text(), text_of(whole)
    assert 'title="group: Gröup 2"' in usual and 'title="price:' not in usual
    assert "Scores by item" in text and "Gallery images with the same group are one result." in text
    shown = finished_run.report(folder, tmp_path / "r.html", show=["price"]).read_text()
    assert re.search(r'title="price: [\d.]+\.5"', shown) and 'title="group:' not in shown
    with pytest.raises(DataError, match="show colour: the images have the columns group, price"):
        finished_run.report(folder, tmp_path / "r.html", show=["colour"])


def test_a_saved_embedder_has_its_own_weights(tinted: Path, tmp_path: Path) -> None:
    Embedder.build("tiny", weights="random", image_size=64).save(tmp_path / "mine")
    config = RunConfig(
        data=str(tinted), home=str(tmp_path), model=str(tmp_path / "mine"), figures=0
    )
    page = finished_run.report(run(config).run.folder, tmp_path / "r.html")
    assert " weights the embedder's own (random) " in " ".join(text_of(page).split())


def test_sheets_show_the_worst_query_first(page: Path) -> None:
    (folder,) = (page.parent / "runs").iterdir()
    kept = json.loads((folder / "scores.json").read_text())["per_query"]
    aps = dict(zip(kept["queries"], kept["metrics"]["map"]["values"], strict=True))
    whole = page.read_text().replace("<wbr>", "")
    shown = re.findall(r'<article class="sheet">.*?<h4>(.*?)</h4>', whole)
    assert len(shown) == 12 and len(set(shown)) == 12
    worst, best = [aps[name] for name in shown[:8]], [aps[name] for name in shown[8:]]
    assert worst == sorted(worst) and best == sorted(best, reverse=True)
    assert worst[0] == min(aps.values()) and best[0] == max(aps.values())
    assert page.read_text().count(" (whole ranking)</p>") == 12
    tiles = re.findall(r'<li class="(right|wrong)">', page.read_text())
    assert len(tiles) == 12 * 5


def test_the_matrix_counts_every_query_once(page: Path) -> None:
    matrix = re.search(r'<table class="matrix">.*?</table>', page.read_text(), re.DOTALL)
    assert matrix
    counts = [int(n) for n in re.findall(r'style="--p:[\d.]+">(\d+)</td>', matrix[0])]
    assert sum(counts) == 16


def test_without_labels_it_is_still_a_report(tinted: Path, tmp_path: Path) -> None:
    shutil.copytree(tinted, tmp_path / "data")
    (tmp_path / "data/labels.csv").unlink()
    reports: list[tuple[str, int, int]] = []
    page = finished_run.report(
        small_run(tmp_path / "data", tmp_path), tmp_path / "r.html",
        progress=lambda *report: reports.append(report),
    )  # fmt: skip
    whole = page.read_text()
    assert {report for report in reports if report[1] == report[2]} == {  # every stage ended
        ("reading the run", 1, 1), ("drawing queries", 8, 8),
        ("laying out the map of 40 images", 1, 1), ("drawing the images of the map", 40, 40),
    }  # fmt: skip
    assert ("drawing the images of the map", 7, 40) in reports
    assert "No labels are known" in whole and '<section id="map"' in whole
    assert "Validation:" not in whole
    assert '<section id="scores"' not in whole and whole.count('<article class="sheet">') == 8


def test_what_validation_said_stands_at_the_top(tinted: Path, tmp_path: Path) -> None:
    shutil.copytree(tinted, tmp_path / "data")
    (tmp_path / "data/labels.csv").unlink()
    run = small_run(tmp_path / "data", tmp_path)
    (result,) = tmp_path.glob("results/*.json")
    sizes = {"draws": 3, "queries": 20, "gallery": 65, "id": "x"}
    found = ValidationScores.on(sizes, {"top1": 0.8125, "map": 0.7, "points": 901.5}, "best")
    storage.write_sealed_json(result, {**storage.read_json(result), "validation": found.record()})
    whole = finished_run.report(run, tmp_path / "r.html", projection="pca").read_text()
    text = " ".join(re.sub("<[^>]+>", " ", whole).split())
    assert "top-1 0.812 validation mAP 0.700 validation points 901.5 validation" in text
    assert "3 draws of 20 queries and 65 gallery images, on which the best was chosen" in text


@pytest.mark.parametrize(
    ("fusion", "text"),
    [
        ({"method": "zscore", "chosen_on": {"draws": 8}},
         "Their rankings are joined by zscore. Weights were chosen on held-out training images."),
        ({"method": "zscore", "chosen_on": None}, "Their rankings are joined by zscore."),
        ({"method": "concat", "whiten": "whitened 0.6", "chosen_on": None, "not_projected": 1},
         "Their vectors are joined and projected by whitened 0.6, except those of the last one."),
        ({"method": "concat", "whiten": "whitened 0.6", "chosen_on": {"draws": 8}},
         "Their vectors are joined and projected by whitened 0.6, chosen on held-out training "
         "images."),
        ({"method": "concat", "whiten": "none", "chosen_on": None}, "Their vectors are joined."),
    ],
)  # fmt: skip
def test_how_models_are_joined_is_said_truly(fusion: dict[str, Any], text: str) -> None:
    assert report_page._how_joined(fusion) == text


def test_pictures_that_have_moved_are_asked_for(tinted: Path, tmp_path: Path) -> None:
    shutil.copytree(tinted, tmp_path / "data")
    folder = small_run(tmp_path / "data", tmp_path)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="data"):
        finished_run.report(folder, tmp_path / "r.html")
    finished_run.report(folder, tmp_path / "r.html", data=tmp_path / "elsewhere", projection="pca")
    assert "first two principal components" in (tmp_path / "r.html").read_text()


# ── the map and the charts ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_groups_stay_apart_on_the_map_and_runs_agree(projection: str) -> None:
    rng = np.random.default_rng(0)
    middles = np.eye(3, 16)[np.repeat(np.arange(3), 12)]
    vectors = (middles + 0.05 * rng.normal(size=(36, 16))).astype(np.float32)
    places = embedding_map.in_the_plane(vectors, projection)
    assert np.array_equal(places, embedding_map.in_the_plane(vectors, projection))
    centres = np.stack([places[i * 12 : i * 12 + 12].mean(axis=0) for i in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == np.repeat(np.arange(3), 12)).all()
    assert places.min() >= 0 and (places <= [embedding_map.WIDTH, embedding_map.HEIGHT]).all()


@pytest.mark.parametrize("size", embedding_map.NAME_SIZES.values())
def test_names_on_the_map_stand_beside_points_edges_and_each_other(size: int) -> None:
    rng = np.random.default_rng(0)
    classes = ["left", "right", "a-long-name-at-the-top", "at the bottom"]
    middles = np.array([(30, 300), (970, 300), (500, 30), (500, 670)])
    places = (middles[:, None] + rng.normal(scale=14, size=(4, 30, 2))).reshape(-1, 2)
    places = places.clip(5, [embedding_map.WIDTH - 5, embedding_map.HEIGHT - 5])
    points = [embedding_map.Point("", "query", Path(), classes[i // 30]) for i in range(120)]
    names = embedding_map._names(points, places, classes, size)
    assert {text for _, _, text in names} == {*classes}
    boxes = []
    for x, y, text in names:
        half, low, top = 0.31 * size * len(text), y + 0.24 * size, y - 0.96 * size
        assert x - half >= 0 and x + half <= embedding_map.WIDTH
        assert top >= 0 and low <= embedding_map.HEIGHT
        inside = (abs(places[:, 0] - x) < half + 5) & (top - 5 < places[:, 1])
        assert not (inside & (places[:, 1] < low + 5)).any()
        own = places[30 * classes.index(text) :][:30]
        assert np.hypot(*(own - (x, y)).T).min() < half + 2 * size + embedding_map.REACH
        assert all(abs(x - a) > half + b or abs(y - c) > 1.2 * size for a, b, c in boxes)
        boxes.append((x, half, y))


def test_of_many_classes_those_without_room_have_no_name() -> None:
    x, y = np.meshgrid(np.arange(20, 1000, 20), np.arange(20, 700, 20))
    places = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    labels = [f"class {i % 30}" for i in range(len(places))]
    points = [embedding_map.Point("", "query", Path(), label) for label in labels]
    assert embedding_map._names(points, places, sorted({*labels}), 19) == []
    few = [embedding_map.Point("", "query", Path(), f"class {i % 5}") for i in range(len(places))]
    assert len(embedding_map._names(few, places, [f"class {i}" for i in range(5)], 19)) == 5


@pytest.mark.parametrize("n", [1, 2, 9, 12])
def test_a_few_or_equal_points_have_a_place(n: int) -> None:
    for vectors in (np.eye(n, 16, dtype=np.float32), np.ones((n, 4), np.float32)):
        assert np.isfinite(embedding_map.in_the_plane(vectors)).all()


def test_an_unknown_map_is_refused() -> None:
    with pytest.raises(UsageError, match="tsne, pca"):
        embedding_map.in_the_plane(np.eye(4), "umap")


def test_large_sets_are_drawn_in_part() -> None:
    def points(n: int) -> list[embedding_map.Point]:
        return [embedding_map.Point(str(i), "query", Path("x"), None) for i in range(n)]

    cases = {(50, 60): (50, 60), (9000, 9000): (1000, 1000), (100, 9000): (100, 1900),
             (9000, 100): (1900, 100)}  # fmt: skip
    for (queries, gallery), expected in cases.items():
        chosen = embedding_map.choose(points(queries), points(gallery))
        assert tuple(map(len, chosen)) == expected
        assert all(len(set(part.tolist())) == len(part) for part in chosen)


def test_chosen_points_are_written_as_points(tinted: Path, tmp_path: Path) -> None:
    folder = small_run(tinted, tmp_path, metrics="contest_points,P@5")
    text = text_of(finished_run.report(folder, tmp_path / "report.html", projection="pca"))
    assert len(re.findall(r"contest points \d+\.\d\s", text)) > 8  # of every query that is shown
    assert not re.search(r"\d{3}\.\d{3}", text)
    queries = finished_run.queries_page([folder], tmp_path / "queries.html").read_text()
    assert re.search(r"contest points \d+\.\d <", queries)


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def opened(browser: Any, page: Path, **options: Any) -> Iterator[Any]:
    """The page; a message, an error or a request beyond the file itself fails the test."""
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    tab = context.new_page()
    faults: list[str] = []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", lambda r: faults.append(r.url) if not r.url.startswith("data:") else None)
    try:
        tab.goto(page.as_uri())
        yield tab
        assert faults == [page.as_uri()]
    finally:
        context.close()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_and_hovering_shows_the_picture(browser: Any, page: Path, viewport: dict) -> None:
    with opened(browser, page, viewport=viewport) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.locator(".plane").scroll_into_view_if_needed()
        assert not tab.locator("#seen").is_visible()
        mark = tab.locator(".pt[data-i='3']")
        label = tab.evaluate("document.querySelectorAll('.pt').length")
        assert label == 16 + 24
        box = mark.bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        seen = tab.locator("#seen")
        seen.wait_for()  # until it is visible, on a busy machine too
        on = tab.locator(".pt.on")
        assert on.count() == 1
        i = int(on.get_attribute("data-i"))
        names = sorted(p.name for p in (page.parent / "data/test/query").iterdir())
        assert names[i] in seen.inner_text()
        style = seen.locator("i").evaluate("e => getComputedStyle(e).backgroundImage")
        assert style.startswith('url("data:image/webp')
        tab.mouse.move(box["x"], 1)
        assert not seen.is_visible()


def test_on_a_phone_a_bar_has_the_width_and_rank_and_score_stand_apart(
    browser: Any, page: Path
) -> None:
    with opened(browser, page, viewport=PHONE) as tab:
        bars = tab.locator("#classes td.bar")
        table = tab.locator("#classes table").bounding_box()
        row = tab.locator("#classes tbody tr").first.bounding_box()
        assert bars.first.bounding_box()["width"] > 0.9 * table["width"] and row["height"] < 60
        rank, score = (
            tab.locator("#sheets .fit").first.locator(f"> span >> nth={i}") for i in (0, 1)
        )
        assert rank.bounding_box()["y"] + rank.bounding_box()["height"] <= score.bounding_box()["y"]
        tops = [
            tile.bounding_box()["y"]
            for tile in tab.locator("#sheets .tiles").first.locator("li").all()
        ]
        assert len({round(top) for top in tops}) == -(-len(tops) // 5)  # five in a row
        assert (
            tab.locator(".plane .narrow .name").count()
            and not tab.locator(".plane .wide").is_visible()
        )


def test_keys_walk_over_the_map_and_one_class_is_picked_out(browser: Any, page: Path) -> None:
    with opened(browser, page) as tab:
        tab.locator("#pick").select_option(label="green")
        assert tab.locator(".pt.in").count() == 10
        tab.locator(".plane").focus()
        tab.keyboard.press("ArrowRight")
        assert "green" in tab.locator("#seen").inner_text()
        tab.keyboard.press("Escape")
        assert not tab.locator("#seen").is_visible()


def test_dark_is_dark_and_light_is_light(browser: Any, page: Path) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        with opened(browser, page, color_scheme=scheme) as tab:
            ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            ink = tab.evaluate("getComputedStyle(document.body).color")
            levels = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
            assert (levels[0] < levels[1]) is dark and abs(levels[0] - levels[1]) > 500


def test_all_can_be_read_without_javascript(browser: Any, page: Path) -> None:
    with opened(browser, page, java_script_enabled=False) as tab:
        assert tab.locator(".pt title").count() == 40
        assert tab.get_by_role("heading", name="Worst and best queries").is_visible()
        assert not tab.locator(".tools").is_visible()


def test_only_cosines_are_called_so() -> None:
    assert score_name({}) == score_name({"refine": {"chain": "none"}}) == "score (cosine)"
    assert score_name({"refine": {"chain": "kreciprocal(k1=20)"}}) == "score"
    assert (
        score_name({"refine": {"chain": "none | none"}, "fusion": {"method": "zscore"}}) == "score"
    )
