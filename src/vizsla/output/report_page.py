"""A run and its truth → one self-contained page: scores, charts, images and a map.

Everything except hovering over the map works without JavaScript.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from vizsla import storage
from vizsla.data.data_folders import DataFolders
from vizsla.data.images import MAX_PIXELS
from vizsla.data.tables import number_format, require_columns, value_text
from vizsla.embed.embeddings import Embeddings
from vizsla.output import charts, embedding_map
from vizsla.output.evaluation_report import curves_by_cutoff
from vizsla.output.pages import Section, render_page, thumbnail
from vizsla.progress import Report, reported
from vizsla.score.by_item import ITEM_SCORES
from vizsla.score.evaluate import evaluate
from vizsla.score.figures import Figure
from vizsla.score.metrics import formulas
from vizsla.score.metrics.decision_metrics import reliability
from vizsla.score.relevance import JUNK, RIGHT, WRONG, Relevance, match_pairs, relevance, verdicts
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.score.validation_scores import KEYS, ValidationScores
from vizsla.search.ranking import Ranking
from vizsla.workspace import Run, ranking_in

MATRIX_CLASSES = 50  # a larger confusion matrix cannot be read
SHOWN_CLASSES = 60  # of more classes the worst and the best are shown
WORST, BEST = 8, 4  # queries on sheets
DRAWING = "drawing queries"  # the stage of the work
USUAL_COLUMNS = ("group",)  # below the pictures beside the label, if there are such
KINDS = {RIGHT: "right", WRONG: "wrong", JUNK: "junk"}  # of images on sheets


@dataclass(frozen=True, eq=False)
class ReportData:
    """What a report shows. record: the run's result file. log: the lines of its training log.

    item_scores: the scores of items, if the run has such. show: columns of the images that stand
    below their pictures, beside the label; empty means `group`, if there is such.
    """

    run: Run
    config: dict[str, Any]
    record: dict[str, Any]
    data: DataFolders
    ranking: Ranking
    queries: Embeddings
    gallery: Embeddings
    truth: Truth | None
    scores: Scores | None
    judged: Relevance | None
    verdicts: np.ndarray | None
    log: list[dict[str, Any]]
    item_scores: Scores | None = None
    show: Sequence[str] = ()

    @cached_property
    def columns(self) -> dict[str, dict[str, dict[str, str]]]:
        """role → id → column → value, of the columns to show. DataError: no image has such one."""
        parts = {"query": self.queries, "gallery": self.gallery}
        known = {name for part in parts.values() for name in part.attributes.column_names}
        require_columns((name for name in self.show if name != "label"), sorted(known))
        wanted = [name for name in self.show or USUAL_COLUMNS if name in known and name != "label"]
        found: dict[str, dict[str, dict[str, str]]] = {}
        for role, part in parts.items():
            table = part.attributes.select([n for n in wanted if n in part.attributes.column_names])
            decimals = {key: number_format(table[key].to_pylist()) for key in table.column_names}
            found[role] = {
                name: {key: value_text(v, decimals[key]) for key, v in row.items() if v is not None}
                for name, row in zip(part.ids, table.to_pylist() or [{}] * len(part), strict=True)
            }
        return found

    @property
    def top_k(self) -> int:
        """How many images of a query are submitted and shown."""
        return int(self.config["options"]["top_k"])

    @property
    def max_pixels(self) -> int:
        """The largest image that is read."""
        return int(self.config["options"].get("max_pixels", MAX_PIXELS))

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.config["embedder"]["name"])


def read_run(
    run: Run, data: DataFolders, truth: Truth | None, *, show: Sequence[str] = ()
) -> ReportData:
    """Reads the artefacts of a run. Scores are the saved ones, or computed if labels came later."""
    config = run.config
    ranking = Ranking.load(ranking_in(run.folder))
    top_k = int(config["options"]["top_k"])
    kept = run.folder / "scores.json"
    scores = Scores.load(kept) if kept.exists() else None
    if scores is None and truth is not None:
        named = {"metrics_named": "metrics", "protocol": "protocol"}
        given = {k: config["options"][o] for k, o in named.items() if config["options"].get(o)}
        scores = evaluate(ranking, truth, ks=sorted({1, 5, 10, top_k}), top_k=top_k, **given)
    result, of_items = run.result_file, run.folder / ITEM_SCORES
    return ReportData(
        run,
        config,
        storage.read_json(result) if result else {},
        data,
        ranking,
        Embeddings.open(run.folder / "embeddings" / "query"),
        Embeddings.open(run.folder / "embeddings" / "gallery"),
        truth,
        scores,
        relevance(ranking, truth) if truth else None,
        verdicts(ranking, truth, top_k) if truth else None,
        _log_lines(run.folder / "training" / "log.jsonl"),
        Scores.load(of_items) if of_items.exists() else None,
        (show,) if isinstance(show, str) else tuple(show),
    )


def _log_lines(path: Path) -> list[dict[str, Any]]:
    """The complete records of a training log; a half-written last line is skipped."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def report(data: ReportData, *, projection: str = "tsne", progress: Report | None = None) -> str:
    """The whole page as text. projection: "tsne" or "pca", for the map."""
    scores = data.scores
    broken = [
        [role, name, reason]
        for role, images in (("query", data.queries), ("gallery", data.gallery))
        for name, reason in images.broken
    ]
    labelled = scores is not None and any(scores.columns["label"])
    sheets = _sheets(data, progress)
    sections = [
        Section("warnings", "Warnings", data.record.get("warnings")),
        Section("scores", "Scores", _scores(scores) if scores is not None else None),
        Section("items", "Scores by item", _items(data)),
        Section("levels", "Levels of the truth", _levels(data)),
        Section("models", "Models", _models(data.record)),
        Section("decisions", "Decisions", _decisions(data)),
        Section("curves", "Curves", _curves(data)),
        Section("classes", "Classes", _classes(scores) if labelled and scores else None),
        Section("confusion", "Confusion", _confusion(scores) if labelled and scores else None),
        Section("sheets", "Queries" if scores is None else "Worst and best queries", sheets),
        Section("map", "Map of the embeddings", embedding_map.map_of(
            (data.queries, data.data.query.root, data.truth.query if data.truth else {}),
            (data.gallery, data.data.gallery.root, data.truth.gallery if data.truth else {}),
            projection, max_pixels=data.max_pixels, progress=progress)),
        Section("broken", "Broken images", broken),
        Section("configuration", "Configuration", _configuration(data)),
    ]  # fmt: skip
    return render_page(
        "report.html",
        f"{data.name} on {Path(data.config['options']['data']).name}",
        sections,
        subtitle=_subtitle(data),
        script="report.js",
        headline=None if scores is None else _headline(scores),
        validation=_validation(data.record),
    )


