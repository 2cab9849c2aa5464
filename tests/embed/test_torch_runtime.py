"""Batches in parts, side by side on a CPU: the same vectors by any number of cores."""

import threading

import numpy as np
import pytest
import torch

from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import IMAGES_PER_CORE, Compute, part_size
from vizsla.embed.runtime import Runtime
from vizsla.embed.torch_runtime import in_parts
from vizsla.model.embedder import Embedder


@pytest.fixture
def cores():
    """Sets how many threads torch has, for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_how_large_a_part_is() -> None:
    assert part_size(32, 2) == part_size(32, 1) == part_size(7, 1) == IMAGES_PER_CORE == 4
    assert part_size(8, 4) == 2 and part_size(5, 2) == 3 and part_size(2, 2) == 1
    assert part_size(1, 2) is None  # both work on the one image


def test_the_number_of_cores_changes_no_bit(cores) -> None:
    embedder = Embedder.build("timm:test_resnet", weights="random", image_size=32)
    pixels = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    found, ids = [], set()
    for n in (1, 2, 3):
        cores(n)
        compute = resolve_compute(device="cpu", precision="fp32", batch_size=16)
        found.append(Runtime(embedder, compute).submit(pixels).result())
        ids.add(compute.id)
        assert torch.get_num_threads() == n  # what works beside leaves this thread as it was
    assert len(ids) == 1
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    cores(17)  # too few images for all of them
    other = Compute("cpu", "fp32", 16, 1)
    assert other.facts["threads"] == 17 and other.id not in ids


def test_parts_are_taken_by_several_threads_at_once(cores) -> None:
    cores(2)
    both = threading.Barrier(2)
    names = set()

    def function(part: torch.Tensor) -> torch.Tensor:
        both.wait(30)
        names.add(threading.current_thread().name)
        assert torch.get_num_threads() == 1 and torch.is_inference_mode_enabled()
        return part * 2

    images = torch.arange(8.0)[:, None]
    assert torch.equal(in_parts(function, images), images * 2)
    assert len(names) == 2 and threading.current_thread().name not in names


def test_what_goes_wrong_in_a_part_is_raised(cores) -> None:
    cores(2)

    def function(part: torch.Tensor) -> torch.Tensor:
        raise ValueError("of a part")

    with pytest.raises(ValueError, match="of a part"):
        in_parts(function, torch.zeros(8, 1))
