"""Scores → the parts of a report that are numbers and curves."""

from html import escape
from typing import Any

import numpy as np

from vizsla.output.charts import histogram, line_chart
from vizsla.output.markup import bullets, table
from vizsla.output.report_data import Material
from vizsla.score import metrics
from vizsla.score.relevance import Relevance, match_pairs
from vizsla.score.scores import Figure, Scores, is_shown

MATRIX_CLASSES = 50  # a larger confusion matrix cannot be read
SHOWN_CLASSES = 60  # of more classes the worst and the best are shown
CURVE_DEPTH = 1000


def headline_part(material: Material) -> str:
    scores = material.scores
    if scores is None:
        return (
            '<p class="soft">No labels are known, so there are no scores: give the run '
            "--labels or --labels-from, or put a labels.csv into the data folder.</p>"
        )
    keys = dict.fromkeys(
        ["top_k_accuracy@1", f"top_k_accuracy@{scores.top_k}", f"precision@{scores.top_k}", "map",
         "contest_points"]
    )  # fmt: skip
    cards = "".join(
        f"<li><small>{escape(figure.title)}</small><b>{number(figure)}</b>"
        f"<small>{interval(figure)}</small></li>"
        for figure in (scores.known[key] for key in keys if key in scores.known)
    )
    return f'<ul class="heads" aria-label="Main scores">{cards}</ul>'


def number(figure: Figure, value: float | None = None) -> str:
    value = figure.mean if value is None else value
    if value is None:
        return "–"
    return f"{value:.1f}" if figure.title == "contest points" else f"{value:.3f}"


def interval(figure: Figure) -> str:
    if figure.low is None:
        return ""
    return f"{number(figure, figure.low)} to {number(figure, figure.high)}"


def scores_part(material: Material) -> str:
    if material.scores is None:
        return ""
    confidence = 100 * material.scores.settings.confidence
    rows = [
        [escape(f.title), number(f), interval(f), str(f.n)]
        for key, f in material.scores.known.items()
        if is_shown(material.scores, key)
    ]
    columns = ["metric", "value", f"{confidence:g} % interval", "queries"]
    return table(columns, rows, numbers=(1, 2, 3)) + bullets(material.scores.notes)


def curves_part(material: Material) -> str:
    charts = []
    if material.judged is not None:
        charts.append(_by_cut_off(material.judged))
        charts.append(_of_scores(material))
    losses = [(r["step"], r["loss"]) for r in material.log if _is_number(r.get("loss"))]
    if losses:
        charts.append(line_chart("Training loss", {"loss": losses}, x_name="step", y_name="loss"))
    body = f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""
    return body + _candidates(material)


def _by_cut_off(judged: Relevance) -> str:
    """top-k accuracy, precision and recall at up to 25 cut-offs that every list reaches."""
    deepest = min(int(judged.lengths[judged.rows >= 0].min(initial=CURVE_DEPTH)), CURVE_DEPTH)
    ks = np.unique(np.geomspace(1, max(1, deepest), 25).round().astype(int)).tolist()
    ranks, answerable = metrics.hit_ranks(judged.hits), judged.n_relevant != 0
    lines = {"top-k accuracy": [(k, float(metrics.hit_rate_at_k(ranks, k).mean())) for k in ks]}
    if answerable.any():
        precision = [metrics.precision_at_k(ranks, k)[answerable] for k in ks]
        lines["precision@k"] = [(k, float(p.mean())) for k, p in zip(ks, precision, strict=True)]
    if answerable.any() and (judged.n_relevant >= 0).all():
        recall = [metrics.recall_at_k(ranks, judged.n_relevant, k)[answerable] for k in ks]
        lines["recall@k"] = [(k, float(r.mean())) for k, r in zip(ks, recall, strict=True)]
    return line_chart(
        "By cut-off k", lines, x_name="k, images looked at", y_name="share",
        y_range=(0, 1.02), log_x=deepest > 20,
    )  # fmt: skip