def _models(record: dict[str, Any]) -> dict[str, Any] | None:
    """The models of a joint run with their weights; None for a run of one model."""
    members, fusion = record.get("members"), record.get("fusion") or {}
    if not members:
        return None
    k = record.get("top_k")
    rows = [
        [one["model_name"], f"{one['weight']:.3f}",
         *("–" if one[key] is None else f"{one[key]:.3f}" for key in ("top_k_accuracy", "map")),
         one["chain"], one["run"]]
        for one in members
    ]  # fmt: skip
    columns = ["model", "weight", f"top-{k} accuracy", "mAP", "refinement", "run"]
    known = [i for i in range(len(columns)) if any(row[i] != "–" for row in rows)]
    return {
        "columns": [columns[i] for i in known],
        "rows": [[row[i] for i in known] for row in rows],
        "how": _how_joined(fusion),
    }


def _how_joined(fusion: dict[str, Any]) -> str:
    """How the models of a joint run were joined, and what of it was chosen."""
    method, head, is_chosen = fusion.get("method"), fusion.get("whiten"), fusion.get("chosen_on")
    on = ", chosen on held-out training images"
    if method != "concat":
        chosen = " Weights were chosen on held-out training images." if is_chosen else ""
        return f"Their rankings are joined by {method}.{chosen}"
    if head in (None, "none"):
        return f"Their vectors are joined{' without a projection' + on if is_chosen else ''}."
    beside = ", except those of the last one" if fusion.get("not_projected") else ""
    return f"Their vectors are joined and projected by {head}{beside}{on if is_chosen else ''}."


def _validation(record: dict[str, Any]) -> dict[str, Any] | None:
    """The scores on held-out training images, and how many; None without such."""
    found = ValidationScores.of(record.get("validation"))
    if found is None:
        return None
    means = (f"{found.top1:.3f}", f"{found.map:.3f}", f"{found.points:.1f}")
    heads = list(zip(KEYS, means, strict=True))
    chosen = {"training": "the candidate of the training"}.get(found.chosen, f"the {found.chosen}")
    return {"heads": heads, "size": found.size, "chosen": chosen}


