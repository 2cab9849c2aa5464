"""One batch → its gradient, in pieces that fit into memory, over all processes.

Losses on single images add up over the pieces. Pair losses need the whole batch, so gradients are
cached (Gao et al., 2021): embed without a graph, differentiate the loss with respect to the
embeddings, then embed each piece again with a graph. Either way the gradient is that of the
undivided batch.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vizsla.data.training_batches import available_memory
from vizsla.errors import ModelError
from vizsla.train.losses import TrainingLoss

log = logging.getLogger("vizsla.train")

SHARE_OF_MEMORY = 0.8  # of the free memory may be planned for


class Processes:
    """The communication between a training's processes. fabric: None for a single process."""

    def __init__(self, fabric: Any = None) -> None:
        self.fabric = fabric
        self.size = fabric.world_size if fabric else 1
        self.rank = fabric.global_rank if fabric else 0

    def gathered(self, vectors: Tensor) -> Tensor:
        """(b, D) of this process → (B, D) of all, in order of rank; no gradient flows through."""
        if self.size == 1:
            return vectors
        parts: Tensor = self.fabric.all_gather(vectors.contiguous())  # (processes, b, D)
        return parts.flatten(0, 1)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.size == 1:
            return tensor
        total: Tensor = self.fabric.all_reduce(tensor, reduce_op="sum")
        return total

    def add_up_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replaces each gradient by the sum over all processes, in one message for all of them."""
        if self.size == 1 or not parameters:
            return
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.summed(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def from_first(self, number: float) -> float:
        """The first process's number, in all processes: clocks differ, decisions must not."""
        if self.size == 1:
            return number
        return float(self.fabric.broadcast(number, src=0))

    def wait(self) -> None:
        """Returns when all processes have called it."""
        if self.size > 1:
            self.fabric.barrier()

    def all_true(self, value: bool, device: torch.device) -> bool:
        """Whether `value` is true in all processes."""
        if self.size == 1:
            return value
        return int(self.summed(torch.tensor(int(value), device=device))) == self.size


