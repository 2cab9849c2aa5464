"""The bounds of re-ranking: 100,000 × 512 within 4 GB, 4 minutes and 30 seconds on 2 cores."""

import json
import os
import subprocess
import sys

import pytest

WORK = """
import json, resource, time
import numpy as np
from vizsla.search import knn_graph, refine

rng = np.random.default_rng(0)
N, D, Q = 100_000, 512, 1_000
centres = rng.standard_normal((5_000, D), dtype=np.float32)

def drawn(n):
    rows = centres[rng.integers(len(centres), size=n)]
    rows += 0.8 * rng.standard_normal((n, D), dtype=np.float32) + 0.5
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows

gallery, queries = drawn(N), drawn(Q)
found = {}

def timed(name, work):
    wall, processor = time.monotonic(), time.process_time()
    out = work()
    found[name] = {"wall": time.monotonic() - wall, "processor": time.process_time() - processor}
    return out

known = timed("graph", lambda: knn_graph.build_graph(gallery))
for together in (True, False):
    timed(f"rerank together={together}",
          lambda: refine.k_reciprocal(queries, gallery, known, depth=1000, together=together))
found["recall"] = known.recall
found["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_images_stay_within_bounds() -> None:
    """Processor seconds over both cores: a clock would measure what else the machine does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", WORK], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=1))
    assert found["gigabytes"] < 4
    assert found["recall"] >= 0.99
    assert found["graph"]["processor"] < 2 * 240
    for together in (True, False):
        assert found[f"rerank together={together}"]["processor"] < 2 * 30
