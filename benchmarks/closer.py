"""Parts of pictures in other pictures: verification, and `check --partial`, with seeds.

    python benchmarks/closer.py fit --shared ../shared          # the rules in search/geometry.py
    python benchmarks/closer.py fit-copies --shared ../shared   # the rule in audit/same_pixels.py
    python benchmarks/closer.py collages --shared ../shared     # crops in collages, gallery of 450
    python benchmarks/closer.py partial --shared ../shared      # 100 planted among 4,000 photos
    python benchmarks/closer.py sets --shared ../shared         # verify by class, and `auto`
    python benchmarks/closer.py objects --shared ../shared      # small objects, by tiles
    python benchmarks/closer.py many-tiles                      # 100,000 made images of 5 tiles

Photos are those of the two shared sets. Both fits see training images only; `collages` and
`objects` take the test images of caltech101 (with --part training: others, to develop on).
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageOps

from vizsla.audit import partial_copies, same_pixels
from vizsla.audit.check import check, image_sets
from vizsla.audit.duplicates import file_features, find_pairs, find_parts
from vizsla.audit.file_scan import scan_files
from vizsla.choose.refinement import choose_chain_on_images
from vizsla.choose.validation import mean_nearest_cosine
from vizsla.data.data_folders import open_data
from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import target_of
from vizsla.data.tiles import WHOLE, Box, Tiles
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings, is_embeddings
from vizsla.embed.inference import embed
from vizsla.embed.local_features import SIDE, Extractor, LocalFeatures, Sift
from vizsla.embed.token_features import Tokens
from vizsla.model.open_model import load_embedder
from vizsla.options import DEFAULT_BACKBONE, ModelChoice, TuneConfig
from vizsla.score.evaluate import evaluate
from vizsla.score.truth import truth_of_folders
from vizsla.search import exact, geometry
from vizsla.search.chain import parse_chain, rank_refined
from vizsla.search.geometry import geometry_of
from vizsla.search.index import build_index
from vizsla.search.verify import FEATURES, features_of_both

CUT_OFF = 0.9  # of the probability: `fit` finds 1 wrong pair in 64,000 above it
SETS = {"caltech101": "new-classes", "clothing": "seen-classes"}  # and how they are validated


def photos(shared: Path, name: str, part: str) -> list[Path]:
    """The files of one part of a shared set: training or test, in order."""
    images = ImageSet.from_folder(shared / "data" / name / part)
    return [images.path(i) for i in range(len(images))]


def one_of_each(shared: Path, name: str, part: str) -> list[Path]:
    """As `photos`, but of copies of one photo (by `vizsla check`, in whole or in parts) only the
    first: where the set holds a picture twice, no result would be the only right one."""
    images = ImageSet.from_folder(shared / "data" / name / part)
    scan = scan_files({part: images}, workers=2)
    pairs = find_pairs(scan, workers=2)
    with tempfile.TemporaryDirectory(prefix="closer-") as scratch:
        pairs += find_parts(scan, pairs, file_features(scan, scratch, workers=2), workers=2)
    copies = {pair.b for pair in pairs}
    return [images.path(i) for i in range(len(images)) if i not in copies]


# ── making copies in pieces ──────────────────────────────────────────────────────────────────────


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image as it comes back from a JPEG of that quality."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def crop_of(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """A part of the image, with this share of each side, anywhere in it."""
    wide, high = (max(16, round(side * share)) for side in image.size)
    left = int(rng.integers(image.width - wide + 1))
    top = int(rng.integers(image.height - high + 1))
    return image.crop((left, top, left + wide, top + high))


def collage(photo: Image.Image, host: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of 65 % of each side of the photo, pasted into the host."""
    part = crop_of(photo, 0.65, rng)
    shrink = min(1.0, host.width * 0.8 / part.width, host.height * 0.8 / part.height)
    part = part.resize((round(part.width * shrink), round(part.height * shrink)))
    left = int(rng.integers(host.width - part.width + 1))
    top = int(rng.integers(host.height - part.height + 1))
    made = host.copy()
    made.paste(part, (left, top))
    return made


