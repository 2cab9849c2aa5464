"""The command that gives numbers: evaluate."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.cli.sources import TruthOptions, names_in_truth, read_ranking, read_truth
from vizsla.errors import UsageError
from vizsla.option_fields import comma_ints, option, same
from vizsla.options import (
    ComputeChoice,
    ItemScores,
    MetricChoice,
    OneSet,
    Printing,
    RankingOptions,
)
from vizsla.progress import ProgressShown

if TYPE_CHECKING:
    from vizsla.score.calibration import Calibration
    from vizsla.score.relevance import Relevance
    from vizsla.score.scores import Scores
    from vizsla.score.truth import Truth
    from vizsla.search.ranking import Ranking


log = logging.getLogger("vizsla")

app = Commands()


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(TruthOptions, MetricChoice, ItemScores, OneSet, Printing):
    """The options of `vizsla evaluate`."""

    metrics: str | None = same(MetricChoice, "metrics", usual=True)
    protocol: str | None = same(MetricChoice, "protocol", usual=True)
    vectors: Path | None = option(
        None, "Vectors of queries and gallery in one file; --truth says which are which.", "Data"
    )
    ids: Path | None = option(None, "The names of the vectors of --vectors, one a line.", "Data")
    refine: str = same(
        RankingOptions, "refine",
        help="Refine the ranking of vectors by a chain such as 'aqe(n=5,alpha=3)'.",
    )  # fmt: skip

    queries: Path | None = option(
        None,
        "Vectors instead of a ranking: .npy, .npz, .safetensors, Parquet, a folder.",
        "Data",
        usual=True,
    )
    gallery: Path | None = option(None, "The gallery's vectors.", "Data", usual=True)
    query_labels: Path | None = option(
        None, ".npy, a CSV with a column label, or one label per line.", "Data"
    )
    gallery_labels: Path | None = option(None, "The same for the gallery.", "Data")
    top_k: tuple[int, ...] | None = option(
        None, "Cut-offs, such as 1,5,10.", "Scores", "-k", "--top-k", usual=True,
        shown="1,5,10, and a run's own k", parse=comma_ints,
    )  # fmt: skip
    missing_ranks: str = option(
        "unknown",
        "Ranks after the end of a list: {choices} (as in trec_eval).",
        "Scores",
        choices=("unknown", "wrong", "absent"),
    )
    cluster: str | None = option(
        None,
        "Resample whole classes (label or another column) for the intervals.",
        "Scores",
    )
    by: tuple[str, ...] = option(
        (), "Scores by label, group, domain or another column. Repeatable.", "Scores", usual=True
    )
    worst: int | None = option(
        None, "The N worst classes (or slices) and the most confused pairs.", "Scores", minimum=1,
    )  # fmt: skip
    calibrate: bool = option(
        False, "Learn from which score on matches can be accepted, as --accept of `run`.", "Scores"
    )
    target_precision: float = option(
        0.95, "Probability with which an accepted match should be right.", "Scores"
    )
    write_calibration: Path | None = option(
        None, "Write what was learned, for --accept FILE.", "Output", shown="a run's own folder"
    )
    training: Path | None = option(
        None, "Embeddings of labelled training images to calibrate on.", "Scores"
    )
    per_query: Path | None = option(
        None, "Write every query's values (.csv or .parquet).", "Output"
    )
    curve: Path | None = option(None, "Draw recall by cut-off (PNG).", "Output")
    bars: Path | None = option(None, "Draw scores by class (PNG).", "Output")
    histogram: Path | None = option(
        None, "Draw the cosines of right and wrong results (PNG).", "Output"
    )
    write_run: Path | None = option(None, "Write the ranking as a TREC run.", "Output")
    write_qrels: Path | None = option(None, "Write the truth as TREC judgements.", "Output")
    device: str = same(ComputeChoice, "device", "cpu", usual=False)
    out: Path | None = option(
        None, "Also write the result there (JSON).", "Output", "-o", "--out", usual=True
    )

    @property
    def scoring(self) -> dict[str, Any]:
        """The options that every scoring function takes."""
        given: dict[str, Any] = {} if self.top_k is None else {"ks": self.top_k}
        if self.metrics:
            given["metrics_named"] = self.metrics
        if self.protocol:
            given["protocol"] = self.protocol
        return {**given, "missing_ranks": self.missing_ranks, "cluster": self.cluster}


@app.command(epilog="Example: vizsla evaluate submission.json --labels-from '{label}_{n}' -k 10")
def evaluate(
    source: Annotated[
        Path | None,
        typer.Argument(help="A ranking, a submission, a TREC run or a run's folder."),
    ] = None,
    *,
    options: EvaluateOptions,
) -> None:
    """Score a ranking, a submission or vectors against the truth, with intervals."""
    from vizsla import storage
    from vizsla.output import evaluation_report, trec
    from vizsla.score.evaluate import with_decisions
    from vizsla.score.relevance import relevance
    from vizsla.score.score_tables import write_queries

    if (source is not None) + (options.queries is not None) + (options.vectors is not None) != 1:
        raise UsageError(
            "give either a ranking, submission or run, or --queries or --vectors with vectors"
        )
    if options.refine != "none" and source is not None:
        raise UsageError("--refine changes the ranking of vectors: give it to `run` or `search`")
    if source is None and (options.group_by or options.query_group):
        raise UsageError("--group-by and --query-group score rankings: `vizsla search … -o` first")
    if (options.training or options.write_calibration) and not options.calibrate:
        raise UsageError(
            "--training and --write-calibration are options of --calibrate: give it too"
        )
    if source is None:
        ranking, truth, scores = _evaluate_vectors(options)
    else:
        ranking, truth, scores = _evaluate_ranking(source, options)
    for doubt in scores.doubts:
        log.warning("%s", doubt)
    needed = options.calibrate or options.curve or options.histogram
    judged = relevance(ranking, truth) if needed else None
    calibration = None
    if options.calibrate and judged is not None:
        calibration, decidable = _calibrated(source or options.queries, ranking, judged, options)
        if decidable is not None:
            judged = relevance(calibration.decide(decidable), truth)
            scores = with_decisions(scores, judged)
        if options.write_calibration:
            calibration.save(options.write_calibration)
    found = evaluation_report.detailed(
        scores, by=options.by, worst=options.worst, calibration=calibration
    )
    if options.out:
        storage.write_json(options.out, found.to_dict())
    if options.per_query:
        write_queries(scores, options.per_query)
    if options.curve and judged is not None:
        evaluation_report.draw_curve(options.curve, judged)
    if options.bars:
        evaluation_report.draw_bars(options.bars, scores)
    if options.histogram and judged is not None:
        evaluation_report.draw_histogram(options.histogram, judged)
    if options.write_run:
        trec.write_run(ranking, truth, options.write_run)
    if options.write_qrels:
        trec.write_qrels(trec.grades_of(ranking, truth), options.write_qrels)
    if options.as_json:
        print_json(found.to_dict())
    else:
        typer.echo(found.text())


def _evaluate_vectors(options: EvaluateOptions) -> "tuple[Ranking, Truth, Scores]":
    from vizsla.embed.auto_compute import resolve_compute
    from vizsla.output.trec import read_qrels
    from vizsla.score.evaluate import CUTOFFS
    from vizsla.score.grade_table import GradeTable, read_grade_table
    from vizsla.score.metrics.metric_names import parse_metrics
    from vizsla.score.protocols import parse_protocol
    from vizsla.score.truth import named_as
    from vizsla.score.whole_gallery import (
        evaluate_ranked,
        own_pair,
        query_and_gallery_vectors,
        ranked,
        truth_of,
    )
    from vizsla.search.chain import parse_chain

    scoring, labels = options.scoring, options.query_labels or options.labels
    protocol = parse_protocol(options.protocol) if options.protocol else None
    names = parse_metrics(options.metrics or ()) or (protocol.metric_names if protocol else ())
    same_set = options.same_set or (options.gallery is None and bool(protocol and protocol.one_set))
    if options.labels_from or options.data:
        raise UsageError("vectors take --query-labels and --gallery-labels, --labels or --qrels")
    device = resolve_compute(device=options.device).device
    table = read_grade_table(options.truth) if options.truth else None
    if options.vectors is not None:
        if table is None or same_set:
            raise UsageError(
                "--vectors needs --truth, which says what the queries are; if all images are "
                "queries, give --queries FILE --same-set"
            )
        queries, gallery = query_and_gallery_vectors(options.vectors, options.ids, labels, table)
    else:
        gallery_labels = options.gallery_labels or (None if same_set else options.labels)
        queries, gallery = own_pair(
            options.queries, options.gallery, labels, gallery_labels, same_set=same_set
        )
    known = {*queries.ids, *gallery.ids}
    if table is not None:
        truth = table.named_as(known).truth(options.truth_level, one_set=same_set)
    else:
        grades = None
        if options.qrels:
            judged = GradeTable({"": read_qrels(options.qrels, known=known)}).named_as(known)
            grades = judged.levels[""]
        truth = options.judging(truth_of(queries, gallery, grades, same_set))
    ks = (*(options.top_k or CUTOFFS), *(name.cutoff or 0 for name in names))
    chain = parse_chain(options.refine)
    ranking = ranked(queries, gallery, ks=ks, same_set=same_set, device=device, chain=chain)
    truth = named_as(truth, ranking)
    scores = evaluate_ranked(ranking, truth, queries, gallery, device=device, **scoring)
    return ranking, truth, scores


def _evaluate_ranking(source: Path, options: EvaluateOptions) -> "tuple[Ranking, Truth, Scores]":
    if options.query_labels or options.gallery_labels:
        raise UsageError("--query-labels and --gallery-labels are for vectors: give --labels")
    if options.group_by is not None or options.query_group is not None:
        return _evaluate_items(source, options)
    return scored(source, options, same_set=options.same_set, **options.scoring)


def _evaluate_items(source: Path, options: EvaluateOptions) -> "tuple[Ranking, Truth, Scores]":
    """Items in place of images, on one side or on both; the ranking as deep as it is."""
    from vizsla.score.by_item import by_item
    from vizsla.score.evaluate import evaluate as score
    from vizsla.score.truth import named_as
    from vizsla.workspace import is_run

    ranking = read_ranking(source, () if is_run(source) else names_in_truth(options))
    if is_run(source) and not options.is_given:
        from vizsla.run import finished_run

        truth = options.judging(finished_run.known_truth_of_run(source))
    else:
        truth = read_truth(ranking, options, same_set=options.same_set)
    ranking, truth = by_item(
        ranking, named_as(truth, ranking), group_by=options.group_by,
        query_group=options.query_group, query_join=options.query_join,
    )  # fmt: skip
    return ranking, truth, score(ranking, truth, **options.scoring)


def scored(
    source: Path, truth_options: TruthOptions, *, same_set: bool = False, **options: Any
) -> "tuple[Ranking, Truth, Scores]":
    """A run without any word on the truth has its own; it is scored with its own options."""
    from vizsla.score.evaluate import evaluate as score
    from vizsla.workspace import is_run

    if not is_run(source):
        ranking = read_ranking(source, names_in_truth(truth_options))
        truth = read_truth(ranking, truth_options, same_set=same_set)
        return ranking, truth, score(ranking, truth, **options)
    from vizsla.run import finished_run

    if not truth_options.is_given:
        truth = finished_run.known_truth_of_run(source)
        return finished_run.score_run(source, truth_options.judging(truth), **options)
    ranking = read_ranking(source)
    truth = read_truth(ranking, truth_options, same_set=same_set)
    return finished_run.score_run(source, truth, **options)


def _calibrated(
    source: Path | None,
    ranking: "Ranking",
    judged: "Relevance",
    options: EvaluateOptions,
) -> "tuple[Calibration, Ranking | None]":
    """The cut-off, and the ranking that it can decide; None if it was learned on the very queries
    that are judged, so that it would look too good."""
    from vizsla.score.calibration import calibrate, made_by
    from vizsla.workspace import is_run

    if options.training is not None:
        from vizsla.data.data_folders import open_data
        from vizsla.data.splits import target_of
        from vizsla.embed.embeddings import Embeddings
        from vizsla.score.calibration_draws import calibrate_on_training
        from vizsla.search.chain import parse_chain, rank_refined

        chain = parse_chain(ranking.origin.get("refine", {}).get("chain", "none"))
        folders = open_data(options.data) if options.data else None
        target = target_of(folders.query, folders.gallery) if folders else None
        learned = calibrate_on_training(
            Embeddings.open(options.training), target=target, sure=options.target_precision,
            source=options.training, model_id=ranking.origin.get("model_id"),
            rank=lambda queries, gallery: rank_refined(queries[0], gallery[0], chain),
        )  # fmt: skip
        return learned, ranking
    if source is not None and is_run(source) and not options.is_given:
        from vizsla.run import finished_run

        with ProgressShown(options.quiet) as progress:
            learned = finished_run.calibrate_run(
                source, sure=options.target_precision, progress=progress
            )
        of_items = options.group_by or options.query_group
        return learned, ranking if of_items else read_ranking(source)  # with evidence now
    words = f"the {len(judged)} queries of {source} (this must be a validation part: a cut-off "
    words += "learned on the test part looks better than it is)"
    learned = calibrate(
        [judged], sure=options.target_precision, made_by=made_by(ranking.origin), learned_on=words
    )
    return learned, None
