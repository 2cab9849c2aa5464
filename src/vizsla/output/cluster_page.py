"""Clusters of images → a page on which a person merges, splits and names them, and saves labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vizsla.data.images import MAX_PIXELS
from vizsla.output.pages import Section, render_page
from vizsla.output.query_page import PICTURES, Pictures

SHOWN = 60  # images of a cluster; the others are counted, and go where the cluster goes


def clusters_page(
    clusters: Sequence[tuple[str | None, Sequence[str]]],
    root: Path,
    *,
    title: str = "Clusters",
    notes: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
) -> str:
    """The page as text. clusters: (label or None, ids of the images below `root`), as they are to
    be shown. notes: lines above them."""
    pictures = Pictures(max_pixels)
    strips = [
        {
            "label": label,
            "total": len(ids),
            "images": [{"id": name, "picture": pictures.number(root / name)}
                       for name in ids[:SHOWN]],
            "rest": list(ids[SHOWN:]),
        }
        for label, ids in clusters
    ]  # fmt: skip
    content: dict[str, Any] = {
        "clusters": strips,
        "pictures": [(i, one.source) for i, one in enumerate(pictures.found) if one.source],
        "many": len(pictures.found) >= PICTURES,
    }
    images = sum(len(ids) for _, ids in clusters)
    return render_page(
        "clusters.html",
        title,
        [Section("about", "How they were found", list(notes), "lines"),
         Section("clusters", "Clusters", content)],
        subtitle=[f"{images:,} images", f"{len(clusters):,} clusters"],
        script="clusters.js",
    )  # fmt: skip
