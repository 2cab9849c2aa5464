"""The page of a check: what stands in it, and how a real browser shows it."""

import dataclasses
import html
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vizsla.audit.check import check
from vizsla.audit.duplicates import Pair
from vizsla.audit.embedding_checks import Suspect
from vizsla.audit.findings import CheckReport
from vizsla.data.exif import Exif
from vizsla.data.imageset import ImageSet
from vizsla.output import check_page
from vizsla.output.check_page import page

LONG = "a-long_label-in_several-words_that_needs_two_lines"
NASTY = 'x"><script>alert(1)<∕script>&.png'


@pytest.fixture
def report(tmp_path: Path) -> CheckReport:
    """Nine noisy images: a leak, a conflict, a broken and a tiny one, one in doubt."""
    files = ["training/a<i>/1.png", "training/a<i>/2.png", f"training/b/{NASTY}",
             "training/b/4.png", "query/5.png", "gallery/6.png", "gallery/7.png"]  # fmt: skip
    for i, name in enumerate(files):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((90, 70), 20 + 10 * i).convert("RGB").save(path)
    (tmp_path / "training/b/broken.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "training/b/tiny.png")
    sets = {
        "training": ImageSet.from_class_folders(tmp_path / "training"),
        "query": ImageSet.from_folder(tmp_path / "query"),
        "gallery": ImageSet.from_folder(tmp_path / "gallery"),
    }
    found = check(tmp_path / "of <mine>", sets)
    at = {facts.name: i for i, facts in enumerate(found.facts)}
    nasty = next(i for name, i in at.items() if "alert" in name)
    pairs = [
        Pair(at["training/a<i>/1.png"], at["query/5.png"], "near", 0.9299),
        Pair(min(at["training/a<i>/2.png"], nasty), max(at["training/a<i>/2.png"], nasty),
             "mirrored", 0.99, "mirrored"),
        Pair(at["gallery/6.png"], at["gallery/7.png"], "model", 0.97),
    ]  # fmt: skip
    doubts = [Suspect(nasty, "b", 0.02, "a<i>", 0.91, 4.5),
              Suspect(at["training/b/4.png"], "b", 0.04, LONG, 0.9, 4.0)]  # fmt: skip
    return CheckReport(found.folder, found.facts, pairs, found.class_findings, doubts, 1.0)


def text_of(page: str) -> str:
    body = re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def section(page: str, key: str) -> str:
    return page.partition(f'<section id="{key}"')[2].partition("</section>")[0]


def test_every_finding_has_its_part_and_its_pictures(report: CheckReport) -> None:
    whole = page(report)
    for key, words, pictures in [
        ("leaks", "near 0.92", 2), ("conflicts", "mirrored 0.99 · labels differ", 2),
        ("conflicts", "→ a<i> 0.91", 2), ("almost", "cosine 0.97", 2), ("doubts", "b 0.04", 1),
        ("doubts", "1 more is among the copies", 1), ("odd", "tiny, one colour 8 × 8 PNG RGB", 1),
        ("broken", "the file is empty", 0), ("excluded", "training/b/broken.png", 0),
        ("warnings", "1 training image is also in the query part", 0),
    ]:  # fmt: skip
        part = section(whole, key)
        assert words in text_of(part), key
        assert part.count("<img ") == pictures, key
    assert '<section id="shared"' not in whole and '<section id="copies"' not in whole


def test_the_image_to_keep_comes_first_and_is_marked(report: CheckReport) -> None:
    kept, other = (i for i, f in enumerate(report.facts) if f.name.startswith("training/b/") and
                   not f.broken and "tiny" not in f.name)  # fmt: skip
    facts = list(report.facts)
    facts[other] = dataclasses.replace(facts[other], size=(50, 40))
    pairs = [Pair(min(kept, other), max(kept, other), "near", 0.9)]
    part = section(page(dataclasses.replace(report, facts=facts, pairs=pairs)), "copies")
    first, second = re.findall(r"<li.*?</li>", part, re.DOTALL)
    assert 'class="right"' in first and ">keep<" in first and facts[kept].label in first
    assert "keep" not in second and "right" not in second
    assert ">keep<" not in section(page(report), "conflicts")  # none of them stays


def test_blurred_and_dark_images_and_shots_of_one_moment_have_sections(report: CheckReport) -> None:
    facts = list(report.facts)
    times = (datetime(2024, 5, 1, 10, 0, 0), datetime(2024, 5, 1, 10, 0, 3))
    at = {found.name: i for i, found in enumerate(facts)}
    for name, taken in zip(("training/b/4.png", "gallery/6.png"), times, strict=True):
        exif = Exif(taken, "Canon <R5>")
        facts[at[name]] = dataclasses.replace(facts[at[name]], exif=exif)
    for name, blur in (("training/a<i>/1.png", 3.0), ("query/5.png", 5.0)):
        facts[at[name]] = dataclasses.replace(facts[at[name]], odd=("blurred",), blur=blur)
    whole = page(dataclasses.replace(report, facts=facts))
    assert "3 s apart, Canon <R5>" in text_of(section(whole, "moments"))
    assert section(whole, "moments").count("<img ") == 2
    blurred = text_of(section(whole, "blurred"))
    assert blurred.index("edges 5.00") < blurred.index("edges 3.00")
    assert "brightness 0.00" in text_of(section(whole, "dark"))  # tiny.png is black
    assert "shots of one moment in two parts" in text_of(section(whole, "warnings"))


def test_the_test_image_comes_first_in_a_long_card(report: CheckReport) -> None:
    training = [i for i, f in enumerate(report.facts) if f.role == "training" and not f.broken]
    query = next(i for i, f in enumerate(report.facts) if f.role == "query")
    many = CheckReport(
        report.folder, report.facts * 4,
        [Pair(i + k * len(report.facts), query + 3 * len(report.facts), "same file", 1.0)
         for i in training for k in range(4)],
        {}, None, 0.0,
    )  # fmt: skip
    part = section(page(many), "leaks")
    assert text_of(part).index("query 5") < text_of(part).index("a<i> training")
    assert part.count("<img ") == 12 and "12 of 21 are shown" in part


def test_no_finding_is_counted_or_shown_twice_and_unknown_ones_not_at_all(
    report: CheckReport,
) -> None:
    def heads(report: CheckReport) -> dict[str, str]:
        return {text: number for _, number, text, _ in check_page._headline(report)}

    assert heads(report) == {
        "training images also in the test part": "1", "queries also in the gallery": "0",
        "pairs of copies with different labels": "1", "other pairs of copies": "0",
        "broken images": "1", "doubtful labels": "2",
    }  # fmt: skip
    assert "doubtful labels" not in heads(dataclasses.replace(report, suspects=None))
    bare = [dataclasses.replace(facts, label=None, role="images") for facts in report.facts]
    unlabelled = dataclasses.replace(report, facts=bare, suspects=None)
    assert [*heads(unlabelled)] == ["pairs of copies", "broken images"]
    pictures = re.findall(r'<img src="([^"]+)"', page(report))
    assert (len(pictures), len({*pictures})) == (9, 8)  # tiny.png is small, and dark


def test_names_are_escaped_and_nothing_comes_from_elsewhere(report: CheckReport) -> None:
    whole = page(report)
    assert "<script" not in whole and "<i>/" not in whole and "of <mine>" not in whole
    assert "alert(1)" in whole
    assert "http:" not in whole and "https:" not in whole and "url(" not in whole
    assert set(re.findall(r'src="([^:"]+):', whole)) == {"data"}
    assert "default-src 'none'" in whole


def test_a_file_that_is_gone_leaves_a_word_in_its_place(report: CheckReport) -> None:
    report.facts[report.pairs[0].a].path.unlink()
    assert "no image: the file is missing" in text_of(page(report))


def test_long_lists_are_cut_and_say_so(
    report: CheckReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_page, "MOST_CARDS", 2)
    n = len(report.facts)
    pairs = [Pair(0 + n * k, 1 + n * k, "near", 0.9) for k in range(5)]
    many = CheckReport(report.folder, report.facts * 5, pairs, {}, None, 0.0)
    part = section(page(many), "copies")
    assert "The first 2 of 5" in text_of(part) and part.count("<article") == 2


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_scrolling_sideways(
    report: CheckReport, tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    (tmp_path / "page.html").write_text(page(report))
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True
    )
    view = context.new_page()
    console: list[str] = []
    view.on("console", lambda message: console.append(message.text))
    view.goto((tmp_path / "page.html").as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") == width
    assert view.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    light = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", light)[:3])) > 380) == (scheme == "light")
    label = view.locator("#doubts b").nth(1)
    assert label.get_attribute("title") == LONG
    lines = label.evaluate("b => b.clientHeight / parseFloat(getComputedStyle(b).lineHeight)")
    assert round(lines) == 2
    assert console == []
    context.close()


def test_a_clean_report_is_a_short_page(report: CheckReport) -> None:
    whole = page(CheckReport(report.folder, report.facts[:1], [], {}, None, 0.0))
    assert re.findall(r'<section id="(\w+)"', whole) == ["notes", "classes"]
