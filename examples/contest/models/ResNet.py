"""ResNet-50 with average pooling; --model resnet18, 34, 101 or 152 for the others.

Further flags are passed on: python models/ResNet.py --pooling gem
"""

import sys

from vizsla.cli.main import main

model = [] if any(word.startswith("--model") for word in sys.argv) else ["--model", "resnet50"]
main(["run", "data", *model, "--pooling", "gap", *sys.argv[1:]])