def _subtitle(data: ReportData) -> list[str]:
    run_id = data.run.id
    when = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]} {run_id[9:11]}:{run_id[11:13]}"
    pooling = data.config["options"].get("pooling") or data.record.get("pooling_type")
    protocol = data.config["options"].get("protocol")
    tuned = data.record.get("is_finetuned")
    fitted = (data.record.get("training") or {}).get("kept", "frozen") != "frozen"
    frozen = "frozen, with a projection" if fitted else "frozen"
    parts = [
        f"{len(data.ranking)} queries",
        f"{len(data.gallery)} gallery images",
        f"scored by {protocol}" if protocol else "",
        f"{pooling} pooling" if pooling else "",
        "fine-tuned" if tuned else frozen if tuned is False else "",
        f"run {run_id} ({when})",
    ]
    return [part for part in parts if part]


# ── scores ───────────────────────────────────────────────────────────────────────────────────────


def _headline(scores: Scores) -> list[tuple[str, str, str]]:
    """(title, value, interval) of the main scores."""
    keys = dict.fromkeys(
        ["top_k_accuracy@1", f"top_k_accuracy@{scores.top_k}", f"precision@{scores.top_k}", "map",
         "contest_points"]
    )  # fmt: skip
    figures = [scores.known[key] for key in scores.chosen or keys if key in scores.known]
    return [(figure.title, _number(figure), _interval(figure)) for figure in figures]


def _number(figure: Figure, value: float | None = None) -> str:
    value = figure.mean if value is None else value
    if value is None:
        return "–"
    return f"{value:.1f}" if figure.title == "contest points" else f"{value:.3f}"


def _interval(figure: Figure) -> str:
    if figure.low is None:
        return ""
    return f"{_number(figure, figure.low)} to {_number(figure, figure.high)}"


def _scores(scores: Scores) -> dict[str, Any]:
    confidence = 100 * scores.settings.confidence
    return {
        "columns": ["metric", "value", f"{confidence:g} % interval", "queries"],
        "rows": [
            [figure.title, _number(figure), _interval(figure), figure.n]
            for figure in scores.shown.values()
        ],
        "notes": scores.notes,
    }


def _items(data: ReportData) -> dict[str, Any] | None:
    """The scores of items, and what an item is; None if they were not asked for."""
    items = data.record.get("items")
    if data.item_scores is None or not items:
        return None
    how = []
    if "query_group" in items:
        score = {"mean": "mean", "max": "highest"}[items["query_join"]]
        how += [f"Query pictures with the same {items['query_group']} are one query: the score of "
                f"an image is its {score} score over them."]  # fmt: skip
    if "group_by" in items:
        how += [f"Gallery images with the same {items['group_by']} are one result."]
    return {**_scores(data.item_scores), "how": " ".join(how)}


def _levels(data: ReportData) -> dict[str, Any] | None:
    """The same metrics for every level of the truth; None if it has only one."""
    scores, truth = data.scores, data.truth
    if scores is None or truth is None or len(truth.levels) < 2:
        return None
    keys = scores.chosen or ("AP", "top-1")
    by_oxford = (scores.protocol or "").startswith("oxford-")
    rows = []
    for level in truth.levels:
        found = evaluate(
            data.ranking, truth.at_level(level), metrics_named=keys,
            protocol=f"oxford-{level}" if by_oxford else None,
        ).figures  # fmt: skip
        cells = [f"{_number(found[key])} ({_interval(found[key]) or '–'})" for key in keys]
        rows.append([level, *cells, max(found[key].n for key in keys)])
    return {"columns": ["level", *keys, "queries"], "rows": rows}


def _classes(scores: Scores) -> dict[str, Any]:
    """A row for each class, the worst first, with its mean as a bar."""
    ordered = scores.worst(len(scores), column="label")
    half = SHOWN_CLASSES // 2 if len(ordered) > SHOWN_CLASSES else 0
    shown = [*ordered[:half], *ordered[-half:]] if half else ordered
    figure = scores.metrics[scores.headline]
    digits = 3 if figure.highest == 1 else 1
    return {
        "half": half,
        "total": len(ordered),
        "metric": figure.title,
        "rows": [[label, n, f"{mean:.{digits}f}"] for label, mean, n in shown],
        "bars": [mean / figure.highest for _, mean, _ in shown],
    }


