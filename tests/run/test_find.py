"""`vizsla find`: one command, no set-up, and nothing is embedded twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from vizsla.cli import find as command
from vizsla.cli.main import app
from vizsla.embed.runtime import Runtime
from vizsla.errors import DataError, VizslaError
from vizsla.run import find as finding

TINY = ["--model", "tiny", "--weights", "random", "--image-size", "32"]


@pytest.fixture
def photos(tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tinted / "test/gallery", tmp_path / "photos"))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ids that each call embeds."""
    calls: list[list[str]] = []
    real = finding.embed

    def counting(images: Any, *rest: Any, **options: Any) -> Any:
        calls.append(list(images.ids))
        return real(images, *rest, **options)

    monkeypatch.setattr(finding, "embed", counting)
    return calls


def found(*words: object) -> list[dict[str, Any]]:
    words = ("find", *words, *TINY, "--json", "-q")
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return list(json.loads(result.stdout))


def test_the_folder_is_embedded_once_and_renewed_by_what_changed(
    photos: Path, tinted: Path, embedded: list[list[str]]
) -> None:
    photo = photos / "g-blue-1.png"
    first = found(photo, photos, "-k", "3")
    assert first[0]["path"] == str(photo) and first[0]["score"] > 0.999 and len(first) == 3
    assert [len(call) for call in embedded] == [24]
    assert found(photo, photos, "-k", "3") == first and len(embedded) == 1
    shutil.copy(tinted / "test/query/q-blue-1.png", photos / "new.png")
    shutil.copy(photos / "g-green-1.png", photos / "g-blue-2.png")  # another image of that name
    (photos / "g-blue-3.png").unlink()
    again = found(tinted / "test/query/q-blue-1.png", photos, "-k", "99")
    assert again[0]["path"] == str(photos / "new.png") and len(again) == 24
    assert embedded[1:] == [["g-blue-2.png", "new.png"]]
    names = [Path(row["path"]).name for row in again]
    assert "g-blue-3.png" not in names and names.count("g-blue-2.png") == 1
    twins = {Path(row["path"]).name: row["score"] for row in again}
    assert twins["g-blue-2.png"] == pytest.approx(twins["g-green-1.png"], abs=1e-6)


def test_columns_of_a_metadata_file_are_shown_as_they_are_now(photos: Path) -> None:
    photo = photos / "g-blue-1.png"
    assert found(photo, photos, "-k", "1")[0].keys() == {"path", "score"}
    (photos / "metadata.csv").write_text("file_name,label,price\ng-blue-1.png,sky,9.5\n")
    assert found(photo, photos, "-k", "1")[0]["label"] == "sky"
    assert found(photo, photos, "-k", "2", "--show", "price")[0]["price"] == 9.5
    (photos / "metadata.csv").write_text("file_name,label,price\ng-blue-1.png,sky,n/a\n")
    words = ["find", str(photo), str(photos), *TINY, "-k", "1", "-q", "--show", "price"]
    shown = CliRunner().invoke(app, words, catch_exceptions=False).stdout.splitlines()
    assert shown[0].split() == ["rank", "score", "image", "price"]
    assert shown[1].split() == ["1", "1.0000", str(photo), "n/a"]


def test_a_table_gives_columns_and_none_is_said_to_be_missing(photos: Path, tmp_path: Path) -> None:
    photo, table = photos / "g-blue-1.png", tmp_path / "products.csv"
    table.write_text("file,price\ng-blue-1.png,9.5\n")
    for flag in ("--table", "--labels"):
        shown = found(photo, photos, flag, table, "-k", "1", "--show", "price")
        assert shown[0]["price"] == 9.5
    (tmp_path / "skus.csv").write_text("file,sku,price\ng-blue-1.png,S1,9.5\n")
    words = ["find", str(photo), str(photos), "--table", str(tmp_path / "skus.csv"), "-k", "1"]
    printed = CliRunner().invoke(app, [*words, *TINY, "-q"]).stdout.splitlines()
    assert printed[0].split() == ["rank", "score", "image", "sku"] and printed[1].endswith("S1")
    with pytest.raises(DataError, match=r"--show price: no table says anything of .*--table"):
        found(photo, photos, "--show", "price")
    with pytest.raises(DataError, match="--show cost: the images have the columns price"):
        found(photo, photos, "--table", table, "--show", "cost")


