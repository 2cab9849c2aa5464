"""The commands and the Python in README.md run as they stand, on the demo's data set.

No model hub can be reached from a test, so all use the models that come as packages.
"""

import ast
import csv
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import vizsla
from vizsla.cli.main import app
from vizsla.embed.embeddings import Embeddings
from vizsla.run.best import search as searching
from vizsla.search.exact import rank

ROOT = Path(__file__).parents[1]
FEW = ("anchor", "apple", "bell", "boat")


@pytest.fixture(scope="module")
def demo_data(small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(small_demo, folder / "data")
    return folder


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    lines = "\n".join(blocks("bash", path.read_text())).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("vizsla ")]


def test_readme_commands_work(demo_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_data)
    todo = commands(ROOT / "README.md") + commands(ROOT / "docs/guide.md")
    assert len(todo) >= 9
    for words in todo:
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}"
        assert ("--model dinov2-s14 (a download" in result.output) == (words[1] == "run")
    assert list(demo_data.glob("results/*.json")) and list(demo_data.glob("sheets/*.png"))


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{path.name}-{i}")
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for i, code in enumerate(blocks("python", path.read_text()))
    ],
)
def test_what_python_in_the_docs_imports_is_there(code: str) -> None:
    for line in ast.parse(code).body:
        if isinstance(line, ast.Import | ast.ImportFrom):
            exec(ast.unparse(line), {})


def test_guide_python_works(
    demo_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo_data)
    (code,) = blocks("python", (ROOT / "docs/guide.md").read_text())
    assert len(code.strip().splitlines()) <= 12
    for name in ("query.emb", "gallery.emb"):
        code = code.replace(name, f"python-{name}")
    exec(compile(code, "guide.md", "exec"), {})
    assert "mAP" in capsys.readouterr().out
    assert (demo_data / "submission.json").is_file()


