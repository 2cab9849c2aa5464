"""The gradient of a batch is the same in pieces, after memory ran out, and over two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizsla.errors import ModelError
from vizsla.train.batch_gradient import GradientMaker, activation_bytes, fitting_micro_batch
from vizsla.train.losses import build_loss

B, C, D = 12, 4, 8
LOSSES = ["cross-entropy", "triplet", "supcon+0.5*cross-entropy", "proxy-anchor"]


class Net(nn.Module):
    """Two layers with dropout; raises like a GPU without memory above `most` images at a time."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Linear(6, D)
        self.drop, self.most, self.seen = nn.Dropout(0.3), most, 0

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        self.seen = max(self.seen, len(images))
        x = self.drop(self.one(images).relu().mean((2, 3)))
        return F.normalize(self.two(x), dim=1)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(B, 3, 8, 8, generator=generator), torch.arange(B) % C


def gradient(loss_name: str, micro: int, *, dropout: bool = False, most: int = 10**9) -> dict:
    """Loss, gradients of model and loss, and the micro-batch that was left."""
    torch.manual_seed(0)
    net, loss = Net(most), build_loss(loss_name, C, D)
    net.train(dropout)
    maker = GradientMaker(net, loss, micro_batch=micro)
    torch.manual_seed(1)
    value = maker.gradients(*batch())
    found = {n: p.grad.clone() for m in (net, loss) for n, p in m.named_parameters()}
    return {"value": value, "gradients": found, "micro": maker.micro_batch, "seen": net.seen}


def close(found: Tensor, expected: Tensor) -> bool:
    """To what float32 leaves of a gradient of this size."""
    return torch.allclose(found, expected, atol=2e-6 * float(expected.abs().max().clamp(1)))


def assert_alike(one: dict, other: dict) -> None:
    assert one["value"] == pytest.approx(other["value"], rel=1e-5)
    for name, expected in one["gradients"].items():
        assert close(other["gradients"][name], expected), name
        assert expected.abs().max() > 0, f"{name} gets no gradient: nothing is compared"


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("micro", [1, 5, 11])
def test_pieces_give_the_gradient_of_the_undivided_batch(loss_name: str, micro: int) -> None:
    assert_alike(gradient(loss_name, B), gradient(loss_name, micro))


def test_the_gradient_of_the_undivided_batch_is_that_of_autograd() -> None:
    for name in LOSSES:
        torch.manual_seed(0)
        net, loss = Net().eval(), build_loss(name, C, D)
        images, labels = batch()
        loss(net(images), labels).backward()
        ours = gradient(name, B)["gradients"]
        for parameter, p in net.named_parameters():
            assert torch.allclose(ours[parameter], p.grad, atol=1e-6)


def test_dropout_is_the_same_in_both_passes() -> None:
    """Else the cached gradient would belong to other vectors than the loss saw."""
    torch.manual_seed(0)
    net, loss = Net().train(), build_loss("triplet", C, D)
    images, labels = batch()
    torch.manual_seed(1)
    vectors = torch.cat([net(images[:6]), net(images[6:])])  # two pieces, one graph
    loss(vectors, labels).backward()
    found = gradient("triplet", 6, dropout=True)
    for name, p in net.named_parameters():
        assert torch.allclose(found["gradients"][name], p.grad, atol=1e-6)


@pytest.mark.parametrize("loss_name", ["cross-entropy", "triplet"])
def test_running_out_of_memory_halves_the_pieces(
    loss_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = gradient(loss_name, B, most=3)
    assert found["micro"] == 3
    assert found["seen"] == 3
    assert_alike(gradient(loss_name, B), found)
    assert caplog.text.count("memory ran out") == 2
    assert "micro-batches of 3 images" in caplog.text


def test_no_memory_for_one_image_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="smaller image_size"):
        gradient("cross-entropy", B, most=0)


def test_memory_is_estimated_before_it_runs_out_on_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
    net, image = Net().train(), torch.zeros(1, 3, 32, 32)
    each = activation_bytes(net, image, torch.float32)
    assert each >= 6 * 30 * 30 * 4  # the map behind the first layer, at least
    assert activation_bytes(net, torch.zeros(1, 3, 64, 64), torch.float32) > 3 * each
    assert fitting_micro_batch(net, image, torch.float32, 16, free=2**30) == 16
    fits = fitting_micro_batch(net, image, torch.float32, 16, free=int(10 * each))
    assert 1 <= fits < 8
    assert "instead of 16" in caplog.text
    with pytest.raises(ModelError, match="finetune last or head"):
        fitting_micro_batch(net, image, torch.float32, 16, free=100)


TWO_PROCESSES = """
import json, sys, torch
sys.path.insert(0, sys.argv[2])
from test_batch_gradient import B, C, D, LOSSES, Net, batch
from vizsla.train.losses import build_loss
from vizsla.train.batch_gradient import GradientMaker, open_processes
torch.set_num_threads(1)
processes = open_processes()
found = {}
for micro in (B, 4):
    for name in LOSSES:
        torch.manual_seed(0)
        net, loss = Net().eval(), build_loss(name, C, D)
        maker = GradientMaker(net, loss, micro_batch=micro, processes=processes)
        images, labels = batch()
        half = B // processes.size
        own = images[processes.rank * half : (processes.rank + 1) * half]
        value = maker.gradients(own, labels)
        grads = {n: p.grad.flatten().tolist() for m in (net, loss) for n, p in m.named_parameters()}
        found[f"{name} {micro}"] = [value, grads]
json.dump([processes.size, found], open(f"{sys.argv[1]}/{processes.rank}.json", "w"))
"""


def test_two_processes_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in "01":  # as `torchrun` starts them
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
        command = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)]
        errors = (tmp_path / f"{rank}.txt").open("w")
        processes.append(subprocess.Popen(command, env=environment, stderr=errors))
        errors.close()
    for rank, process in enumerate(processes):
        assert process.wait(240) == 0, (tmp_path / f"{rank}.txt").read_text()[-3000:]
    for rank in (0, 1):
        size, found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert size == 2
        for key, (value, grads) in found.items():
            alone = gradient(key.split()[0], B)
            assert value == pytest.approx(alone["value"], rel=1e-5)
            for name, numbers in grads.items():
                expected = alone["gradients"][name].flatten()
                assert close(torch.tensor(numbers), expected), (key, name)
