"""Clusters beside scikit-learn's: agreement with labels on test parts, time and memory.

    python benchmarks/cluster.py scores SET=TRAINING.emb:TEST.emb[,TEST.emb] …
    python benchmarks/cluster.py made 100000 -o made.emb   # 100,000 × 512 made vectors
    /usr/bin/time -v vizsla cluster made.emb -o clusters.csv --json

scores: every method learns its cut-off (agglomerative its best fixed threshold, HDBSCAN its
smallest cluster) on the training part alone, on draws as large as the test part; then each is
scored once on the test part. `silhouette` is our method without any labels. Prints one JSON object.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.choose.cluster_cut_off import cut_off_by_silhouette, learned_cut_off
from vizsla.embed.embeddings import Embeddings
from vizsla.score.metrics.cluster_scores import cluster_scores
from vizsla.search.clusters import METHODS, fit


def scores(training: Embeddings, vectors: np.ndarray, labels: list[str | None]) -> dict[str, Any]:
    found: dict[str, Any] = {"images": len(vectors), "labels": len({*labels})}
    for method in METHODS:
        started = time.perf_counter()
        chosen = learned_cut_off(training.vectors, training.labels or [], len(vectors), method)
        learned = time.perf_counter()
        fitted = fit(vectors, method)
        found[method] = {
            "cut_off": chosen.value, "ari_training": round(chosen.ari or 0, 4),
            **cluster_scores(fitted.at(chosen.value), labels).to_dict(),
            "seconds_learning": round(learned - started, 1),
            "seconds": round(time.perf_counter() - learned, 1),
        }  # fmt: skip
        if method == "graph":
            blind = cut_off_by_silhouette(vectors, fitted)
            found["silhouette"] = {
                "cut_off": blind.value,
                **cluster_scores(fitted.at(blind.value), labels).to_dict(),
            }
    return found


def made(n: int, out: Path, dim: int = 512, seed: int = 0) -> None:
    """Things of 1 to 40 images around centres that are near each other in twenties."""
    rng = np.random.default_rng(seed)
    thing = np.repeat(np.arange(n), rng.geometric(0.2, n).clip(1, 40))[:n]
    kinds = rng.normal(size=(n // 20 + 1, dim))
    centres = kinds[np.arange(n) // 20] + rng.normal(size=(n, dim))
    vectors = centres[thing] + 0.8 * rng.normal(size=(n, dim))
    labels = [f"thing{i:06d}" for i in thing]
    Embeddings.from_arrays(vectors.astype(np.float32), labels=labels).save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("scores", "made"))
    parser.add_argument("of", nargs="+")
    parser.add_argument("-o", "--out", type=Path, default=Path("made.emb"))
    options = parser.parse_args()
    if options.what == "made":
        made(int(options.of[0]), options.out)
        return
    found = {}
    for one in options.of:
        name, _, paths = one.partition("=")
        training, _, parts = paths.partition(":")
        test = [Embeddings.open(path) for path in parts.split(",")]
        labels = [label for part in test for label in part.labels or []]
        vectors = np.concatenate([part.vectors for part in test])
        found[name] = scores(Embeddings.open(training), vectors, labels)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
