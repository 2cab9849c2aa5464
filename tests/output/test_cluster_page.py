"""The page of clusters: what stands in it, and how a person merges, splits, names and saves."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vizsla.output import cluster_page
from vizsla.output.cluster_page import clusters_page

NASTY = "a'\"<b>&, 7.png"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four clusters: of five images (two of them not shown), of three, and two of one."""
    monkeypatch.setattr(cluster_page, "SHOWN", 3)
    names = [*(f"{i}.png" for i in range(7)), NASTY, "8.png", "9.png"]
    for i, name in enumerate(names):
        Image.new("RGB", (40, 30), (25 * i, 90, 120)).save(tmp_path / name)
    clusters = [(None, names[:5]), ("cup <1>", names[5:8]), (None, names[8:9]), (None, names[9:])]
    text = clusters_page(clusters, tmp_path, notes=["method graph, cut-off 0.3"])
    (tmp_path / "page.html").write_text(text)
    return tmp_path / "page.html"


@pytest.fixture
def view(page: Path, browser: Any) -> Any:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    shown = context.new_page()
    shown.on("pageerror", lambda error: print(error))
    shown.goto(page.as_uri())
    yield shown
    context.close()


def saved(view: Any, tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Image → (cluster, label), of the table that the page saves."""
    with view.expect_download() as download:
        view.get_by_role("button", name="Save labels").click()
    download.value.save_as(tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(newline="") as file:
        return {row["image"]: (row["cluster"], row["label"]) for row in csv.DictReader(file)}


def grouped(table: dict[str, tuple[str, str]]) -> list[set[str]]:
    groups: dict[str, set[str]] = {}
    for name, (cluster, _) in table.items():
        groups.setdefault(cluster, set()).add(name)
    return list(groups.values())


def test_names_are_escaped_and_nothing_comes_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    assert "<b>&" not in text and "cup <1>" not in text and "http:" not in text
    assert len(re.findall(r"url\(\"data:image/webp", text)) == 3 + 3 + 1 + 1
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_an_untouched_page_saves_the_clusters_as_they_are(view: Any, tmp_path: Path) -> None:
    table = saved(view, tmp_path)
    assert grouped(table) == [{f"{i}.png" for i in range(5)}, {"5.png", "6.png", NASTY},
                              {"8.png"}, {"9.png"}]  # fmt: skip
    assert {label for _, label in table.values()} == {"", "cup <1>"}
    assert table[NASTY] == ("1", "cup <1>")


def test_a_person_merges_splits_names_and_undoes(view: Any, tmp_path: Path) -> None:
    boxes = view.locator(".whole")
    boxes.nth(2).check()
    boxes.nth(0).check()
    assert "6 chosen" in view.locator("#state").inner_text()
    view.get_by_role("button", name="Merge").click()
    view.locator('button[data-id="6.png"]').click()
    view.get_by_role("button", name="Split off").click()
    view.keyboard.type('a "big" cup')
    expected = [{*(f"{i}.png" for i in range(5)), "8.png"}, {"5.png", NASTY}, {"6.png"}, {"9.png"}]
    table = saved(view, tmp_path)
    assert grouped(table) == expected and table["6.png"][1] == 'a "big" cup'
    view.get_by_role("button", name="Undo").click()  # the name
    assert saved(view, tmp_path)["6.png"][1] == "" and grouped(saved(view, tmp_path)) == expected
    view.get_by_role("button", name="Undo").click()
    view.get_by_role("button", name="Undo").click()
    assert len(grouped(saved(view, tmp_path))) == 4
    assert view.get_by_role("button", name="Undo").is_disabled()


def test_images_are_moved_into_a_cluster_and_keys_do_the_same(view: Any, tmp_path: Path) -> None:
    view.locator('button[data-id="9.png"]').focus()
    view.keyboard.press("Space")
    view.locator('button[data-id="0.png"]').focus()
    view.keyboard.press("Space")
    view.locator(".whole").nth(1).check()
    view.keyboard.press("m")  # both images go into the cluster that is chosen
    groups = grouped(saved(view, tmp_path))
    assert {"5.png", "6.png", NASTY, "9.png", "0.png"} in groups and {"8.png"} in groups
    view.locator('button[data-id="1.png"]').click()
    view.locator('button[data-id="2.png"]').click(modifiers=["Shift"])
    view.keyboard.press("s")
    assert {"1.png", "2.png"} in grouped(saved(view, tmp_path))
    view.locator(".label").first.focus()
    view.keyboard.press("z")  # a letter of a name, not the key for Undo
    assert {"1.png", "2.png"} in grouped(saved(view, tmp_path))


def test_too_little_to_merge_is_said(view: Any) -> None:
    view.get_by_role("button", name="Merge").click()
    assert "Choose two clusters" in view.locator("#state").inner_text()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_without_scrolling_sideways(
    page: Path, browser: Any, width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True
    )
    shown = context.new_page()
    console: list[str] = []
    shown.on("console", lambda message: console.append(message.text))
    shown.goto(page.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") == width and console == []
    context.close()
