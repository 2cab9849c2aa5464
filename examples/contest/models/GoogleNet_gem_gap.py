"""GoogLeNet with GeM pooling; --pooling gap for the other.

Further flags are passed on: python models/GoogleNet_gem_gap.py --pooling gem
"""

import sys

from vizsla.cli.main import main

main(["run", "data", "--model", "googlenet", "--pooling", "gem", *sys.argv[1:]])
