"""`vizsla cluster`: what it reads, what it writes, and how labels steer and judge it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner, Result

import vizsla
from vizsla.cli.main import app
from vizsla.data.imageset import ImageSet
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError


def things(n: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(n), rng.integers(1, 8, n))
    vectors = rng.normal(size=(n, 32))[numbers] + 0.5 * rng.normal(size=(len(numbers), 32))
    return vectors.astype(np.float32), [f"thing {number}" for number in numbers]


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Embeddings, Path]:
    """Embeddings of 30 things in a folder, and the folder of their images."""
    vectors, labels = things(30)
    ids = [f"{i:03d}, {label}.png" for i, label in enumerate(labels)]
    found = Embeddings.from_arrays(vectors, ids, labels)
    found.save(tmp_path / "photos.emb")
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(ids):
        Image.new("RGB", (12, 9), (i, 90, 255 - i)).save(tmp_path / "photos" / name)
    return found, tmp_path / "photos"


def cluster(*words: object) -> Result:
    return CliRunner().invoke(app, ["cluster", *map(str, words)], catch_exceptions=False)


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_finer_and_coarser_cut_offs_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    kinds, items = np.repeat(np.arange(6), 40), np.repeat(np.arange(60), 4)
    vectors = 3 * rng.normal(size=(6, 32))[kinds] + rng.normal(size=(60, 32))[items]
    vectors += 0.3 * rng.normal(size=vectors.shape)
    Embeddings.from_arrays(vectors.astype(np.float32), [f"{i}.jpg" for i in range(240)]).save(
        tmp_path / "shop.emb"
    )
    shop = tmp_path / "shop.emb"
    about = json.loads(cluster(shop, "--json", "-q").stdout)
    coarser = about["other_cut_offs"][-1]
    assert coarser["clusters"] < about["clusters"] / 1.2
    wide = ("--cut-off", coarser["cut_off"])
    shown = cluster(shop, *wide, "-q").stdout.splitlines()
    assert f"in {coarser['clusters']} clusters" in shown[0]
    finer = [line for line in shown if line.startswith("finer: --cut-off ")]
    assert finer and all(len(line) <= 80 for line in shown)
    value = finer[0].split()[2]
    again = json.loads(cluster(shop, "--cut-off", value, "--json", "-q").stdout)
    assert again["clusters"] > 1.2 * coarser["clusters"]
    assert f"makes {again['clusters']} clusters, {again['of_one_image']} of one image" in finer[0]
    alone = Embeddings.from_arrays(vectors[:1].astype(np.float32), ["a.jpg"])
    assert vizsla.cluster(alone).other_cut_offs == []


def test_the_command_writes_a_table_a_page_and_a_summary(
    photos: tuple[Embeddings, Path], tmp_path: Path
) -> None:
    embeddings, folder = photos
    out, page = tmp_path / "clusters.csv", tmp_path / "clusters.html"
    done = cluster(tmp_path / "photos.emb", "-o", out, "--html", page, "--images", folder, "--json",
                   "-q")  # fmt: skip
    assert done.exit_code == 0
    about, rows = json.loads(done.stdout), table(out)
    assert rows.keys() == {*embeddings.ids}
    numbers = [int(rows[name]["cluster"]) for name in embeddings.ids]
    assert about["scores"]["ari"] == pytest.approx(
        adjusted_rand_score(embeddings.labels, numbers), abs=1e-6
    )
    assert about["scores"]["ari"] > 0.9 and about["cut_off_from"] == "by the silhouette, no labels"
    sizes = np.bincount(numbers)
    assert sorted(sizes, reverse=True) == sizes.tolist() and about["largest"] == sizes[0]
    assert about["clusters"] == len(sizes) and about["images"] == len(numbers)
    assert page.read_text().count('<article class="cluster') == len(sizes)
    assert cluster(tmp_path / "photos.emb", "--method", "hdbscan", "--cut-off", 2).exit_code == 0
    text = cluster(tmp_path / "photos.emb", "--cut-off", 0.2).stdout
    assert "cut-off 0.2 (as given)" in text and "ARI 0." in text


def test_known_images_name_their_clusters_and_two_names_never_join(
    photos: tuple[Embeddings, Path], tmp_path: Path
) -> None:
    embeddings, _ = photos
    known = dict(zip(embeddings.ids, embeddings.labels or [], strict=True))
    some = {name: label for i, (name, label) in enumerate(known.items()) if i % 2}
    with (tmp_path / "some.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label"], *some.items()])
    for options in ((), ("--cut-off", 0)):
        done = cluster(tmp_path / "photos.emb", "--known", tmp_path / "some.csv", "-o",
                       tmp_path / "c.csv", "--json", "-q", *options)  # fmt: skip
        rows, about = table(tmp_path / "c.csv"), json.loads(done.stdout)
        assert all(rows[name]["label"] == label for name, label in some.items())
        by_label = {label: {row["cluster"] for row in rows.values() if row["label"] == label}
                    for label in some.values()}  # fmt: skip
        assert all(len(one) == 1 for one in by_label.values())
        if not options:
            assert "known images" in about["cut_off_from"] and about["scores"]["ari"] > 0.9


def test_the_table_is_one_of_labels(photos: tuple[Embeddings, Path], tmp_path: Path) -> None:
    embeddings, folder = photos
    known = [f'"{embeddings.ids[0]}",ring']
    (tmp_path / "some.csv").write_text("\n".join(["file,label", *known]))
    found = vizsla.cluster(embeddings, known=tmp_path / "some.csv", out=tmp_path / "c.csv")
    images = ImageSet.from_folder(folder).with_labels_file(tmp_path / "c.csv")
    ring = {name for name, label in zip(images.ids, images.labels or [], strict=True) if label}
    assert ring == {*dict(found.groups())["ring"]} and embeddings.ids[0] in ring


def test_a_cut_off_is_learned_on_other_labelled_images(
    photos: tuple[Embeddings, Path], tmp_path: Path
) -> None:
    vectors, labels = things(40, seed=5)
    Embeddings.from_arrays(vectors, labels=labels).save(tmp_path / "training.emb")
    found = vizsla.cluster(photos[0], learn_on=tmp_path / "training.emb")
    assert found.cut_off.origin == f"learned on {len(labels)} labelled images"
    assert found.scores is not None and found.scores.ari > 0.9
    assert "Clusters:" in repr(found) and len(found) == len(found.groups())
    Embeddings.from_arrays(vectors).save(tmp_path / "bare.emb")
    with pytest.raises(DataError, match="has no labels"):
        vizsla.cluster(photos[0], learn_on=tmp_path / "bare.emb")


def test_an_index_and_embeddings_give_the_same_and_keep_the_graph(
    photos: tuple[Embeddings, Path], tmp_path: Path
) -> None:
    vizsla.build_index(photos[0], tmp_path / "photos.index")
    one, two = (vizsla.cluster(tmp_path / name) for name in ("photos.emb", "photos.index"))
    assert np.array_equal(one.clusters, two.clusters) and one.ids == two.ids
    assert list((tmp_path / "photos.emb").glob("graph-*.parquet"))


def test_the_gallery_of_a_run_is_clustered(tinted: Path, tmp_path: Path) -> None:
    done = vizsla.run(tinted, model="tiny", weights="random", image_size=32, home=tmp_path,
                      figures=0)  # fmt: skip
    found = vizsla.cluster(done.run.folder, html=tmp_path / "page.html")
    assert found.root is not None and len(found.ids) == 24
    assert (tmp_path / "page.html").read_text().count("data:image/webp") > 20


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"html": "page.html"}, UsageError, "give their folder with images=FOLDER"),
        ({"html": "page.html", "images": "gone", "out": "t.csv"}, UsageError, "gone is no folder"),
        ({"known": "other.csv"}, DataError, "label for none of the"),
        ({"method": "kmeans"}, UsageError, "choose one of graph, agglomerative, hdbscan"),
        ({"cut_off": -1}, UsageError, "choose 0 or more"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    photos: tuple[Embeddings, Path], tmp_path: Path, options: dict[str, Any], error: Any,
    words: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("file,label\nelsewhere.png,x\n")
    with pytest.raises(error, match=words):
        vizsla.cluster(photos[0], **options)
    assert not Path("t.csv").exists()  # what the page needs is asked for before the work
