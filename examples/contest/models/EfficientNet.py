"""EfficientNet-B0 with GeM pooling; --model efficientnet-b3, --pooling gap for the others.

Further flags are passed on: python models/EfficientNet.py --pooling gem
"""

import sys

from vizsla.cli.main import main

model = (
    [] if any(word.startswith("--model") for word in sys.argv) else ["--model", "efficientnet-b0"]
)
main(["run", "data", *model, "--pooling", "gem", *sys.argv[1:]])
