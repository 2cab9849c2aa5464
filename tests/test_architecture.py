"""Rules for every file: who imports whom, where torch may be imported, what has a docstring."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "vizsla"
ORDER = [
    "errors", "argument_types", "notebook", "option_fields", "keyword_options", "options",
    "storage", "processes", "workspace", "progress", "data", "model", "embed", "search", "score",
    "train", "choose", "audit", "output", "run", "web", "cli", "__main__",
]  # fmt: skip
TORCH_ROOMS = {"model", "embed", "train"}
TORCH_FILES = {
    "data/batches.py", "data/preprocess.py", "data/training_batches.py", "search/exact.py",
    "search/knn_graph.py", "search/refine.py", "web/search/batching_model.py",
}  # fmt: skip
HEAVY = {"torch", "torchvision", "timm", "open_clip", "lightning", "pytorch_metric_learning"}
FILES = sorted(SRC.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    """The module's name: vizsla.data.images."""
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {dotted(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """All that a file imports, inside functions and for type checking too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path: Path) -> set[str]:
    """The modules of vizsla among them."""
    found = set()
    for name in imports(path):
        module = name if name in MODULES else name.rpartition(".")[0]
        if module in MODULES and module not in ("vizsla", dotted(path)):
            found.add(module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_backwards(path: Path) -> None:
    if path == SRC / "__init__.py":
        return
    here = ORDER.index(room(path))
    for name in imported_modules(path):
        there = name.split(".")[1]
        assert there in ORDER, f"{path.name} imports {name}: not a room of the house"
        assert ORDER.index(there) <= here, f"{path.name} imports {name}: wrong direction"


def test_no_file_imports_itself_through_others() -> None:
    """Imports inside functions and for type checking count: graphlib raises CycleError."""
    graph = {name: imported_modules(path) for name, path in MODULES.items() if name != "vizsla"}
    order = list(TopologicalSorter(graph).static_order())
    assert len(order) == len(graph)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_torch_only_where_it_computes(path: Path) -> None:
    if room(path) not in TORCH_ROOMS and path.relative_to(SRC).as_posix() not in TORCH_FILES:
        assert not {name.split(".")[0] for name in imports(path)} & HEAVY


def test_every_file_has_a_room_and_packages_stay_empty() -> None:
    for path in FILES:
        if path != SRC / "__init__.py":
            assert room(path) in ORDER
            if path.name == "__init__.py":
                assert path.read_text() == ""
            assert path.stem not in {"utils", "common", "base", "manager", "helpers"}


def defined_names(path: Path) -> set[str]:
    """What a file defines at its top level, without what it imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_names_are_imported_from_the_file_that_defines_them(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES and node.module != "vizsla":
            known = defined_names(MODULES[node.module])
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert alias.name in known or name in MODULES, f"{path}: {name} is re-exported"


def undocumented(path: Path) -> list[str]:
    """The public functions, classes and methods of a file that have no docstring."""
    found, waiting = [], [("", ast.parse(path.read_text()).body)]
    while waiting:
        prefix, body = waiting.pop()
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                waiting.append((f"{node.name}.", node.body))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_all_that_is_public_has_a_docstring(path: Path) -> None:
    assert undocumented(path) == []
