"""Planted groups of copies, and blurred and dark copies, in the photos of two data sets.

    python benchmarks/cleaning.py --shared ../shared --part test

Groups of 2 to 6 copies (resized, compressed, cropped, mirrored) are planted among all photos of a
part; photos that are already copies of others are left out first. ARI over all images. Blur: AUC
of the score between the photos as they are and blurred copies of all of them, the same with dark
copies. All constants were chosen with `--part training`. Prints one JSON object.
"""

import argparse
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageEnhance, ImageFilter
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from vizsla.audit.check import check
from vizsla.audit.image_quality import blur_of, brightness_of
from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet

Change = Callable[[Image.Image, random.Random], Image.Image]
GROUPS = 60


def resized(picture: Image.Image, rng: random.Random) -> Image.Image:
    scale = rng.uniform(0.5, 2)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)))


def compressed(picture: Image.Image, rng: random.Random) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=rng.randint(30, 70))
    return Image.open(file).convert("RGB")


def cropped(picture: Image.Image, rng: random.Random) -> Image.Image:
    width, height = picture.size
    left, top, right, bottom = (rng.uniform(0, 0.05) for _ in range(4))
    return picture.crop(
        (int(width * left), int(height * top), int(width * (1 - right)), int(height * (1 - bottom)))
    )


def mirrored(picture: Image.Image, rng: random.Random) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


COPIES: list[list[Change]] = [
    [resized], [compressed], [cropped], [mirrored], [resized, compressed], [cropped, compressed],
    [mirrored, compressed], [],
]  # fmt: skip


def plant(photos: list[Path], folder: Path, rng: random.Random) -> dict[str, str]:
    """Fills the folder; file name → the photo that it shows."""
    truth = {}
    copied = set(rng.sample(range(len(photos)), min(GROUPS, len(photos) // 4)))
    for i, path in enumerate(photos):
        name = f"{i:05d}{path.suffix}"
        shutil.copy(path, folder / name)
        truth[name] = str(i)
        for k in range(rng.randint(1, 5) if i in copied else 0):
            picture = read_image(path)
            for change in rng.choice(COPIES):
                picture = change(picture, rng)
            copy = f"copy-{i:05d}-{k}.{rng.choice(['png', 'jpg'])}"
            picture.save(folder / copy)
            truth[copy] = str(i)
    return truth


def groups_ari(photos: list[Path], seed: int, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        truth = plant(photos, folder, random.Random(seed))
        report = check(folder, {"images": ImageSet.from_folder(folder)}, workers=workers)
        names = [facts.name for facts in report.facts]
        group = {i: k for k, found in enumerate(report.groups) for i in found.images}
        found = [group.get(i, -1 - i) for i in range(len(names))]
        wanted = [truth[name] for name in names]
        left_out = report.excluded().keys()
        kept = [sum(name not in left_out for name in names if truth[name] == str(i))
                for i in range(len(photos))]  # fmt: skip
        return {
            "images": len(names), "ari": round(adjusted_rand_score(wanted, found), 4),
            "photos with one image kept": round(sum(n == 1 for n in kept) / len(kept), 4),
            "photos with none kept": sum(n == 0 for n in kept),
        }  # fmt: skip


def without_copies(folder: Path, workers: int) -> list[Path]:
    """The photos below a folder that are no copies of each other."""
    images = ImageSet.from_folder(folder)
    report = check(folder, {"images": images}, workers=workers)
    copies = {i for pair in report.pairs for i in (pair.a, pair.b)}
    return [facts.path for i, facts in enumerate(report.facts) if i not in copies]


BLURS: dict[str, Change] = {
    f"gaussian {radius:g} px": lambda picture, rng, radius=radius: picture.filter(  # type: ignore[misc]
        ImageFilter.GaussianBlur(radius * min(picture.size) / 224)
    )
    for radius in (1.5, 2, 3, 4)
}


def quality_auc(photos: list[Path]) -> dict[str, float]:
    rng = random.Random(0)
    pictures = [read_image(path) for path in photos]
    as_they_are = [blur_of(picture.convert("L")) for picture in pictures]
    found = {}
    for name, change in BLURS.items():
        copies = [blur_of(change(picture, rng).convert("L")) for picture in pictures]
        found[f"blur, {name}"] = _auc(as_they_are, copies)
    bright = [-brightness_of(picture.convert("L")) for picture in pictures]
    for factor in (0.15, 0.3):
        dark = [-brightness_of(ImageEnhance.Brightness(p).enhance(factor).convert("L"))
                for p in pictures]  # fmt: skip
        found[f"dark, × {factor}"] = _auc(bright, dark)
    return found


def _auc(low: list[float], high: list[float]) -> float:
    auc = roc_auc_score([0] * len(low) + [1] * len(high), low + high)
    return round(float(auc), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--part", choices=("training", "test"), default="training")
    parser.add_argument("--sets", nargs="+", default=["clothing", "caltech101"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.sets:
        photos = without_copies(options.shared / "data" / name / options.part, options.workers)
        found[name] = {
            "photos": len(photos),
            "groups": [groups_ari(photos, seed, options.workers) for seed in options.seeds],
            "auc": quality_auc(photos),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
