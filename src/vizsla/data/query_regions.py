"""Images and boxes of queries → image files that show only these regions. Knows no truth."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet
from vizsla.data.listing import few
from vizsla.data.regions import Box
from vizsla.errors import DataError


def crop_queries(
    images: str | Path, queries: Sequence[str], boxes: Mapping[str, Box], out: str | Path
) -> list[Path]:
    """Writes the region of each query as PNG into `out`, named as its image; the paths.

    boxes: left, top, right, bottom of the upright image, rounded to whole pixels; a query without
    one is copied whole. queries: names in `images`, with an extension or without. DataError: an
    image is missing, or a box lies outside of it.
    """
    folder = ImageSet.from_folder(images)
    by_stem: dict[str, list[str]] = {}
    for name in folder.ids:
        by_stem.setdefault(name.rpartition(".")[0] or name, []).append(name)
    known = {*folder.ids}
    files = {q: [q] if q in known else by_stem.get(q, []) for q in queries}
    lost = [query for query, found in files.items() if len(found) != 1]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(files)} queries are not one image in {images} ({few(lost)}): "
            "give the folder with the images of the queries"
        )
    written = []
    for query, (file,) in files.items():
        box = boxes.get(query)
        target = Path(out) / (file if box is None else f"{file.rpartition('.')[0]}.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        if box is None:
            shutil.copyfile(folder.root / file, target)
        else:
            image = read_image(folder.root / file)
            left, top, right, bottom = map(round, box)
            inside = 0 <= left < right <= image.width and 0 <= top < bottom <= image.height
            if not inside:
                raise DataError(
                    f"the box {box} of query {query} is not inside of {file} "
                    f"({image.width} × {image.height} pixels)"
                )
            image.crop((left, top, right, bottom)).save(target)
        written.append(target)
    return written
