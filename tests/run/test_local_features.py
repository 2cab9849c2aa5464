"""Points that are kept with an index, and searches that verify by them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.vector_source import VectorSource
from vizsla.errors import DataError, UsageError
from vizsla.run.gallery_search import open_gallery, search_refined
from vizsla.search.chain import parse_chain
from vizsla.search.filters import Filter
from vizsla.search.folder_index import FolderIndex

pytest.importorskip("cv2", reason="needs the extra local")
Scene = Callable[..., Image.Image]
CHAIN = parse_chain("verify(n=6)")


def embedded(folder: Path, images: dict[str, Image.Image]) -> Embeddings:
    """The images as files below the folder, with random vectors."""
    folder.mkdir(parents=True)
    for name, image in images.items():
        image.save(folder / name)
    rng = np.random.default_rng(len(images))
    made = Embeddings.from_arrays(rng.random((len(images), 5)), list(images), model_id="m")
    source = VectorSource(None, str(folder))
    return Embeddings(made.ids, made.vectors, made.attributes, "m", root=folder, source=source)


@pytest.fixture
def queries(scene: Scene, tmp_path: Path) -> Embeddings:
    return embedded(tmp_path / "query", {"q.png": scene(3).crop((40, 20, 220, 160))})


@pytest.fixture
def gallery(scene: Scene, tmp_path: Path) -> Embeddings:
    made = embedded(tmp_path / "gallery", {f"{i}.png": scene(i) for i in range(6)})
    made.save(tmp_path / "gallery.emb")
    return made


def index(*words: Any) -> str:
    done = CliRunner().invoke(app, ["index", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stderr


def best(where: Path, queries: Embeddings) -> str:
    found = open_gallery(where, "cpu")
    ranking = search_refined(found, str(where), queries, CHAIN, 6, same_set=False,
                             device="cpu", progress=None)  # fmt: skip
    return ranking.row(0)[0]


def test_an_index_with_local_needs_no_images(
    gallery: Embeddings, queries: Embeddings, scene: Scene, tmp_path: Path
) -> None:
    where = tmp_path / "g.index"
    index(tmp_path / "gallery.emb", "-o", where, "--local")
    new = embedded(tmp_path / "new", {"new.png": scene(77)})
    new.save(tmp_path / "new.emb")
    index("add", where, tmp_path / "new.emb")
    copy = tmp_path / "copy.index"
    FolderIndex.load(where).save(copy)
    shutil.rmtree(tmp_path / "gallery")
    shutil.rmtree(tmp_path / "new")
    assert best(where, queries) == "3.png" and best(copy, queries) == "3.png"
    added = embedded(tmp_path / "more", {"q.png": scene(77).crop((40, 20, 220, 160))})
    assert best(where, added) == "new.png"  # of which the points were found in its own folder
    found = FolderIndex.load(where)
    found.remove(["3.png"])
    found.verify()
    assert best(where, queries) != "3.png"
    index(tmp_path / "gallery.emb", "-o", where)  # replaced: its folder is still an index


def test_verify_takes_a_filter_that_leaves_one_image(
    gallery: Embeddings, queries: Embeddings, tmp_path: Path
) -> None:
    where = tmp_path / "gallery.emb"

    def ids(chain: str, name: str) -> list[str]:
        ranking = search_refined(
            open_gallery(where, "cpu"), str(where), queries, parse_chain(chain), 6,
            Filter.parse([f"id={name}"]), same_set=False, device="cpu", progress=None,
        )  # fmt: skip
        return list(ranking.row(0))

    assert ids("verify(n=6)", "2.png") == ["2.png"]
    for chain in ("aqe+verify", "kreciprocal"):
        with pytest.raises(UsageError, match=r"refine .* among 1 images: loosen filter"):
            ids(chain, "2.png")


def test_without_local_points_are_found_once(
    gallery: Embeddings, queries: Embeddings, tmp_path: Path
) -> None:
    where = tmp_path / "g.index"
    index(tmp_path / "gallery.emb", "-o", where)
    kept = tmp_path / "kept.index"
    shutil.copytree(where, kept)
    assert best(where, queries) == "3.png"
    shutil.rmtree(tmp_path / "gallery")
    assert best(where, queries) == "3.png"
    with pytest.raises(DataError, match="the folder of the images is not known"):
        best(kept, queries)


def test_points_of_an_image_that_cannot_be_read_now_are_found_later(
    gallery: Embeddings, queries: Embeddings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "gallery" / "3.png"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    assert best(tmp_path / "gallery.emb", queries) != "3.png"
    assert "points cannot be found, so nothing matches" in caplog.text and "3.png" in caplog.text
    file.write_bytes(content)
    assert best(tmp_path / "gallery.emb", queries) == "3.png"


def test_images_added_from_another_folder_are_asked_for(
    gallery: Embeddings, queries: Embeddings, scene: Scene, tmp_path: Path
) -> None:
    where, new = tmp_path / "g.index", tmp_path / "new"
    index(tmp_path / "gallery.emb", "-o", where)
    embedded(new, {"new.png": scene(77)}).save(tmp_path / "new.emb")
    said = index("add", where, tmp_path / "new.emb")
    assert f"in {tmp_path / 'gallery'}, and the new ones are in {new}: copy them there" in said
    with pytest.raises(DataError, match=r"new\.png is needed, and it is not in .*built with local"):
        best(where, queries)
    shutil.copy(new / "new.png", tmp_path / "gallery")
    assert best(where, queries) == "3.png"


def test_embeddings_keep_points_too(
    gallery: Embeddings, queries: Embeddings, tmp_path: Path
) -> None:
    queries.save(tmp_path / "query.emb")
    assert best(tmp_path / "gallery.emb", Embeddings.open(tmp_path / "query.emb")) == "3.png"
    assert best(tmp_path / "gallery.emb", queries) == "3.png"
    shutil.rmtree(tmp_path / "gallery")
    assert best(tmp_path / "gallery.emb", queries) == "3.png"
