"""Matching points, the geometry that they agree on, and the re-ranking by it."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vizsla.data.regions import BOX_COLUMNS
from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.local_features import LocalFeatures, LocalSource, Sift, features_of
from vizsla.errors import DataError, ImageError, UsageError
from vizsla.search.chain import Refiner, SharedPairs, parse_chain, rank_refined
from vizsla.search.geometry import MODELS, RULES, geometry_of, mutual_matches, probability
from vizsla.search.verify import Features, features_of_both

cv2 = pytest.importorskip("cv2", reason="needs the extra local")
Scene = Callable[..., Image.Image]


def part_in_another(photo: Image.Image, host: Image.Image) -> Image.Image:
    """A crop of the photo at two thirds of its size, pasted into the host, as a bad JPEG."""
    made = host.copy()
    made.paste(photo.crop((40, 30, 200, 150)).resize((128, 96)), (60, 50))
    content = io.BytesIO()
    made.save(content, "JPEG", quality=60)
    return Image.open(content).convert("RGB")


# ── features ─────────────────────────────────────────────────────────────────────────────────────


def test_features_are_bounded_and_the_same_each_time(scene: Scene) -> None:
    large = scene(1, (900, 600))
    found = Sift(points=100, side=300)(large)
    assert found.size == (300, 200) and 50 < len(found) <= 100
    assert found.points.min() >= 0 and (found.points.max(axis=0) <= found.size).all()
    np.testing.assert_allclose(np.linalg.norm(found.unit, axis=1), 1, atol=1e-5)
    again = Sift(points=100, side=300)(large)
    assert found.to_bytes() == again.to_bytes()
    read = LocalFeatures.from_bytes(found.to_bytes())
    assert read.size == found.size
    np.testing.assert_array_equal(read.points, found.points)
    np.testing.assert_array_equal(read.descriptors, found.descriptors)


def test_an_image_of_one_colour_has_none_and_matches_nothing(scene: Scene) -> None:
    empty, other = Sift()(Image.new("RGB", (80, 60), "red")), Sift()(scene(1))
    assert len(empty) == 0 and len(LocalFeatures.from_bytes(empty.to_bytes())) == 0
    assert geometry_of(empty, other).probability == geometry_of(other, empty).probability == 0


def test_features_are_kept_by_id_and_vector(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    names = [f"{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        scene(i).save(tmp_path / "images" / name)
    vectors = Embeddings.from_arrays(np.eye(3), names, model_id="m")
    there = Embeddings(names, vectors.vectors, vectors.attributes, "m", root=tmp_path / "images")
    first = features_of(there, Sift(), tmp_path / "kept").of([2, 0, 2])
    assert first[0].to_bytes() == first[2].to_bytes() != first[1].to_bytes()
    kept = features_of(vectors, Sift(), tmp_path / "kept")  # its images are gone
    assert [f.to_bytes() for f in kept.of([2, 0])] == [f.to_bytes() for f in first[:2]]
    with pytest.raises(DataError, match=r"the image 1\.png is needed"):
        kept.of([1])
    other = Embeddings.from_arrays(np.eye(3)[[1, 2, 0]], names, model_id="m")
    with pytest.raises(DataError, match=r"the image 0\.png is needed"):
        features_of(other, Sift(), tmp_path / "kept").of([0])  # other vectors, so other images


def test_of_an_image_with_a_box_the_features_are_those_of_its_part(
    scene: Scene, tmp_path: Path
) -> None:
    scene(0).save(tmp_path / "a.png")
    box = (40.0, 30.0, 200.0, 160.0)
    columns = pa.table({name: [side] for name, side in zip(BOX_COLUMNS, box, strict=True)})
    there = Embeddings(["a.png"], np.eye(1, dtype=np.float32), columns, "m", root=tmp_path)
    (found,) = features_of(there, Sift()).of([0])
    assert found.to_bytes() == Sift()(scene(0).crop((40, 30, 200, 160))).to_bytes()


def test_an_image_that_cannot_be_read_has_no_features() -> None:
    def read(i: int) -> Image.Image:
        raise ImageError("broken")

    assert [len(f) for f in LocalSource(read, Sift()).of([0, 1])] == [0, 0]


# ── geometry ─────────────────────────────────────────────────────────────────────────────────────


def test_matches_are_mutual_and_clear() -> None:
    rows = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    size = (10, 10)
    a = LocalFeatures(np.zeros((3, 2), np.float32), rows, size, 1.0)
    b = LocalFeatures(np.zeros((3, 2), np.float32), rows[[1, 0, 0]], size, 1.0)
    at_a, at_b = mutual_matches(a, b)
    assert list(zip(at_a, at_b, strict=True)) == [(1, 0)]  # row 0 has two equally near ones


@pytest.mark.parametrize("model", MODELS)
def test_a_part_in_another_image_is_found_where_it_is(model: str, scene: Scene) -> None:
    photo, host = scene(1), scene(2)
    sift = Sift()
    found = geometry_of(sift(photo), sift(part_in_another(photo, host)), model)
    assert found.probability > 0.5 and found.matrix is not None and len(found.a) >= 10
    corner = found.matrix @ [40, 30, 1]  # of the crop, which lies at 60, 50 and is 0.8 as large
    np.testing.assert_allclose(corner[:2] / corner[2], [60, 50], atol=3)
    np.testing.assert_allclose(found.matrix[0, 0] / found.matrix[2, 2], 0.8, atol=0.03)
    assert geometry_of(sift(photo), sift(scene(3)), model).probability < 0.1


def test_a_mirrored_geometry_is_none(scene: Scene) -> None:
    found = Sift()(scene(1))
    points = (found.points * [-1, 1] + [240, 0]).astype(np.float32)
    mirrored = LocalFeatures(points, found.descriptors, found.size, found.reach)
    assert geometry_of(found, mirrored, "affine").matrix is None


@pytest.mark.parametrize("kind", RULES)
def test_more_evidence_never_lowers_the_probability(kind: str) -> None:
    low, rule = {"log inliers": 2.0, "inlier share": 0.3, "area": 0.1}, RULES[kind]
    assert set(low) == set(rule.weights)
    for name in low:
        assert probability({**low, name: low[name] + 0.5}, rule) >= probability(low, rule)
    most = {"log inliers": 5.0, "inlier share": 1.0, "area": 1.0}
    assert probability(most, rule) > 0.9


# ── re-ranking ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def embedded(scene: Scene, tmp_path: Path) -> tuple[Embeddings, Embeddings]:
    """Two queries that hold a part of g4 and g5, whose vectors are not the nearest ones."""
    rng = np.random.default_rng(0)
    sets = []
    for role, n in (("query", 2), ("gallery", 8)):
        folder = tmp_path / role
        folder.mkdir()
        names = [f"{role[0]}{i}.png" for i in range(n)]
        for i, name in enumerate(names):
            made = part_in_another(scene(4 + i), scene(90 + i)) if role == "query" else scene(i)
            made.save(folder / name)
        made_of = Embeddings.from_arrays(rng.random((n, 6)), names, model_id="m")
        sets.append(Embeddings(names, made_of.vectors, made_of.attributes, "m", root=folder))
    return sets[0], sets[1]


def test_verify_brings_the_right_image_to_the_top(embedded: tuple[Embeddings, Embeddings]) -> None:
    plain = rank_refined(*embedded, parse_chain("none"))
    assert [plain.row(i)[0] for i in (0, 1)] != ["g4.png", "g5.png"]
    found = rank_refined(*embedded, parse_chain("verify(n=8)"))
    assert [found.row(i)[0] for i in (0, 1)] == ["g4.png", "g5.png"]
    assert found.scores is not None and (np.diff(found.scores) <= 0).all()
    assert (found.scores[:, 0] > 0.5).all() and (found.scores[:, 1] < 0.6).all()
    again = rank_refined(*embedded, parse_chain("verify(n=8)"))
    np.testing.assert_array_equal(found.positions, again.positions)
    np.testing.assert_array_equal(found.scores, again.scores)


def test_draws_of_the_same_images_compare_each_pair_once(
    embedded: tuple[Embeddings, Embeddings],
) -> None:
    queries, gallery = embedded
    shared: SharedPairs = {}
    both = features_of_both(queries, gallery)
    orders = [np.arange(8), np.array([5, 1, 4, 7])]
    for order, compared in zip(orders, (16, 0), strict=True):

        def features(kind: str, order: np.ndarray = order) -> tuple[Features, Features]:
            of_queries, of_gallery = both(kind)
            return of_queries, lambda at: of_gallery(order[list(at)])

        vectors = queries.vectors, gallery.vectors[order]
        refiner = Refiner(
            *vectors, features=features, shared_pairs=shared, numbers=(np.arange(2), order)
        )
        alone = Refiner(*vectors, features=features)
        chain = parse_chain("verify(n=8)")
        for one, other in zip(
            refiner.top_k(chain, len(order)), alone.top_k(chain, len(order)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        assert [pairs.compared for pairs in refiner.pairs.values()] == [compared]


def test_verify_re_ranks_what_tiles_have_found(embedded: tuple[Embeddings, Embeddings]) -> None:
    queries, gallery = embedded
    tiles = Tiles.parse("2x1")
    vectors = np.repeat(gallery.vectors[:, None], 3, axis=1)
    tiled = replace(gallery, vectors=vectors[:, 0], tiles=tiles, tile_vectors=vectors)
    wanted = rank_refined(queries, gallery, parse_chain("verify(n=5)"))
    found = rank_refined(queries, tiled, parse_chain("verify(n=5)"))
    np.testing.assert_array_equal(found.positions, wanted.positions)
    assert found.best_tile is not None and (found.best_tile == 0).all()


def test_only_the_first_n_are_looked_at(embedded: tuple[Embeddings, Embeddings]) -> None:
    plain = rank_refined(*embedded, parse_chain("none"))
    place = plain.row(0).index("g4.png")
    assert place > 0
    found = rank_refined(*embedded, parse_chain(f"verify(n={place})"))
    assert found.row(0) == plain.row(0)
    found = rank_refined(*embedded, parse_chain(f"verify(n={place + 1})"), 3)
    assert found.row(0)[0] == "g4.png" and found.depth == 3


def test_verify_follows_another_ranking_and_uses_no_other_image(
    embedded: tuple[Embeddings, Embeddings],
) -> None:
    chain = parse_chain("kreciprocal(k1=3)+verify(n=8)")
    assert chain.uses == "queries" and parse_chain("verify", uses="nothing").uses == "nothing"
    before = rank_refined(*embedded, parse_chain("kreciprocal(k1=3)"))
    found = rank_refined(*embedded, chain)
    assert found.row(0)[0] == "g4.png"
    rest = [name for name in before.row(0) if name != "g4.png"]
    assert found.row(0)[1:] == rest


@pytest.mark.parametrize("text", ["verify+dba", "verify+verify", "kreciprocal+diffusion+verify"])
def test_verify_follows_at_most_one_ranking(text: str) -> None:
    with pytest.raises(UsageError, match=r"so it must be last|come once each"):
        parse_chain(text)


def test_verify_and_keep_follow_each_other(embedded: tuple[Embeddings, Embeddings]) -> None:
    plain = rank_refined(*embedded, parse_chain("none"))
    kept = rank_refined(*embedded, parse_chain("verify(n=8)+keep(n=1)"))
    assert kept.row(0)[:2] == [plain.row(0)[0], "g4.png"]
    last = rank_refined(*embedded, parse_chain("aqe(n=1)+keep(n=5)+verify(n=8)"))
    assert last.row(0)[0] == "g4.png" and parse_chain("verify+keep").uses == "nothing"


def test_its_options_are_words_and_numbers() -> None:
    chain = parse_chain("verify(n=20, model=Homography)")
    assert str(chain) == "verify(n=20,features=sift,model=homography,weight=0.5)"
    assert parse_chain(str(chain)) == chain
    for text, message in [
        ("verify(model=sphere)", "choose one of similarity, affine, homography"),
        ("verify(weight=0)", "weight=0"),
        ("verify(n=0)", "cannot have n=0"),
    ]:
        with pytest.raises(UsageError, match=message):
            parse_chain(text)


def test_one_set_leaves_out_the_query_itself(embedded: tuple[Embeddings, Embeddings]) -> None:
    _, gallery = embedded
    found = rank_refined(gallery, gallery, parse_chain("verify(n=7)"), same_set=True)
    assert all(name not in found.row(i) for i, name in enumerate(found.queries))
    assert features_of_both(gallery, gallery)("sift")[0]([0])[0].size == (240, 180)
