"""Commands that give numbers: evaluate, compare."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.cli.console import Commands, ProgressShown, print_json, print_remarks, print_table
from vizsla.cli.shared_options import (
    AsJson,
    Cluster,
    Device,
    Labels,
    LabelsFrom,
    Quiet,
    ValidateOn,
    Verbose,
    comma_ints,
)
from vizsla.cli.sources import TruthOptions, read_ranking, read_truth
from vizsla.errors import UsageError

if TYPE_CHECKING:
    from vizsla.score.calibration import Calibration
    from vizsla.score.relevance import Relevance
    from vizsla.score.scores import Scores
    from vizsla.score.text_table import Table
    from vizsla.score.truth import Truth
    from vizsla.search.ranking import Ranking


log = logging.getLogger("vizsla")

app = Commands()


@app.command(epilog="Example: vizsla evaluate submission.json --labels-from '{label}_{n}' -k 10")
def evaluate(
    source: Annotated[
        Path | None,
        typer.Argument(help="A ranking, a submission, a TREC run or a run's folder."),
    ] = None,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The data folder, for the whole gallery and labels.csv."),
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", help="TREC judgements in place of labels.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            help="Vectors instead of a ranking: .npy, .npz, .safetensors, Parquet, a folder.",
        ),
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option("--gallery", help="The gallery's vectors.")
    ] = None,
    query_labels: Annotated[
        Path | None,
        typer.Option(
            "--query-labels", help=".npy, a CSV with a column label, or one label per line."
        ),
    ] = None,
    gallery_labels: Annotated[
        Path | None, typer.Option("--gallery-labels", help="The same for the gallery.")
    ] = None,
    same_set: Annotated[
        bool,
        typer.Option(
            "--same-set", help="Queries and gallery are one set: leave out each query's own image."
        ),
    ] = False,
    top_k: Annotated[
        str, typer.Option("-k", "--top-k", help="Cut-offs, such as 1,5,10.")
    ] = "1,5,10",
    missing_ranks: Annotated[
        str,
        typer.Option(
            "--missing-ranks",
            help="Ranks after the end of a list: unknown, wrong, or absent (as in trec_eval).",
        ),
    ] = "unknown",
    cluster: Cluster = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Scores by label, group, domain or another column. Repeatable."),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(
            "--worst", min=1, help="The N worst classes (or slices) and the most confused pairs."
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="AUC, thresholds, and the score above which matches can be trusted."
        ),
    ] = False,
    sure: Annotated[
        float, typer.Option("--sure", help="Share of matches above that score that are right.")
    ] = 0.95,
    training: Annotated[
        Path | None,
        typer.Option("--training", help="Embeddings of labelled training images to calibrate on."),
    ] = None,
    validate_on: ValidateOn = None,
    per_query: Annotated[
        Path | None,
        typer.Option("--per-query", help="Write every query's values (.csv or .parquet)."),
    ] = None,
    curve: Annotated[
        Path | None, typer.Option("--curve", help="Draw recall by cut-off (PNG).")
    ] = None,
    bars: Annotated[Path | None, typer.Option("--bars", help="Draw scores by class (PNG).")] = None,
    histogram: Annotated[
        Path | None,
        typer.Option("--histogram", help="Draw the cosines of right and wrong results (PNG)."),
    ] = None,
    write_run: Annotated[
        Path | None, typer.Option("--write-run", help="Write the ranking as a TREC run.")
    ] = None,
    write_qrels: Annotated[
        Path | None, typer.Option("--write-qrels", help="Write the truth as TREC judgements.")
    ] = None,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write the result there (JSON).")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a ranking, a submission or vectors against the truth, with intervals."""
    from vizsla import storage
    from vizsla.output import evaluation_report, trec
    from vizsla.score.relevance import relevance
    from vizsla.score.score_tables import write_queries

    if (source is None) == (queries is None):
        raise UsageError("give either a ranking, submission or run, or --queries with vectors")
    if (training or validate_on) and not calibrate:
        raise UsageError("--training and --validate-on are options of --calibrate: give it too")
    truth_options = TruthOptions(
        labels, labels_from, data, qrels, query_labels, gallery_labels, same_set
    )
    options = {"ks": comma_ints(top_k), "missing_ranks": missing_ranks, "cluster": cluster}
    if queries is not None:
        ranking, truth, scores = _evaluate_vectors(queries, gallery, truth_options, device, options)
    else:
        assert source is not None
        ranking, truth, scores = _evaluate_ranking(source, truth_options, options)
    for doubt in scores.doubts:
        log.warning("%s", doubt)
    judged = relevance(ranking, truth) if calibrate or curve or histogram else None
    calibration, applied = None, ""
    if calibrate and judged is not None:
        calibration, elsewhere = _calibrated(
            source or queries, ranking, judged, truth_options, sure, training, validate_on, quiet
        )
        applied = calibration.applied(judged) if elsewhere else ""
    found = evaluation_report.detailed(
        scores, by=by or (), worst=worst, calibration=calibration, applied=applied
    )
    if out:
        storage.write_json(out, found.to_dict())
    if per_query:
        write_queries(scores, per_query)
    if curve and judged is not None:
        evaluation_report.draw_curve(curve, judged)
    if bars:
        evaluation_report.draw_bars(bars, scores)
    if histogram and judged is not None:
        evaluation_report.draw_histogram(histogram, judged, calibration)
    if write_run:
        trec.write_run(ranking, truth, write_run)
    if write_qrels:
        trec.write_qrels(trec.grades_of(ranking, truth), write_qrels)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(found.text())


