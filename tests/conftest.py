"""What all tests share: the shared data where there is some, small real images, a browser."""

import csv
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

gc.set_threshold(50_000, 20, 50)  # looking less often is faster: a process runs many tests


def pytest_configure() -> None:
    """Where a shell has started the tests in the background it has turned SIGINT off for them and
    all that they start: servers that a test interrupts would never end."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests wait for servers, a browser or the clock."""
    affinity = getattr(os, "sched_getaffinity", None)
    return (len(affinity(0)) if affinity else os.cpu_count() or 1) + 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files go to a worker. Those of survival go together: they share a server."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "survival" if nodeid.startswith("tests/survival/") else nodeid.split("::")[0]

    return ByFile(config, log)


LONG = ("survival/", "search/test_browser", "train/test_training", "train/test_fine", "test_golden")


SLOW_TIMEOUT = 1800  # seconds, beside other programs too: only a test that hangs is ended


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that no worker has one left at the end; slow tests have time."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))
    items.sort(key=lambda item: not any(name in item.path.as_posix() for name in LONG))


@pytest.fixture(autouse=True)
def private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads or fills the user's own cache."""
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos, weights and contest files; skips where it is absent."""
    folder = Path(os.environ.get("VIZSLA_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder}: set VIZSLA_SHARED")
    return folder


@pytest.fixture
def beside_a_gpu() -> Callable[..., Any]:
    """What says that this CPU be used in the way of a GPU: decoding by processes, two batches on
    their way, shards written and files looked at meanwhile. What it writes is what a CPU writes."""
    from vizsla.embed.compute import Compute

    class BesideAGpu(Compute):
        @property
        def kind(self) -> str:
            return "cuda"

        @property
        def facts(self) -> dict[str, Any]:
            return Compute(self.device, self.precision, self.batch_size, self.workers).facts

    return lambda workers=2: BesideAGpu("cpu", "fp32", 4, workers)


@pytest.fixture
def paint(tmp_path: Path) -> Callable[..., Path]:
    """Writes an image of one colour below tmp_path: paint("a/b.png", (255, 0, 0)) → its path."""

    def write(name: str, colour: tuple[int, int, int], size: tuple[int, int] = (32, 24)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def tinted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with labels.csv: 4 classes by tint, of 6 training, 4 query, 6 gallery images.

    One class has any of the others' tints. Tests read it only, or copy it.
    """
    folder = tmp_path_factory.mktemp("tinted") / "data"
    rng = np.random.default_rng(0)
    tints = {"red & <b>": (220, 60, 50), "green": (60, 190, 80), "blue": (60, 80, 220),
             "any": (0, 0, 0)}  # fmt: skip
    rows = []
    for label, tint in tints.items():
        for role, n in (("training", 6), ("query", 4), ("gallery", 6)):
            for i in range(n):
                name = f"{role[0]}-{label.split()[0]}-{i}.png"
                below = f"training/{label}" if role == "training" else f"test/{role}"
                path = folder / below / name
                path.parent.mkdir(parents=True, exist_ok=True)
                shown = tint if label != "any" else list(tints.values())[rng.integers(3)]
                pixels = np.array(shown) + rng.integers(-60, 60, (48, 56, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
                if role != "training":
                    rows.append({"role": role, "file": name, "label": label})
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["role", "file", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The ids of the images of each training, which keeps its head, whatever chance says."""
    from vizsla.train import training
    from vizsla.train.selection import Selection

    found: list[set[str]] = []
    train = training.train

    def noted(images: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(set(images.ids))
        return train(images, *args, **kwargs)

    def head(selection: Selection) -> Any:
        return next((c for c in selection.candidates if c.name == "head"), selection.frozen)

    monkeypatch.setattr(training, "train", noted)
    monkeypatch.setattr(Selection, "best", property(head))
    return found


@pytest.fixture(scope="module")
def short_heads() -> Iterator[None]:
    """Heads are trained for 20 steps: for tests of what is done with them."""
    from vizsla.train import heads

    train = heads.train_head
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(heads, "train_head", lambda *a, **k: train(*a, **{**k, "steps": 20}))
        yield


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of `vizsla demo`, drawn once for all processes. Tests read it only, or copy it."""
    from filelock import FileLock

    from vizsla.data.demo import make_demo

    base = tmp_path_factory.getbasetemp()
    home = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(home / "demo.lock"):
        return make_demo(home / "demo") if not (home / "demo").exists() else home / "demo"


@pytest.fixture(scope="session")
def small_demo(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 of its classes × (4 training, 2 query, 4 gallery). Tests read it only, or copy it."""
    small = tmp_path_factory.mktemp("small") / "data"
    with (demo_folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = []
    for label in sorted({row["label"] for row in rows})[:6]:
        for role, n in (("training", 4), ("query", 2), ("gallery", 4)):
            kept += [r for r in rows if r["label"] == label and r["role"] == role][:n]
    for row in kept:
        folder = "training" if row["role"] == "training" else f"test/{row['role']}"
        target = small / folder / row["file"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(demo_folder / folder / row["file"], target)
    with (small / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(kept)
    return small


# ── a model that reads text ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP of two thin layers, known to open_clip for as long as the tests run.

    Its name here: images of 32 × 32, patches of 8, vectors of 16 numbers, reads text.
    """
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    }
    path = tmp_path_factory.mktemp("open_clip") / "tiny-clip.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return "openclip:tiny-clip"


# ── the browser ──────────────────────────────────────────────────────────────────────────────────

QUIET_BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium: the one that CHROMIUM names, or the machine's own.

    Skips if there is none; with VIZSLA_REQUIRE_BROWSER=1 that is a failure.
    """
    names = (os.environ.get("CHROMIUM"), "/usr/bin/chromium", shutil.which("chromium"))
    path = next((name for name in names if name and Path(name).exists()), None)
    if path is None:
        reason = "no Chromium: install it, or set CHROMIUM to its path"
        if os.environ.get("VIZSLA_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=QUIET_BROWSER)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def scene() -> Callable[..., Image.Image]:
    """scene(3) → an image of many coloured shapes, another one for each number."""

    def generate(number: int, size: tuple[int, int] = (240, 180)) -> Image.Image:
        rng = np.random.default_rng(number)
        image = Image.new("RGB", size, tuple(int(c) for c in rng.integers(60, 200, 3)))
        draw = ImageDraw.Draw(image)
        for _ in range(70):
            x, y = (int(rng.integers(-10, side)) for side in size)
            wide, high = (int(side) for side in rng.integers(5, 45, 2))
            colour = tuple(int(c) for c in rng.integers(256, size=3))
            shape = draw.rectangle if rng.random() < 0.5 else draw.ellipse
            shape((x, y, x + wide, y + high), colour)
        return image

    return generate
