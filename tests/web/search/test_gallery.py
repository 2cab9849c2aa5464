"""States of an index: which one answers, and how one replaces another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vizsla import storage
from vizsla.errors import DataError, StorageError
from vizsla.search.folder_index import FolderIndex
from vizsla.search.index import open_index
from vizsla.search.index_files import rewrite
from vizsla.web.search.gallery import Gallery, version_of

Open = Callable[..., Any]
CHANGE = "the-token-for-changes"
AUTH = {"Authorization": f"Bearer {CHANGE}"}


def test_a_gallery_has_the_version_of_what_was_read(served: Any) -> None:
    """Not of what lies in the folder a moment later: it would never be replaced by that."""
    folder = served.engine.gallery.index.folder
    opened = FolderIndex.load(folder)
    before = version_of(folder)
    open_index(folder).remove(["red/red-0.png"])  # between reading and naming
    gallery = Gallery.open(opened, served.folder)
    assert gallery.version == before != version_of(folder)
    assert len(gallery) == 24
    assert served.engine.reload() is True
    assert served.engine.gallery.version == version_of(folder)
    assert len(served.engine.gallery) == 23


def test_results_of_another_state_are_never_returned(served: Any) -> None:
    gallery = served.engine.gallery
    vector = gallery.vector("red/red-0.png")
    other = open_index(gallery.index.folder)
    other.remove(["blue/blue-0.png"])
    rewrite(other.view.snapshot)
    gallery.index.refresh()  # as a search does that finds its files gone
    with pytest.raises(StorageError, match="replaced"):
        gallery.search(vector[None], 3, None)


def test_given_labels_apply_to_every_state_of_an_index(served: Any) -> None:
    given = {name: "given" for name in served.ids() if name.startswith("red/")}
    gallery = Gallery.open(
        served.engine.gallery.index,
        served.folder,
        lambda ids: pa.table({"label": pa.array([given.get(name) for name in ids], pa.string())}),
    )
    gallery.warm_up()
    assert gallery.described("red/red-0.png")["label"] == "given"
    assert gallery.described("blue/blue-0.png")["label"] == "blue"  # where no other label is given
    assert gallery.index.labels[0] != "given"
    served.engine.gallery = gallery
    found = served.post(json={"id": "blue/blue-0.png", "filter": "label=given", "k": 50}).json()
    assert sorted(one["id"] for one in found["results"]) == sorted(given)
    assert served.search(json={"id": "red/red-0.png", "filter": "label=red"}) == []
    served.engine.remove("red/red-0.png")
    after = served.engine.gallery
    assert after.described("red/red-1.png")["label"] == "given" and len(after) == 23
    assert open_index(after.index.folder).labels.count("red") == 5  # the index keeps its own
    given["red/red-1.png"] = "new"
    open_index(after.index.folder).remove(["red/red-5.png"])
    assert served.engine.reload()
    assert served.engine.gallery.described("red/red-1.png")["label"] == "new"


def test_a_state_that_was_refused_is_tried_again(
    open_search: Open, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    from vizsla.web.search import engine

    monkeypatch.setattr(engine, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(engine, "REFUSED_SECONDS", 0.1)
    served = open_search(watched=True)
    read, tries = FolderIndex.load, []

    def fails_twice(folder: Any, **options: Any) -> FolderIndex:
        tries.append(folder)
        if len(tries) <= 2:
            raise DataError("the disk is away for a moment")
        return read(folder, **options)

    monkeypatch.setattr(engine.FolderIndex, "load", staticmethod(fails_twice))
    open_index(served.engine.gallery.index.folder).remove(["red/red-0.png"])
    wait_until(lambda: len(served.engine.gallery) == 23)
    assert len(tries) == 3


def test_a_changed_gallery_is_warm_before_it_is_searched(
    open_search: Open, pictures: Path, tmp_path: Path
) -> None:
    import shutil

    served = open_search(folder=shutil.copytree(pictures, tmp_path / "copy"), changes=CHANGE)
    answer = served.client.delete("/v1/images/red/red-0.png", headers=AUTH)
    assert answer.status_code == 200
    assert {"facets", "positions", "sample"} <= set(served.engine.gallery.__dict__)


def test_a_change_builds_on_what_another_process_wrote(
    open_search: Open,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Any,
) -> None:
    import shutil

    served = open_search(folder=shutil.copytree(pictures, tmp_path / "copy"), changes=CHANGE)
    folder = served.engine.gallery.index.folder
    open_index(folder).remove(["red/red-0.png"])
    answer = served.client.delete("/v1/images/red/red-1.png", headers=AUTH)
    assert answer.status_code == 200 and answer.json()["index"] == version_of(folder)
    assert len(served.engine.gallery) == 22
    tries = []
    reload = served.engine.reload
    monkeypatch.setattr(served.engine, "reload", lambda: tries.append(1) or reload())
    with storage.locked(folder):  # another process is writing
        requested = ThreadPoolExecutor(1).submit(
            served.post, "/v1/images", image="red/red-2.png", headers=AUTH
        )
        wait_until(lambda: len(tries) == 2)
        assert not requested.done()
        assert served.search(json={"id": "red/red-3.png", "k": 1}) == ["red/red-3.png"]
    added = requested.result(10)
    assert added.status_code == 201 and added.json()["index"] == version_of(folder)
    assert len(open_index(folder)) == 23
