"""Submissions: what is written can be read, what is wrong is refused and named."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.errors import DataError, StorageError, UsageError
from vizsla.output.submission import (
    check_submission,
    read_submission,
    submission_sha256,
    write_submission,
)
from vizsla.output.submission_formats import FORMATS, parse_json
from vizsla.score.relevance import relevance
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

LISTS = {"b.jpg": ["x.jpg", "a b.jpg", "b.jpg"], "a/ü.jpg": ["b.jpg", 'say "hi", x.jpg', "x.jpg"]}
GALLERY = {"x.jpg", "a b.jpg", "b.jpg", 'say "hi", x.jpg'}

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
lists = st.dictionaries(
    names, st.lists(names, min_size=2, max_size=2, unique=True), min_size=1, max_size=4
)


# ── there and back ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_comes_back_as_it_was(form: str, tmp_path: Path) -> None:
    path = tmp_path / "sub"
    write_submission(LISTS, path, k=3, queries=["a/ü.jpg", "b.jpg"], gallery=GALLERY, format=form)
    for read_as in ("auto", form):
        ranking = read_submission(path, read_as)
        assert ranking.to_lists() == LISTS
        assert ranking.queries == ["a/ü.jpg", "b.jpg"]  # the image set's order, not the dict's
        assert ranking.gallery_size is None
        assert ranking.scores is None


@given(content=lists, form=st.sampled_from(sorted(FORMATS)))
def test_any_name_survives_any_form(content: dict[str, list[str]], form: str) -> None:
    one = FORMATS[form]
    assert one.decoded(*one.read(one.write(content, None)), ()) == (content, None)


def test_the_contests_own_form(tmp_path: Path) -> None:
    path = tmp_path / "sub.json"
    write_submission({"q.jpg": ["é.jpg", "a.jpg"]}, path, k=2)
    assert path.read_bytes() == '{\n  "q.jpg": [\n    "é.jpg",\n    "a.jpg"\n  ]\n}\n'.encode()


def test_trec_lines_and_kaggle_lines_by_hand() -> None:
    content = {"q 1.jpg": ["g 1.jpg", "50%.jpg", "a%20b.jpg"]}
    assert FORMATS["trec"].write(content, None).splitlines() == [
        "q%201.jpg Q0 g%201.jpg 1 3 vizsla-order",
        "q%201.jpg Q0 50%.jpg 2 2 vizsla-order",
        "q%201.jpg Q0 a%2520b.jpg 3 1 vizsla-order",
    ]
    assert FORMATS["kaggle"].write(content, None).splitlines() == [
        "id,images",
        "q 1.jpg,g%201.jpg 50%.jpg a%2520b.jpg",
    ]


def test_trec_keeps_scores_and_breaks_ties_by_our_order(tmp_path: Path) -> None:
    tied = Ranking.from_lists({"q": ["b", "a", "c"]}, {"q": [0.5, 0.5, -0.25]})
    write_submission(tied, tmp_path / "run", k=3, format="trec")
    back = read_submission(tmp_path / "run")
    assert back.row(0) == ["b", "a", "c"]
    assert back.scores is not None
    np.testing.assert_allclose(back.scores[0], [0.5, 0.5, -0.25], atol=1e-6)
    written = [np.float32(line.split()[4]) for line in (tmp_path / "run").read_text().splitlines()]
    assert written[0] > written[1] > written[2]  # also for a reader in single precision


def test_trec_is_sorted_by_score_whatever_the_lines_say(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q 0 low 1 0.1 x\np 0 z 1 1 x\nq 0 high 2 9e-1 x\n")
    assert read_submission(tmp_path / "run").to_lists() == {"q": ["high", "low"], "p": ["z"]}


def test_a_ranking_is_cut_to_k_but_lists_must_have_k(tmp_path: Path) -> None:
    deep = Ranking.from_lists({"q": ["a", "b", "c"]})
    write_submission(deep, tmp_path / "s", k=2)
    assert read_submission(tmp_path / "s").to_lists() == {"q": ["a", "b"]}
    with pytest.raises(DataError, match="exactly 2 names: 'q' has 3"):
        write_submission({"q": ["a", "b", "c"]}, tmp_path / "t", k=2)


def test_tuples_and_arrays_are_lists_too(tmp_path: Path) -> None:
    write_submission({"q": ("a", "b"), "p": np.array(["b", "a"])}, tmp_path / "s", k=2)  # type: ignore[dict-item]
    assert read_submission(tmp_path / "s").to_lists() == {"q": ["a", "b"], "p": ["b", "a"]}


def test_the_contests_own_files(shared: Path) -> None:
    sizes = {}
    for path in sorted((shared / "contest" / "submissions").glob("*.json")):
        ranking = read_submission(path)
        sizes[path.stem] = (len(ranking), ranking.depth)
        assert ranking.to_lists() == json.loads(path.read_text())
    assert sizes["sub_resnet50"] == (810, 10)
    assert sizes["sub_clip_test_finetuning"] == (1455, 10)


# ── what is refused before it is written ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"a": ["x", "y"]}, "missing queries: 'b'"),
        ({"a": ["x", "y"], "b": ["x", "y"], "c": ["x", "y"]}, "unknown queries: 'c'"),
        ({"a": ["x", "y"], "b": ["x"]}, "lists that do not have exactly 2 names: 'b' has 1"),
        ({"a": ["x", "y"], "b": ["x", "x"]}, "repeated gallery names: 'b' repeats 'x'"),
        ({"a": ["x", "y"], "b": ["x", "b"]}, "unknown gallery names: 'b' names 'b'"),
        ({"a": ["x", "y"], "b": "xy"}, "queries without a list of names: 'b' has a string"),
        ({"a": ["x", "y"], "b": ["x", 7]}, "something other than names: 'b' holds a number"),
        ({"a": ["x", "y"], "b": ["x", None]}, "something other than names: 'b' holds null"),
        ({"a": ["x", "y"], "b": ["x", ["y"]]}, "something other than names: 'b' holds a list"),
        ({"a": ["x", "y"], "b": ["x", ""]}, "empty names: 'b' holds an empty name"),
        ({}, "it holds no queries"),
        ([["a", "x"]], "expected an object {query: [gallery, …]}, got a list"),
        (None, "expected an object {query: [gallery, …]}, got null"),
    ],
)
def test_each_fault_is_named(content: object, problem: str, tmp_path: Path) -> None:
    found = check_submission(content, queries=["a", "b"], gallery={"x", "y"}, k=2)
    assert len(found) == 1
    assert problem in found[0]
    if isinstance(content, dict):
        with pytest.raises(DataError) as error:
            write_submission(content, tmp_path / "s", k=2, queries=["a", "b"], gallery={"x", "y"})
        assert problem in str(error.value)
        assert not (tmp_path / "s").exists()


def test_a_query_may_be_a_gallery_image_too() -> None:
    assert check_submission({"a": ["a"]}, queries={"a"}, gallery={"a"}, k=1) == []


def test_the_first_offenders_are_named_and_the_rest_is_counted() -> None:
    queries = [f"q{i}" for i in range(10)]
    problems = check_submission({"q0": ["x"]}, queries=queries)
    assert problems == ["missing queries: 'q1', 'q2', 'q3' and 6 more"]


def test_a_hostile_name_does_not_flood_the_message() -> None:
    (problem,) = check_submission({"q": ["\x1b[2J" + "x" * 100_000]}, gallery={"x"})
    assert len(problem) < 200
    assert problem.isprintable()


def test_a_result_file_is_named_as_one() -> None:
    (problem,) = check_submission({"model_name": "tiny", "top_k": [1, 5]})
    assert problem == "it is the result file of a run: the lists are in submissions/sub_….json"
    assert check_submission({"model_name": ["a.jpg"]}) == []  # the name of a query


def test_a_large_submission_is_valid() -> None:
    gallery = {f"gallery_{i:05}.jpg" for i in range(15_000)}
    ordered = sorted(gallery)
    content = {f"query_{i}": ordered[i : i + 10] for i in range(1500)}
    assert check_submission(content, queries=content.keys(), gallery=gallery, k=10) == []


def test_unwritable_names_and_wrong_calls(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not valid text"):
        write_submission({"q": ["\udcff.jpg"]}, tmp_path / "s", k=1)
    with pytest.raises(UsageError, match="choose one of json, records, trec, kaggle"):
        write_submission({"q": ["a"]}, tmp_path / "s", k=1, format="xml")
    with pytest.raises(UsageError, match="k=0"):
        write_submission({"q": []}, tmp_path / "s", k=0)
    with pytest.raises(UsageError, match="expected a Ranking"):
        write_submission([["a"]], tmp_path / "s", k=1)  # type: ignore[arg-type]
    broken = Ranking.from_lists({"q": ["a"]}, {"q": [float("nan")]})
    with pytest.raises(DataError, match="the score of 'q' at rank 1 is nan"):
        write_submission(broken, tmp_path / "s", k=1, format="trec")
    assert list(tmp_path.iterdir()) == []


# ── what is refused when it is read ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"a": ["x", "y"', "not valid JSON: .* at line 1, column 16 .*cut off"),
        (b'{"a": ["x"],\n "b": nonsense}', "not valid JSON: Expecting value at line 2, column 7"),
        (b'{"a": ["x"], "a": ["y"]}', "keys that occur twice in one object: 'a'"),
        (b'{"a": [NaN]}', "not valid JSON: it holds NaN"),
        (b'{"a": [-Infinity]}', "not valid JSON: it holds -Infinity"),
        (b'{"a": ["x", "x"]}', "repeated gallery names: 'a' repeats 'x'"),
        (b'{"a": "x"}', "queries without a list of names: 'a' has a string"),
        (b'{"a": [1e400]}', "something other than names: 'a' holds a number"),
        (b'{"a": [' + b"9" * 5000 + b"]}", "not valid JSON: "),
        (b"{" + b'"a":{' * 100_000, "nested too deeply"),
        (b'{"a": ["\xff"]}', "not valid UTF-8: byte 0xff in line 1"),
        (b"{}", "it holds no queries"),
        (b"", "the file is empty"),
        (b"null", "it starts with 'null', expected one of the formats json, records"),
        (b"PAR1\x15", "a Parquet file, not a submission"),
        (b"[3]", "record 1 is a number: expected"),
        (b'[{"filename": "a"}]', "record 1 has no gallery_images: expected"),
        (b'[{"filename": 1, "gallery_images": []}]', "record 1: filename is a number"),
        (
            b'[{"filename": "a", "gallery_images": []}, {"filename": "a", "gallery_images": []}]',
            "record 2: the query 'a' occurs in two records",
        ),
        (b'[{"filename": "a", "gallery_images": null}]', "'a' has null"),
        (b"a.jpg,x.jpg y.jpg\nb.jpg,y.jpg", "line 1: expected a header such as id,images"),
        (b"id,images\na,x y\n\na,x", "line 4: the query 'a' occurs twice"),
        (b"id,images\na,x y,z", "line 2: expected two cells"),
        (b"id,images\na", "line 2: expected two cells"),
        (b"id,images\na,x x", "repeated gallery names: 'a' repeats 'x'"),
        (b"id,images\n", "it holds no queries"),
        (b"q Q0 x 1 0.5 tag\nq Q0 y 2 tag", "line 2: expected six fields"),
        (b"q Q0 x 1 nan tag", "line 1: expected .* got '1' and 'nan'"),
        (b"q Q0 x 1 0.5 t\nq Q0 y 1.5 0.5 t", "line 2: expected .* got '1.5' and '0.5'"),
        (b"q Q0 x 1 0.5 t\nq Q0 x 2 0.4 t", "repeated gallery names: 'q' repeats 'x'"),
    ],
)
def test_each_damage_is_named(data: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "sub"
    path.write_bytes(data)
    with pytest.raises(DataError, match=problem) as error:
        read_submission(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 400


def test_no_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no such file"):
        read_submission(tmp_path / "none.json")


@pytest.mark.parametrize(
    "text",
    [
        '\ufeff{"q": ["a", "b"]}',
        '\ufeffid,images\r\n"q","a b"\r\n\r\n',
        "\ufeffq Q0 a 1 2 t\r\nq Q0 b 2 1 t\r\n",
        'Query,whatever\nq,"a  b"',
    ],
)
def test_what_spreadsheets_and_editors_add_is_accepted(text: str, tmp_path: Path) -> None:
    (tmp_path / "sub").write_bytes(text.encode())
    assert read_submission(tmp_path / "sub").to_lists() == {"q": ["a", "b"]}


def test_a_code_that_is_none_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 100%ff.jpg 1 2 t")
    assert read_submission(tmp_path / "run").row(0) == ["100%ff.jpg"]


def test_a_cell_above_the_csv_modules_limit(tmp_path: Path) -> None:
    content = {"q": [f"gallery_{i:08}.jpg" for i in range(20_000)]}
    write_submission(content, tmp_path / "sub.csv", k=20_000, format="kaggle")
    assert read_submission(tmp_path / "sub.csv").to_lists() == content


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    try:
        parse_json(data)
    except DataError as error:
        assert str(error)


@given(st.text(max_size=120), st.sampled_from(sorted(FORMATS)))
def test_no_text_crashes_a_reader(text: str, form: str) -> None:
    try:
        content, _ = FORMATS[form].read(text)
        check_submission(content)
    except DataError as error:
        assert str(error)


# ── the hash ─────────────────────────────────────────────────────────────────────────────────────


def test_the_hash_follows_the_lists_and_nothing_else() -> None:
    other_order = dict(reversed(LISTS.items()))
    assert submission_sha256(LISTS) == submission_sha256(other_order)
    swapped = {**LISTS, "b.jpg": LISTS["b.jpg"][::-1]}
    assert submission_sha256(LISTS) != submission_sha256(swapped)


@pytest.mark.parametrize("form", [*FORMATS])
def test_a_submission_is_written_with_the_names_of_the_images(tmp_path: Path, form: str) -> None:
    nfc, nfd = "\u00e9", "e\u0301"
    lists = {f"{nfd}.jpg": [f"{nfd}1.jpg", "x.jpg"]}
    write_submission(
        Ranking.from_lists(lists, {f"{nfd}.jpg": [0.9, 0.5]}), tmp_path / "s", k=2, format=form,
        queries=[f"{nfc}.jpg"], gallery=[f"{nfc}1.jpg", "x.jpg"],
    )  # fmt: skip
    assert read_submission(tmp_path / "s").to_lists() == {f"{nfc}.jpg": [f"{nfc}1.jpg", "x.jpg"]}


def test_percent_codes_of_other_programs_are_names(tmp_path: Path) -> None:
    text = "q Q0 a%41.jpg 1 0.9 t\nq Q0 aA.jpg 2 0.8 t\nq Q0 b%20c 3 0.7 t\n"
    (tmp_path / "s").write_text(text)
    found = read_submission(tmp_path / "s")
    assert found.to_lists() == {"q": ["a%41.jpg", "aA.jpg", "b c"]}
    both = read_submission(tmp_path / "s", known=["b%20c", "b c"])  # the name as it is written
    assert both.to_lists() == {"q": ["a%41.jpg", "aA.jpg", "b%20c"]}
    truth = Truth.from_lists(["q"], ["x"], ["a%41.jpg", "aA.jpg", "b%20c"], ["y", "y", "x"])
    assert relevance(found, truth).hits.tolist() == [[False, False, True]]
