"""Pages of tables: self-contained, escaped, scores before settings."""

from html.parser import HTMLParser

import pytest

from vizsla.output.pages import breakable, comparison_page
from vizsla.score.run_table import Row, run_table

RUNS = run_table(
    [
        Row("r1", "<i>a", "gap", {"top_k_accuracy@1": 0.25}),
        Row("r2", "b", "gem", {"top_k_accuracy@1": 0.5, "map": 0.5}),
    ]
)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.columns: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1] == "th" and data.strip():
            self.columns.append(data)


def test_a_page_is_escaped_and_asks_for_nothing() -> None:
    html = comparison_page(RUNS, None, (["<b>"], ["x"]))
    page = Page()
    page.feed(html)
    assert not {"i", "script", "link", "img", "iframe"} & set(page.tags)
    assert "src" not in page.attributes
    assert "url(" not in html and "@import" not in html
    assert "prefers-color-scheme: dark" in html and "color-scheme: light dark" in html
    assert "<i>a" in page.text and "<b>" in page.text and "–" in page.text
    assert page.tags.count("td") == 8


def test_commands_in_sentences_are_code_and_all_else_is_escaped() -> None:
    page = comparison_page(RUNS, None, ([], ["`vizsla run <DATA>` leaves out <b>one`s"]))
    assert "<code>vizsla run &lt;DATA&gt;</code> leaves out &lt;b&gt;one`s" in page


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("gallery_0095.jpg", "gallery_|0095.jpg"),
        ("a/b-jacket/winterCoat.png", "a/b-jacket/|winter|Coat.png"),
        ("resnet-50_20260131-235959-0a1b.json", "resnet-|50_|20260131-235959-0a1b.json"),
        ("top-1", "top-1"),
        ("mAP", "mAP"),
        ("<b>", "&lt;b&gt;"),
    ],
)
def test_names_break_at_their_parts(name: str, shown: str) -> None:
    assert str(breakable(name)).replace("<wbr>", "|") == shown


def test_the_scores_of_the_best_come_first() -> None:
    html = comparison_page(RUNS)
    page = Page()
    page.feed(html)
    assert page.columns == ["model", "top-1", "mAP", "run"]
    assert (
        0 < html.index('class="heads"') < html.index("<table") < html.index("best first by top-1")
    )
    assert "the best is r2" in page.text
