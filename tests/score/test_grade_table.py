import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vizsla.cli.main import main
from vizsla.errors import DataError, UsageError
from vizsla.score.evaluate import evaluate
from vizsla.score.grade_table import GradeTable, read_grade_table
from vizsla.search.ranking import Ranking

GND = {
    "imlist": ["a", "b", "c", "d"],
    "qimlist": ["q1", "q2"],
    "gnd": [
        {"easy": [0], "hard": [1, 2], "junk": [3], "bbx": [1.5, 2, 30, 40]},
        {"easy": [], "hard": [0], "junk": [], "bbx": [0, 0, 5, 5]},
    ],
}


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_table_of_grades(tmp_path: Path) -> None:
    for name, mark in (("truth.csv", ","), ("truth.tsv", "\t")):
        text = "query,image,grade\nq1,a,2\nq1,b,0\nq1,c,-1\nq2,,\nq2,d,1\n".replace(",,\n", ",,0\n")
        table = read_grade_table(written(tmp_path, name, text.replace(",", mark)))
        assert table.levels == {"": {"q1": {"a": 2, "b": 0, "c": -1}, "q2": {"d": 1}}}
    truth = table.truth()
    assert truth.relevant == {"q1": {"a"}, "q2": {"d"}} and truth.junk == {"q1": {"c"}}
    assert truth.grades == {"q1": {"a": 2}, "q2": {"d": 1}}


def test_a_query_with_an_empty_image_has_nothing_to_find(tmp_path: Path) -> None:
    table = read_grade_table(written(tmp_path, "truth.csv", "query,image\nq1,a\nq2,\n"))
    assert table.truth().relevant == {"q1": {"a"}, "q2": set()}


def test_levels_and_boxes_of_a_parquet_table(tmp_path: Path) -> None:
    columns = {"query": ["q", "q", "q"], "gallery": ["a", "b", "b"], "level": ["strict", "lenient",
               "strict"], "grade": [1, 1, -1], "x0": [0.0] * 3, "y0": [1.0] * 3, "x1": [9.0] * 3,
               "y1": [8.5] * 3}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "truth.parquet")
    table = read_grade_table(tmp_path / "truth.parquet")
    assert table.boxes == {"q": (0.0, 1.0, 9.0, 8.5)}
    assert table.truth("strict").junk == {"q": {"b"}}
    assert table.truth("lenient").relevant == {"q": {"b"}}
    with pytest.raises(UsageError, match="strict, lenient: give one of them with truth_level"):
        table.truth()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,x\n", "expected query and image"),
        ("query,image,grade\nq,a,high\n", "row 1 below the header has the grade 'high'"),
        (
            "query,image,grade\nq,a,1\nq,a,2\n",
            "row 2 below the header grades a 2 for q, an",
        ),
        ("query,image,x0,y0,x1,y1\nq,a,5,0,5,9\n", "has no area"),
        ("query,image,level\nq,a,hard\nq,b,\n", "some rows have a level and others have none"),
        ("query,image\n", "holds no judgements"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_grade_table(written(tmp_path, "truth.csv", text))


def test_the_truth_of_oxford_as_json_and_as_pickle(tmp_path: Path) -> None:
    (tmp_path / "gnd.json").write_text(json.dumps(GND))
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(GND, protocol=2))
    table = read_grade_table(tmp_path / "gnd.json")
    assert read_grade_table(tmp_path / "gnd.pkl") == table
    assert table.levels["easy"]["q1"] == {"d": -1, "b": -1, "c": -1, "a": 1}
    assert table.levels["medium"]["q1"] == {"d": -1, "a": 1, "b": 1, "c": 1}
    assert table.boxes["q1"] == (1.5, 2.0, 30.0, 40.0) and table.gallery == ["a", "b", "c", "d"]
    lists = {"q1.jpg": ["d.jpg", "b.jpg", "a.jpg"], "q2.jpg": ["a.jpg"]}
    ranking = Ranking.from_lists(lists)
    named = table.named_as({*ranking.queries, *ranking.gallery})
    scores = evaluate(
        ranking, named.truth(), protocol="oxford-easy", missing_ranks="absent", resamples=10
    )
    assert scores.mean("mP@1") == 1.0 and scores.answerable.tolist() == [True, False]


class Ruin:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (exec, ("raise SystemExit('code of the file ran')",))


@pytest.mark.parametrize("value", [Ruin(), np.arange(3), {1, 2}.__class__])
def test_no_class_of_a_pickle_is_loaded(value: object, tmp_path: Path) -> None:
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps({**GND, "gnd": value}))
    with pytest.raises(DataError, match="only lists, dicts, texts and numbers are read"):
        read_grade_table(tmp_path / "gnd.pkl")


def test_a_damaged_pickle_and_another_content_are_errors(tmp_path: Path) -> None:
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(GND)[:40])
    with pytest.raises(DataError, match="is no pickle that can be read"):
        read_grade_table(tmp_path / "cut.pkl")
    (tmp_path / "other.pkl").write_bytes(pickle.dumps(["a"]))
    with pytest.raises(DataError, match="is no truth of Oxford or Paris: expected imlist"):
        read_grade_table(tmp_path / "other.pkl")
    far = {**GND, "gnd": [{**GND["gnd"][0], "easy": [9]}, GND["gnd"][1]]}  # type: ignore[index, dict-item]
    (tmp_path / "far.json").write_text(json.dumps(far))
    with pytest.raises(DataError, match=r"query q1 .*index beyond the 4 images"):
        read_grade_table(tmp_path / "far.json")


# ── names ────────────────────────────────────────────────────────────────────────────────────────

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize("option", ["--truth", "--qrels"])
def test_names_of_the_truth_in_other_spellings_are_found_and_reported(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queries are spelled alike; gallery names lack or change their extension or their form."""
    monkeypatch.chdir(tmp_path)
    gallery = [f"{DECOMPOSED}.jpg", "b.jpg", "c.jpg", "c.png", "x.jpg"]
    pairs = [("q1", f"{COMPOSED}.jpg"), ("q1", "b.jpeg"), ("q2", "c.png"), ("q3", COMPOSED)]
    if option == "--truth":
        text = "query,image\n" + "".join(f"{q},{image}\n" for q, image in pairs)
    else:
        text = "".join(f"{q} 0 {image} 1\n" for q, image in pairs)
    written(tmp_path, "truth.csv", text)
    order = np.array([[0, 1, 2, 3, 4], [3, 0, 1, 2, 4], [1, 0, 2, 3, 4]])
    scores = np.tile(np.linspace(1, 0, 5), (3, 1))
    Ranking(["q1", "q2", "q3"], gallery, order, scores, 5).save("ranking.parquet")
    with pytest.raises(SystemExit):
        main(["evaluate", "ranking.parquet", option, "truth.csv", "--metrics", "AP", "--per-query",
              "values.csv"])  # fmt: skip
    values = [line.split(",") for line in Path("values.csv").read_text().splitlines()]
    at = values[0].index("AP")
    assert [row[at] for row in values[1:]] == ["1.0", "1.0", "0.5"]
    assert "names differ from those of their images" in capsys.readouterr().err


def test_a_name_as_it_is_written_comes_first() -> None:
    images = ["a.jpg", "a.png", "b.jpg"]
    table = GradeTable({"": {"q": {"a.jpg": 1, "b.png": 2, "b.jpg": -1}}})
    assert table.named_as(images).levels == table.levels  # b.png is not b.jpg, which is judged too
