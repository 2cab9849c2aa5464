"""The commands that inspect data and results, as functions: check, report, compare."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

from vizsla.audit.findings import CheckReport
from vizsla.errors import UsageError
from vizsla.keyword_options import with_keywords
from vizsla.option_fields import REQUIRED, Options, option, same
from vizsla.options import CheckOptions, Reporting, ShownColumns
from vizsla.progress import reporting
from vizsla.run.check_folder import check_folder, write_findings
from vizsla.score.compare import read_results
from vizsla.score.run_table import (
    RunTable,
    pair_differences,
    row_of_result,
    row_of_scores,
    run_table,
)
from vizsla.score.scores import Scores
from vizsla.workspace import result_file_of


@dataclass(frozen=True)
class CheckArguments(CheckOptions, Reporting):
    """What `vizsla.check` takes."""

    data: str | Path = option(REQUIRED, "A data folder, one of classes, or one of images.", "Data")
    _: KW_ONLY
    model: Any = same(CheckOptions, "model")


@with_keywords(CheckArguments)
def check(given: CheckArguments, names: frozenset[str]) -> CheckReport:
    """Broken files, copies, leaks between training and test, and wrong labels, of a folder.

    `print(report.text())` shows them. Nothing in the folder is changed.
    """
    with reporting(given.progress) as report:
        found = check_folder(given.data, given, report)
    write_findings(found, given)
    return found


@dataclass(frozen=True)
class ReportArguments(ShownColumns, Reporting):
    """What `vizsla.report` takes."""

    run: str | Path = option(REQUIRED, "A run's folder.", "Data")
    out: str | Path = option(Path("report.html"), "The page to write.", "Output")
    _: KW_ONLY
    data: str | Path | None = option(None, "Where the images are now, if they were moved.", "Data")
    map: str = option(
        "tsne", "Layout of the map: tsne, or pca (faster).", "Output", choices=("tsne", "pca")
    )


@with_keywords(ReportArguments)
def report(given: ReportArguments, names: frozenset[str]) -> Path:
    """Writes one self-contained HTML page about a run; returns its path."""
    from vizsla.run import finished_run  # imports torch

    with reporting(given.progress) as progress:
        return finished_run.report(
            given.run, given.out, data=given.data, projection=given.map, show=given.show,
            progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class CompareArguments(Options):
    """What `vizsla.compare` takes."""

    sources: Any = option(
        REQUIRED, "A folder of results, a run, a result file, or a list of these; or a dict of "
        "Scores by name.", "Data",
    )  # fmt: skip
    _: KW_ONLY
    metric: str | None = option(
        None, "What decides the order and is tested: mAP, top-1, points, precision@5, …", "Scores",
        shown="mAP",
    )  # fmt: skip
    pairs: bool = option(False, "Also test every pair of runs: the table's `pairs`.", "Scores")
    group: str | list[str] | None = option(
        None, "Also average runs that share these keys, such as model_name: the table's "
        "`averages`.", "Scores",
    )  # fmt: skip
    cluster: str | None = option(
        None, "For pairs, the column whose values are drawn whole, such as label.", "Scores"
    )


@with_keywords(CompareArguments)
def compare(given: CompareArguments, names: frozenset[str]) -> RunTable:
    """Runs in one table, the best first, each tested against the best; `print(table.text())`.

    `table.pairs` and `table.averages` hold what `pairs` and `group` asked for. UsageError: `pairs`
    of results whose queries' values are not at hand; `group` of Scores, or by an unknown key.
    """
    sources, found = given.sources, None
    if isinstance(sources, Mapping):
        if not all(isinstance(scores, Scores) for scores in sources.values()):
            raise UsageError("sources is a dict: expected name → Scores, as evaluate returns them")
        rows = [row_of_scores(str(name), scores) for name, scores in sources.items()]
    else:
        several = [sources] if isinstance(sources, str | Path) else sources
        if not isinstance(several, Sequence) or not all(isinstance(s, str | Path) for s in several):
            raise UsageError(
                f"sources is of type {type(sources).__name__}: expected paths of results or runs, "
                "or a dict of Scores by name"
            )
        found = read_results([result_file_of(source) for source in several])
        rows = [row_of_result(result) for result in found.results]
    ranked = run_table(rows, given.metric)
    pairs, averages = None, None
    if given.pairs:
        metrics = [ranked.metric] if given.metric else []
        pairs, _ = pair_differences(ranked, metrics, cluster=given.cluster)
    if given.group:
        if found is None:
            raise UsageError("group averages result files: leave it out of a dict of Scores")
        by = given.group.split(",") if isinstance(given.group, str) else given.group
        averages = found.grouped(by, sort=ranked.metric)
    return replace(ranked, pairs=pairs, averages=averages)
