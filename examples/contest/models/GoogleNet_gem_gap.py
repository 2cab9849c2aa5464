"""GoogLeNet with GeM pooling; --pooling gap for the other.

Further flags are passed on: python models/GoogleNet_gem_gap.py --pooling gem
"""

import sys

from vizsla.cli.main import main

model = [] if any(word.startswith("--model") for word in sys.argv) else ["--model", "googlenet"]
main(["run", "data", *model, "--pooling", "gem", *sys.argv[1:]])
