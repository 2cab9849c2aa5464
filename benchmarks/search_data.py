"""The vectors that benchmarks/search.py searches: clustered ones, and real-like ones.

    python benchmarks/search_data.py views SHARED -o FOLDER     # 14 views of each photo; resumes
    python benchmarks/search_data.py real FOLDER --size 1000000
    python benchmarks/search_data.py clustered FOLDER --size 1000000

Real-like: random crops of the photos in SHARED (data/clothing and data/caltech101), embedded by
the MobileNetV2 there (weights/), reduced by PCA to 512 dimensions; beyond the views there are, each
further vector is a view plus noise with, in every dimension, the spread that a photo's views
have. Queries are other views of the same photos; so is the sample, of other photos, by which an
index chooses its search effort. Clustered: Gaussian clouds around 2,000 centres.
All are unit vectors, float32.
"""

import argparse
import json
from pathlib import Path

import numpy as np

VIEWS, SIZE, DIM = 14, 128, 512
QUERIES = 1000
PHOTOS = 256  # of one part


def photos(shared: Path) -> list[Path]:
    found = [p for s in ("clothing", "caltech101") for p in (shared / "data" / s).rglob("*")]
    return sorted(p for p in found if p.suffix.lower() in {".jpg", ".jpeg", ".png"})


def make_views(shared: Path, out: Path) -> None:
    import torch
    from PIL import Image

    from vizsla.data.images import read_image
    from vizsla.embed.torch_runtime import in_parts
    from vizsla.model.embedder import Embedder

    weights = shared / "weights/mobilenetv2_100.safetensors"
    embedder = Embedder.build("mobilenetv2", weights=str(weights), pooling="gap", image_size=SIZE)
    embedder.eval().to(memory_format=torch.channels_last)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    spread = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    files = photos(shared)
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(files), PHOTOS):
        part = out / f"views-{start:05}.npy"
        if part.exists():
            continue
        rows = []
        for i, path in enumerate(files[start : start + PHOTOS]):
            picture = read_image(path)
            rng = np.random.default_rng([start + i])
            crops = [crop(picture, rng) for _ in range(VIEWS + 1)]
            pixels = np.stack([np.asarray(c.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
                               for c in crops])  # fmt: skip
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
            rows.append(in_parts(embedder, (batch - mean) / spread).numpy())
        temporary = part.with_suffix(".tmp.npy")
        np.save(temporary, np.stack(rows).astype(np.float16))  # (photos, VIEWS + 1, 1280)
        temporary.rename(part)
        print(part, flush=True)


def crop(picture, rng):
    """A random part of 35 to 100 % of the area, mirrored half of the time."""
    area, shape = rng.uniform(0.35, 1.0), np.exp(rng.uniform(-0.3, 0.3))
    width = min(1.0, (area * shape) ** 0.5) * picture.width
    height = min(1.0, (area / shape) ** 0.5) * picture.height
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    cut = picture.crop((int(left), int(top), int(left + width), int(top + height)))
    return cut.transpose(0) if rng.random() < 0.5 else cut


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_real(folder: Path, size: int) -> None:
    parts = sorted(folder.glob("views-*.npy"))
    views = np.concatenate([np.load(p).astype(np.float32) for p in parts])  # (photos, 15, 1280)
    every = views[:, :VIEWS].reshape(-1, views.shape[2])
    mean = every.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((every[:: max(1, len(every) // 20000)] - mean).T))
    axes = axes[:, ::-1][:, :DIM].astype(np.float32)
    reduced = (views - mean) @ axes
    within = (reduced - reduced.mean(axis=1, keepdims=True)).std(axis=(0, 1))
    gallery = reduced[:, :VIEWS].reshape(-1, DIM)
    rng = np.random.default_rng(0)
    gallery = gallery[rng.permutation(len(gallery))][: min(size, 100_000)]
    out = np.lib.format.open_memmap(folder / f"real-{size}.npy", "w+", np.float32, (size, DIM))
    out[: len(gallery)] = unit(gallery)
    for start in range(len(gallery), size, 50_000):
        stop = min(start + 50_000, size)
        base = gallery[rng.integers(len(gallery), size=stop - start)]
        out[start:stop] = unit(base + within * rng.standard_normal((stop - start, DIM)))
    photos = rng.permutation(len(reduced))
    for what, chosen in (("queries", photos[:QUERIES]), ("sample", photos[QUERIES : 2 * QUERIES])):
        np.save(folder / f"real-{size}-{what}.npy", unit(reduced[chosen, VIEWS]))
    kept = {"views": len(every), "photos": len(views), "real": len(gallery), "size": size}
    print(json.dumps(kept))


def make_clustered(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, DIM)).astype(np.float32)

    def drawn(n: int) -> np.ndarray:
        noise = rng.standard_normal((n, DIM), dtype=np.float32)
        return unit(centres[rng.integers(2000, size=n)] + 0.7 * noise)

    out = np.lib.format.open_memmap(folder / f"clustered-{size}.npy", "w+", np.float32, (size, DIM))
    for start in range(0, size, 50_000):
        out[start : start + 50_000] = drawn(min(50_000, size - start))
    for what in ("queries", "sample"):
        np.save(folder / f"clustered-{size}-{what}.npy", drawn(QUERIES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["views", "real", "clustered"])
    parser.add_argument("folder", type=Path, help="SHARED for views, else the vectors' folder")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--size", type=int, default=100_000)
    given = parser.parse_args()
    if given.what == "views":
        make_views(given.folder, given.out)
    elif given.what == "real":
        make_real(given.folder, given.size)
    else:
        make_clustered(given.folder, given.size)


if __name__ == "__main__":
    main()