def _evaluate_vectors(
    queries: Path,
    gallery: Path | None,
    truth_options: TruthOptions,
    device: str,
    options: dict[str, Any],
) -> "tuple[Ranking, Truth, Scores]":
    from vizsla.embed.auto_compute import resolve_compute
    from vizsla.output.trec import read_qrels
    from vizsla.score.whole_gallery import evaluate_ranked, own_pair, ranked, truth_of

    if truth_options.labels_from or truth_options.data:
        raise UsageError("vectors take --query-labels and --gallery-labels, --labels or --qrels")
    query_labels = truth_options.query_labels or truth_options.labels
    gallery_labels = truth_options.gallery_labels or (
        None if truth_options.same_set else truth_options.labels
    )
    device = resolve_compute(device=device).device
    query_vectors, gallery_vectors = own_pair(
        queries, gallery, query_labels, gallery_labels, same_set=truth_options.same_set
    )
    grades = read_qrels(truth_options.qrels) if truth_options.qrels else None
    truth = truth_of(query_vectors, gallery_vectors, grades, truth_options.same_set)
    ranking = ranked(
        query_vectors,
        gallery_vectors,
        ks=options["ks"],
        same_set=truth_options.same_set,
        device=device,
    )
    return (
        ranking,
        truth,
        evaluate_ranked(ranking, truth, query_vectors, gallery_vectors, device=device, **options),
    )


def _evaluate_ranking(
    source: Path, truth_options: TruthOptions, options: dict[str, Any]
) -> "tuple[Ranking, Truth, Scores]":
    """A run without any word on the truth has its own."""
    from vizsla.score.evaluate import evaluate as score
    from vizsla.workspace import is_run

    if truth_options.query_labels or truth_options.gallery_labels:
        raise UsageError("--query-labels and --gallery-labels are for vectors: give --labels")
    if is_run(source) and not truth_options.is_given:
        from vizsla.run import finished_run

        return finished_run.judge_run(source, **options)
    ranking = read_ranking(source)
    truth = read_truth(ranking, truth_options)
    if is_run(source) and ranking.depth < (ranking.gallery_size or 0):
        from vizsla.run import finished_run

        return finished_run.rescore(source, truth, **options)
    return ranking, truth, score(ranking, truth, **options)


def _calibrated(
    source: Path | None,
    ranking: "Ranking",
    judged: "Relevance",
    truth_options: TruthOptions,
    sure: float,
    training: Path | None,
    validate_on: str | None,
    quiet: bool,
) -> "tuple[Calibration, bool]":
    """The cut-off, and whether it was learned on other queries than those that are judged."""
    from vizsla.score.calibration import calibrate
    from vizsla.workspace import is_run

    if training is not None:
        from vizsla.data.imageset import open_data
        from vizsla.data.splits import target_of
        from vizsla.embed.embeddings import Embeddings
        from vizsla.score.calibration import calibrate_on_training

        folders = open_data(truth_options.data) if truth_options.data else None
        target = target_of(folders.query, folders.gallery) if folders else None
        learned = calibrate_on_training(
            Embeddings.open(training), target=target, validate_on=validate_on or "new-classes",
            precision=sure, source=training, model_id=ranking.origin.get("model_id"),
        )  # fmt: skip
        return learned, True
    if source is not None and is_run(source) and not truth_options.is_given:
        from vizsla.run import finished_run

        with ProgressShown(quiet) as progress:
            learned = finished_run.calibrate_run(
                source, precision=sure, validate_on=validate_on, progress=progress
            )
        return learned, True
    words = f"the {len(judged)} queries of {source} (this must be a validation part: a cut-off "
    words += "learned on the test part looks better than it is)"
    return calibrate(judged, precision=sure, learned_on=words), False


