"""EfficientNet-B0 with GeM pooling; --model efficientnet-b3, --pooling gap for the others.

Further flags are passed on: python models/EfficientNet.py --pooling gem
"""

import sys

from vizsla.cli.main import main

main(["run", "data", "--model", "efficientnet-b0", "--pooling", "gem", *sys.argv[1:]])
