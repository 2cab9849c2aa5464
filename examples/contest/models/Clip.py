"""CLIP ViT-L/14 with its own pooling, as in the starting document's table.

Further flags are passed on: python models/Clip.py --pooling gem
"""

import sys

from vizsla.cli.main import main

main(["run", "data", "--model", "clip-vit-l14", "--pooling", "native", *sys.argv[1:]])
