"""Disks that fail, fill up, are read-only or vanish: the old state or the new, and a clear word.

Then, with the trouble gone, the same command ends with the artefacts of an untroubled run.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vizsla import storage
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, StorageError, VizslaError

from .conftest import Answer, Commands, Job, leftovers, my_part

JOBS = ["embed", "index", "train"]
QUICK = ["embed", "index", pytest.param("train", marks=pytest.mark.slow)]  # train takes seconds
KINDS = ["write", "fsync", "rename"]


def reports_clearly(answer: Answer, *words: str) -> bool:
    """Whether it printed one line with what failed, where and why, and no traceback."""
    lines = [line for line in answer.output.splitlines() if line.startswith("vizsla: ")]
    return (
        answer.code == 1
        and len(lines) == 1
        and "Traceback" not in answer.output
        and "unexpected" not in answer.output
        and "Logging error" not in answer.output
        and all(word in lines[0] for word in words)
    )


def no_mix(job: Job, out: Path) -> None:
    """All that a reader would take for whole is whole."""
    if job.name == "embed":
        try:
            Embeddings.open(out)
        except (DataError, StorageError) as error:
            assert "damaged" not in str(error), error
    for path in out.rglob("*.json"):
        storage.read_sealed_json(path)


# ── failing steps ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", QUICK)
def test_some_failing_steps(
    name: str, jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    """The short version."""
    for kind in KINDS if name == "embed" else ["write"]:
        _failing(jobs[name], commands, tmp_path / kind, kind, most=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", JOBS)
def test_each_failing_step(
    name: str, kind: str, jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    _failing(jobs[name], commands, tmp_path, kind, most=10**6)


def _failing(job: Job, commands: Commands, folder: Path, kind: str, most: int) -> None:
    whole = job.run(commands, folder / "whole", kinds=[kind])
    hashes, steps = job.hashes(folder / "whole"), whole.steps or 0
    chosen = my_part(range(1, steps + 1, max(1, steps // most)))
    outcomes: Counter[str] = Counter()
    for at in chosen:
        out, number = folder / f"at-{at}", [errno.ENOSPC, errno.EIO][at % 2]
        answer = job.run(commands, out, kinds=[kind], at=at, act=number)
        reason = "the disk is full" if number == errno.ENOSPC else os.strerror(number)
        assert reports_clearly(answer, str(out), reason), (at, answer.output)
        assert leftovers(out) == []
        no_mix(job, out)
        again = job.run(commands, out)
        assert again.code == 0, again.output
        assert job.hashes(out) == hashes, at
        outcomes[reason] += 1
        shutil.rmtree(out)
    print(
        f"\n{job.name}: {kind} failed at {len(chosen)} of {steps} calls, said in one line each "
        f"({dict(outcomes)}); then whole, with the same hashes"
    )


def test_overwriting_fails_and_the_old_never_mixes_with_the_new(
    jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    job, out = jobs["embed"], tmp_path / "e"
    other = commands.run(*job.words, "--seed", "5", "-o", out)
    assert other.code == 0, other.output
    old = Embeddings.open(out).model_id
    refused = job.run(commands, out)
    assert reports_clearly(refused, "already holds other embeddings", "--overwrite")
    assert Embeddings.open(out).model_id == old
    words = [*job.words, "--overwrite", "-o", out]
    steps = commands.run(*words[:-1], tmp_path / "new").steps or 0
    for at in range(1, steps + 1, 16):
        failed = commands.run(*words, at=at, act=errno.ENOSPC)
        assert reports_clearly(failed, "the disk is full")
        with pytest.raises(VizslaError):
            Embeddings.open(out)
    assert job.run(commands, out).code == 0
    assert job.hashes(out) == job.hashes(tmp_path / "new")


# ── disks ────────────────────────────────────────────────────────────────────────────────────────

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """`mount(kib=64)`: a small disk. `mount(read_only=True)`: one that cannot be written to."""
    mounted: list[Path] = []

    def call(*words: object) -> None:
        done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")

    def make(*, kib: int = 1024, read_only: bool = False) -> Path:
        if os.name == "nt" or os.geteuid() != 0:
            pytest.skip("mounting needs root")
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        call("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder)
        mounted.append(folder)
        if read_only:
            call("-o", "remount,ro", folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def grow(folder: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", folder], check=True)


@pytest.mark.parametrize("name", QUICK)
def test_a_full_disk(
    name: str, jobs: dict[str, Job], commands: Commands, mount: Mount, tmp_path: Path
) -> None:
    _full_disks(jobs[name], commands, mount, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_full_disks_of_many_sizes(
    name: str, jobs: dict[str, Job], commands: Commands, mount: Mount, tmp_path: Path
) -> None:
    _full_disks(jobs[name], commands, mount, tmp_path, 25)


def _full_disks(job: Job, commands: Commands, mount: Mount, tmp_path: Path, n: int) -> None:
    assert job.run(commands, tmp_path / "whole").code == 0
    hashes = job.hashes(tmp_path / "whole")
    used = sum(-(-p.stat().st_size // 4096) * 4 for p in (tmp_path / "whole").rglob("*"))  # KiB
    full, chosen = 0, my_part(range(1, n + 1))
    for i in chosen:
        kib = max(4, used * i // (n + 1) // 4 * 4)
        out = mount(kib=kib) / "out"
        answer = job.run(commands, out)
        if answer.code != 0:
            full += 1
            assert reports_clearly(answer, str(out), "the disk is full"), (kib, answer.output)
            assert leftovers(out) == []
            no_mix(job, out)
        grow(out.parent, 4 * used + 4096)
        again = job.run(commands, out)
        assert again.code == 0, (kib, again.output)
        assert job.hashes(out) == hashes, kib
        shutil.rmtree(out)
    print(
        f"\n{job.name}: disks of {len(chosen)} sizes below {used} KiB, {full} of them too small "
        "and said so; after they had grown all end with the same hashes"
    )
    assert full >= len(chosen) // 2


@pytest.mark.parametrize("name", JOBS)
def test_a_read_only_disk(
    name: str, jobs: dict[str, Job], commands: Commands, mount: Mount
) -> None:
    disk = mount(read_only=True)
    answer = jobs[name].run(commands, disk / "out")
    assert reports_clearly(answer, str(disk / "out"), "read-only", "choose another folder")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("name", QUICK)
def test_a_folder_of_somebody_else(
    name: str, jobs: dict[str, Job], photos: Path, commands: Commands, tmp_path: Path
) -> None:
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    closed = [place for place in Path(sys.prefix).parents if not place.stat().st_mode & 0o005]
    if closed:
        pytest.skip(f"somebody else cannot read this environment: {closed[0]} is closed to them")
    job, out = jobs[name], tmp_path / "out"
    assert job.run(commands, out).code == 0
    before = job.hashes(out)
    for path in [out, *out.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for place in (tmp_path, photos):
        for path in [place, *place.parents][:-1]:
            path.chmod(path.stat().st_mode | 0o055)
    words = [*job.words, *(["--overwrite"] if name in ("embed", "train") else [])]
    answer = commands.run(*words, "-o", out, user=65534)
    assert reports_clearly(answer, str(out), "permission denied", "choose a folder"), answer.output
    assert job.hashes(out) == before


# ── folders that vanish ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "back"),
    [("embed", False), ("embed", True), ("index", True),
     pytest.param("train", False, marks=pytest.mark.slow),
     pytest.param("train", True, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_folder_that_is_deleted_meanwhile(
    name: str, back: bool, jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    """back: it is there again, perhaps somebody else's by now."""
    job, out = jobs[name], tmp_path / "out"
    steps = job.run(commands, tmp_path / "whole").steps or 0
    hashes = job.hashes(tmp_path / "whole")
    for at in (steps // 3, 2 * steps // 3):
        answer = job.run(
            commands, out, at=at, act="delete back" if back else "delete", place=str(out)
        )
        assert reports_clearly(answer, str(out), "was deleted or replaced"), answer.output
        assert not out.exists() or [p.name for p in out.rglob("*") if p.name[0] != "."] == []
    assert job.run(commands, out).code == 0
    assert job.hashes(out) == hashes


def test_images_that_vanish_are_not_taken_for_broken_ones(
    jobs: dict[str, Job], photos: Path, commands: Commands, tmp_path: Path
) -> None:
    """As when a network disk is unmounted."""
    job, images, out = jobs["embed"], tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, images)
    words = [str(images) if word == str(photos) else word for word in job.words]
    answer = commands.run(*words, "-o", out, at=10, act="delete", place=str(images))
    assert reports_clearly(answer, str(images), "is gone"), answer.output
    manifest = json.loads((out / "manifest.json").read_text())
    assert not manifest["complete"] and manifest["done"] < 40
    shutil.copytree(photos, images)
    assert commands.run(*words, "-o", out).code == 0
    assert job.run(commands, tmp_path / "whole").code == 0
    whole, found = job.hashes(tmp_path / "whole"), job.hashes(out)
    assert found == whole