@app.command(epilog="Example: vizsla compare results")
def compare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Result files or folders of them; or runs and rankings, compared in pairs."
        ),
    ],
    group: Annotated[
        str | None, typer.Option("--group", help="Keys to group by, as model_name,pooling_type.")
    ] = None,
    sort: Annotated[str | None, typer.Option("--sort", help="The column to sort by.")] = None,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The data folder of rankings to compare.")
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", help="TREC judgements of rankings to compare.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="Metric of pairwise comparisons: map, precision@5, contest_points, … Repeatable.",
        ),
    ] = None,
    cluster: Cluster = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write a CSV file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write a Markdown file.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write an HTML page.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare result files in one table: averages of groups, warnings of implausible results.

    Runs, or rankings with the truth: every pair's difference, with interval and p-value.
    """
    from vizsla import storage
    from vizsla.output import pages
    from vizsla.score import compare, paired_tests, text_table
    from vizsla.workspace import is_run

    truth_options = TruthOptions(labels, labels_from, data, qrels)
    if truth_options.is_given or all(is_run(source) for source in sources):
        table, page, content, notes = _compare_pairs(sources, truth_options, metric, cluster)
        alarms: list[str] = []
        keep = paired_tests.KEPT
    else:
        results = compare.read_results(sources)
        by = group.split(",") if group else compare.GROUPS
        table, page = results.grouped(by, sort=sort), pages.comparison_page(results, by, sort=sort)
        content = results.to_dict(by, sort=sort)
        alarms, notes = results.remarks()
        keep = compare.SCORES
    for path, text in (
        (csv, text_table.to_csv(table)), (markdown, text_table.to_markdown(table)), (html, page),
    ):  # fmt: skip
        if path:
            storage.write_text(path, text)
    if as_json:
        print_json(content)
        return
    print_table(table, keep)
    print_remarks(alarms, notes)


def _compare_pairs(
    sources: list[Path], truth_options: TruthOptions, metrics: list[str] | None, cluster: str | None
) -> tuple["Table", str, Any, list[str]]:
    from vizsla.output import pages
    from vizsla.score.evaluate import evaluate
    from vizsla.score.paired_tests import (
        compare_systems,
        correction_note,
        differences_table,
        in_words,
    )
    from vizsla.score.scores import Scores

    systems, named = {}, _names(sources)
    for source in sources:
        if truth_options.is_given:
            ranking = read_ranking(source)
            scores = evaluate(ranking, read_truth(ranking, truth_options))
        else:
            scores = Scores.load(source / "scores.json")
        name = named[source]
        systems[name if name not in systems else str(source)] = scores
    for doubt in dict.fromkeys(doubt for scores in systems.values() for doubt in scores.doubts):
        log.warning("%s", doubt)
    differences = compare_systems(systems, keys=metrics or None, cluster=cluster)
    table, notes = differences_table(differences), [correction_note(differences)]
    words = [*map(in_words, differences), *notes]
    return table, pages.differences_page(table, words), table.records(), notes


def _names(sources: list[Path]) -> dict[Path, str]:
    """Of systems: a file's stem, a run's id; with the runs' models, or what their training kept,
    if they differ."""
    from vizsla import storage
    from vizsla.workspace import is_run, open_run

    names = {source: source.name if source.is_dir() else source.stem for source in sources}
    runs = [source for source in sources if is_run(source)]
    models = {run: str(open_run(run).config["embedder"]["name"]) for run in runs}
    kept = {}
    for run in runs:
        config = run / "embedder" / "config.json"
        origin = (storage.read_sealed_json(config) if config.exists() else {}).get("origin")
        trained = {"kept": "not known"} if origin is None else origin["training"]
        kept[run] = str((trained or {"kept": "frozen"})["kept"])
    telling = [facts for facts in (models, kept) if len(set(facts.values())) > 1]
    if telling:
        for run in runs:
            names[run] += f" ({', '.join(facts[run] for facts in telling)})"
    return names
