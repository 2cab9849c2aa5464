"""Averages of all metrics in results/, grouped for comparison."""

import sys

from vizsla.cli.main import main

main(["compare", "results", *sys.argv[1:]])
