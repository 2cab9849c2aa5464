"""The page of all queries of one or two runs: right, wrong and changed, sorted and filtered."""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.errors import UsageError
from vizsla.run import finished_run
from vizsla.run.config import RunConfig
from vizsla.run.finished_run import queries_page
from vizsla.run.pipeline import run
from vizsla.score.scores import Scores
from vizsla.search.ranking import Ranking


@pytest.fixture(scope="module")
def two_runs(tinted: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of two networks that find different images."""
    home = tmp_path_factory.mktemp("runs")
    return [
        run(
            RunConfig(data=str(tinted), model="tiny", weights="random", image_size=64, seed=seed,
                      top_k=5, figures=0, home=str(home))
        ).run.folder
        for seed in (0, 5)
    ]  # fmt: skip


def firsts(folder: Path) -> dict[str, bool]:
    scores = Scores.load(folder / "scores.json")
    return dict(zip(scores.queries, (scores.first_ranks == 1).tolist(), strict=True))


def kinds(html: str) -> dict[str, str]:
    found = re.findall(r'data-kind="(\w+)" data-class="[^"]*" data-name="([^"]*)"', html)
    return {name: kind for kind, name in found}


def test_every_query_is_there_with_its_kind(two_runs: list[Path], tmp_path: Path) -> None:
    queries_page(two_runs, tmp_path / "q.html")
    html = (tmp_path / "q.html").read_text()
    one, two = map(firsts, two_runs)
    words = {(True, True): "right", (False, False): "wrong", (False, True): "better",
             (True, False): "worse"}  # fmt: skip
    assert kinds(html) == {name: words[one[name], two[name]] for name in one}
    assert {"better", "worse"} & set(kinds(html).values())  # there is something to see
    assert "red &amp; &lt;b&gt;" in html and "red & <b>" not in html
    sources = re.findall(r"url\(\"(data:image/webp[^\"]+)\"\)", html)
    assert 16 < len(sources) == len(set(sources)) <= 16 + 24  # each image once


def test_one_run_is_right_or_wrong(two_runs: list[Path], tmp_path: Path) -> None:
    queries_page(two_runs[:1], tmp_path / "q.html")
    assert set(kinds((tmp_path / "q.html").read_text()).values()) <= {"right", "wrong"}
    with pytest.raises(UsageError, match="shows one or two"):
        queries_page([*two_runs, two_runs[0]], tmp_path / "q.html")


def test_images_that_share_a_label_are_right(tinted: Path, tmp_path: Path) -> None:
    head, *rows = (tinted / "labels.csv").read_text().splitlines()
    sets = [f"{row}|{row.partition(',')[0]}" for row in rows]  # query and gallery differ
    (tmp_path / "sets.csv").write_text("\n".join([head, *sets]))
    config = RunConfig(
        data=str(tinted), model="tiny", weights="random", image_size=64, top_k=5, figures=0,
        labels=str(tmp_path / "sets.csv"), label_separator="|", home=str(tmp_path),
    )  # fmt: skip
    folder = run(config).run.folder
    html = queries_page([folder], tmp_path / "q.html").read_text()
    scores = Scores.load(folder / "scores.json")
    assert html.count('<li class="right"') == round(5 * sum(scores.metrics["precision@5"].values))
    assert html.count('<li class="right"') > 16 and '<li class="wrong"' in html


def test_a_query_with_nothing_relevant_is_not_wrong(tinted: Path, tmp_path: Path) -> None:
    text = (tinted / "labels.csv").read_text()
    name = next(row.split(",")[1] for row in text.splitlines() if row.startswith("query"))
    label = next(row.split(",")[2] for row in text.splitlines() if name in row)
    changed = text.replace(f"query,{name},{label}", f"query,{name},unseen")
    (tmp_path / "labels.csv").write_text(changed)
    config = RunConfig(
        data=str(tinted), model="tiny", weights="random", image_size=64, top_k=5, figures=0,
        labels=str(tmp_path / "labels.csv"), home=str(tmp_path),
    )  # fmt: skip
    html = queries_page([run(config).run.folder], tmp_path / "q.html").read_text()
    assert [one for one, kind in kinds(html).items() if kind == "none"] == [name]
    assert "nothing relevant (1)" in html


def test_the_command_wants_runs(two_runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "q.html"
    words = ["compare", *map(str, two_runs), "--queries", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0 and out.exists()
    words = ["compare", str(two_runs[0].parent.parent / "results"), "--queries", str(out)]
    assert isinstance(CliRunner().invoke(app, words).exception, UsageError)


def test_rows_are_filtered_and_sorted(two_runs: list[Path], tmp_path: Path, browser: Any) -> None:
    queries_page(two_runs, tmp_path / "q.html")
    found = kinds((tmp_path / "q.html").read_text())
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{tmp_path / 'q.html'}")
    visible = page.locator(".query:visible")
    assert visible.count() == len(found) == 16
    page.select_option("#kind", "better worse")
    changed = [name for name, kind in found.items() if kind in ("better", "worse")]
    assert visible.count() == len(changed)
    assert page.locator("#shown").inner_text() == f"{len(changed)} of 16 queries"
    page.select_option("#kind", "")
    page.select_option("#order", "b")
    values = [float(row.get_attribute("data-b")) for row in page.locator(".query").all()]
    assert values == sorted(values) and len(set(values)) > 1
    page.select_option("#class", "green")
    assert visible.count() == 4
    assert not errors
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    label = page.locator(".query:visible .side li", has_text="green").first.locator(".name-of")
    assert label.evaluate("one => one.scrollWidth <= one.clientWidth")  # in full
    page.close()


def test_without_labels_the_page_shows_what_differs(tinted: Path, tmp_path: Path) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(tinted, blind)
    (blind / "labels.csv").rename(tmp_path / "truth.csv")
    folders = [
        run(
            RunConfig(data=str(blind), model="tiny", weights="random", image_size=64, seed=seed,
                      top_k=5, figures=0, home=str(tmp_path))
        ).run.folder
        for seed in (0, 5)
    ]  # fmt: skip
    page = tmp_path / "q.html"
    words = ["compare", *map(str, folders), "--queries", str(page)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    html = page.read_text()
    assert set(kinds(html).values()) == {"other", "same"} and len(kinds(html)) == 16
    assert "in both" in html and 'class="right"' not in html and "<b>✗" not in html
    firsts_of = [Ranking.load(folder / "ranking.parquet").to_lists(1) for folder in folders]
    for name, kind in kinds(html).items():
        assert (kind == "same") == (firsts_of[0][name] == firsts_of[1][name])
    assert set(kinds(queries_page(folders[:1], page).read_text()).values()) == {"alone"}
    labels = ["--labels", str(tmp_path / "truth.csv")]
    done = CliRunner().invoke(app, [*words, *labels], catch_exceptions=False)
    assert done.exit_code == 0 and {"right", "wrong"} & set(kinds(page.read_text()).values())


def test_the_command_says_what_marks_right_and_wrong(
    two_runs: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    logging.getLogger("vizsla").propagate = True  # which the command line turns off
    words = ["compare", str(two_runs[0]), "--queries", str(tmp_path / "q.html")]
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert "--labels" not in caplog.text
    monkeypatch.setattr(finished_run, "truth_of_run", lambda folder: None)
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert "add --labels FILE" in caplog.text
