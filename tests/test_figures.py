"""docs/figures.md is what its command makes of the shared data, and that is what is known."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).parents[1] / "docs/figures.md"


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_figures", PAGE.with_suffix(".py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


def rows(text: str) -> list[tuple[str, str, float, float]]:
    """What, metric, the known figure, ours."""
    found = re.findall(r"^\| (.*?) \| (.*?) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    return [(what, metric, float(known), float(ours)) for what, metric, known, ours in found]


def test_the_page_says_that_figures_agree() -> None:
    found = rows(PAGE.read_text())
    assert len(found) > 25
    for what, metric, known, ours in found:
        assert ours == pytest.approx(known, abs=0.01 if known > 1 else 0.002), (what, metric)


def test_the_page_has_all_that_the_command_writes(figures: ModuleType) -> None:
    text = PAGE.read_text()
    assert text.startswith(figures.HEAD) and text.endswith(figures.REST)
    found = [(what, metric, known) for what, metric, known, _ in rows(text)]
    assert found == [
        (one.title, name, known)
        for one in figures.CHECKS
        for name, (_, known) in one.figures.items()
    ]
    assert all(f"\n{one.command}\n" in text for one in figures.CHECKS)


@pytest.mark.slow
def test_the_page_is_what_the_command_makes(
    figures: ModuleType, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert figures.page(shared) == PAGE.read_text()
