"""The shared data and weights → docs/figures.md: our figures beside published or independent ones.

    python docs/figures.py [FILE]

The data is in ../shared, or in the folder that VIZSLA_SHARED names. Takes about a minute.
"""

# ruff: noqa: E501  (a table of Markdown has one line a row)
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("VIZSLA_SHARED") or ROOT.parent / "shared").absolute()
HERE = "../shared"  # how the page names it


@dataclass(frozen=True)
class Check:
    """One command, and what it should give: metric → (its key with --json, the known figure).

    unit: 100 where the known figures are percentages. digits: those that the source has.
    """

    title: str
    source: str
    command: str
    figures: dict[str, tuple[str, float]]
    unit: int = 1
    digits: int = 4


def _oxford(
    level: str, source: str, figures: dict[str, tuple[str, float]], more: str = "", digits: int = 2
) -> Check:
    command = (
        f"vizsla evaluate --vectors {HERE}/data/roxford/features.npy --ids {HERE}/data/roxford/ids.txt "
        f"--truth {HERE}/data/roxford/gnd_roxford5k.json --protocol oxford-{level}{more} --json"
    )
    return Check(f"Revisited Oxford, {level}", source, command, figures, 100, digits)


def _photos(data: str, top: tuple[float, float, float], precision: float, ap: float) -> Check:
    command = (
        f"vizsla run {HERE}/data/{data} --model mobilenetv2 --weights "
        f"{HERE}/weights/mobilenetv2_100.safetensors --interpolation bilinear --precision fp32 "
        "--runtime torch --figures 0 --json"
    )
    figures = {
        f"top-{k}": (f"top_k_accuracy@{k}", value) for k, value in zip((1, 5, 10), top, strict=True)
    }
    figures |= {"P@10": ("precision@10", precision), "mAP": ("map", ap)}
    return Check(
        f"{data}, frozen MobileNetV2",
        "the README of the shared data",
        command,
        figures,
        1,
        3,
    )


def _submission(name: str, k: int, accuracy: float, precision: float) -> Check:
    command = (
        f"vizsla evaluate {HERE}/contest/submissions/{name}.json "
        "--labels-from '{label}_{n}' --json"
    )
    figures = {
        f"top-{k}": (f"top_k_accuracy@{k}", accuracy),
        f"P@{k}": (f"precision@{k}", precision),
    }
    return Check(f"the contest's `{name}`", "logged by the contest's system", command, figures)


REVISITOP = "revisitop's own program"
AP = "AP(interpolated)"
CHECKS = (
    _oxford("easy", REVISITOP, {AP: (AP, 28.89)}),
    _oxford("medium", REVISITOP, {AP: (AP, 21.13), "mP@1": ("mP@1", 54.29),
                                  "mP@5": ("mP@5", 43.43), "mP@10": ("mP@10", 38.14)}),
    _oxford("hard", REVISITOP, {AP: (AP, 4.60)}),
    *(_oxford(level, "revisitop's ranks, finite sums", {"AP": ("AP", known)}, " --metrics AP")
      for level, known in (("easy", 29.74), ("medium", 21.66), ("hard", 5.17))),
    *(_oxford(level, "revisitop's program after αQE (n = 5, α = 3)", {"AP(interpolated) after αQE": (AP, known)},
              " --refine 'aqe(n=5,alpha=3)'", 1)
      for level, known in (("easy", 29.6), ("medium", 22.5), ("hard", 6.0))),
    _photos("clothing", (0.805, 0.919, 0.989), 0.579, 0.545),
    _photos("caltech101", (0.907, 0.963, 0.984), 0.804, 0.682),
    _submission("sub_dino2", 9, 0.9605, 0.4915),
    _submission("sub_dino2_finetune", 9, 0.9852, 0.5999),
    _submission("sub_efficientnet_b3", 9, 0.9741, 0.8513),
    _submission("sub_resnet50", 10, 0.3000, 0.0428),
)  # fmt: skip

