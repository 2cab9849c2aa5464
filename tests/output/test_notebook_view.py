"""What nouns show of themselves: a short `repr`, HTML for notebooks, tables for pandas."""

import builtins
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import vizsla
from vizsla.data.data_folders import DataFolders, open_data
from vizsla.data.images import read_image
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, MissingExtraError, UsageError
from vizsla.notebook import LINES, Shown, Summary
from vizsla.score.compare import Comparison, read_results
from vizsla.score.paired_tests import Differences, compare_systems
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


@pytest.fixture(scope="module")
def data(tinted: Path) -> DataFolders:
    return open_data(tinted)


@pytest.fixture(scope="module")
def truth(tinted: Path) -> Truth:
    return Truth.from_file(tinted / "labels.csv")


def mean_colours(images: vizsla.ImageSet) -> Embeddings:
    vectors = [np.asarray(Image.open(images.path(i))).mean(axis=(0, 1)) for i in range(len(images))]
    found = Embeddings.from_arrays(np.array(vectors), images.ids, images.labels)
    return dataclasses.replace(found, root=images.folder)


@pytest.fixture(scope="module")
def ranking(data: DataFolders) -> Ranking:
    return vizsla.rank(mean_colours(data.query), mean_colours(data.gallery))


@pytest.fixture(scope="module")
def scores(ranking: Ranking, truth: Truth) -> Scores:
    return vizsla.evaluate(ranking, truth)


@pytest.fixture(scope="module")
def differences(ranking: Ranking, scores: Scores, truth: Truth) -> Differences:
    reversed_one = dataclasses.replace(ranking, positions=ranking.positions[:, ::-1], scores=None)
    return compare_systems({"<b>": scores, "reversed": vizsla.evaluate(reversed_one, truth)})


def html(noun: Any) -> str:
    text: str = noun._repr_html_()
    return text


def sources(text: str) -> list[str]:
    return re.findall(r'<img src="(data:image/webp;base64,[^"]+)"', text)


def test_a_repr_has_at_most_three_lines(
    data: DataFolders, truth: Truth, ranking: Ranking, scores: Scores, differences: Differences
) -> None:
    assert repr(data.query) == f"ImageSet: 16 images, in {data.query.root}"
    assert repr(data).startswith(f"Data in {data.folder}: 24 training, 16 query, 24 gallery")
    assert repr(truth) == "Truth: query 16 images of 4 classes, gallery 24 images of 4 classes"
    assert repr(ranking) == "Ranking: 16 queries, 24 ranks each, of 24 gallery images, model own"
    assert repr(scores).startswith(
        f"Scores: 16 queries, top-1 accuracy {scores.mean('top_k_accuracy@1'):.4f}"
    )
    for noun in (data, data.training, truth, ranking, scores, differences):
        assert isinstance(noun, Shown) and len(repr(noun).splitlines()) <= LINES


def test_a_summary_that_is_too_long_is_shortened() -> None:
    text = Summary("Many", [f"fact number {i}" for i in range(100)]).text()
    assert len(text.splitlines()) == 3 and text.endswith("…")


def test_images_show_their_counts_by_class_and_some_thumbnails(data: DataFolders) -> None:
    assert data.training is not None
    text = html(data.training)
    assert "24 images · 4 classes" in text and len(sources(text)) == 8
    assert "red &amp; &lt;b&gt;" in text and "red & <b>" not in text
    assert '<td class="">any</td><td class="number">6</td>' in text
    labels = [None, *(["common"] * 12), *(f"rare {i}" for i in range(11))]
    text = html(data.training.with_labels(labels))
    assert "1 without a label" in text and "… and 2 more classes" in text
    assert text.index(">common<") < text.index(">rare 0<")


def test_scores_show_their_intervals(scores: Scores) -> None:
    text, figure = html(scores), scores["map"]
    assert f"{figure.mean:.4f}" in text and f"[{figure.low:.4f}, {figure.high:.4f}]" in text


def test_a_ranking_shows_sheets_of_queries_spread_over_all(ranking: Ranking) -> None:
    text = html(ranking)
    assert len(sources(text)) == 3 and "<table" not in text
    without = dataclasses.replace(ranking, query_root=None)
    assert not sources(html(without)) and ranking.queries[0] in html(without).replace("<wbr>", "")
    moved = dataclasses.replace(ranking, gallery_root=Path("moved"))
    assert not sources(html(moved))


def test_what_is_made_of_images_knows_their_folder(tinted: Path, tmp_path: Path) -> None:
    images = open_data(tinted).query.subset(range(3))
    embedder = vizsla.Embedder.build("tiny", weights="random", image_size=32)
    vectors = vizsla.embed(images, embedder, tmp_path / "q.emb")
    assert vizsla.rank(vectors, vectors).head(2).query_root == images.root
    assert Embeddings.open(tmp_path / "q.emb").root is None