def _confusion(scores: Scores) -> dict[str, Any]:
    """Which class is at rank 1 instead of the query's."""
    pairs = [
        (label, first)
        for label, first in zip(scores.columns["label"], scores.first_labels, strict=True)
        if label is not None and first is not None
    ]
    classes = sorted({label for pair in pairs for label in pair})
    rows = []
    if len(classes) <= MATRIX_CLASSES:
        place = {label: i for i, label in enumerate(classes)}
        counts = np.zeros((len(classes), len(classes)), dtype=int)  # (C, C)
        for label, first in pairs:
            counts[place[label], place[first]] += 1
        rows = [{"counts": row.tolist(), "total": max(1, int(row.sum()))} for row in counts]
    return {"pairs": scores.confused(12), "matrix": {"classes": classes, "rows": rows}}


def _decisions(data: ReportData) -> dict[str, Any] | None:
    """What is accepted, and whether probabilities are true; None where nothing was decided."""
    accept, accepted = data.record.get("accept"), data.ranking.accepted
    if accepted is None or not accept:
        return None
    table = [[row["sure"], *(_share(row[key]) for key in ("cut-off", "answered", "precision"))]
             for row in accept["table"]]  # fmt: skip
    charts_drawn = []
    if data.judged is not None and data.judged.probability is not None:
        bins = reliability(data.judged)
        points = [(one.probability, one.right) for one in bins]
        charts_drawn.append(charts.line_chart(
            "Are the probabilities true?", {"right": points, "ideal": [(0, 0), (1, 1)]},
            x_name="probability", y_name="share that is right", y_range=(0, 1.02),
        ))  # fmt: skip
    cut = accept["cutoff"]
    return {
        "answered": int((accepted > 0).sum()),
        "queries": len(accepted),
        "sure": f"{100 * accept['sure']:g} %",
        "estimate": None if cut is None else f"{cut['estimate']:.4f}",
        "learned_on": accept["learned_on"],
        "table": table,
        "charts": charts_drawn,
    }


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# ── curves ───────────────────────────────────────────────────────────────────────────────────────


def _curves(data: ReportData) -> dict[str, Any] | None:
    drawn: list[Markup] = []
    if data.judged is not None:
        ks, curves = curves_by_cutoff(data.judged)
        if ks:
            lines = {name: list(zip(ks, values, strict=True)) for name, values in curves.items()}
            drawn.append(charts.line_chart(
                "By cut-off k", lines, x_name="k, length of the result list", y_name="share",
                y_range=(0, 1.02), log_x=ks[-1] > 20,
            ))  # fmt: skip
        if data.judged.scores is not None:
            drawn += _score_histogram(data)
    losses = [
        (line["step"], line["loss"])
        for line in data.log
        if isinstance(line.get("loss"), int | float) and not math.isnan(line["loss"])
    ]
    if losses:
        chart = charts.line_chart("Training loss", {"loss": losses}, x_name="step", y_name="loss")
        drawn.append(chart)
    training = data.record.get("training") or {}
    candidates = [
        [
            str(c["name"]) + (" (kept)" if c["kept"] else ""),
            f"{c['value']:.4f}",
            "–" if c["name"] == "frozen" else f"{c['gain']:+.4f} ± {c['standard_error']:.4f}",
        ]
        for c in training.get("candidates", [])
    ]
    if not (drawn or candidates):
        return None
    return {"charts": drawn, "candidates": candidates, "verdict": training.get("verdict", "")}


def _score_histogram(data: ReportData) -> list[Markup]:
    """The scores of right and of wrong images in the first k; none if nothing is known."""
    assert data.judged is not None
    scores, matches = match_pairs(data.judged, data.top_k)
    parts = {"right": scores[matches], "wrong": scores[~matches]}
    known = {name: values for name, values in parts.items() if len(values)}
    if not known:
        return []
    auc = formulas.match_auc(scores, matches)
    title = f"Scores of right and wrong images in the first {data.top_k}"
    title += "" if auc is None else f" (AUC {auc:.3f})"
    return [charts.histogram(title, known, x_name=score_name(data.record))]


def score_name(record: dict[str, Any]) -> str:
    """What a run's scores are called: cosines, unless rankings were fused or re-ranked."""
    chain = (record.get("refine") or {}).get("chain", "none")
    return "score" if record.get("fusion") or chain != "none" else "score (cosine)"


# ── sheets ───────────────────────────────────────────────────────────────────────────────────────


