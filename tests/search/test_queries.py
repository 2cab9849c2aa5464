"""Queries as one writes them: paths, images, texts, vectors; filters as text."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vizsla
from vizsla.embed.runtime import Runtime
from vizsla.errors import DataError, UsageError


@pytest.fixture(scope="module")
def embedder() -> vizsla.Embedder:
    return vizsla.Embedder.build("tiny", weights="random", image_size=32)


@pytest.fixture
def index(tinted: Path, tmp_path: Path, embedder: vizsla.Embedder) -> Path:
    gallery = vizsla.open_data(tinted).gallery.with_labels_file(tinted / "labels.csv", "gallery")
    found = vizsla.embed(gallery, embedder, tmp_path / "g.emb")
    vizsla.build_index(found, tmp_path / "g.index")
    return tmp_path / "g.index"


def test_an_image_is_searched_for_as_path_picture_array_and_vector(
    index: Path, tinted: Path, embedder: vizsla.Embedder
) -> None:
    found, path = vizsla.open_index(index), tinted / "test/gallery/g-blue-1.png"
    picture = Image.open(path)
    for query in (path, str(path), picture, [picture], np.asarray(picture), [str(path), path],
                  embedder.encode(path), embedder.encode(path).numpy()[0],
                  embedder.encode(path).tolist()):  # fmt: skip
        ranking = found.search(query, 3)
        assert ranking.row(0)[0] == path.name and ranking.depth == 3
        assert ranking.scores is not None and ranking.scores[0, 0] > 0.9999
    assert found.search([path, picture]).queries == [path.name, "1"]
    assert found.search(path).depth == 10


def test_a_filter_is_a_text_or_several(index: Path, tinted: Path) -> None:
    found, path = vizsla.open_index(index), tinted / "test/gallery/g-blue-1.png"
    labels = dict(zip(found.ids, found.labels or [], strict=True))
    assert {labels[n] for n in found.search(path, 5, filter="label=green").row(0)} == {"green"}
    both = found.search(path, 5, filter=["label=green", "id=g-green-1.png|g-blue-1.png"])
    assert both.row(0) == ["g-green-1.png"]
    with pytest.raises(UsageError, match="filter is of type dict: expected a condition such as"):
        found.search(path, 5, filter={"label": "green"})  # type: ignore[arg-type]


def test_a_misspelt_filter_is_an_error_before_a_model_is_loaded(
    index: Path, tinted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vizsla.Embedder, "build", lambda *_, **__: pytest.fail("a model was built"))
    photo = tinted / "test/gallery/g-blue-1.png"
    for conditions, error in (("lable=green", DataError), ("label", UsageError),
                              ("label<3", DataError)):  # fmt: skip
        with pytest.raises(error):
            vizsla.open_index(index).search(photo, 5, filter=conditions)
        with pytest.raises(error):
            vizsla.search(index, photo, filter=conditions)


def test_fewer_images_than_asked_for_are_said(
    index: Path, tinted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "vizsla"):
        vizsla.search(
            index, tinted / "test/gallery/g-blue-1.png", filter="id=g-red-0.png|g-red-1.png"
        )
    assert "2 results, not 10: no more images meet the filter" in caplog.messages


def test_a_ranking_of_an_index_knows_where_its_images_are(index: Path, tinted: Path) -> None:
    ranking = vizsla.open_index(index).search(tinted / "test/gallery/g-blue-1.png", 2)
    assert len(vizsla.show(ranking).sheets) == 1


def test_what_is_no_query_is_refused(index: Path) -> None:
    found = vizsla.open_index(index)
    with pytest.raises(UsageError, match="queries is of type int: expected an image"):
        found.search(5)
    with pytest.raises(UsageError, match="list with items of other types"):
        found.search([5, "a.jpg"])
    with pytest.raises(DataError, match="there is nothing at nonesuch"):
        found.search("nonesuch.jpg")
    with pytest.raises(vizsla.ModelError, match="tiny reads no text"):
        found.search("a red shoe")
    with pytest.raises(DataError, match="7 dimensions"):
        found.search(np.ones(7))


def test_a_network_of_ones_own_is_given_with_the_query(tinted: Path, tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    own, path = vizsla.Embedder.from_module(Mean(), 16), tinted / "test/gallery/g-blue-1.png"
    found = vizsla.embed(vizsla.open_data(tinted).gallery, own, tmp_path / "g.emb")
    vizsla.build_index(found, tmp_path / "g.index")
    index = vizsla.open_index(tmp_path / "g.index")
    with pytest.raises(DataError, match=r"does not record how to build its model .*name it with"):
        index.search(path)
    assert index.search(path, 1, embedder=own).row(0) == [path.name]


def test_words_are_searched_for_by_a_model_that_reads_text(
    tiny_clip: str, tinted: Path, tmp_path: Path
) -> None:
    clip = vizsla.Embedder.build(tiny_clip, weights="random")
    found = vizsla.embed(vizsla.open_data(tinted).gallery, clip, tmp_path / "g.emb")
    index = vizsla.build_index(found, tmp_path / "g.index")
    ranking = index.search(["a red shoe", tinted / "test/gallery/g-blue-1.png"], 1)
    assert ranking.queries[0] == "a red shoe" and ranking.row(1) == ["g-blue-1.png"]
    by_vector = index.search(clip.encode_text("a red shoe"), 1)
    assert by_vector.row(0) == ranking.row(0)


def test_a_part_of_an_image_is_searched_with(
    index: Path, tinted: Path, embedder: vizsla.Embedder, tmp_path: Path
) -> None:
    found, names = vizsla.open_index(index), ("g-blue-1.png", "g-green-1.png")
    images = [Image.open(tinted / "test/gallery" / name).convert("RGB") for name in names]
    wide, high = images[0].size
    both = Image.new("RGB", (2 * wide, high))
    for i, image in enumerate(images):
        both.paste(image, (i * wide, 0))
    both.save(tmp_path / "both.png")
    for query in (both, tmp_path / "both.png", np.asarray(both)):
        for box in ((wide, 0, wide, high), "0.5,0,0.5,1"):
            assert found.search(query, 1, box=box).row(0) == ["g-green-1.png"]
            ranking = vizsla.search(index, query, box=box, top_k=1)
            assert ranking.row(0) == ["g-green-1.png"] and ranking.scores is not None
            assert ranking.scores[0, 0] > 0.9999
    whole = found.search(both, 1).scores
    assert whole is not None and whole[0, 0] < 0.999
    with pytest.raises(UsageError, match="box 0,0,1,1 is a part of an image, but the queries are"):
        found.search(embedder.encode(both), 1, box="0,0,1,1")
    with pytest.raises(UsageError, match="is a part of an image, but 'a dog' is a text"):
        found.search("a dog", 1, box="0,0,1,1")
    with pytest.raises(DataError, match="0,0,999,9 reaches beyond the picture, which is "):
        vizsla.search(index, both, box="0,0,999,9")


def test_a_part_of_each_image_of_a_folder_is_searched_with(index: Path, tinted: Path) -> None:
    folder = tinted / "test/gallery"
    whole = vizsla.search(index, folder, box="0,0,1,1", top_k=2)
    plain = vizsla.search(index, folder, top_k=2)
    assert whole.queries == plain.queries and whole.row(3) == plain.row(3)
    assert whole.query_root == plain.query_root
    assert whole.scores == pytest.approx(plain.scores, abs=1e-6)


def test_parts_of_a_folder_are_embedded_in_batches_and_keep_their_columns(
    index: Path, tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tinted / "test/query", tmp_path / "queries")
    names = sorted(path.name for path in folder.iterdir())
    rows = [f"{name},thing {i // 8}" for i, name in enumerate(names)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,item", *rows]))
    batches: list[int] = []
    real = Runtime.submit

    def counting(runtime: Runtime, pixels: Any) -> Any:
        batches.append(len(pixels))
        return real(runtime, pixels)

    monkeypatch.setattr(Runtime, "submit", counting)
    found = vizsla.search(index, folder, box="0,0,0.5,1", top_k=3, query_group="item")
    assert found.queries == ["thing 0", "thing 1"] and batches == [16]
    single = vizsla.search(index, folder / names[0], box="0,0,0.5,1", top_k=3)
    assert single.row(0) == vizsla.search(index, folder, box="0,0,0.5,1", top_k=3).row(0)
    (folder / "broken.png").write_bytes(b"no image")
    assert len(vizsla.search(index, folder, box="0,0,0.5,1")) == 16
    with pytest.raises(DataError, match=r"q-.*png: box 0,0,999,9 reaches beyond the picture"):
        vizsla.search(index, folder, box="0,0,999,9")
