"""Ranking and embeddings → the parts of a report that are pictures: sheets and the map."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from vizsla.data.images import read_image
from vizsla.errors import ImageError
from vizsla.output import embedding_map as maps
from vizsla.output.report_data import Material

THUMBNAIL = 150  # px, the longer side of a picture on a sheet
WORST, BEST = 8, 4  # queries on sheets


def sheets_part(material: Material) -> str:
    """The worst and the best queries; the first few where nothing is judged."""
    row_of = {name: i for i, name in enumerate(material.ranking.queries)}
    if material.scores is None:
        rows = range(min(WORST, len(material.ranking)))
        return "".join(_sheet(material, row, None) for row in rows)
    scores = material.scores
    values = scores.per_query(scores.headline)
    known = [
        (value, -min(first, 1e9), row_of[name], name)
        for value, first, name in zip(values, scores.first_ranks, scores.queries, strict=True)
        if value is not None and name in row_of
    ]
    known.sort()
    worst = known[:WORST]
    best = [entry for entry in reversed(known) if entry not in worst][:BEST]
    whole = scores.headline == "map"
    title = "AP" if whole else scores.metrics[scores.headline].title
    over = " (whole ranking)" if whole else ""
    body = ""
    for name, entries in (("Worst", worst), ("Best", best)):
        sheets = [
            _sheet(material, row, f"{title} {value:.3f}{over}") for value, _, row, _ in entries
        ]
        body += f"<h3>{name}</h3>{''.join(sheets)}" if sheets else ""
    return body


def _sheet(material: Material, row: int, told: str | None) -> str:
    """One query and its first k, as a list with the rank, whether it is right, and the label."""
    ranking, truth, data = material.ranking, material.truth, material.data
    name = ranking.queries[row]
    label = truth.query.get(name) if truth else None
    tiles = []
    for rank, found in enumerate(ranking.row(row)[: material.top_k]):
        other = truth.gallery.get(found) if truth else None
        correct = None if label is None or other is None else label == other
        score = None if ranking.scores is None else float(ranking.scores[row, rank])
        tiles.append(_tile(material, found, rank + 1, other, score, correct))
    about = " · ".join(filter(None, [label, told]))
    picture = _picture(data.query.root / name, f"query {name}", material.max_pixels)
    return (
        f'<article class="sheet"><div>{picture}<h4>{escape(name)}</h4>'
        f"<p>{escape(about)}</p></div>"
        f'<ol class="tiles">{"".join(tiles)}</ol></article>'
    )


def _tile(
    material: Material,
    name: str,
    rank: int,
    label: str | None,
    score: float | None,
    correct: bool | None,
) -> str:
    kind = {True: "right", False: "wrong", None: ""}[correct]
    mark = {True: "✓", False: "✗", None: ""}[correct]
    picture = _picture(material.data.gallery.root / name, "", material.max_pixels)
    value = "" if score is None else f" {score:.3f}"
    return (
        f'<li class="{kind}">{picture}<span><b aria-hidden="true">{mark}</b> {rank}'
        f'<span class="unseen">{kind}</span>{value}</span>'
        + (f'<span class="name-of">{escape(label)}</span>' if label else "")
        + f'<span class="soft name-of" title="{escape(name)}">{escape(Path(name).name)}</span></li>'
    )


def _picture(file: Path, alt: str, max_pixels: int) -> str:
    try:
        image = read_image(file, max_pixels=max_pixels, at_least=THUMBNAIL)
    except ImageError as error:
        return f'<div class="none">no picture: {escape(str(error))}</div>'
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    width, height = image.size
    source = maps.data_uri(image, quality=70)
    return (
        f'<img src="{source}" alt="{escape(alt)}" width="{width}" height="{height}" '
        'loading="lazy" decoding="async">'
    )


def map_part(material: Material, projection: str) -> str:
    """Every embedding as a point, with its picture for the pointer."""
    truth, data = material.truth, material.data
    parts = (
        ("query", material.queries, data.query.root, truth.query if truth else {}),
        ("gallery", material.gallery, data.gallery.root, truth.gallery if truth else {}),
    )
    everything = [
        [maps.Point(name, role, root / name, labels.get(name)) for name in embeddings.ids]
        for role, embeddings, root, labels in parts
    ]
    chosen = maps.choose(*everything)
    vectors = [part[1].vectors[at] for part, at in zip(parts, chosen, strict=True)]
    points = [own[i] for own, at in zip(everything, chosen, strict=True) for i in at]
    places = maps.in_the_plane(np.concatenate(vectors), projection)
    drawn = maps.draw_map(points, places).replace(
        'class="plane"',
        f'class="plane" data-tile="{maps.TILE}" data-columns="{maps.TILE_COLUMNS}"',
    )
    tiles = maps.draw_tiles(points, max_pixels=material.max_pixels)
    total = sum(map(len, everything))
    cut = f" {len(points):,} of {total:,} images are drawn." if len(points) < total else ""
    method = {"tsne": "t-SNE", "pca": "the first two principal components"}[projection]
    return (
        f'<p class="soft">By {method}: near means similar, the axes mean nothing. Diamonds are '
        f"queries, discs gallery images; a class has one colour.{cut}</p>{_pick(points)}{drawn}"
        f'<style>#seen i {{ background-image: url("{tiles}"); }}</style>'
        '<div id="seen" role="status"><i></i><span></span></div>'
    )


def _pick(points: Sequence[maps.Point]) -> str:
    classes = sorted({point.label for point in points if point.label is not None})
    if not classes:
        return ""
    options = "".join(f'<option value="{i}">{escape(c)}</option>' for i, c in enumerate(classes))
    return (
        '<p class="tools"><label for="pick">Pick out a class</label>'
        f'<select id="pick"><option value="">all</option>{options}</select></p>'
    )