def test_the_first_python_of_the_reference_needs_no_labels(
    demo_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(demo_data / "data/test", tmp_path / "data/test")
    monkeypatch.chdir(tmp_path)
    code = blocks("python", (ROOT / "docs/api.md").read_text())[0]
    known: dict[str, Any] = {}
    exec(compile(code, "api.md", "exec"), known)
    shown = " ".join(capsys.readouterr().out.split())
    assert "no labels are known, so there are no scores" in shown
    assert known["result"].scores is None and known["result"].validation is None


def test_best_finds_a_run_and_goes_on_from_python(
    demo_data: Path,
    short_heads: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(demo_data)
    monkeypatch.setattr(searching, "LEAST_TUNING", 1e9)  # no training for minutes
    page = (ROOT / "docs/best.md").read_text()
    (words,) = commands(ROOT / "docs/best.md")
    result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    assert result.exit_code == 0 and "again       vizsla run --again" in result.output
    (code,) = blocks("python", page)
    exec(compile(code, "best.md", "exec"), {})  # continues: nothing is left to try
    assert "efficientnet-lite" in capsys.readouterr().out


@pytest.fixture(scope="module")
def vectors_folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docs/metrics.md takes as given, of a few classes: vectors, labels, a ranking."""
    folder = tmp_path_factory.mktemp("vectors")
    rows = csv.DictReader((demo_folder / "labels.csv").read_text().splitlines())
    kept = [row for row in rows if row["label"] in FEW]
    for row in kept:
        place = Path("training" if row["role"] == "training" else f"test/{row['role']}")
        target = folder / "data" / place / row["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(demo_folder / place / row["file"], target)
    with (folder / "data/labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept[0])
        writer.writeheader()
        writer.writerows(kept)
    truth = {(row["role"], row["file"]): row["label"] for row in kept}
    for role in ("query", "gallery"):
        words = ["embed", str(folder / f"data/test/{role}"), "-o", str(folder / f"{role}.emb")]
        assert CliRunner().invoke(app, words).exit_code == 0
        found = Embeddings.open(folder / f"{role}.emb")
        np.save(folder / f"{role[0]}.npy", found.vectors)
        labels = [truth[role, name] for name in found.ids]
        (folder / f"{role[0]}.txt").write_text("\n".join(labels) + "\n")
    ranking = rank(Embeddings.open(folder / "query.emb"), Embeddings.open(folder / "gallery.emb"))
    ranking.save(folder / "ranking.parquet")
    replace(ranking, positions=ranking.positions[:, ::-1], scores=None).save(
        folder / "other.parquet"
    )
    return folder


@pytest.fixture
def own_vectors(vectors_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vectors_folder)


@pytest.mark.parametrize(
    ("page", "least"),
    [
        ("metrics", 6),
        ("protocols", 3),
        ("check", 3),
        ("speed", 3),
        ("decide", 1),
        ("cluster", 2),
        pytest.param("refine", 6, marks=pytest.mark.slow),
    ],
)
def test_commands_on_pages_work(own_vectors: None, page: str, least: int) -> None:
    todo = commands(ROOT / f"docs/{page}.md")
    assert len(todo) >= least
    for words in todo:
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}"
    made = {"metrics": ("qrels.txt", "scores.png", "compared.html"), "check": ("exclude.txt",),
            "cluster": ("clusters.csv", "clusters.html"),
            "speed": ("fast.emb/manifest.json", "model.onnx", "model.json"),
            "refine": ("fused.parquet", "white.emb/manifest.json")}  # fmt: skip
    assert all(Path(name).is_file() for name in made.get(page, ()))


def test_python_on_metrics_works(own_vectors: None, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python", (ROOT / "docs/metrics.md").read_text())
    exec(compile(code, "metrics.md", "exec"), {})
    assert "mAP" in capsys.readouterr().out


def test_python_on_check_works(own_vectors: None) -> None:
    (code,) = blocks("python", (ROOT / "docs/check.md").read_text())
    exec(compile(code, "check.md", "exec"), {})


def test_commands_and_python_on_search_work(
    own_vectors: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Milvus Lite runs in processes of its own: in this one, it may close pytest's streams."""
    todo = commands(ROOT / "docs/search.md")
    assert len(todo) >= 7
    for words in todo:
        if "gallery.db" in words:
            command = [sys.executable, "-m", "vizsla", *words[1:]]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        else:
            result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
            assert result.exit_code == 0, f"{shlex.join(words)}: {result.output}"
    (code,) = blocks("python", (ROOT / "docs/search.md").read_text())
    exec(compile(code, "search.md", "exec"), {})
    assert "exact" in capsys.readouterr().out


def test_python_on_notebooks_works(own_vectors: None) -> None:
    (code,) = blocks("python", (ROOT / "docs/notebooks.md").read_text())
    code = code.replace('"dinov2-s14"', '"tiny", weights="random"')
    code = code.replace("query.emb", "own-query.emb").replace("gallery.emb", "own-gallery.emb")
    exec(compile(code, "notebooks.md", "exec"), {})
    assert Path("two.png").is_file()


def test_the_python_reference_lists_the_public_names() -> None:
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    public = set(vizsla.__all__) - {"__version__"}
    assert {name.rsplit(".", 1)[1] for name in listed} == public


def test_the_site_has_every_page() -> None:
    pages = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(pages) == len(set(pages))
    assert {page.name for page in ROOT.glob("docs/*.md")} <= set(pages)


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_files_and_names_of_the_architecture_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", text))
    assert len([name for _, name in named if name]) >= 35
    for path, name in sorted(named):
        file = ROOT / path if path.startswith("tests/") else ROOT / "src/vizsla" / path
        assert file.is_file(), path
        for part in filter(None, name.split(".")):
            pattern = rf"^\s*(async )?(def|class) {part}\b"
            assert re.search(pattern, file.read_text(), re.MULTILINE), f"{path}:{name}"
