"""A noun → what a notebook shows: tables as HTML, sheets of queries as images inside it."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizsla import storage
from vizsla.data.data_folders import DataFolders
from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet
from vizsla.errors import UsageError
from vizsla.notebook import Shown, Summary
from vizsla.output.pages import LONG_CELL, Thumbnail, data_uri, render, thumbnail
from vizsla.output.query_sheets import RankingTruth, sheets
from vizsla.output.sheet_drawing import thumbnail_of, write_png
from vizsla.output.sheet_selection import ranking_truth
from vizsla.score.evaluate import evaluate
from vizsla.score.text_table import Table
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

Folder = str | Path | ImageSet
Images = Folder | DataFolders | tuple[Folder, Folder]
TILES = 8  # images of an ImageSet


@dataclass(frozen=True, repr=False)
class View:
    """What a notebook shows of a noun. sheets: one image for each query that is drawn.

    tiles: (thumbnail, text below it).
    """

    about: Summary
    sheets: list[Image.Image] = field(default_factory=list)
    tiles: list[tuple[Thumbnail, str]] = field(default_factory=list)

    def __repr__(self) -> str:
        return self.about.text()

    def _repr_html_(self) -> str:
        return self._html("notebook.html")

    def save(self, path: str | Path) -> Path:
        """Writes a page (.html) or the sheets, one below the other (.png); returns the path."""
        path = Path(path)
        if path.suffix == ".html":
            storage.write_text(path, self._html("notebook_page.html"))
        elif path.suffix == ".png" and self.sheets:
            write_png(_stacked(self.sheets), path)
        else:
            kinds = ".html or .png" if self.sheets else ".html, as there are no sheets to draw"
            raise UsageError(f"{path}: the name must end in {kinds}")
        return path

    def _html(self, template: str) -> str:
        about = self.about
        table = Table(list(about.columns), [list(row) for row in about.rows])
        texts, columns = table.texts(), range(len(table.columns))
        return str(
            render(
                template,
                title=about.title,
                facts=about.facts,
                columns=table.columns,
                rows=texts,
                numbers=[i for i in columns if table.is_number(i)],
                long=[i for i in columns if any(len(row[i]) > LONG_CELL for row in texts)],
                bars=about.bars,
                notes=about.notes,
                sheets=[data_uri(sheet) for sheet in self.sheets],
                tiles=self.tiles,
            )
        )


def show(
    noun: Shown,
    *,
    query: str | Sequence[str] | None = None,
    images: Images | None = None,
    truth: Truth | None = None,
    k: int = 5,
    queries: int = 3,
) -> View:
    """What a notebook shows of a noun; the last line of a cell shows it, `save` writes it.

    Of a Ranking: a sheet for each of a few queries, spread over all of them, or for those given.
    images: the folder of the images, an ImageSet, a pair (of queries, of gallery), or what
    `open_data` gives; needed unless the ranking was made from images in this session. truth: frames
    right images in green and wrong ones in red. k: results of each query. Errors: UsageError for a
    query that the ranking lacks, DataError for images that are not in `images`.
    """
    if not isinstance(noun, Shown):
        raise UsageError(
            f"show takes a Ranking, ImageSet, Embeddings, Scores, comparison or result of a run, "
            f"not {type(noun).__name__}"
        )
    if isinstance(noun, Ranking):
        return _view_of_ranking(noun, query, images, truth, k, queries)
    if query is not None or images is not None or truth is not None:
        raise UsageError(f"query, images and truth are for a Ranking, not {type(noun).__name__}")
    if isinstance(noun, ImageSet):
        return View(noun.summary(), tiles=_tiles_of(noun))
    paths = [Path(path) for path in getattr(noun, "figure_paths", ())[:queries]]  # of a run
    return View(noun.summary(), [read_image(path) for path in paths if path.exists()])


def _view_of_ranking(
    ranking: Ranking,
    query: str | Sequence[str] | None,
    images: Images | None,
    truth: Truth | None,
    k: int,
    queries: int,
) -> View:
    about = ranking.summary()
    roots = (ranking.query_root, ranking.gallery_root) if images is None else _roots_of(images)
    names = [query] if isinstance(query, str) else query
    rows = _spread(len(ranking), queries) if names is None else _rows_of(ranking, names)
    known = None if truth is None else _truth_of(ranking, truth, k)
    if roots[0] is None or roots[1] is None or not (rows and ranking.depth):
        if names is not None or truth is not None:
            raise UsageError("where are the images? Give their folder: show(ranking, images=…)")
        return View(about)
    if images is None and not (roots[0].is_dir() and roots[1].is_dir()):  # moved since
        return View(about)
    drawn = sheets(ranking, roots[0], roots[1], k=k, rows=rows, truth=known)
    thumbnails = functools.cache(thumbnail_of)
    found = [sheet.drawn(thumbnails) for sheet in drawn]
    return View(Summary(about.title, about.facts), found)


def _truth_of(ranking: Ranking, truth: Truth, k: int) -> RankingTruth | None:
    return ranking_truth(ranking, truth, evaluate(ranking, truth, ks=[k]), k)


def _roots_of(images: Images) -> tuple[Path, Path]:
    """The folders of queries and gallery."""

    def root(folder: Any) -> Path:
        if not isinstance(folder, str | os.PathLike | ImageSet):
            raise UsageError(
                f"images takes a folder, an ImageSet, a pair of them, or what open_data gives, "
                f"not {type(folder).__name__}"
            )
        return folder.root if isinstance(folder, ImageSet) else Path(folder)

    if isinstance(images, DataFolders):
        return images.query.root, images.gallery.root
    if isinstance(images, tuple | list) and len(images) == 2:
        return root(images[0]), root(images[1])
    return root(images), root(images)


def _rows_of(ranking: Ranking, names: Sequence[str]) -> list[int]:
    place = {name: i for i, name in enumerate(ranking.queries)}
    unknown = [name for name in names if name not in place]
    if unknown:
        raise UsageError(
            f"the ranking has no query {unknown[0]!r}: its queries are {ranking.queries[0]!r}, …"
        )
    return [place[name] for name in names]


def _tiles_of(images: ImageSet) -> list[tuple[Thumbnail, str]]:
    """A few images, spread over all; none if they are not files here."""
    if images.folder is None or not images.folder.is_dir():
        return []
    labels = images.labels
    return [
        (thumbnail(images.path(i)), (labels and labels[i]) or Path(images.ids[i]).name)
        for i in _spread(len(images), TILES)
    ]


def _spread(n: int, most: int) -> list[int]:
    """At most `most` of the numbers below n, at equal distances."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, most))}) if n else []


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """One image, its parts one below the other."""
    width = max(picture.width for picture in pictures)
    whole = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole
