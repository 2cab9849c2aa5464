"""Mutated images: read or refused, never a crash, in little time and memory.

VIZSLA_IMAGES sets how many the slow tests make (10,000).
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_images.py"
IMAGES = os.environ.get("VIZSLA_IMAGES", "10000")
EDGE = Path(os.environ.get("VIZSLA_SHARED") or Path(__file__).parents[3] / "shared") / "data/edge"


def fuzz(n: str, tool: str, tmp_path: Path) -> dict[str, Any]:
    words = ["--images", n, "--with", tool, "--keep", str(tmp_path / "last")]
    words += ["--seeds", str(EDGE)] if EDGE.is_dir() else []
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True, text=True, errors="replace", timeout=1500,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and lines, f"{done.stderr[-2000:]} (exit code {done.returncode})"
    print("\n" + lines[-1])
    report: dict[str, Any] = json.loads(lines[-1])
    assert report["images"] >= int(n) and report["read"] > 0 and report["refused"] > 0
    return report


def test_some_mutated_pictures(tmp_path: Path) -> None:
    fuzz("300", "hypothesis", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_mutated_pictures(tmp_path: Path) -> None:
    fuzz(IMAGES, "hypothesis", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_pictures_steered_by_coverage(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (pip install atheris; Linux alone)")
    fuzz(IMAGES, "atheris", tmp_path)
