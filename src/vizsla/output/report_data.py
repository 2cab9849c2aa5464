"""A run's folder → everything that its report shows. Knows nothing of pages."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.data.images import MAX_PIXELS
from vizsla.data.imageset import DataFolders
from vizsla.embed.embeddings import Embeddings
from vizsla.score.evaluate import evaluate
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking
from vizsla.workspace import Run, ranking_in


@dataclass(frozen=True, eq=False)
class ReportData:
    """What a report shows. record: the run's result file. log: the records of its training."""

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
    log: list[dict[str, Any]]

    @property
    def top_k(self) -> int:
        return int(self.config["options"]["top_k"])

    @property
    def max_pixels(self) -> int:
        return int(self.config["options"].get("max_pixels", MAX_PIXELS))

    @property
    def name(self) -> str:
        return str(self.config["embedder"]["name"])


def read_run(run: Run, data: DataFolders, truth: Truth | None) -> ReportData:
    """Reads the artefacts of a run. Scores are the saved ones, or computed if labels came later."""
    config = run.config
    ranking = Ranking.load(ranking_in(run.folder))
    top_k = int(config["options"]["top_k"])
    kept = run.folder / "scores.json"
    scores = Scores.load(kept) if kept.exists() else None
    if scores is None and truth is not None:
        scores = evaluate(ranking, truth, ks=sorted({1, 5, 10, top_k}), top_k=top_k)
    results = sorted((run.home / "results").glob(f"*_metrics_{run.id}.json"))
    return ReportData(
        run,
        config,
        storage.read_json(results[0]) if results else {},
        data,
        ranking,
        Embeddings.open(run.folder / "embeddings" / "query"),
        Embeddings.open(run.folder / "embeddings" / "gallery"),
        truth,
        scores,
        relevance(ranking, truth) if truth else None,
        _log_lines(run.folder / "training" / "log.jsonl"),
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