HEAD = """\
# Figures to hold against

Published and independent figures, and ours. `python docs/figures.py` computes the first table from the files in
`../shared` and writes this page; a test holds that it does. Figures are rounded as their source has them.

## Computed here

| what | metric | published or independent | ours | by |
|---|---|---|---|---|
"""

REST = """
## To compute with data and network

These need data sets and weights that are not here. The commands are complete; the last column is our
estimate of how near the figure should come, since decoders of JPEGs and ways of resizing differ. A difference that is
larger has a cause that should be found.

| data | model | published | metric | within |
|---|---|---|---|---|
| CUB-200-2011, its own split, cut to boxes | DINOv2-S/14, frozen, 224 | .797 (OML's table) | top-1 | .005 |
| Cars196, its own split, cut to boxes | DINOv2-S/14, frozen, 224 | .503 (OML's table) | top-1 | .005 |
| Stanford Online Products | DINOv2-S/14, frozen, 224 | .566 (OML's table) | top-1 | .005 |
| In-Shop, cut to boxes | DINOv2-S/14, frozen, 224 | .334 (OML's table, from the larger images) | top-1 | .02 |
| CUB-200-2011, its own split | DINOv2-small, frozen, 224 | .835 (MIEB's table; its way of resizing is not known to us) | recall@1 | .04 |
| Revisited Oxford | ResNet-101, GeM, whitened, 3 scales | 84.81 / 64.67 / 38.47 | mAP by the protocol, E / M / H | .01 |

Both tables search the test part of CUB's own split, 5,794 images of all 200 species, and OML does so with Cars196;
papers on metric learning search the other half of the classes (`vizsla data cub`, `cars`). OML's converters cut
images to their boxes.

```text
vizsla data cub-all --from CUB_200_2011 --crop -o cub-boxes
vizsla run cub-boxes --model dinov2-s14 --image-size 224 --protocol cub
vizsla data cars-all --from cars196 --crop -o cars-boxes
vizsla run cars-boxes --model dinov2-s14 --image-size 224 --protocol cars
vizsla data sop --from Stanford_Online_Products -o sop
vizsla run sop --model dinov2-s14 --image-size 224 --protocol sop
vizsla data inshop --from DeepFashion/Inshop --crop -o inshop
vizsla run inshop --model dinov2-s14 --image-size 224 --protocol inshop
vizsla data cub-all --from CUB_200_2011 -o cub-all
vizsla run cub-all --model dinov2-s14 --image-size 224 --protocol cub
```

The network of the last row, with its whitening, is the authors' own: its weights are not read here. Their program
writes the vectors of queries (cut to their boxes) and gallery; with these as one `.npy` file, and the names in the
same order, the protocol has to give their figures to two digits:

```text
vizsla evaluate --vectors vectors.npy --ids ids.txt --truth gnd_roxford5k.pkl --protocol oxford-medium
```
"""


def page(shared: Path = SHARED) -> str:
    """The text of the page. Runs every command; CalledProcessError if one fails."""
    rows, commands = [], []
    with tempfile.TemporaryDirectory() as home:
        for check in CHECKS:
            metrics = _metrics_of(check.command, shared, Path(home))
            commands.append(check.command)
            for name, (key, known) in check.figures.items():
                ours = metrics[key]["mean"] * check.unit
                rows.append(
                    f"| {check.title} | {name} | {known:.{check.digits}f} | "
                    f"{ours:.{check.digits}f} | {check.source} |\n"
                )
    listed = "\nThe commands:\n\n```text\n" + "\n".join(commands) + "\n```\n"
    return HEAD + "".join(rows) + listed + REST


def _metrics_of(command: str, shared: Path, home: Path) -> dict[str, dict[str, float]]:
    words = [word.replace(HERE, str(shared)) for word in shlex.split(command)]
    words = [sys.executable, "-m", *words]
    done = subprocess.run(words, check=True, capture_output=True, cwd=home, text=True)
    found = json.loads(done.stdout)
    metrics: dict[str, dict[str, float]] = (found.get("scores") or found)["metrics"]
    return metrics


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/figures.md"
    out.write_text(page(), encoding="utf-8")