def strong_crop(photo: Image.Image, host: Image.Image, rng: np.random.Generator) -> Image.Image:
    """55 to 75 % of each side, brought to the size of the host."""
    part = crop_of(photo, rng.uniform(0.55, 0.75), rng)
    scale = max(host.size) / max(part.size)
    return part.resize((round(part.width * scale), round(part.height * scale)))


def screenshot(photo: Image.Image, host: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The photo with bars above and below, as on a telephone's screen."""
    scale = rng.uniform(0.6, 1.0)
    inner = photo.resize((round(photo.width * scale), round(photo.height * scale)))
    above, below = (int(inner.height * rng.uniform(0.3, 0.6)) for _ in range(2))
    grey = int(rng.integers(256))
    made = Image.new("RGB", (inner.width + 20, inner.height + above + below), (grey,) * 3)
    made.paste(inner, (10, above))
    draw = ImageDraw.Draw(made)
    for line in range(3):
        y = above // 4 + line * above // 5
        draw.rectangle((14, y, 14 + int(rng.integers(20, made.width - 20)), y + 3), (128,) * 3)
    return made


def overlay(photo: Image.Image, host: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The middle of the photo below a banner and a sticker that cover 40 % of it."""
    made = crop_of(photo, 0.85, rng)
    draw = ImageDraw.Draw(made)
    colours = [tuple(int(c) for c in rng.integers(256, size=3)) for _ in range(2)]
    high = int(made.height * 0.28)
    top = int(rng.integers(made.height - high))
    draw.rectangle((0, top, made.width, top + high), colours[0])
    draw.text((8, top + high // 3), "SPECIAL OFFER 30 %", (255, 255, 255))
    r = int(min(made.size) * 0.18)
    x, y = int(rng.integers(r, made.width - r)), int(rng.integers(r, made.height - r))
    draw.ellipse((x - r, y - r, x + r, y + r), colours[1])
    return made


MIRRORED = "mirrored"  # any of KINDS, mirrored
Make = Callable[[Image.Image, Image.Image, np.random.Generator], Image.Image]
KINDS: dict[str, Make] = {
    "crop": strong_crop, "collage": collage, "screenshot": screenshot, "overlay": overlay,
}  # fmt: skip


# ── the weights of both rules ────────────────────────────────────────────────────────────────────


def fit(shared: Path, kind: str, seed: int = 11) -> None:
    """Prints the weights for search/geometry.py, and what they decide on these pairs."""
    rng = np.random.default_rng(seed)
    rows: dict[bool, list[list[float]]] = {False: [], True: []}
    n_true = 0
    for name in SETS:
        files = photos(shared, name, "training")
        chosen = rng.permutation(len(files))
        extract = Sift() if kind == "sift" else tokens_on([files[i] for i in chosen[:200]])
        gallery = [extract(read_image(files[i])) for i in chosen[:200]]
        for q in range(160):
            photo = read_image(files[chosen[q]])
            host = read_image(files[chosen[200 + q]])
            make = list(KINDS.values())[q % len(KINDS)]
            made = as_jpeg(make(photo, host, rng), int(rng.integers(50, 90)))
            of_query = extract(made)
            for g, other in enumerate(gallery):
                values = _values(of_query, other)
                if g == q:
                    n_true += 1
                if values is not None:
                    rows[g == q].append(values)
    x = np.array(rows[True] + rows[False])
    y = np.repeat([1.0, 0.0], [len(rows[True]), len(rows[False])])
    weights = fitted(x, y, least=0)
    print(f"{n_true} true pairs, {len(rows[True])} with a geometry; {len(rows[False])} wrong ones")
    names = geometry.RULES[kind].weights
    print("bias", round(weights[0], 2), dict(zip(names, weights[1:].round(2), strict=True)))
    p = 1 / (1 + np.exp(-(weights[0] + x @ weights[1:])))
    for cut in (0.3, 0.5, 0.9):
        print(f"above {cut}: {(p[y > 0] > cut).sum()} true, {(p[y == 0] > cut).sum()} wrong")


def fitted(x: np.ndarray, y: np.ndarray, least: float | None = None) -> np.ndarray:
    """(1 + D,) bias and weights of a logistic regression of y (n,) on x (n, D).

    least: the lower limit of a weight; None: no limit.
    """
    from scipy.optimize import minimize

    def loss(weights: np.ndarray) -> float:
        logit = weights[0] + x @ weights[1:]
        return float(
            np.logaddexp(0, np.where(y > 0, -logit, logit)).sum() + 0.01 * weights @ weights
        )

    start = np.r_[-5.0, np.ones(x.shape[1])]
    found: np.ndarray = minimize(
        loss, start, bounds=[(None, None)] + [(least, None)] * x.shape[1]
    ).x
    return found


def fit_copies(shared: Path, cache: Path, n: int = 1600, seed: int = 61) -> None:
    """Prints the weights for audit/same_pixels.py, and what they decide on other pairs.

    Pairs are of all training photos and n pictures made of them. Other pairs that a first fit takes
    for copies are left out of the second: the sets hold some pictures twice, whole or in parts.
    """
    rng = np.random.default_rng(seed)
    files = [file for name in SETS for file in photos(shared, name, "training")]
    chosen = rng.permutation(len(files))
    paths, right = list(files), set()
    for q in range(n):
        photo, host = (int(chosen[i]) for i in (q, -1 - q))
        kind = list(KINDS)[q % len(KINDS)]
        made = KINDS[kind](read_image(files[photo]), read_image(files[host]), rng)
        right |= {(photo, len(paths))} | ({(host, len(paths))} if kind == "collage" else set())
        paths.append(cache / f"made-{q:05}.jpg")
        made.save(paths[-1], quality=int(rng.integers(55, 90)))
    sift = Sift()
    features = [sift(read_image(path, at_least=SIDE)) for path in paths]

    def grey(i: int) -> np.ndarray:
        image = read_image(paths[i], at_least=SIDE).convert("L")
        return np.asarray(image.resize(features[i].size, Image.Resampling.BOX), np.float32)

    sample = [one.descriptors for one in features[::18] if len(one)]
    words = partial_copies.Vocabulary.learned(np.concatenate(sample))
    rows = [(*words(one.descriptors), np.full(len(one), i))
            for i, one in enumerate(features) if len(one)]  # fmt: skip
    described = [np.concatenate(column) for column in zip(*rows, strict=True)]
    values, pairs = [], []
    for i, j in zip(*partial_copies.candidates(*described, len(paths)), strict=True):
        found = geometry_of(features[i], features[j])
        if found.probability >= partial_copies.PERHAPS:
            cells = same_pixels.compared(found, grey(i), grey(j))
            value = same_pixels.evidence(found, cells, features[i].size, features[j].size)
            if value:
                values.append(list(value.values()))
                pairs.append((int(i), int(j)))
    x, y = np.array(values), np.array([pair in right for pair in pairs])
    first = fitted(x, y)
    kept = y | (first[0] + x @ first[1:] < 0)
    x, y, photo = x[kept], y[kept], np.array([a for a, _ in pairs])[kept]
    weights = fitted(x, y)
    names = same_pixels.RULE.weights
    print(f"{len(right)} copies, {y.sum()} of them compared; {(~y).sum()} other pairs; "
          f"left out {(~kept).sum()}")  # fmt: skip
    print("bias", round(weights[0], 2), dict(zip(names, weights[1:].round(2), strict=True)))
    logits = np.empty(len(y))
    for fold in range(5):  # by the first photo of a pair
        unseen = photo % 5 == fold
        weights = fitted(x[~unseen], y[~unseen])
        logits[unseen] = weights[0] + x[unseen] @ weights[1:]
    for cut in (0.5, 0.8, 0.9):
        above = logits > np.log(cut / (1 - cut))
        print(f"above {cut}: {(above & y).sum()} copies, {(above & ~y).sum()} others")


def tokens_on(files: Sequence[Path]) -> Extractor:
    """Tokens of the default network, with axes of these images."""
    vectors = np.eye(len(files), dtype=np.float32)
    ids = [str(file) for file in files]
    there = replace(Embeddings.from_arrays(vectors, ids, model_id="none"), root=Path("/"))
    return Tokens.of(load_embedder(ModelChoice()), there, None)


def _values(a: LocalFeatures, b: LocalFeatures) -> list[float] | None:
    found = geometry_of(a, b)
    if found.matrix is None:
        return None
    return list(geometry.evidence(found.a, found.b, found.matches, a.size, b.size).values())


# ── crops in collages ────────────────────────────────────────────────────────────────────────────


def collages(shared: Path, part: str, seed: int = 3) -> None:
    """50 collages, a gallery of 450: the first one right, and accepted wrongly, by SIFT alone."""
    rng = np.random.default_rng(seed)
    files = one_of_each(shared, "caltech101", part)
    chosen = rng.permutation(len(files))
    sift = Sift()
    gallery = [sift(read_image(files[i])) for i in chosen[:450]]
    right = accepted = wrong = 0
    seconds = 0.0
    for q in range(50):
        photo, host = read_image(files[chosen[q]]), read_image(files[chosen[450 + q]])
        of_query = sift(as_jpeg(collage(photo, host, rng), 60))
        started = time.process_time()
        p = np.array([geometry_of(of_query, other).probability for other in gallery])
        seconds += time.process_time() - started
        best = int(p.argmax())
        right += best == q and p[best] > 0
        accepted += best == q and p[best] >= CUT_OFF
        wrong += bool((np.delete(p, q) >= CUT_OFF).any())
    print(f"top-1 {right}/50; from {CUT_OFF}: {accepted} right, {wrong} queries with a wrong one")
    print(f"{seconds / 50 / 450 * 50 * 1000:.0f} ms of processor time for 50 candidates")


# ── check --partial ──────────────────────────────────────────────────────────────────────────────


def partial(shared: Path, cache: Path, n: int, seed: int = 5) -> None:
    """100 planted among n photos of both sets: how many pairs are found, and which others; and of
    20 more that are mirrored."""
    rng = np.random.default_rng(seed)
    files = [file for name in ("caltech101", "clothing") for part in ("training", "test")
             for file in photos(shared, name, part)]  # fmt: skip
    chosen = rng.permutation(len(files))
    folder = cache / f"planted-{n}-{seed}"
    truth = {}
    for i in range(n):
        target = folder / f"{i:05}{files[chosen[i]].suffix}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(files[chosen[i]].resolve())
    for q in range(120):
        photo, host = read_image(files[chosen[q]]), read_image(files[chosen[-1 - q]])
        kind = list(KINDS)[q % len(KINDS)]
        made = KINDS[kind](photo, host, rng)
        if q >= 100:
            made, kind = ImageOps.mirror(made), MIRRORED
        target = folder / f"planted-{q:03}-{kind}.jpg"
        made.save(target, quality=int(rng.integers(55, 90)))
        truth[target.name] = f"{q:05}{files[chosen[q]].suffix}"
    started, wall = time.process_time(), time.monotonic()
    sets = image_sets(folder, follow_links=True)
    report = check(folder, sets, features_in=cache / "features")
    seconds, wall = time.process_time() - started, time.monotonic() - wall
    found = [(report.facts[p.a].name, report.facts[p.b].name, p) for p in report.copies]
    planted = {(b, a) for a, b in truth.items()}
    names = {(a, b) for a, b, _ in found}
    mirrored = {pair for pair in planted if MIRRORED in pair[1]}
    print(f"{len((planted - mirrored) & names)} of 100 found")
    for kind in (*KINDS, MIRRORED):
        wanted = {pair for pair in planted if kind in pair[1]}
        print(f"  {kind} {len(wanted & names)} of {len(wanted)}")
    others = [(a, b, p) for a, b, p in found if (a, b) not in planted]
    print(f"{len([p for *_, p in others if p.how == 'part'])} other pairs of parts, "
          f"{len([p for *_, p in others if p.how != 'part'])} of other kinds")  # fmt: skip
    for a, b, p in others:
        print("  other", p.how, a, b, round(p.similarity, 3), truth.get(b, ""))
    print(f"{seconds:.0f} s of processor time, {wall:.0f} s, for {len(report.facts)} images")


# ── both shared sets, by class ───────────────────────────────────────────────────────────────────

CHAINS = ("none", "verify(n=10,weight=0.05)", "verify(n=50,weight=0.05)",
          "verify(n=50,weight=0.5)", "verify(n=10,weight=0.05,features=tokens)",
          "verify(n=50,weight=0.05,features=tokens)", "maxsim(n=10,weight=0.2)",
          "maxsim(n=50,weight=0.2)", "maxsim(n=50,weight=0.5)")  # fmt: skip


def sets(shared: Path, cache: Path, name: str) -> None:
    """What `auto` chooses on validation, then every chain on the test part, which decides nothing.

    Vectors of the default network are made in CACHE/<set>, or found there.
    """
    data = open_data(shared / "data" / name)
    truth = truth_of_folders(data)
    assert truth is not None and data.training is not None
    roles = {"training": data.training, "query": data.query, "gallery": data.gallery}
    found = {}
    for role, images in roles.items():
        folder = cache / name / f"{role}.emb"
        if not is_embeddings(folder):
            embed(images, load_embedder(ModelChoice()), folder, compute=resolve_compute())
        found[role] = replace(Embeddings.open(folder), root=images.root)
    queries, gallery, training = found["query"], found["gallery"], found["training"]
    labels = [truth.gallery.get(name) for name in data.gallery.ids]
    place = {name: i for i, name in enumerate(training.ids)}

    def vectors(images: ImageSet) -> Embeddings:
        kept = training.subset([place[name] for name in images.ids if name in place])
        return replace(kept, root=images.root)

    choice = choose_chain_on_images(
        data.training, TuneConfig(validate_on=SETS[name]),
        target_of(data.query, data.gallery, labels), frozen=True, embed=vectors,
        nearest_cosine=mean_nearest_cosine(queries.vectors, gallery.vectors),
        features_in=cache / "features",
    )  # fmt: skip
    print("\n".join(choice.lines()), flush=True)
    for text in dict.fromkeys([*CHAINS, str(choice.chain)]):
        chain = parse_chain(text)
        started = time.process_time()
        features = features_of_both(queries, gallery, cache / "features")
        ranking = rank_refined(queries, gallery, chain, features=features)
        seconds = time.process_time() - started
        scores = evaluate(ranking, truth, ks=(1, 5))
        top1, mean_ap = scores.mean("top_k_accuracy@1"), scores.mean("map")
        print(name, chain, f"top-1 {top1:.4f} mAP {mean_ap:.4f} {seconds:.0f} s", flush=True)


# ── tiles ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Pasted:
    """An object pasted into a host, and where: x, y, width and height as fractions."""

    picture: Image.Image
    box: Box


def pasted(photo: Image.Image, host: Image.Image, rng: np.random.Generator) -> Pasted:
    """The whole photo at a ninth of the host's area, anywhere in it."""
    scale = (host.width * host.height / 9 / (photo.width * photo.height)) ** 0.5
    scale = min(scale, host.width / photo.width, host.height / photo.height)
    small = photo.resize((max(1, int(photo.width * scale)), max(1, int(photo.height * scale))))
    left = int(rng.integers(host.width - small.width + 1))
    top = int(rng.integers(host.height - small.height + 1))
    made = host.copy()
    made.paste(small, (left, top))
    box = (left / host.width, top / host.height, small.width / host.width,
           small.height / host.height)  # fmt: skip
    return Pasted(as_jpeg(made, 90), box)


def covered(tile: Box, of: Box) -> float:
    """The share of the area of one box that is inside a tile."""
    sides = [
        max(0.0, min(tile[i] + tile[i + 2], of[i] + of[i + 2]) - max(tile[i], of[i]))
        for i in (0, 1)
    ]
    return sides[0] * sides[1] / (of[2] * of[3])


def objects(shared: Path, part: str, tiles: Sequence[str], model: str, seed: int = 7) -> None:
    """200 objects in hosts, among 200 other photos: top-1 by one vector and by tiles."""
    rng = np.random.default_rng(seed)
    files = photos(shared, "caltech101", part)
    chosen = [read_image(files[i]) for i in rng.permutation(len(files))[:600]]
    made = [pasted(chosen[i], chosen[200 + i], rng) for i in range(200)]
    shown = [one.picture for one in made] + chosen[400:]

    def embedded(pictures: Sequence[Image.Image], grid: str, **more: bool) -> Embeddings:
        embedder = load_embedder(ModelChoice(model=model, tiles=grid))
        images = ImageSet(Path(), [f"{i:03}.jpg" for i in range(len(pictures))])
        with tempfile.TemporaryDirectory() as scratch:
            return embed(images, embedder, scratch, picture=pictures.__getitem__, **more)

    for grid in tiles:
        started = time.process_time()
        gallery = embedded(shown, grid)
        seconds = time.process_time() - started
        queries = embedded(chosen[:200], grid, only_whole=True)
        ranking = exact.rank(queries, gallery, 1)
        right = np.flatnonzero(ranking.positions[:, 0] == np.arange(200))
        print(f"{grid}: top-1 {len(right)}/200; {seconds:.0f} s of processor time")
        boxes = [ranking.box(int(i), 0) for i in right]
        shares = np.array(
            [covered(box, made[i].box) for i, box in zip(right, boxes, strict=True) if box]
        )
        if len(shares):
            parts = np.mean([box != WHOLE for box in boxes])
            print(
                f"  the tile overlaps the object: {(shares > 0).mean():.0%}, covers half of it: "
                f"{(shares >= 0.5).mean():.0%}; it is a part of the picture: {parts:.0%}"
            )


def many_tiles(cache: Path, kinds: Sequence[str], n: int = 100_000, seed: int = 0) -> None:
    """Speed and memory of a search among n made images of 5 tiles, 512 dimensions."""
    tiles = Tiles.parse("1+2x2")
    assert tiles is not None
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2000, 512), np.float32)
    vectors = rng.standard_normal((n, len(tiles), 512), np.float32)
    vectors *= 0.8
    vectors += centres[rng.integers(2000, size=n)][:, None]
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    queries = vectors[rng.integers(n, size=64), 3] + 0.02 * rng.standard_normal((64, 512))
    asked = Embeddings.from_arrays(queries, model_id="made")
    gallery = Embeddings(
        [f"{i:06}.jpg" for i in range(n)], vectors[:, 0], pa.table({}), "made", tiles=tiles,
        tile_vectors=vectors,
    )  # fmt: skip
    print(f"{vectors.nbytes / 2**20:.0f} MiB of vectors")
    for what, embeddings in (("whole pictures", gallery.only_whole()), ("tiles", gallery)):
        for kind in kinds:
            started = time.perf_counter()
            folder = cache / f"many-{kind}-{what.split()[0]}"
            index = build_index(embeddings, folder, kind=kind)
            built = time.perf_counter() - started
            size = sum(path.stat().st_size for path in folder.iterdir())
            index.search(asked.subset(np.arange(1)), 10)
            times = []
            for i in range(20):
                started = time.perf_counter()
                index.search(asked.subset(np.arange(i, i + 1)), 10)
                times.append(time.perf_counter() - started)
            print(f"{kind}, {what}: built in {built:.0f} s, {size / 2**20:.0f} MiB; one query "
                  f"{np.median(times) * 1000:.1f} ms (median of 20)")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("fit", "fit-copies", "collages", "partial", "sets",
                                         "objects", "many-tiles"))  # fmt: skip
    parser.add_argument("--tiles", nargs="+", default=["1", "1+2x2", "1+2x2+3x3"])
    parser.add_argument("--model", default=DEFAULT_BACKBONE)
    parser.add_argument("--kinds", nargs="+", default=["exact", "hnsw"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--part", choices=("training", "test"), default="test")
    parser.add_argument("--features", choices=FEATURES, default="sift")
    parser.add_argument("--data", choices=SETS, default="caltech101")
    parser.add_argument("--cache", type=Path, help="keeps vectors and points for the next time")
    parser.add_argument("--photos", type=int, default=4000)
    parser.add_argument("--seed", type=int, help="another choice of photos and places")
    given = parser.parse_args(arguments)
    seed = {} if given.seed is None else {"seed": given.seed}
    if given.what == "fit":
        fit(given.shared, given.features, **seed)
    elif given.what == "collages":
        collages(given.shared, given.part, **seed)
    elif given.what == "objects":
        objects(given.shared, given.part, given.tiles, given.model, **seed)
    else:
        with tempfile.TemporaryDirectory(prefix="closer-") as scratch:
            cache = given.cache or Path(scratch)
            if given.what == "sets":
                sets(given.shared, cache, given.data)
            elif given.what == "fit-copies":
                fit_copies(given.shared, cache, **seed)
            elif given.what == "many-tiles":
                many_tiles(cache, given.kinds, **seed)
            else:
                partial(given.shared, cache, given.photos, **seed)


if __name__ == "__main__":
    main()
