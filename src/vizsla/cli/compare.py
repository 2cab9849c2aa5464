"""Results, runs and rankings → one table, the best first; pairs and averages: compare."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.cli.console import (
    Commands,
    print_json,
    print_remarks,
    print_table,
    print_validation,
)
from vizsla.cli.evaluate import EvaluateOptions, scored
from vizsla.cli.sources import TruthOptions
from vizsla.errors import UsageError
from vizsla.option_fields import option, same
from vizsla.options import MetricChoice, Page, Printing
from vizsla.progress import ProgressShown

if TYPE_CHECKING:
    from vizsla.score.compare import Comparison
    from vizsla.score.paired_tests import Differences
    from vizsla.score.run_table import Row, RunTable
    from vizsla.score.scores import Scores
    from vizsla.score.text_table import Table

log = logging.getLogger("vizsla")

app = Commands()


@dataclass(frozen=True, kw_only=True)
class CompareOptions(TruthOptions, MetricChoice, Page, Printing):
    """The options of `vizsla compare`."""

    metric: tuple[str, ...] = option(
        (),
        "What decides the order and is tested: mAP, top-1, points, precision@5, …; more are shown.",
        "Scores",
        usual=True,
        shown="mAP",
    )
    pairs: bool = option(
        False, "Test every pair of runs: difference, interval, p-value.", "Scores", usual=True
    )
    intervals: bool = option(
        False, "Show the intervals of the means, where the queries' values are at hand.", "Scores"
    )
    group: str | None = option(
        None, "Averages instead, of runs that share these keys: model_name,pooling_type.", "Scores"
    )
    cluster: str | None = same(EvaluateOptions, "cluster", usual=False)
    queries: Path | None = option(
        None, "Also write a page of all queries of one or two runs, side by side (HTML).", "Output",
        usual=True,
    )  # fmt: skip
    csv: Path | None = option(None, "Also write a CSV file.", "Output")
    markdown: Path | None = option(None, "Also write a Markdown file.", "Output")


@app.command("compare", epilog="Example: vizsla compare results --metric top-1")
def compare_runs(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of results, result files, runs; rankings with their truth; tables of "
            "published values, a row a query."
        ),
    ],
    *,
    options: CompareOptions,
) -> None:
    """Compare runs in one table, the best first, with warnings of implausible results."""
    from vizsla.workspace import is_run

    if options.queries and not all(map(is_run, sources)):
        raise UsageError("--queries shows images, which only runs know: give one or two runs/ID")
    found = _compared(sources, options)
    _write_files(found, options)
    if options.queries:
        _write_queries_page(sources, options)
    if options.as_json:
        print_json(_content(found, options))
        return
    _print(found, options)
    for path in filter(None, (options.csv, options.markdown, options.html, options.queries)):
        typer.echo(f"written     {path}")


@dataclass(frozen=True, eq=False)
class _Compared:
    """What is printed and written. table: of runs, or of averages. more: the metrics by name.
    differences: of pairs, if they were asked for; untested: what was not tested, in words."""

    ranked: "RunTable"
    results: "Comparison | None"
    more: list[str]
    table: "Table"
    differences: "Differences | None"
    untested: str
    alarms: list[str]
    remarks: list[str]


def _compared(sources: list[Path], options: CompareOptions) -> _Compared:
    from vizsla.score import run_table

    results, rows = _rows(sources, options)
    names = options.metric or _known_of_protocol(rows, options)
    ranked = run_table.run_table(rows, names[0] if names else None)
    more = [run_table.metric_key(rows, name) for name in names]
    differences, untested = None, ""
    if options.pairs:
        differences, untested = run_table.pair_differences(
            ranked, more, cluster=options.cluster, only_testable=not options.metric
        )
    table = ranked.table(more, intervals=options.intervals)
    if results is not None and options.group:
        table = results.grouped(options.group.split(","), sort=ranked.metric)
    alarms, remarks = results.remarks() if results else ([], [])
    return _Compared(ranked, results, more, table, differences, untested, alarms, remarks)


def _content(found: _Compared, options: CompareOptions) -> dict[str, Any]:
    """For --json."""
    from vizsla.score.compare import GROUPS
    from vizsla.score.paired_tests import differences_table

    content: dict[str, Any] = {"best_first": found.ranked.records()}
    if found.results is not None:
        by = options.group.split(",") if options.group else GROUPS
        content |= found.results.to_dict(by, sort=found.ranked.metric)
    if found.differences is not None:
        content["pairs"] = differences_table(found.differences).records()
    return content


def _write_files(found: _Compared, options: CompareOptions) -> None:
    """The table as CSV, Markdown and a page, as far as they were asked for."""
    from vizsla import storage
    from vizsla.output import pages
    from vizsla.score import text_table

    if options.csv:
        storage.write_text(options.csv, text_table.to_csv(found.table))
    if options.markdown:
        storage.write_text(options.markdown, text_table.to_markdown(found.table))
    if options.html:
        page = pages.comparison_page(
            found.ranked, found.results, (found.alarms, found.remarks), more=found.more,
            differences=found.differences or (),
        )  # fmt: skip
        storage.write_text(options.html, page)


def _print(found: _Compared, options: CompareOptions) -> None:
    """The tables and how to read them."""
    from vizsla.score.paired_tests import KEPT, correction_note, differences_table, short_table
    from vizsla.score.run_table import FEW, TIME, WHOLE
    from vizsla.score.text_table import WIDTH

    table, ranked = found.table, found.ranked
    wide = options.intervals or len(found.more) > FEW
    whole = () if wide or options.group else WHOLE
    if wide and ranked.metric != TIME:
        table = table.select([name for name in table.columns if name != "time"])
    if options.group or not ranked.is_validated_only:
        print_table(table, table.columns, whole=whole, piped=WIDTH if whole else None)
    notes = ranked.notes()
    if found.differences is not None:
        typer.echo()
        shown = short_table if sys.stdout.isatty() else differences_table
        print_table(shown(found.differences), KEPT)
        notes.append(correction_note(found.differences))
    print_remarks(found.alarms, [*notes, *filter(None, [found.untested]), *found.remarks])
    print_validation(ranked)


def _write_queries_page(sources: list[Path], options: CompareOptions) -> None:
    """The page of all queries; one line says so where it cannot mark what is right."""
    from vizsla.cli.sources import read_ranking, read_truth
    from vizsla.run.finished_run import queries_page, truth_of_run

    assert options.queries is not None
    truth = read_truth(read_ranking(sources[0]), options) if options.is_given else None
    with ProgressShown(options.quiet) as progress:
        queries_page(sources, options.queries, truth=truth, progress=progress)
    if truth is None and not all(map(truth_of_run, sources)):
        log.warning(
            "%s marks no image as right or wrong, since no labels of the test part are known: to "
            "mark them, add --labels FILE, a table with the columns role (query or gallery), file "
            "and label",
            options.queries,
        )  # fmt: skip


def _rows(sources: list[Path], options: CompareOptions) -> "tuple[Comparison | None, list[Row]]":
    """The results that were read, and a row for each; rankings with a truth have rows only."""
    from vizsla.score.compare import read_results
    from vizsla.score.per_query_table import is_per_query_table, read_per_query_table
    from vizsla.score.result_file import read_result
    from vizsla.score.run_table import row_of_result, row_of_scores
    from vizsla.workspace import is_run, open_run, result_file_of

    both = {"metrics_named": options.metrics, "protocol": options.protocol}
    named: dict[str, Any] = {key: value for key, value in both.items() if value}
    tables = [source for source in sources if is_per_query_table(source)]
    if options.is_given or named or tables:
        if options.cluster:
            named["cluster"] = options.cluster
        names = _names(sources)
        found: dict[Path, Scores] = {}
        for source in sorted(sources, key=tables.__contains__):  # tables take the names of others
            if source in tables:
                known = next((scores.queries for scores in found.values()), ())
                found[source] = read_per_query_table(source, known=known)
            else:
                _, _, found[source] = scored(source, options, **named)
            for doubt in found[source].doubts:
                log.warning("%s", doubt)
        files = {source: open_run(source).result_file for source in sources if is_run(source)}
        made = {source: read_result(file) for source, file in files.items() if file}
        return None, [row_of_scores(names[s], found[s], made.get(s)) for s in sources]
    results = read_results([result_file_of(source) for source in sources])
    return results, [row_of_result(result) for result in results.results]


def _known_of_protocol(rows: "list[Row]", options: CompareOptions) -> tuple[str, ...]:
    """The metrics of --protocol or --metrics that some row knows; else those that all rows were
    scored by, if they have any."""
    [chosen, *others] = dict.fromkeys(row.chosen for row in rows)
    if not (options.metrics or options.protocol):
        return () if others else chosen
    asked = next((row.scores.chosen for row in rows if row.scores is not None), ())
    return tuple(key for key in asked if any(row.value(key) is not None for row in rows))


def _names(sources: list[Path]) -> dict[Path, str]:
    """A short name for each source; the whole path where two share one."""
    short = {source: source.name if source.is_dir() else source.stem for source in sources}
    several = [name for name in short.values() if list(short.values()).count(name) > 1]
    return {source: str(source) if name in several else name for source, name in short.items()}