def test_a_broken_photo_is_left_out_and_not_read_again(
    photos: Path, embedded: list[list[str]]
) -> None:
    photo = photos / "g-blue-1.png"
    (photos / "broken.png").write_bytes(b"no image")
    assert len(found(photo, photos, "-k", "99")) == 24
    (photos / "worse.png").write_bytes(b"no image either")
    assert len(found(photo, photos, "-k", "99")) == 24
    assert len(found(photo, photos, "-k", "99")) == 24
    assert embedded[1:] == [["worse.png"]]


def test_broken_images_are_named_where_no_list_is_kept(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, index = photos / "g-blue-1.png", tmp_path / "g.index"
    new, queries = tmp_path / "new", tmp_path / "queries"
    for folder in (photos, new, queries):
        folder.mkdir(exist_ok=True)
        shutil.copy(one, folder / f"{folder.name}.png")
        for i in range(5):
            (folder / f"bad{i}.png").write_bytes(b"no image")
    for words in (
        ["find", one, photos, *TINY],
        ["index", photos, "-o", index, *TINY],
        ["index", "add", index, new, *TINY],
        ["search", index, queries, *TINY],
    ):
        caplog.clear()
        CliRunner().invoke(app, [*map(str, words), "-q"], catch_exceptions=False)
        (line,) = [text for text in caplog.messages if "broken and left out" in text]
        assert "5 of" in line and all(f"bad{i}.png" in line for i in range(5))
        assert "listed in" not in line
    CliRunner().invoke(app, ["embed", str(photos), "-o", str(tmp_path / "g.emb"), *TINY, "-q"])
    named = Path(caplog.messages[-1].partition("all are listed in ")[2])
    assert "bad4.png" in named.read_text()


def test_find_and_index_share_their_vectors(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    real = Runtime.submit

    def counting(runtime: Runtime, *rest: Any) -> Any:
        batches.append(len(rest))
        return real(runtime, *rest)

    monkeypatch.setattr(Runtime, "submit", counting)
    photo, index = photos / "g-blue-1.png", tmp_path / "g.index"
    by_find = ["find", photo, photos, *TINY, "-q"]
    by_index = ["index", photos, "-o", index, *TINY, "-q"]
    for first, second in ((by_find, by_index), (by_index, by_find)):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        for words, embeds in ((first, True), (second, False)):
            batches.clear()
            result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
            assert result.exit_code == 0 and bool(batches) == embeds, words[0]
    other = ["index", photos, "-o", index, *TINY[:-1], "48", "-q"]  # another preprocessing
    batches.clear()
    CliRunner().invoke(app, [*map(str, other)], catch_exceptions=False)
    assert batches


def test_a_damaged_cache_is_made_again(
    photos: Path, tmp_path: Path, embedded: list[list[str]]
) -> None:
    photo = photos / "g-blue-1.png"
    first = found(photo, photos)
    (states,) = (tmp_path / "cache").rglob("states.json")
    states.write_text(states.read_text().replace("found/1", "found/2"))
    assert found(photo, photos) == first and [len(call) for call in embedded] == [24, 24]


def test_open_shows_a_sheet(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    monkeypatch.setattr(command.webbrowser, "open", pages.append)
    found(photos / "g-blue-1.png", photos, "--open")
    page = Path(pages[0].removeprefix("file://")).read_text()
    assert page.count("<img") >= 1 and "data:image" in page


def test_words_find_images_with_a_model_that_reads_text(
    tiny_clip: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []
    monkeypatch.setattr(command.webbrowser, "open", pages.append)
    words = ["find", "a red shoe", str(photos), "--model", tiny_clip, "--weights", "random", "-k",
             "2", "--open"]  # fmt: skip
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0 and result.stdout.count(str(photos)) == 2
    assert "data:image" in Path(pages[0].removeprefix("file://")).read_text()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("nonesuch.jpg", "there is nothing at nonesuch.jpg"),
        ("a red shoe", "no file a red shoe, and tiny reads no text"),
    ],
)
def test_what_cannot_be_found_is_said(query: str, words: str, photos: Path) -> None:
    with pytest.raises(VizslaError, match=words):
        found(query, photos)
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        found(photos / "g-blue-1.png", photos / "empty")


def test_a_part_of_the_photo_is_searched_with(photos: Path, tmp_path: Path) -> None:
    with Image.open(photos / "g-blue-1.png") as image:
        wide, high = image.size
    both = Image.new("RGB", (2 * wide, high))
    both.paste(Image.open(photos / "g-green-1.png").convert("RGB"), (wide, 0))
    both.save(tmp_path / "both.png")
    first = found(tmp_path / "both.png", photos, "-k", "1", "--box", f"{wide},0,{wide},{high}")
    assert first[0]["path"] == str(photos / "g-green-1.png") and first[0]["score"] > 0.999
