"""DINOv2 ViT-B/14, fine-tuned for ten epochs, with average pooling.

Further flags are passed on: python models/dino2_retrieval_finetune.py --pooling gem
"""

import sys

from vizsla.cli.main import main

model = [] if any(word.startswith("--model") for word in sys.argv) else ["--model", "dinov2-b14"]
tuning = ["--finetune", "last", "--epochs", "10"]
main(["run", "data", *model, "--pooling", "gap", *tuning, *sys.argv[1:]])
