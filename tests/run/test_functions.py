"""The commands as functions of Python: their arguments, what they return, and in how few lines."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import vizsla
from vizsla.cli.index import SearchCommand
from vizsla.cli.run import SeveralModels
from vizsla.errors import DataError, UsageError
from vizsla.notebook import LINES
from vizsla.option_fields import flag_of, options_of
from vizsla.options import CheckOptions, FusionOptions, RunOptions, TuneConfig
from vizsla.workspace import open_run

ROOT = Path(__file__).parents[2]
NAMED: dict[str, Any] = {"weights": "random", "image_size": 32}
TINY: dict[str, Any] = {"model": "tiny", **NAMED}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tinted: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(tinted)
    return tmp_path


def snippets() -> dict[str, str]:
    """Heading → code, of docs/api.md."""
    text = (ROOT / "docs/api.md").read_text().split("\n**")
    return {
        part.split("**")[0]: part.split("```python\n")[1].split("```")[0]
        for part in text
        if "```python" in part.split("\n## ")[0]
    }


@pytest.mark.parametrize(
    ("heading", "lines"),
    [
        ("Rank, score, draw and submit", 8),
        ("A network of your own", 3),
        ("Vectors of your own", 2),
        ("Search one image in an index", 2),
        ("Among images with a label", 1),
        ("With the columns of its table", 2),
    ],
)
def test_it_takes_few_lines(
    heading: str, lines: int, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    known = snippets()
    labelled = vizsla.open_data("data").gallery.with_labels_file("data/labels.csv", "gallery")
    Image.open("data/test/query/q-blue-1.png").save("photo.jpg")
    model = vizsla.Embedder.build("tiny", weights="random", image_size=32)
    vizsla.build_index(vizsla.embed(labelled, model), "gallery.index")
    transform = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
    rng = np.random.default_rng(0)
    space: dict[str, Any] = {
        "vizsla": vizsla, "net": model.backbone.network, "transform": transform,
        "queries": rng.normal(size=(4, 8)), "gallery": rng.normal(size=(9, 8)),
        "query_labels": list("abab"), "gallery_labels": list("abcabcabc"),
    }  # fmt: skip
    if heading in ("Among images with a label", "With the columns of its table"):
        exec(known["Search one image in an index"], space)
        capsys.readouterr()
    code = [line for line in known[heading].splitlines() if line and line != "import vizsla"]
    assert len(code) <= lines
    exec("\n".join(code), space)
    printed = capsys.readouterr().out
    if heading in ("Rank, score, draw and submit", "A network of your own", "Vectors of your own"):
        assert "mAP" in printed
    if heading == "Rank, score, draw and submit":
        assert list(here.glob("submissions/*.json")) and list(here.glob("visualizations/*/*.png"))
    if heading == "Search one image in an index":
        assert "g-" in printed
    if heading == "Among images with a label":
        assert printed.count("g-green") == printed.count(".png") > 0
    if heading == "With the columns of its table":
        found = [line.split() for line in printed.splitlines()]
        assert len(found) == 5 and all(label in name for name, _, label in found)


def test_arguments_have_the_names_of_the_flags() -> None:
    def takes(function: Any, *classes: type) -> None:
        known = inspect.signature(function).parameters
        named = {*known, "json", "quiet", "verbose"}
        missing = {
            name
            for cls in classes
            for name, (about, _, _) in options_of(cls).items()
            for flags in [about.flags or (flag_of(name, about),)]
            if not named & {flag.lstrip("-").replace("-", "_") for flag in flags}
        }
        assert missing == set(), function.__name__

    takes(vizsla.run, RunOptions, FusionOptions, TuneConfig, SeveralModels)
    takes(vizsla.check, CheckOptions)
    assert {"metric", "pairs", "group", "cluster"} <= set(
        inspect.signature(vizsla.compare).parameters
    )
    found = set(options_of(SearchCommand)) - {
        "out",
        "as_json",
        "as_csv",
        "show",
        "quiet",
        "verbose",
    }
    assert found <= set(inspect.signature(vizsla.search).parameters)
    for function in (vizsla.run, vizsla.train, vizsla.embed, vizsla.search, vizsla.check):
        assert function.__doc__ is not None
        for name in inspect.signature(function).parameters:
            assert f"\n{name}: " in function.__doc__
        assert "--" not in function.__doc__ and "DESIGN" not in function.__doc__


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vizsla.run("data", topk=5), r"run has no argument 'topk'. Similar: top_k"),  # type: ignore[call-arg]
        (lambda: vizsla.run("data", top_k="5"), r"top_k='5' is of type str: expected int"),  # type: ignore[arg-type]
        (lambda: vizsla.run("data", top_k=0), "top_k=0: choose 1 or more"),
        (lambda: vizsla.run("data", model=5), "model is of type int: expected"),
        (lambda: vizsla.run("data", weights=["a", "b"]), "2 weights for 1 model"),
        (lambda: vizsla.run("data", fusion="rrf"), "joins several models"),
        (lambda: vizsla.run("data", epochs=3), "epochs: options of training need finetune"),
        (lambda: vizsla.run("data", budget="90"), "budget=90 has no unit"),
        (lambda: vizsla.run(), "run needs data"),
        (lambda: vizsla.train("data"), "missing a required argument: 'out'"),  # type: ignore[call-arg]
        (lambda: vizsla.embed(5), "images=5 is of type int"),  # type: ignore[arg-type]
        (lambda: vizsla.embed("data/test/query", 5), "embedder=5 is of type int"),  # type: ignore[arg-type]
        (lambda: vizsla.embed(np.zeros((9, 9, 9))), "^images is of type ndarray: expected str"),  # type: ignore[arg-type]
        (lambda: vizsla.search("g", "a.jpg", filter=5), "filter=5 .* expected str or a list of"),  # type: ignore[arg-type]
        (lambda: vizsla.rank(np.eye(2), np.eye(2), k="2"), "k='2' is of type str: expected int"),  # type: ignore[arg-type]
        (lambda: vizsla.search(5, "a.jpg"), "gallery is of type int: expected an index"),
        (lambda: vizsla.compare(5), "sources is of type int"),
    ],
)
def test_a_wrong_argument_is_named(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call()


def test_embed_takes_a_folder_and_needs_no_place(here: Path) -> None:
    found = vizsla.embed("data/test/query", vizsla.Embedder.build("tiny", **NAMED))
    assert len(found) == 16 and sorted(path.name for path in here.iterdir()) == ["data"]
    labelled = vizsla.embed(
        "data/training", vizsla.Embedder.build("tiny", **NAMED), "t.emb", class_folders=True,
        store="fp16",
    )  # fmt: skip
    assert labelled.labels is not None and set(labelled.labels) >= {"green", "blue"}
    with pytest.raises(UsageError, match="class_folders: for a folder"):
        vizsla.embed(vizsla.open_data("data").query, class_folders=True)


def test_run_train_search_report_and_compare_follow_each_other(here: Path) -> None:
    tuned = vizsla.train("data", "tuned", finetune="head", epochs=1, **TINY)
    assert len(repr(tuned).splitlines()) <= LINES
    again = vizsla.train("data", "tuned", finetune="head", epochs=1, **TINY)
    assert again.record() == tuned.record()  # it was finished: nothing is trained
    one = vizsla.run("data", model="tuned/embedder", top_k=3, figures=0)
    assert (one.record["validation"] is not None) == tuned.is_improved  # what training measured
    two = vizsla.run("data", top_k=3, figures=0, **TINY)
    for noun in (one, one.ranking, one.scores, vizsla.open_data("data")):
        assert len(repr(noun).splitlines()) <= LINES
    table = vizsla.compare([one.run.folder, two.run.folder], metric="top-1")
    assert len(table.rows) == 2 and two.run.id in table.text()
    assert len(repr(table).splitlines()) <= LINES
    assert one.scores is not None and two.scores is not None
    named = vizsla.compare({"a": one.scores, "b": two.scores})
    assert {row.run for row in named.rows} == {"a", "b"}
    pairs = vizsla.compare([one.run.folder, two.run.folder], pairs=True).pairs
    assert pairs is not None and {pairs[0].a, pairs[0].b} == {one.run.id, two.run.id}
    means = vizsla.compare("results", group="top_k").averages
    assert means is not None and means.records()[0]["runs"] == 2
    assert "A − B" in vizsla.compare({"a": one.scores, "b": two.scores}, pairs=True).text()
    with pytest.raises(UsageError, match="group averages result files"):
        vizsla.compare({"a": one.scores, "b": two.scores}, group="model_name")
    with pytest.raises(UsageError, match=r"^pairs compares query by query, and 1 of 1"):
        vizsla.compare({"a": one.scores}, pairs=True)
    ranking = vizsla.search(two.run.folder, "data/test/gallery/g-blue-1.png", top_k=2)
    assert ranking.row(0)[0] == "g-blue-1.png"
    assert vizsla.report(two.run.folder, "r.html", map="pca").stat().st_size > 10_000
    repeated = vizsla.run(again=two.run.folder, figures=0)
    assert repeated.ranking.to_lists() == two.ranking.to_lists()
    with pytest.raises(UsageError, match="again repeats a run as it was: leave out top_k"):
        vizsla.run(again=two.run.folder, top_k=2)


def test_several_models_and_options_of_training_are_given_as_flags_are(here: Path) -> None:
    done = vizsla.run(
        "data", model=["tiny", "tiny"], weights="random", image_size=32, fusion="rrf", figures=0,
        top_k=3,
    )  # fmt: skip
    assert len(done.members) == 2
    tuned = vizsla.run("data", finetune="head", epochs=1, training_batch_size=8, figures=0, **TINY)
    assert tuned.tuned is not None and tuned.record["validation"]["chosen"] == "training"
    validated = tuned.tuned.kept.means["map"]
    assert tuned.record["validation"]["map"] == pytest.approx(validated, abs=1e-6)
    recorded = open_run(tuned.run.folder).config["options"]
    assert recorded["tuning"]["batch_size"] == 8 and recorded["tuning"]["epochs"] == 1.0


def test_check_finds_what_the_command_finds(here: Path) -> None:
    found = vizsla.check("data", html="check.html", write_exclude="exclude.txt")
    assert "gallery" in found.text() and (here / "check.html").is_file()
    assert (here / "exclude.txt").is_file()
    with pytest.raises(DataError, match="nonesuch"):
        vizsla.check("nonesuch")


def test_search_refines_and_filters(here: Path) -> None:
    embedder = vizsla.Embedder.build("tiny", **NAMED)
    gallery = vizsla.embed(
        vizsla.open_data("data").gallery.with_labels_file("data/labels.csv", "gallery"), embedder
    )
    queries = vizsla.embed("data/test/query", embedder)
    found = vizsla.search(gallery, queries, top_k=4, refine="aqe", filter="label=green")
    assert found.origin["refine"] and all("green" in name for name in found.row(0))
    own = vizsla.search(gallery, Image.open("data/test/gallery/g-blue-1.png"), top_k=1,
                        model=embedder)  # fmt: skip
    assert own.row(0) == ["g-blue-1.png"]


def test_vectors_of_ones_own_are_ranked() -> None:
    rng = np.random.default_rng(0)
    ranking = vizsla.rank(rng.normal(size=(3, 5)), torch.tensor(rng.normal(size=(7, 5))), 2)
    assert ranking.depth == 2 and len(ranking) == 3


def test_search_is_a_function_after_its_package_is_imported() -> None:
    import vizsla.search.exact
    import vizsla.search.index

    assert callable(vizsla.search) and callable(vizsla.run) and callable(vizsla.embed)


def test_embed_adds_columns_of_exif_on_request(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[271], exif[272] = "Canon", "R5"
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/a.jpg", exif=exif)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/b.jpg")
    embedder = vizsla.Embedder.build("tiny", **NAMED)
    found = vizsla.embed(tmp_path / "photos", embedder, exif=True)
    assert found.attributes["camera"].to_pylist() == ["Canon R5", None]
    assert "camera" not in vizsla.embed("photos", embedder).attributes.column_names


def test_results_have_columns() -> None:
    table = vizsla.open_data("data").gallery.with_labels_file("data/labels.csv", "gallery")
    model = vizsla.Embedder.build("tiny", weights="random", image_size=32)
    images = vizsla.embed(table, model)
    prices = list(range(len(table)))
    columns = images.attributes.append_column("price", [prices])
    images = replace(images, attributes=columns.append_column("score", [prices]))
    index = vizsla.build_index(images, "all.index")
    query = "data/test/query/q-blue-1.png"
    ranking = index.search(query, 3)
    (found,) = ranking
    assert found == ranking.results(0) and [one["id"] for one in found] == ranking.row(0)
    first = found[0]
    assert first["label"] == "blue" and first["price"] == index.ids.index(first["id"])
    assert first["score"] == ranking.scores[0, 0]  # type: ignore[index]
    frame = ranking.to_pandas()
    assert list(frame.columns)[:4] == ["query", "rank", "gallery", "score"]
    assert frame["price"].tolist() == [one["price"] for one in found]
    index.remove([first["id"]])  # the ranking is of the state that was searched
    assert ranking.results(0) == found
    shown = vizsla.search(images, query, show="price", top_k=1, model=model).results(0)
    assert shown[0].keys() == {"id", "score", "price"}
    with pytest.raises(DataError, match="no attribute 'cost': it has label, price"):
        vizsla.search(images, query, show="cost", model=model)
    assert index.search(query, 2, group_by="label").results(0)[0]["label"] == "blue"


def test_an_option_with_two_flags_has_both_names() -> None:
    model = vizsla.Embedder.build("tiny", weights="random", image_size=32)
    for name in ("table", "labels"):
        given: Any = {name: "data/labels.csv"}
        found = vizsla.embed("data/test/gallery", model, role="gallery", **given)
        assert found.labels is not None and "blue" in found.labels