def _of_scores(material: Material) -> str:
    """How the scores of right and of wrong images in the first k lie."""
    assert material.judged is not None
    if material.judged.scores is None:
        return ""
    scores, matches = match_pairs(material.judged, material.top_k)
    parts = {"right": scores[matches], "wrong": scores[~matches]}
    auc = metrics.match_auc(scores, matches)
    told = "" if auc is None else f" (AUC {auc:.3f})"
    title = f"Scores of right and wrong images in the first {material.top_k}{told}"
    known = {name: values for name, values in parts.items() if len(values)}
    return histogram(title, known, x_name=score_name(material.record)) if known else ""


def score_name(record: dict[str, Any]) -> str:
    """A run's scores are cosines, unless rankings were fused or re-ranked."""
    chain = (record.get("refine") or {}).get("chain", "none")
    return "score" if record.get("fusion") or chain != "none" else "score (cosine)"


def _candidates(material: Material) -> str:
    """What training tried, on validation."""
    training = material.record.get("training") or {}
    rows = [
        [
            escape(str(c["name"])) + (" (kept)" if c["kept"] else ""),
            f"{c['value']:.4f}",
            f"{c['gain']:+.4f} ± {c['standard_error']:.4f}",
        ]
        for c in training.get("candidates", [])
    ]
    if not rows:
        return ""
    found = table(["candidate", "validation", "gain over frozen"], rows, numbers=(1, 2))
    return f"<h3>Candidates of the training</h3><p>{escape(training['verdict'])}</p>{found}"


def classes_part(material: Material) -> str:
    """One row a class, the worst first, with a bar."""
    scores = material.scores
    if scores is None:
        return ""
    ordered = scores.worst(len(scores), column="label")
    cut = len(ordered) > SHOWN_CLASSES
    half = SHOWN_CLASSES // 2
    shown = [*ordered[:half], *ordered[-half:]] if cut else ordered
    figure = scores.metrics[scores.headline]
    rows = [
        [
            escape(label), str(n), f"{mean:.3f}" if figure.highest == 1 else f"{mean:.1f}",
            f'<i style="width:{100 * mean / figure.highest:.1f}%"></i>',
        ]
        for label, mean, n in shown
    ]  # fmt: skip
    said = f"The {half} worst and the {half} best of {len(ordered)} classes. " if cut else ""
    columns = ["class", "queries", figure.title, ""]
    found = table(columns, rows, numbers=(1, 2), bar=3)
    return f'<p class="soft">{said}Mean {escape(figure.title)}, the worst class first.</p>{found}'


def confusion_part(material: Material) -> str:
    """Which class stands at rank 1 instead of the query's."""
    scores = material.scores
    if scores is None:
        return ""
    pairs = scores.confused(12)
    if not pairs:
        return "<p>No query has an image of another class at rank 1.</p>"
    rows = [[escape(label), escape(first), str(count)] for label, first, count in pairs]
    found = table(["class of the query", "class at rank 1", "queries"], rows, numbers=(2,))
    return f"<p>The most frequent mistakes at rank 1.</p>{found}{_matrix(scores)}"


def _matrix(scores: Scores) -> str:
    pairs = [
        (label, first)
        for label, first in zip(scores.columns["label"], scores.first_labels, strict=True)
        if label is not None and first is not None
    ]
    classes = sorted({label for pair in pairs for label in pair})
    if len(classes) > MATRIX_CLASSES:
        return f'<p class="soft">A matrix of {len(classes)} classes would not be readable.</p>'
    place = {label: i for i, label in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for label, first in pairs:
        counts[place[label], place[first]] += 1
    head = "".join(
        f'<th scope="col" title="{escape(label)}">{i + 1}'
        f'<span class="unseen"> {escape(label)}</span></th>'
        for i, label in enumerate(classes)
    )
    rows = []
    for i, label in enumerate(classes):
        total = max(1, counts[i].sum())
        cells = "".join(
            f'<td class="{"ok" if i == j else "no"}" style="--p:{n / total:.2f}">{n}</td>'
            if n
            else "<td></td>"
            for j, n in enumerate(counts[i])
        )
        rows.append(f'<tr><th scope="row">{i + 1} {escape(label)}</th>{cells}</tr>')
    return (
        "<h3>Class of the query (rows) and of the image at rank 1 (columns)</h3>"
        '<div class="wide" tabindex="0" role="region" aria-label="Confusion matrix">'
        f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value
