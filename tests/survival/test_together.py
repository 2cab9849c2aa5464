"""Several processes in one folder, and the same images in other shards by other threads."""

import hashlib
import random
from pathlib import Path

import pytest
import torch

from vizsla import storage
from vizsla.data.imageset import ImageSet
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.model.embedder import Embedder

from .conftest import IMAGES, Commands, Job

JOBS = ["embed", "train"]


@pytest.mark.parametrize("name", JOBS)
def test_a_second_process_says_so(
    name: str, jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    with storage.locked(tmp_path / "out"):
        answer = jobs[name].run(commands, tmp_path / "out")
        assert answer.code == 1
        assert "another process is writing" in answer.output and str(tmp_path) in answer.output
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name != ".lock"] == []


def test_eight_at_once_leave_what_one_leaves(
    jobs: dict[str, Job], commands: Commands, tmp_path: Path
) -> None:
    job, out = jobs["embed"], tmp_path / "out"
    assert job.run(commands, tmp_path / "whole").code == 0
    answer = job.run(commands, out, times=8)
    refused = answer.output.count("another process is writing")
    begun = len(answer.noted("part"))
    print(f"\n8 processes at once: {8 - refused} wrote, {refused} said that another does")
    assert sorted(answer.codes) == [0] * (8 - refused) + [1] * refused and refused < 8
    assert begun == IMAGES // 8
    assert job.run(commands, out).code == 0
    assert job.hashes(out) == job.hashes(tmp_path / "whole")


def test_bit_equal_for_any_shards_and_threads(photos: Path, tmp_path: Path) -> None:
    embedder = Embedder.build("timm:test_resnet", weights="random", image_size=32)
    images, before = ImageSet.from_class_folders(photos), torch.get_num_threads()
    rng, found = random.Random(0), set()
    combinations = [(rng.choice([4, 7, 8, 12, 40, 1000]), rng.randint(1, 6)) for _ in range(12)]
    torch.set_num_threads(1)
    try:
        for n, (shard_images, workers) in enumerate(combinations):
            compute = resolve_compute(device="cpu", batch_size=4, workers=workers)
            out = tmp_path / str(n)
            embed(images, embedder, out, compute=compute, shard_images=shard_images)
            made = Embeddings.open(out)
            content = made.vectors.tobytes() + repr((made.ids, made.labels, made.broken)).encode()
            found.add((made.compute_id, hashlib.sha256(content).hexdigest()))
    finally:
        torch.set_num_threads(before)
    print(f"\n{len(combinations)} combinations of shard size and threads: {len(found)} result")
    assert len(found) == 1
