"""The house rules of docs/architecture.md, held: who imports whom, and where torch may be."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "vizsla"
ORDER = [
    "errors", "storage", "runs", "data", "model", "search", "score", "tuning", "choose", "audit",
    "output", "opening", "runconfig", "pipeline", "trained", "revisit", "ensemble",
    "demonstration", "sweep", "web", "cli",
]  # fmt: skip
TORCH = {
    "data/transforms.py", "data/batches.py", "data/augment.py", "web/serve_model.py",
    "model/backbones.py", "model/networks.py", "model/hub.py", "model/weights.py",
    "model/pooling.py",
    "model/projection.py", "model/views.py",
    "model/embedder.py", "model/losses.py", "model/training.py", "model/explain.py",
    "model/bearing.py", "model/compute.py", "model/compiling.py", "model/network.py",
    "model/export.py",
    "model/inference.py", "model/ray_engine.py", "model/shared.py", "search/exact.py",
    "search/graph.py", "search/refine.py",
    # the parts of training
    "model/candidates.py", "model/checkpoint.py", "model/choice.py", "model/heads.py",
    "model/held.py", "model/loop.py",
    "model/lora.py", "model/microbatch.py", "model/optimise.py", "model/planning.py",
    "model/reading.py", "model/settings.py", "model/silence.py", "model/trainlog.py",
}  # fmt: skip
HEAVY = {"torch", "torchvision", "timm", "open_clip", "lightning", "pytorch_metric_learning"}
FILES = sorted(SRC.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_backwards(path: Path) -> None:
    if path == SRC / "__init__.py":
        return
    here = ORDER.index(room(path))
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "vizsla" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in ORDER, f"{path.name} imports {name}: not a room of the house"
            assert ORDER.index(parts[1]) <= here, f"{path.name} imports {name}: wrong direction"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_torch_only_in_marked_modules(path: Path) -> None:
    if path.relative_to(SRC).as_posix() not in TORCH:
        assert not {name.split(".")[0] for name in imports(path)} & HEAVY


def test_every_file_has_a_room_and_sub_packages_stay_empty() -> None:
    for path in FILES:
        if path != SRC / "__init__.py":
            assert room(path) in ORDER
            if path.name == "__init__.py":
                assert path.read_text() == ""
            assert path.stem not in {"utils", "common", "base", "manager", "helpers"}
