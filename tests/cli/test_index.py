"""index and search, as one types them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vizsla.cli.main import app
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.option_fields import byte_count
from vizsla.search.ranking import Ranking

TINY = ["--model", "tiny", "--weights", "random", "--image-size", "32"]


def vizsla(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def run_json(*words: object) -> dict[str, object]:
    result = vizsla(*words, "--json", "-q")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def embeddings(n: int, seed: int, prefix: str) -> Embeddings:
    vectors = np.random.default_rng(seed).standard_normal((n, 16))
    made = Embeddings.from_arrays(vectors, [f"{prefix}{i:03}" for i in range(n)], model_id="m")
    table = pa.table({"label": ["shoe" if i % 2 else "hat" for i in range(n)], "price": range(n)})
    return Embeddings(made.ids, made.vectors, table, "m")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    embeddings(200, 0, "g").save("gallery.emb")
    embeddings(20, 1, "n").save("new.emb")
    embeddings(3, 2, "q").save("query.emb")
    return tmp_path


def test_build_add_remove_info(here: Path) -> None:
    about = run_json("index", "gallery.emb", "-o", "i", "--kind", "exact")
    assert (about["kind"], about["images"], about["dim"]) == ("exact", 200, 16)
    assert run_json("index", "add", "i", "new.emb")["images"] == 220
    assert run_json("index", "add", "i", "new.emb", "--skip-known")["images"] == 220
    assert run_json("index", "remove", "i", "g000", "n001")["images"] == 218
    about = run_json("index", "remove", "i", "--filter", "label=hat", "--filter", "price<11")
    assert (about["removed_now"], about["images"]) == (5 + 6, 207)
    assert run_json("index", "info", "i", "--verify")["images"] == 207
    shown = vizsla("index", "info", "i").stdout
    assert "kind" in shown and "exact" in shown and "label, price" in shown


def test_an_approximate_index_tells_its_curve(here: Path) -> None:
    embeddings(1500, 3, "m").save("many.emb")
    about = run_json("index", "many.emb", "-o", "i", "--kind", "ivf", "--recall", "0.9",
                 "--sample", "query.emb")  # fmt: skip
    assert about["kind"] == "ivf" and about["target"] == 0.9 <= float(str(about["recall"]))
    curve = about["curve"]
    assert isinstance(curve, list) and [about["effort"], about["recall"]] in curve
    shown = vizsla("index", "info", "i").stdout
    assert vizsla("index", "i").stdout == shown  # with nothing to build
    assert f"{about['effort']}  {about['recall']:.4f}  ← chosen" in shown
    assert run_json("index", "rebuild", "i")["images"] == 1500
    small = run_json("index", "many.emb", "-o", "j", "--memory", "1MB")
    assert small["kind"] == "exact" and "1500 images when it was built" in str(small["chosen"])


@pytest.mark.parametrize(("text", "size"), [("500MB", 5 * 10**8), ("1.5 GiB", 3 * 2**29), ("7", 7)])
def test_amounts_of_memory(text: str, size: int) -> None:
    assert byte_count(text) == size


def test_search_prints_or_writes(here: Path) -> None:
    vizsla("index", "build", "gallery.emb", "-o", "i", "--store", "fp16")
    found = run_json("search", "i", "query.emb", "-o", "r.parquet")
    assert (found["ranking"], found["queries"], found["depth"]) == ("r.parquet", 3, 200)
    assert vizsla("search", "gallery.emb", "query.emb", "-k", "5", "-o", "e.parquet").exit_code == 0
    assert Ranking.load("r.parquet").head(5).to_lists() == Ranking.load("e.parquet").to_lists()
    listed = run_json("search", "gallery.emb", "query.emb", "--filter", "label=shoe", "-k", "4")
    rankings = listed["rankings"]
    assert isinstance(rankings, dict) and list(rankings) == ["q000", "q001", "q002"]
    assert [len(row) for row in rankings.values()] == [4, 4, 4]
    assert all(int(hit["id"][1:]) % 2 for row in rankings.values() for hit in row)
    shown = vizsla("search", "i", "query.emb", "-k", "2", "--filter", "label=shoe").stdout
    lines = shown.splitlines()
    assert lines[:2] == ["q000", "rank  score   image  label"] and len(lines) == 3 * 4 + 2
    assert (
        f"{rankings['q000'][0]['id']}   shoe" in lines[2] and rankings["q000"][0]["label"] == "shoe"
    )
    own = run_json("search", "i", "gallery.emb", "--same-set", "-k", "1")["rankings"]
    assert isinstance(own, dict) and all(row[0]["id"] != query for query, row in own.items())


def test_columns_that_added_images_lack_are_named(here: Path) -> None:
    vizsla("index", "gallery.emb", "-o", "i", "-q")
    bare = embeddings(3, 7, "b")
    Embeddings(bare.ids, bare.vectors, pa.table({"price": [1, 2, 3]}), "m").save("bare.emb")
    assert (
        "the new images have no label: --table FILE"
        in vizsla("index", "add", "i", "bare.emb").stderr
    )
    assert "the new images" not in vizsla("index", "add", "i", "new.emb").stderr
    with pytest.raises(DataError, match=r"already: .* or leave it out .*--skip-known"):
        vizsla("index", "add", "i", "new.emb")


def test_search_shows_columns(here: Path) -> None:
    words = ["search", "gallery.emb", "query.emb", "-k", "3"]
    by_price = ["--show", "price", "--show", "label"]
    rankings: Any = run_json(*words, *by_price)["rankings"]
    row = rankings["q000"][0]
    assert row["price"] == int(row["id"][1:]) and list(row) == ["id", "score", "price", "label"]
    written = vizsla(*words, *by_price, "--csv", "-q").stdout.splitlines()
    assert written[0] == "query,rank,id,score,price,label" and len(written) == 1 + 3 * 3
    assert written[1] == f"q000,1,{row['id']},{row['score']!r},{row['price']},{row['label']}"
    assert "rank  score   image  price  label" in vizsla(*words, *by_price, "-q").stdout
    every: Any = run_json(*words)["rankings"]  # JSON has all columns
    assert [{**one, "id": 0} for one in every["q000"]] == [{**r, "id": 0} for r in rankings["q000"]]
    assert "rank  score   image  label  price" in vizsla(*words, "--show", "all", "-q").stdout
    pairs: Any = run_json(*words, "--group-by", "label", "--per-group", "2")["rankings"]
    assert {one["label"] for one in pairs["q000"][0]["images"]} == {pairs["q000"][0]["label"]}
    other = embeddings(40, 5, "x")  # columns that a box also has are the images' own
    named = other.attributes.append_column("x", pa.array(range(40)))
    Embeddings(other.ids, other.vectors, named, "m").save("named.emb")
    by_x = ["search", "named.emb", "query.emb", "-k", "1", "--show", "x"]
    assert "rank  score   image  x" in vizsla(*by_x, "-q").stdout
    assert vizsla(*by_x, "--csv", "-q").stdout.splitlines()[0] == "query,rank,id,score,x"
    with pytest.raises(DataError, match="show colour: the images have the columns label, price"):
        vizsla(*words, "--show", "colour")
    with pytest.raises(UsageError, match="choose one"):
        vizsla(*words, "--csv", "--json")


@pytest.mark.parametrize("refine", [[], ["--refine", "aqe+kreciprocal"]])
def test_search_by_group(here: Path, refine: list[str]) -> None:
    words = ["search", "gallery.emb", "query.emb", *refine]
    every: Any = run_json(*words, "-k", "200")["rankings"]
    grouped = ["--group-by", "label", "--per-group", "2"]
    found: Any = run_json(*words, *grouped)["rankings"]
    for query, rows in found.items():
        best = {
            kind: [r for r in every[query] if r["label"] == kind][:2] for kind in ("shoe", "hat")
        }
        assert [row["label"] for row in rows] == sorted(best, key=lambda k: -best[k][0]["score"])
        for row in rows:
            expected = best[row["label"]]
            assert row["images"] == expected and row["id"] == expected[0]["id"]
    lines = vizsla(*words, *grouped, "-q").stdout.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("rank")]
    assert [line[:4].strip() for line in lines[heads[0] + 1 : heads[0] + 5]] == ["1", "", "2", ""]
    assert vizsla(*words, "--group-by", "label", "-o", "r.parquet", "-q").exit_code == 0
    assert Ranking.load("r.parquet").row(0) == [row["id"] for row in found["q000"]]
    varied: Any = run_json(*words, "--diverse", "0.1", "-k", "5")["rankings"]
    plain = [row["id"] for row in every["q000"][:5]]
    assert varied["q000"][0]["id"] == plain[0] and [r["id"] for r in varied["q000"]] != plain
    assert vizsla(*words, *grouped, "-o", "r.parquet", "-q").exit_code == 0
    kept = Ranking.load("r.parquet")
    assert kept.members is not None
    names = [[kept.gallery[p] for p in row if p >= 0] for row in kept.members[0]]
    assert names == [[image["id"] for image in row["images"]] for row in found["q000"]]
    with pytest.raises(DataError, match="no attribute 'colour'"):
        vizsla(*words, "--group-by", "colour")


def test_images_are_queries(tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gallery = tinted / "test/gallery"
    assert vizsla("embed", gallery, "-o", "g.emb", *TINY, "-q").exit_code == 0
    vizsla("index", "g.emb", "-o", "i")
    one, two = gallery / "g-blue-1.png", gallery / "g-green-3.png"
    listed = run_json("search", "i", one, two, *TINY, "-k", "1")["rankings"]
    assert isinstance(listed, dict)
    assert {Path(query).name: row[0]["id"] for query, row in listed.items()} == {
        one.name: one.name, two.name: two.name,
    }  # fmt: skip
    assert len(run_json("search", "i", tinted / "test/query", *TINY)["rankings"]) == 16  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the gallery was embedded by"):
        vizsla("search", "i", one, *TINY, "--seed", "1")
    with pytest.raises(UsageError, match="all be image files"):
        vizsla("search", "i", one, gallery, *TINY)


def test_an_index_remembers_its_model(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gallery, query = tinted / "test/gallery", tinted / "test/query"
    about = run_json("index", gallery, "-o", "g.index", *TINY)
    assert about["images"] == 24
    assert run_json("index", "add", "g.index", query)["images"] == 40
    both = shutil.copytree(query, tmp_path / "both")  # the known ones, and one that is new
    shutil.copy(next(Path(query).iterdir()), both / "new.png")
    added = vizsla("index", "add", "g.index", str(both), "--skip-known", "--json")
    assert json.loads(added.stdout)["images"] == 41
    with pytest.raises(DataError, match="holds all 17 images"):
        vizsla("index", "add", "g.index", str(both), "--skip-known")
    one = query / "q-blue-1.png"
    rankings = run_json("search", "g.index", one, "-k", "1")["rankings"]
    assert isinstance(rankings, dict) and rankings[str(one)][0]["id"] == one.name
    again = run_json("index", query, "-o", "g.index")  # the same model, that of the index replaced
    assert (again["images"], again["model_id"]) == (16, about["model_id"])
    with pytest.raises(DataError, match="there is nothing at nonesuch"):
        vizsla("search", "g.index", "nonesuch.jpg")
    with pytest.raises(DataError, match=r"nonesuch\.index does not exist: give a run, an index"):
        vizsla("search", "nonesuch.index", "photo.jpg")
    with pytest.raises(DataError, match="no file a red shoe, and tiny reads no text"):
        vizsla("search", "g.index", "a red shoe")


def test_an_index_and_its_model_may_be_moved_together(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Embedder.build("tiny", weights="random", image_size=32).save("model")
    run_json("index", tinted / "test/gallery", "-o", "g.index", "--model", "model")
    monkeypatch.chdir((tmp_path / "here").rename(tmp_path / "there"))
    found = run_json("search", "g.index", tinted / "test/query")
    assert len(found["rankings"]) == 16  # type: ignore[arg-type]


def test_an_index_whose_model_has_changed_says_so(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, one = Embedder.build("tiny", weights="random", image_size=32), tinted / "test/query"
    model.save("model")
    run_json("index", tinted / "test/gallery", "-o", "g.index", "--model", "model")
    assert len(run_json("search", "g.index", one)["rankings"]) == 16  # type: ignore[arg-type]
    Embedder.build("tiny", weights="random", image_size=32, seed=1).save("model")
    with pytest.raises(DataError, match=r"which it records, is now .* with --model"):
        vizsla("search", "g.index", one)
    with pytest.raises(UsageError, match="leave --model out"):
        vizsla("embed", one, "-o", "q.emb", *TINY)
        vizsla("index", "add", "g.index", "q.emb", *TINY)


def test_words_are_a_query(
    tiny_clip: str, tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vizsla("index", tinted / "test/gallery", "-o", "g.index", "--model", tiny_clip,
           "--weights", "random")  # fmt: skip
    rankings = run_json("search", "g.index", "a red shoe", "-k", "3")["rankings"]
    assert isinstance(rankings, dict) and [len(row) for row in rankings.values()] == [3]


def test_what_does_not_fit_is_said(here: Path) -> None:
    vizsla("index", "gallery.emb", "-o", "i")
    for words, error, message in [
        (["index", "nowhere", "-o", "j"], DataError, "nowhere does not exist"),
        (["index", "gallery.emb", "-o", "new.emb"], DataError, "other things"),
        (["index", "gallery.emb", "-o", "j", "--kind", "magic"], UsageError, "choose one of"),
        (["index", "gallery.emb", "-o", "j", "--memory", "much"], UsageError, "amount of memory"),
        (["index", "gallery.emb", "-o", "j", "--recall", "99"], UsageError, "a share"),
        (["index", "info", "new.emb"], DataError, "no index"),
        (["index", "add", "i", "gallery.emb"], DataError, "already"),
        (["index", "remove", "i"], UsageError, "which images"),
        (["index", "remove", "i", "nobody"], DataError, "no 'nobody'"),
        (["search", "i", "query.emb", "-k", "201"], DataError, "choose k from 1 to 200"),
        (["search", "i", "query.emb", "--filter", "colour=red"], DataError, "no attribute"),
        (["search", "i", "query.emb", "--filter", "colour"], UsageError, "not a condition"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            vizsla(*words)


@pytest.mark.parametrize("command", ["build", "add", "remove", "rebuild", "info"])
def test_help_has_an_example(command: str) -> None:
    result = vizsla("index", command, "--help")
    assert "Example: vizsla index" in " ".join(result.stdout.split())


def test_a_table_of_labels_gives_numbers_to_filter_by(
    tmp_path: Path, paint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prices = [5, 9, 10, 25, 100, 1200]
    for i in range(len(prices)):
        paint(f"images/{i}.png", (40 * i, 10, 200))
    rows = [f"{9 - i},{i}.png,shoe,{price},2026-01-{i + 1:02}" for i, price in enumerate(prices)]
    Path("l.csv").write_text("\n".join(["id,file,label,price,day", *rows]))
    assert vizsla("embed", "images", "--labels", "l.csv", "-o", "g.emb", *TINY, "-q").exit_code == 0
    about: Any = run_json("index", "g.emb", "-o", "i")
    assert {*about["attributes"]} == {"label", "price", "day"}
    found = run_json("search", "i", "g.emb", "--filter", "price<50", "--filter", "day>2026-01-01")
    rankings: Any = found["rankings"]
    assert {hit["id"] for hit in rankings["0.png"]} == {"1.png", "2.png", "3.png"}
    assert run_json("index", "remove", "i", "--filter", "price<11")["removed_now"] == 3
    with pytest.raises(DataError, match="label holds text, such as 'shoe'"):
        vizsla("search", "i", "g.emb", "--filter", "label<x")
    Path("products.csv").write_text("file,product\n0.png,P1\n2.png,P1\n5.png,P2\n")
    table = ["products.csv", "--root", "images"]
    assert vizsla("embed", *table, "-o", "p.emb", *TINY, "-q").exit_code == 0
    about = run_json("index", *table, "-o", "p", *TINY)
    assert about["images"] == 3 and about["attributes"] == ["product"]
    found = run_json("search", "p", "p.emb", "--group-by", "product")["rankings"]
    assert [row["product"] for row in found["0.png"]] == ["P1", "P2"]
    some = ["embed", "images", "--table", "products.csv", "-o", "s.emb", *TINY, "-q"]
    assert vizsla(*some).exit_code == 0
    found = run_json("search", "s.emb", "p.emb", "--show", "product", "-k", "6")["rankings"]
    known = {row["id"]: row["product"] for row in found["0.png"]}
    assert known == {f"{i}.png": {0: "P1", 2: "P1", 5: "P2"}.get(i) for i in range(6)}
    with pytest.raises(UsageError, match="images is none"):
        vizsla("embed", "images", "--root", "images", "-o", "t.emb", *TINY)
    Path("others.csv").write_text("file,product\nx.png,P1\n")
    with pytest.raises(DataError, match="names none of the 6 images"):
        vizsla("embed", "images", "--labels", "others.csv", "-o", "t.emb", *TINY)
    Path("none.csv").write_text("file,path,label\nx.png,0.png,a\n")
    with pytest.raises(DataError, match=r"column file\) has a label for none of the 6 images"):
        vizsla("embed", "images", "--labels", "none.csv", "-o", "h.emb", *TINY, "-q")


def test_ids_to_remove_come_from_any_list(here: Path) -> None:
    run_json("index", "gallery.emb", "-o", "i", "--kind", "exact")
    for number, encoding in enumerate(("utf-8-sig", "utf-16")):
        Path("names.txt").write_bytes(f"g00{number}\r\ng01{number}\r\n".encode(encoding))
        assert run_json("index", "remove", "i", "--filter", "id=@names.txt")["removed_now"] == 2
    Path("names.txt").write_text("g005\nnosuch\n")
    with pytest.raises(DataError, match="holds no 'nosuch': nothing was removed"):
        vizsla("index", "remove", "i", "--filter", "id=@names.txt")
    assert run_json("index", "info", "i")["images"] == 196


def test_an_exclude_list_names_literally_first(
    tmp_path: Path,
    paint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("e/a.png", "e/e/a.png", "e/c.png"):
        paint(name, (10, 20, 30))
    Path("out.txt").write_text("e/a.png\nquery/x.png\nnosuch.png\n")
    vizsla("embed", "e", "--exclude", "out.txt", "-o", "e.emb", *TINY)
    assert Embeddings.open("e.emb").ids == ["a.png", "c.png"]
    assert "1 of 3 names are not images here and exclude nothing: nosuch.png" in caplog.text


def test_the_part_of_an_image_that_was_found_is_printed(
    paint: Callable[..., Path], tmp_path: Path
) -> None:
    paint("g/plain.png", (90, 90, 90))
    Image.new("RGB", (96, 96), (90, 90, 90)).save(tmp_path / "g" / "corner.png")
    with Image.open(tmp_path / "g" / "corner.png") as image:
        image.paste((220, 20, 20), (32, 32, 96, 96))
        image.save(tmp_path / "g" / "corner.png")
    query = paint("q.png", (220, 20, 20))
    vizsla("embed", tmp_path / "g", *TINY, "--tiles", "2x2", "-o", tmp_path / "e", "-q")
    for gallery in ("e", "i"):
        if gallery == "i":
            vizsla("index", tmp_path / "e", "-o", tmp_path / "i", "-q")
        found = run_json("search", tmp_path / gallery, query)["rankings"]
        assert isinstance(found, dict)
        ((best, *_),) = found.values()
        box = [best[name] for name in "xywh"]
        assert best["id"] == "corner.png" and box == pytest.approx([4 / 9, 4 / 9, 5 / 9, 5 / 9])
    shown = vizsla("search", tmp_path / "i", query, "-q")
    assert "part x,y,w,h" in shown.stdout and "0.44,0.44,0.56,0.56" in shown.stdout
    lines = vizsla("search", tmp_path / "i", query, "--csv", "-q").stdout.splitlines()
    assert lines[0] == "query,rank,id,score,x,y,w,h" and lines[1].endswith("0.5555555555555556")
