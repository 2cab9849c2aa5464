"""DINOv2 ViT-B/14, frozen, with average pooling.

Further flags are passed on: python models/dino2_retrieval_no_finetune.py --pooling gem
"""

import sys

from vizsla.cli.main import main

main(["run", "data", "--model", "dinov2-b14", "--pooling", "gap", *sys.argv[1:]])