def test_show_draws_the_query_asked_for(ranking: Ranking, truth: Truth, tmp_path: Path) -> None:
    name = ranking.queries[5]
    plain = vizsla.show(ranking, query=name, k=2)
    framed = vizsla.show(ranking, query=name, k=2, truth=truth)
    assert len(plain.sheets) == len(framed.sheets) == 1
    assert plain.sheets[0].size[0] < vizsla.show(ranking, query=name).sheets[0].size[0]
    green = np.array([26, 127, 55])
    shown = [(np.asarray(view.sheets[0]) == green).all(axis=2).sum() for view in (plain, framed)]
    assert shown[0] == 0 and shown[1] > 100
    path = framed.save(tmp_path / "sheet.png")
    assert read_image(path).size == framed.sheets[0].size
    page = framed.save(tmp_path / "sheet.html").read_text()
    assert page.startswith("<!doctype html>") and len(sources(page)) == 1
    pair = vizsla.show(ranking, query=[name, ranking.queries[0]]).save(tmp_path / "pair.png")
    assert read_image(pair).height > read_image(path).height


def test_show_takes_the_images_of_a_ranking_from_elsewhere(
    ranking: Ranking, data: DataFolders
) -> None:
    bare = dataclasses.replace(ranking, query_root=None, gallery_root=None)
    for images in (data, (data.query, data.gallery), (str(data.query.root), data.gallery.root)):
        assert len(vizsla.show(bare, images=images).sheets) == 3
    with pytest.raises(UsageError, match="where are the images"):
        vizsla.show(bare, query=bare.queries[0])
    with pytest.raises(DataError, match="none of the 3 query images"):
        vizsla.show(bare, images=data.gallery)
    with pytest.raises(UsageError, match="images=7 is of type int"):
        vizsla.show(bare, images=7)  # type: ignore[arg-type]


def test_show_refuses_what_it_cannot_show(ranking: Ranking, scores: Scores, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no query 'x\.png'"):
        vizsla.show(ranking, query="x.png")
    with pytest.raises(UsageError, match="is of type dict"):
        vizsla.show({})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="for a Ranking, not Scores"):
        vizsla.show(scores, query="x.png")
    with pytest.raises(UsageError, match=r"end in \.html, as there are no sheets"):
        vizsla.show(scores).save(tmp_path / "scores.png")


def test_comparisons_show_their_verdicts(differences: Differences, tmp_path: Path) -> None:
    text = html(differences)
    assert "&lt;b&gt;" in text and "corrected for 2 comparisons" in text
    record = {"model_name": "resnet50", "pooling_type": "gap", "is_finetuned": False, "top_k": 5,
              "top_k_accuracy": 0.75, "precision_at_k": 0.5}  # fmt: skip
    (tmp_path / "a_metrics.json").write_text(
        str(record).replace("'", '"').replace("False", "false")
    )
    results = read_results([tmp_path])
    assert isinstance(results, Comparison) and repr(results) == "Comparison: 1 result"
    assert "resnet50" in html(results)
    assert results.to_pandas()["top_k_accuracy"].tolist() == [0.75]


def test_a_run_and_its_training_show_scores_candidates_and_sheets(
    tinted: Path, tmp_path: Path
) -> None:
    result = vizsla.run(
        tinted, model="tiny", weights="random", image_size=32, home=str(tmp_path),
        top_k=3, figures=2, finetune="head", epochs=1,
    )  # fmt: skip
    assert repr(result).startswith("Run: tiny, 16 queries, top-1 accuracy ")
    assert len(repr(result).splitlines()) <= LINES
    assert len(sources(html(result))) == 2 and "95 % interval" in html(result)
    assert result.tuned is not None and result.tuned.verdict in repr(result.tuned).replace(
        "\n", " "
    )
    assert all(candidate.name in html(result.tuned) for candidate in result.tuned.candidates)


def test_tables_for_pandas(
    data: DataFolders, ranking: Ranking, scores: Scores, differences: Differences
) -> None:
    per_query = scores.to_pandas()
    assert len(per_query) == len(scores)
    assert per_query["map"].mean() == pytest.approx(scores.mean("map"))
    assert per_query["query"].tolist() == scores.queries
    rows = dataclasses.replace(ranking.head(3), positions=np.array([[2, 1, -1]] * 16)).to_pandas()
    assert len(rows) == 32 and rows["rank"].tolist()[:2] == [1, 2]
    assert rows["gallery"].tolist()[:2] == [ranking.gallery[2], ranking.gallery[1]]
    images = data.training
    assert images is not None and images.to_pandas()["label"].tolist() == images.labels
    vectors = mean_colours(images).to_pandas()
    assert list(vectors) == ["id", "label", "vector"] and vectors["vector"][0].shape == (3,)
    assert differences.to_pandas()["verdict"].tolist() == [d.verdict for d in differences]


def test_an_unknown_metric_is_unknown_to_pandas_too() -> None:
    lists = {"q": ["a", "b"]}
    found = vizsla.evaluate(
        Ranking.from_lists(lists),
        Truth.from_lists(["q"], ["x"], ["a", "b"], ["x", "y"], gallery_complete=False),
    )
    assert found.mean("map") is None and found.to_pandas()["map"].isna().all()


def test_without_pandas_one_line_says_what_to_install(
    ranking: Ranking, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'vizsla\[pandas\]'"):
        ranking.to_pandas()


def test_nothing_to_show_is_no_error() -> None:
    empty = Ranking([], [], np.zeros((0, 0), np.int64))
    assert html(empty) and repr(empty) and len(empty.to_pandas()) == 0
    assert html(
        vizsla.ImageSet(Path("nowhere"), [], pa.table({"label": pa.array([], pa.string())}))
    )