def _sheets(data: ReportData, progress: Report | None) -> list[dict[str, Any]]:
    """Groups of sheets: the worst and the best queries; the first few if there are no scores."""
    scores = data.scores
    if scores is None:
        rows = reported(range(min(WORST, len(data.ranking))), DRAWING, progress)
        return [{"title": "", "sheets": [_sheet(data, row, "") for row in rows]}]
    row_of = {name: i for i, name in enumerate(data.ranking.queries)}
    values = scores.per_query(scores.headline)
    known = sorted(
        (value, -min(first, 1e9), row_of[name], name)
        for value, first, name in zip(values, scores.first_ranks, scores.queries, strict=True)
        if value is not None and name in row_of
    )
    worst = known[:WORST]
    best = [entry for entry in reversed(known) if entry not in worst][:BEST]
    whole = scores.headline == "map"
    title = "AP" if whole else scores.metrics[scores.headline].title
    suffix = " (whole ranking)" if whole else ""
    digits = 3 if scores.metrics[scores.headline].highest == 1 else 1
    drawn = [
        _sheet(data, row, f"{title} {value:.{digits}f}{suffix}")
        for value, _, row, _ in reported([*worst, *best], DRAWING, progress)
    ]
    groups = [{"title": "Worst", "sheets": drawn[: len(worst)]},
              {"title": "Best", "sheets": drawn[len(worst) :]}]  # fmt: skip
    return [group for group in groups if group["sheets"]]


def _sheet(data: ReportData, row: int, score: str) -> dict[str, Any]:
    """One query and its first k results."""
    ranking, truth = data.ranking, data.truth
    query = ranking.queries[row]
    label = truth.query.get(query) if truth else None
    tiles: list[dict[str, Any]] = []
    ranked = 0  # junk takes no rank
    for rank, found in enumerate(ranking.row(row)[: data.top_k]):
        other = truth.gallery.get(found) if truth else None
        kind = "" if data.verdicts is None else KINDS.get(int(data.verdicts[row, rank]), "")
        ranked += kind != "junk"
        value = None if ranking.scores is None else float(ranking.scores[row, rank])
        chance = None if ranking.probability is None else ranking.probability[row, rank]
        tiles.append({
            "kind": kind,
            "rank": "" if kind == "junk" else ranked,
            "score": "" if value is None else f"{value:.3f}",
            "chance": "" if chance is None else f"{100 * chance:.0f} %",
            "below": ranking.accepted is not None and rank >= ranking.accepted[row],
            "label": other,
            "facts": data.columns["gallery"].get(found, {}),
            "id": found,
            "name": Path(found).name,
            "picture": thumbnail(data.data.gallery.root / found, max_pixels=data.max_pixels),
        })  # fmt: skip
    picture = thumbnail(data.data.query.root / query, max_pixels=data.max_pixels)
    facts = [f"{name} {value}" for name, value in data.columns["query"].get(query, {}).items()]
    notes = [note for note in (label, *facts, score) if note]
    if ranking.has_no_cutoff:
        notes.append("nothing is sure enough to be accepted")
    elif ranking.accepted is not None:
        notes.append(f"{ranking.accepted[row]} accepted" if ranking.accepted[row]
                     else "none accepted: perhaps not in the gallery")  # fmt: skip
    return {"query": query, "notes": notes, "picture": picture, "tiles": tiles}


# ── configuration ────────────────────────────────────────────────────────────────────────────────


def _configuration(data: ReportData) -> dict[str, Any]:
    start, model_id = data.config["embedder"]["model_id"], data.queries.model_id
    known = {
        **_flat(data.config["options"]),
        "weights": _weights(data),
        "model id": model_id,
        "model id before fitting": start if start != model_id else None,
        "dimensions": data.queries.dim,
        "refine, resolved": (data.record.get("refine") or {}).get("chain"),
        "duration": data.record.get("runtime_seconds"),
        **data.config["versions"],
    }
    rows = [[key, _with_unit(key, value)] for key, value in known.items() if value is not None]
    return {"folder": data.run.folder, "rows": rows}


def _weights(data: ReportData) -> str:
    """The option as given; for a saved embedder, the source of its weights."""
    if not Path(data.config["options"]["model"]).is_absolute():
        return str(data.config["options"]["weights"])
    source = data.record.get("weights_file") or data.record.get("weights") or "not known"
    return f"the embedder's own ({source})"


def _with_unit(key: str, value: Any) -> str:
    """The value as text; durations in seconds."""
    name = key.rpartition(".")[2]
    if isinstance(value, int | float) and name in ("budget", "save_seconds", "duration"):
        return f"{value:g} s"
    return str(value)


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options with dotted names."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
