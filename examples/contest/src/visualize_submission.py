"""A PNG for each query of the newest submission, in visualizations/."""

import sys
from pathlib import Path

from vizsla.cli import main

newest = max(Path("submissions").glob("*.json"), key=lambda path: path.stat().st_mtime)
main(["show", str(newest), "--data", "data", *sys.argv[1:]])
