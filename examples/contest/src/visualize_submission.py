"""A PNG for each query of the newest submission, in visualizations/."""

import sys

from vizsla.cli.main import main

main(["show", "submissions", "--data", "data", *sys.argv[1:]])
