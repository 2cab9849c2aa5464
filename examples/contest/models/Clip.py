"""CLIP ViT-L/14 with its own pooling, as in the contest entry's table.

Further flags are passed on: python models/Clip.py --pooling gem
"""

import sys

from vizsla.cli.main import main

model = [] if any(word.startswith("--model") for word in sys.argv) else ["--model", "clip-vit-l14"]
main(["run", "data", *model, "--pooling", "native", *sys.argv[1:]])
