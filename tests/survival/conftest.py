"""A server that runs commands and kills them, and something small for the commands to do."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vizsla import storage
from vizsla.embed.embeddings import Embeddings

SERVER = Path(__file__).with_name("server.py")
KILLED = -9
IMAGES, SHARD = 40, 8


@dataclass
class Answer:
    """code: -9 for killed. output: what it printed. steps: of writing; None if it was killed."""

    code: int
    seconds: float
    output: str
    steps: int | None
    notes: list[list[str]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)  # where several ran at once

    def noted(self, word: str) -> list[str]:
        return [note[1] for note in self.notes if note[0] == word]


class Commands:
    """`commands.run("embed", …)`: as on the command line, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        root = Path(__file__).parents[2]
        environment = {
            **os.environ,
            "VIZSLA_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{root / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        self.server = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        assert self._line() == "ready"

    def run(self, *words: object, **order: Any) -> Answer:
        self.number += 1
        out, notes = (self.folder / f"{name}-{self.number}" for name in ("out", "notes"))
        sent = {"words": [str(w) for w in words], "out": str(out), "notes": str(notes), **order}
        assert self.server.stdin
        self.server.stdin.write(json.dumps(sent) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self._line())
        count = Path(f"{out}.count")
        others = sorted(set(self.folder.glob(f"{out.name}.*")) - {count})
        printed = [path.read_text() for path in (out, *others) if path.exists()]
        return Answer(
            answer["code"], answer["seconds"], "".join(printed),
            int(count.read_text()) if count.exists() else None,
            [line.split() for line in notes.read_text().splitlines()] if notes.exists() else [],
            answer["codes"],
        )  # fmt: skip

    def close(self) -> None:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()

    def _line(self) -> str:
        assert self.server.stdout
        line = self.server.stdout.readline().strip()
        assert line, "the server has ended"
        return line


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    server = Commands(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 small images in 4 class folders, one of them broken."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("survival") / "photos"
    for c in range(4):
        (folder / f"class-{c}").mkdir(parents=True)
        tint = rng.integers(60, 200, 3)
        for i in range(IMAGES // 4):
            pixels = (tint + rng.integers(-60, 60, (20, 24, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class-{c}" / f"{i}.png")
    (folder / "class-1" / "4.png").write_bytes(b"broken")
    return folder


@dataclass(frozen=True)
class Job:
    """A command that leaves artefacts: words without the place, the artefacts below the place.

    begun: what is noted for each unit of work; redone: how many of them may be done twice.
    """

    name: str
    words: list[str]
    artefacts: tuple[str, ...]
    tensors: str | None  # a state whose tensors count as an artefact; it holds times as well
    begun: str | None
    redone: int
    numbered: bool = False  # its files' names count how often the folder was written anew

    def run(self, commands: Commands, out: Path, **order: Any) -> Answer:
        return commands.run(*self.words, "-o", out, **order)

    def hashes(self, out: Path) -> dict[str, str]:
        found = sorted({path for pattern in self.artefacts for path in out.glob(pattern)})
        hashes = {
            path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in found
        }
        if self.numbered:
            manifest = (out / "manifest.json").read_text()
            named = [name for name in hashes if name in manifest]
            hashes = {_unnumbered(name): hashes[name] for name in named}
            about = {k: v for k, v in json.loads(manifest).items() if k != storage.SEAL_KEY}
            hashes["manifest.json"] = _unnumbered(json.dumps(about))
        if self.tensors:
            state = storage.read_sealed_json(out / self.tensors)
            hashes["trained"] = state["sha256"] + repr(_by_name(state["state"], "losses"))
        return hashes


def _by_name(node: dict[str, Any], name: str) -> Any:
    return next(value for key, value in node["keys"] if key == name)


def _unnumbered(text: str) -> str:
    return re.sub(r"-\d{5}(?=\.)|\"next\": \d+", "", text)


def my_part(steps: Sequence[int]) -> Sequence[int]:
    """VIZSLA_PART=2/8: the second eighth of a long test, for those who have little time at once."""
    part, _, parts = os.environ.get("VIZSLA_PART", "1/1").partition("/")
    return steps[int(part) - 1 :: int(parts)]


def leftovers(out: Path) -> list[str]:
    return [str(path) for path in out.rglob(".*tmp*")]


TINY = [
    "--model",
    "timm:test_resnet",
    "--weights",
    "random",
    "--image-size",
    "32",
    "--device",
    "cpu",
    "-q",
]


@pytest.fixture(scope="session")
def jobs(photos: Path) -> dict[str, Job]:
    embed = [
        "embed", str(photos), *TINY, "--batch-size", "4", "--shard-images", str(SHARD),
        "--precision", "fp32",  # or the first run alone would write what it finds out about it
    ]  # fmt: skip
    train = [
        "train", str(photos), *TINY, "--finetune", "full", "--epochs", "2", "--precision", "fp32",
        "--batch-size", "16", "--set", "save_seconds=0", "--validate-on", "seen-classes",
    ]  # fmt: skip
    gallery = photos.parent / "gallery.emb"
    vectors = np.random.default_rng(0).standard_normal((3000, 16))
    Embeddings.from_arrays(vectors).save(gallery)
    index = ["index", "build", str(gallery), "--kind", "hnsw", "-q"]
    return {
        "index": Job("index", index, ("[!.]*",), None, None, 0, numbered=True),
        "embed": Job("embed", embed, ("*.parquet", "manifest.json"), None, "part", 1),
        "train": Job(
            "train", train, ("embedder/*.json", "embedder/*.safetensors"), "checkpoint/state.json",
            "step", 1,
        ),
    }  # fmt: skip
