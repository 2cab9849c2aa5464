"""Training images → a PNG for each augmentation preset that shows what it does to them."""

from pathlib import Path

import numpy as np
from PIL import Image

from vizsla import storage
from vizsla.data.images import read_image
from vizsla.data.listing import list_images
from vizsla.data.preprocess import Preprocess
from vizsla.errors import DataError
from vizsla.train.augment import AUGMENTATIONS, augmenter

PICTURES, COPIES = 4, 7  # rows; changed copies in a row
SIDE, GAP = 128, 4  # px


def draw_augmentations(data: Path, out: Path, seed: int = 0) -> list[Path]:
    """Writes <preset>.png for every preset; returns the paths.

    Each row is one image, unchanged on the left, and randomly changed copies of it. DataError
    if the folder holds no images.
    """
    root = data / "training" if (data / "training").is_dir() else data
    names = list_images(root).ids
    if not names:
        raise DataError(f"{root} holds no images to show augmentations of")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(names), min(PICTURES, len(names)), replace=False)
    pictures = [read_image(root / names[int(i)]) for i in sorted(chosen)]
    paths = []
    for name in AUGMENTATIONS:
        path = out / f"{name}.png"
        with storage.writing(path) as temporary:
            _sheet(pictures, name, seed).save(temporary, format="PNG")
        paths.append(path)
    return paths


def _sheet(pictures: list[Image.Image], name: str, seed: int) -> Image.Image:
    plain = Preprocess((SIDE, SIDE), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    change = augmenter(name, plain)
    step = SIDE + GAP
    sheet = Image.new("RGB", (step * (COPIES + 1) + GAP, step * len(pictures)), "white")
    for row, picture in enumerate(pictures):
        copies = [plain(picture)]
        copies += [change(picture, np.random.default_rng((seed, row, i))) for i in range(COPIES)]
        for column, tensor in enumerate(copies):
            pixels = (tensor.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            left = column * step + (2 * GAP if column else 0)
            sheet.paste(Image.fromarray(pixels), (left, row * step))
    return sheet