def open_processes(devices: int = 1, device: str = "auto") -> Processes:
    """As many processes as `devices`, or as torchrun has started, through Lightning Fabric.

    The other processes on this machine run the same command again, each with its rank.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if devices == 1 and started == 1:
        return Processes()
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    use_cuda = device.split(":")[0] in ("auto", "cuda") and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    nodes = max(1, started // local)
    kind = "cuda" if use_cuda else "cpu"
    fabric = Fabric(accelerator=kind, devices=local, num_nodes=nodes, strategy="ddp")
    fabric.launch()
    return Processes(fabric)


class GradientMaker:
    """Sets `.grad` of model and loss for one batch. Halves the pieces when memory runs out."""

    def __init__(
        self,
        model: nn.Module,
        loss: TrainingLoss,
        *,
        micro_batch: int,
        precision: torch.dtype = torch.float32,
        processes: Processes | None = None,
        scaler: Any = None,
    ) -> None:
        self.model, self.loss = model, loss
        self.micro_batch, self.precision = micro_batch, precision
        self.processes = processes or Processes()
        self.scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)

    def gradients(self, images: Tensor, labels: Tensor, teacher: Tensor | None = None) -> float:
        """The loss of the batch of all processes; `.grad` gets its gradient (times the scale).

        images: (b, 3, H, W) of this process; labels: (B,) of the batch of all processes; teacher:
        (B, D'), if the loss takes a teacher's vectors.
        """
        while True:
            for p in [*self.model.parameters(), *self.loss.parameters()]:
                p.grad = None
            if self.loss.of_pairs:
                found = self._of_pairs(images, labels, teacher)
            else:
                found = self._of_single_images(images, labels)
            if found is not None:
                return float(found)
            self._halve()

    # ── two ways through a batch ─────────────────────────────────────────────────────────────────

    def _of_single_images(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """Each piece's mean loss, weighted by its size. None when memory ran out."""
        first = self.processes.rank * len(images)
        local_labels = labels[first : first + len(images)]
        total, enough = torch.zeros((), device=images.device), True
        try:
            for piece in self._pieces(len(images)):
                share = len(images[piece]) / len(labels)
                loss = self.loss(self._embed(images[piece]), local_labels[piece]) * share
                self.scaler.scale(loss).backward()
                total += loss.detach()
        except torch.OutOfMemoryError:
            enough = False
        if not self.processes.all_true(enough, images.device):
            return None
        self.processes.add_up_gradients(_trainable(self.model) + _trainable(self.loss))
        return self.processes.summed(total)

    def _of_pairs(self, images: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor | None:
        """By cached gradients. None when memory ran out."""
        pieces = list(self._pieces(len(images)))
        states: list[Any] = []  # of the generators before each piece, so that dropout repeats
        vectors: Tensor | None = None
        try:
            if len(pieces) == 1:
                vectors = self._embed(images)  # one piece keeps its graph: nothing to embed twice
            else:
                parts = []
                with torch.no_grad():
                    for piece in pieces:
                        states.append(_generator_state(images.device))
                        parts.append(self._embed(images[piece]))
                vectors = torch.cat(parts)
        except torch.OutOfMemoryError:
            vectors = None
        if not self.processes.all_true(vectors is not None, images.device) or vectors is None:
            return None
        joint = self.processes.gathered(vectors.detach()).requires_grad_()  # (B, D)
        loss = self.loss(joint, labels, teacher)
        self.scaler.scale(
            loss
        ).backward()  # the same in all processes, as is the gradient of the loss
        first = self.processes.rank * len(images)
        enough = True
        if joint.grad is not None:
            gradient = joint.grad[first : first + len(images)]
            enough = self._backward(vectors, gradient, images, pieces, states)
        if not self.processes.all_true(enough, images.device):
            return None
        self.processes.add_up_gradients(_trainable(self.model))
        return loss.detach()

    def _backward(
        self,
        vectors: Tensor,
        gradient: Tensor,
        images: Tensor,
        pieces: list[slice],
        states: list[Any],
    ) -> bool:
        """gradient: (b, D) of the loss by the vectors. False when memory ran out."""
        try:
            if len(pieces) == 1:
                vectors.backward(gradient)
                return True
            for piece, state in zip(pieces, states, strict=True):
                with _generators(images.device, state):
                    self._embed(images[piece]).backward(gradient[piece])
            return True
        except torch.OutOfMemoryError:
            return False

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    def _embed(self, images: Tensor) -> Tensor:
        kind = images.device.type
        with torch.autocast(kind, self.precision, enabled=self.precision != torch.float32):
            vectors: Tensor = self.model(images)
        return vectors.float()

    def _pieces(self, n: int) -> Iterator[slice]:
        for start in range(0, n, self.micro_batch):
            yield slice(start, min(start + self.micro_batch, n))

    def _halve(self) -> None:
        if self.micro_batch == 1:
            raise ModelError(
                "memory ran out with a single image at a time: use a smaller --image-size, "
                "--checkpointing, --finetune last or head, or a smaller model"
            )
        self.micro_batch //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning(
            "memory ran out: continuing with micro-batches of %d images; the batch, and so the "
            "gradient, stays the same",
            self.micro_batch,
        )


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _generator_state(device: torch.device) -> Any:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


def _set_generator_state(device: torch.device, state: Any) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def _generators(device: torch.device, state: Any) -> Iterator[None]:
    """Inside, torch's generators continue from `state`; afterwards from where they are now."""
    now = _generator_state(device)
    _set_generator_state(device, state)
    try:
        yield
    finally:
        _set_generator_state(device, now)


# ── memory on a CPU: running out ends the process ──────────────────────────────────────────


def activation_bytes(model: nn.Module, image: Tensor, precision: torch.dtype) -> int:
    """Bytes that one image (1, 3, H, W) keeps in memory between forward and backward."""
    weights = {p.data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast(image.device.type, precision, enabled=precision != torch.float32),
    ):
        vectors = model(image)
    del vectors
    return sum(seen.values())


def fitting_micro_batch(
    model: nn.Module, image: Tensor, precision: torch.dtype, wanted: int, free: int | None = None
) -> int:
    """`wanted` images, or as many as the free memory is estimated to hold. ModelError for none.

    free: bytes; None to measure.
    """
    free = available_memory() if free is None else free
    if free is None or image.device.type != "cpu":
        return wanted
    trained = sum(p.numel() * p.element_size() for p in _trainable(model))
    fixed = 4 * trained  # gradients, two moments of Adam, the moving average
    each = 2 * activation_bytes(model, image, precision)  # backward holds about as much again
    fits = int((SHARE_OF_MEMORY * free - fixed) // max(each, 1))
    if fits < 1:
        raise ModelError(
            f"training needs about {(fixed + each) / 2**30:.1f} GB and {free / 2**30:.1f} GB are "
            "free: use --finetune last or head, a smaller --image-size or a smaller model"
        )
    if fits < wanted:
        log.warning(
            "micro-batches of %d images instead of %d: one image needs about %.0f MB, and %.1f GB "
            "are free; the batch stays the same",
            fits, wanted, each / 2**20, free / 2**30,
        )  # fmt: skip
    return min(wanted, fits)
