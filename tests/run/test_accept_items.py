"""--accept for a gallery with several pictures of an item, and nothing else to learn from."""

import dataclasses
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import vizsla
from vizsla.cli.main import app
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.run.accept_items import calibration_of_items
from vizsla.run.accepting import Accept

ITEMS = 200


def pictures(items: np.ndarray, seed: int) -> np.ndarray:
    """(N, 24) unit vectors: the item's own direction, and what differs between its pictures."""
    rng = np.random.default_rng(seed)
    own = np.random.default_rng(0).normal(size=(2 * ITEMS, 24))
    spread = rng.choice([0.3, 1.2], size=(len(items), 1))  # some pictures are hard to know again
    rows = own[items] + spread * rng.normal(size=(len(items), 24))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def catalogue() -> Embeddings:
    """Two or three pictures of each of 150 items, one of 50 others."""
    counts = [*([2, 3] * 75), *([1] * 50)]
    items = np.repeat(np.arange(ITEMS), counts)
    table = pa.table({"sku": [f"S{i}" for i in items], "price": np.arange(len(items)) % 7})
    names = [f"{i:04}.jpg" for i in range(len(items))]
    return Embeddings(names, pictures(items, 1), table, "m")


def test_what_is_accepted_is_right_as_often_as_asked_for(
    catalogue: Embeddings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wanted = np.arange(2 * ITEMS)  # half of them are no item of the catalogue
    queries = Embeddings([f"q{i}" for i in wanted], pictures(wanted, 2), pa.table({}), "m")
    ranking = vizsla.search(catalogue, queries, accept=0.8, top_k=10)
    assert ranking.accepted is not None
    answered = np.flatnonzero(ranking.accepted)
    shares = [
        np.mean([one["sku"] == f"S{i}" for one in ranking.results(i) if one["accepted"]])
        for i in answered
    ]
    assert np.mean(shares) >= 0.8 and len(answered) >= ITEMS / 4
    known = (ranking.accepted[:ITEMS] > 0).mean()
    assert known > 2 * (ranking.accepted[ITEMS:] > 0).mean()
    assert any("by sku: accepted from an estimate of" in text for text in caplog.messages)


def test_it_is_learned_by_the_command_from_an_index(catalogue: Embeddings, tmp_path: Path) -> None:
    catalogue.save(tmp_path / "all.emb")
    catalogue.subset([3]).save(tmp_path / "query.emb")
    where = str(tmp_path / "all.index")
    assert CliRunner().invoke(app, ["index", str(tmp_path / "all.emb"), "-o", where]).exit_code == 0
    words = ["search", where, str(tmp_path / "query.emb"), "-k", "4", "-q"]
    shown = CliRunner().invoke(app, [*words, "--accept", "0.8", "--show", "sku"]).stdout
    assert "accepted up to here" in shown and shown.index(" S1") < shown.index("accepted up to")
    by_other = CliRunner().invoke(app, [*words, "--accept", "0.8", "--group-by", "price"])
    assert by_other.exit_code == 0 and "none of these is accepted" in by_other.stdout


def test_copies_between_items_are_named_where_they_leave_nothing_to_accept(
    catalogue: Embeddings, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = catalogue.vectors.copy()
    vectors[-8:] = vectors[:8]  # those of eight other items
    copied = Embeddings(catalogue.ids, vectors, catalogue.attributes, "m")
    assert calibration_of_items(copied, Accept.parse(0.9)).cutoff is None
    (line,) = caplog.messages
    assert re.search(
        r"similar images of different items are 000\d.jpg and 04\d\d.jpg \(1.00\)", line
    )
    assert "--group-by sku" in line


def test_what_it_cannot_learn_from_is_said(catalogue: Embeddings) -> None:
    accept = Accept.parse(0.8)

    def with_columns(**columns: list[object]) -> Embeddings:
        return Embeddings(catalogue.ids, catalogue.vectors, pa.table(columns), "m")

    n = len(catalogue)
    with pytest.raises(UsageError, match=r"label, or one of .*; the gallery has only price\. Name"):
        calibration_of_items(with_columns(price=[1] * n), accept)
    with pytest.raises(UsageError, match="the gallery came without a table"):
        calibration_of_items(with_columns(), accept)
    with pytest.raises(DataError, match="no attribute 'product': it has sku, price"):
        calibration_of_items(catalogue, accept, column="product")
    alone = with_columns(label=[str(max(i, 3)) for i in range(n)])
    with pytest.raises(DataError, match=r"and 1 of the \d+ in the gallery have so many"):
        calibration_of_items(alone, accept)
    half = calibration_of_items(
        with_columns(sku=[None if i % 4 == 3 else f"S{i // 4}" for i in range(n)]), accept
    )
    assert half.queries <= 3 * n / 4 + 1


def test_a_class_has_its_own_cutoff_where_the_gallery_names_it(
    catalogue: Embeddings, tmp_path: Path
) -> None:
    kind = ["odd" if i % 2 else "plain" for i in range(len(catalogue.ids))]
    gallery = dataclasses.replace(
        catalogue, attributes=catalogue.attributes.append_column("kind", pa.array(kind))
    )
    learned = calibration_of_items(catalogue, Accept.parse(0.8))
    assert learned.class_column == "sku" and learned.cutoff is not None
    never = tuple(dataclasses.replace(level, lower=0.0, upper=0.2) for level in learned.levels)
    odd = dataclasses.replace(learned, of_classes=(("odd", never),), class_column="kind")
    plain = vizsla.search(gallery, catalogue, top_k=10)
    kinds = np.array([plain.results(i)[0]["kind"] for i in range(len(plain))])
    for name, calibration in (("none", learned), ("odd", odd)):
        calibration.save(tmp_path / name)
        decided = vizsla.search(gallery, catalogue, top_k=10, accept=str(tmp_path / name))
        assert decided.accepted is not None
        assert (decided.accepted[kinds == "plain"] > 0).any()
        assert (decided.accepted[kinds == "odd"] > 0).any() == (name == "none")
