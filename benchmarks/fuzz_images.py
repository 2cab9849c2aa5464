"""Mutated images through `read_image`: no crash, no hang, little memory. Prints JSON.

    python benchmarks/fuzz_images.py --images 10000                     # Hypothesis
    python benchmarks/fuzz_images.py --images 10000 --with atheris      # pip install atheris

Seeds are a small image of every format that Pillow writes, and the files of --seeds. Each mutated
image is either read or refused with an ImageError, in less than 2 s of processor time and 512
MiB; anything else ends the script with exit code 1, and the image is kept in --keep.
"""

import argparse
import collections
import io
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SECONDS, MEGABYTES = 2.0, 512
LARGEST_SEED = 120_000  # bytes: what is larger costs time and finds little
WRITTEN = {
    "JPEG": {}, "PNG": {}, "WEBP": {}, "GIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"},
    "AVIF": {}, "PPM": {}, "ICO": {}, "JPEG2000": {}, "MPO": {},
}  # fmt: skip


def seeds_of(folder: Path | None) -> dict[str, bytes]:
    """Name → content."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    found = {}
    for form, options in WRITTEN.items():
        for mode in ("RGB", "L", "RGBA", "P"):
            buffer = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
            except (OSError, ValueError):
                continue  # this format has no such mode
            found[f"{form}-{mode}"] = buffer.getvalue()
    for path in sorted(folder.iterdir()) if folder else []:
        if path.is_file() and 0 < path.stat().st_size <= LARGEST_SEED:
            found[path.name] = path.read_bytes()
    return found


class Watch:
    """Reads images and keeps count; raises AssertionError for what should never happen."""

    def __init__(self, keep: Path) -> None:
        self.keep, self.counts = keep, collections.Counter[str]()
        self.slowest, self.most = 0.0, 0.0
        self.reasons = collections.Counter[str]()

    def read(self, data: bytes) -> None:
        from vizsla.data.images import read_image
        from vizsla.errors import ImageError

        self.keep.write_bytes(data)  # what a crash of the process leaves behind
        self.counts["images"] += 1
        before, started = _reset_peak(), time.process_time()
        try:
            picture = read_image(data)
            self.counts["read"] += 1
            assert picture.mode == "RGB" and min(picture.size) > 0
        except ImageError as error:
            self.counts["refused"] += 1
            assert str(error) and "\n" not in str(error), "a reason is one line"
            self.reasons[str(error).split("(")[0].split(":")[0][:40]] += 1
        seconds, megabytes = time.process_time() - started, _peak() - before
        self.slowest, self.most = max(self.slowest, seconds), max(self.most, megabytes)
        assert seconds < SECONDS, f"{seconds:.1f} s of processor time"
        assert megabytes < MEGABYTES, f"{megabytes:.0f} MiB"

    def report(self, **more: Any) -> dict[str, Any]:
        return {
            **more, **self.counts, "slowest_s": round(self.slowest, 3),
            "most_mib": round(self.most, 1), "reasons": dict(self.reasons.most_common(12)),
        }  # fmt: skip


def _reset_peak() -> float:
    """MiB in use now; the peak is counted from here on, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _peak()


def _peak() -> float:
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


# ── Hypothesis ───────────────────────────────────────────────────────────────────────────────────

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 30_000, 65_500)


def mutated(data: bytes, edits: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    """edits: what, where (any number), how much, and with what."""
    found = bytearray(data)
    for what, where, much, text in edits:
        at = where % (len(found) + 1)
        if what == "header":  # most numbers that decide over memory stand early
            at = where % min(len(found) + 1, 512)
        if what in ("set", "header"):
            found[at : at + len(text)] = text
        elif what == "number":
            value = NUMBERS[much % len(NUMBERS)]
            size = 2 if value <= 0xFFFF else 4
            order = "big" if where % 2 else "little"
            at = where % min(len(found) + 1, 1024)
            found[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
        elif what == "insert":
            found[at:at] = text
        elif what == "delete":
            del found[at : at + much]
        elif what == "repeat":
            found[at:at] = found[at : at + much] * 3
        elif what == "cut":
            del found[at:]
    return bytes(found)


def with_hypothesis(seeds: dict[str, bytes], n: int, watch: Watch) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    names = sorted(seeds)
    kinds = ["set", "header", "header", "number", "number", "insert", "delete", "repeat", "cut"]
    edits = st.lists(
        st.tuples(
            st.sampled_from(kinds), st.integers(0, 2**20), st.integers(1, 300),
            st.binary(min_size=1, max_size=8),
        ),
        min_size=1, max_size=6,
    )  # fmt: skip

    @settings(
        max_examples=n, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(st.sampled_from(names), edits)
    def read(name: str, edits: list[tuple[str, int, int, bytes]]) -> None:
        watch.read(mutated(seeds[name], edits))

    while watch.counts["images"] < n:  # it may end early when it has seen all of a small space
        read()


def with_atheris(seeds: dict[str, bytes], n: int, watch: Watch, folder: Path) -> None:
    """Does not return: libFuzzer ends the process. Steered by the coverage of Pillow's Python."""
    import atheris

    with atheris.instrument_imports(include=["PIL", "vizsla.data.images"]):
        for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
            del sys.modules[name]
        import vizsla.data.images  # noqa: F401
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (corpus / name.replace("/", "-")).write_bytes(data)

    def one(data: bytes) -> None:
        watch.read(data)
        if watch.counts["images"] == n:
            print(json.dumps(watch.report(tool="atheris", seeds=len(seeds))), flush=True)

    options = [f"-runs={n}", f"-max_len={LARGEST_SEED}", "-timeout=20", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument(
        "--with", dest="tool", default="hypothesis", choices=["hypothesis", "atheris"]
    )
    parser.add_argument("--seeds", type=Path, help="a folder of more seeds")
    parser.add_argument("--keep", type=Path, default=Path("fuzzed.bin"), help="the last image")
    options = parser.parse_args(arguments)
    seeds, watch = seeds_of(options.seeds), Watch(options.keep)
    if options.tool == "atheris":
        with_atheris(seeds, options.images, watch, options.keep.parent / "atheris")
    try:
        with_hypothesis(seeds, options.images, watch)
    except Exception as error:
        print(f"{type(error).__name__}: {error}; the image is in {options.keep}", file=sys.stderr)
        print(json.dumps(watch.report(tool=options.tool, seeds=len(seeds))))
        return 1
    options.keep.unlink(missing_ok=True)
    print(json.dumps(watch.report(tool=options.tool, seeds=len(seeds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
