import csv
import io
from html.parser import HTMLParser

from vizsla.score.tables import Section, Table, to_csv, to_html, to_markdown

TABLE = Table(
    ["model", "tuned", "score", "seconds"],
    [["a|b", True, 0.5, 12.345], ["<i>", None, None, 1.0]],
)


def test_terminal_columns_line_up() -> None:
    assert TABLE.lines() == [
        "model  tuned   score  seconds",
        "a|b    yes    0.5000    12.35",
        "<i>    –           –     1.00",
    ]


def test_markdown_escapes_its_own_signs() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[1] == "| --- | --- | ---: | ---: |"
    assert lines[2] == "| a\\|b | yes | 0.5000 | 12.35 |"
    assert lines[3] == "| <i> | – | – | 1.00 |"


def test_csv_keeps_values_and_leaves_unknown_empty() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows[1:] == [["a|b", "true", "0.5", "12.345"], ["<i>", "", "", "1.0"]]


def test_records_for_json() -> None:
    assert TABLE.records()[1] == {"model": "<i>", "tuned": None, "score": None, "seconds": 1.0}


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_one_page_that_asks_for_nothing() -> None:
    html = to_html("A & B", [Section("All", TABLE), Section("Odd", alarms=["<b>"], remarks=["x"])])
    page = Page()
    page.feed(html)
    assert not {"i", "b", "script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href"} & set(page.attributes)
    assert "url(" not in html and "@import" not in html
    assert "prefers-color-scheme: dark" in html and "color-scheme: light dark" in html
    assert "A & B" in page.text and "<i>" in page.text and "<b>" in page.text
    assert page.tags.count("td") == 8


def test_a_table_without_rows_still_shows_its_columns() -> None:
    empty = Table(["a"], [])
    assert empty.lines() == ["a"]
    assert to_markdown(empty) == "| a |\n| --- |\n"
