"""Pages of tables: self-contained, escaped, scores before settings."""

from html.parser import HTMLParser

from vizsla.output.pages import differences_page, sweep_page
from vizsla.score.text_table import Table

RUNS = Table(
    ["model", "pooling", "k", "top-1", "mAP", "run"],
    [["<i>a", "gap", 10, 0.5, None, "r1"], ["b", "gem", 10, 0.25, 0.5, "r2"]],
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
    html = sweep_page(RUNS, ["<b>"], ["x"])
    page = Page()
    page.feed(html)
    assert not {"i", "b", "script", "link", "img", "iframe"} & set(page.tags)
    assert "src" not in page.attributes
    assert "url(" not in html and "@import" not in html
    assert "prefers-color-scheme: dark" in html and "color-scheme: light dark" in html
    assert "<i>a" in page.text and "<b>" in page.text and "–" in page.text
    assert page.tags.count("td") == 10


def test_commands_in_sentences_are_code_and_all_else_is_escaped() -> None:
    table = Table(["a"], [["b"]])
    page = differences_page(table, ["`vizsla run <DATA>` leaves out <b>one`s"])
    assert "<code>vizsla run &lt;DATA&gt;</code> leaves out &lt;b&gt;one`s" in page


def test_scores_come_first_and_what_all_rows_share_is_stated_once() -> None:
    page = Page()
    page.feed(sweep_page(RUNS, [], []))
    assert page.columns == ["model", "top-1", "mAP", "pooling", "run"]
    assert "The same in every row: k 10." in page.text


def test_sentences_stand_above_the_table_of_differences() -> None:
    html = differences_page(Table(["A", "B", "A − B"], [["a", "b", 0.5]]), ["a is better"])
    assert 0 < html.index("a is better") < html.index("<table")
