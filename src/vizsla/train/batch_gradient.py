"""One batch → its gradient, in pieces that fit into memory and over all processes.

Losses on single images add up over the pieces. Pair losses need the whole batch, so gradients are
cached (Gao et al., 2021): embed without a graph, differentiate the loss by the embeddings, then go
through the pieces again. Either way the gradient is that of the undivided batch.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vizsla.data.image_cache import available_memory
from vizsla.errors import ModelError
from vizsla.train.losses import TrainingLoss

log = logging.getLogger("vizsla.train")

PART_OF_MEMORY = 0.8  # of what is free may be planned for


class Processes:
    """What several processes do together; a single one when `fabric` is None."""

    def __init__(self, fabric: Any = None) -> None:
        self.fabric = fabric
        self.size = fabric.world_size if fabric else 1
        self.rank = fabric.global_rank if fabric else 0

    def joined(self, vectors: Tensor) -> Tensor:
        """(b, D) of this process → (B, D) of all, in order of rank; no gradient flows through."""
        if self.size == 1:
            return vectors
        gathered: Tensor = self.fabric.all_gather(vectors.contiguous())  # (processes, b, D)
        return gathered.flatten(0, 1)

    def summed(self, tensor: Tensor) -> Tensor:
        if self.size == 1:
            return tensor
        total: Tensor = self.fabric.all_reduce(tensor, reduce_op="sum")
        return total

    def add_up_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Every gradient becomes the sum over the processes: one message for all of them."""
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
        """The first process's number, in all of them: clocks differ, decisions must not."""
        if self.size == 1:
            return number
        return float(self.fabric.broadcast(number, src=0))

    def wait(self) -> None:
        if self.size > 1:
            self.fabric.barrier()

    def all_say(self, yes: bool, device: torch.device) -> bool:
        if self.size == 1:
            return yes
        return int(self.summed(torch.tensor(int(yes), device=device))) == self.size


def open_processes(devices: int = 1, device: str = "auto") -> Processes:
    """As many processes as asked for, or as torchrun started; through Lightning Fabric.

    Further processes on this machine run the same command again; each gets its own rank.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if devices == 1 and started == 1:
        return Processes()
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    kind = (
        "cuda" if device.split(":")[0] in ("auto", "cuda") and torch.cuda.is_available() else "cpu"
    )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    nodes = max(1, started // here)
    fabric = Fabric(accelerator=kind, devices=here, num_nodes=nodes, strategy="ddp")
    fabric.launch()
    return Processes(fabric)


class GradientMaker:
    """Fills `.grad` of model and loss for one batch; halves the pieces when memory runs out."""

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
        self.model, self.loss, self.micro_batch, self.precision = (
            model,
            loss,
            micro_batch,
            precision,
        )
        self.processes = processes or Processes()
        self.scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)

    def gradients(self, images: Tensor, labels: Tensor) -> float:
        """The loss of the joint batch, its gradient left in `.grad` (times the scaler's scale).

        images: (b, 3, H, W) of this process; labels: (B,) of the joint batch.
        """
        while True:
            for p in [*self.model.parameters(), *self.loss.parameters()]:
                p.grad = None
            attempt = self._of_pairs if self.loss.of_pairs else self._of_single_images
            found = attempt(images, labels)
            if found is not None:
                return float(found)
            self._halve()

    # ── two ways through a batch ─────────────────────────────────────────────────────────────────

    def _of_single_images(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """Each piece's mean loss, weighted by its size. None when memory ran out."""
        first = self.processes.rank * len(images)
        own = labels[first : first + len(images)]
        total, enough = torch.zeros((), device=images.device), True
        try:
            for piece in self._pieces(len(images)):
                share = len(images[piece]) / len(labels)
                loss = self.loss(self._embed(images[piece]), own[piece]) * share
                self.scaler.scale(loss).backward()
                total += loss.detach()
        except torch.OutOfMemoryError:
            enough = False
        if not self.processes.all_say(enough, images.device):
            return None
        self.processes.add_up_gradients(_trainable(self.model) + _trainable(self.loss))
        return self.processes.summed(total)

    def _of_pairs(self, images: Tensor, labels: Tensor) -> Tensor | None:
        pieces = list(self._pieces(len(images)))
        states: list[Any] = []  # of the generators before each piece: dropout must fall alike again
        own: Tensor | None = None
        try:
            if len(pieces) == 1:
                own = self._embed(images)  # one piece keeps its graph: nothing to embed twice
            else:
                own = self._embed_without_graph(images, pieces, states)
        except torch.OutOfMemoryError:
            own = None
        if not self.processes.all_say(own is not None, images.device) or own is None:
            return None
        joint = self.processes.joined(own.detach()).requires_grad_()  # (B, D)
        loss = self.loss(joint, labels)
        self.scaler.scale(loss).backward()  # the same in every process, the loss's own part too
        first = self.processes.rank * len(images)
        slope = joint.grad[first : first + len(images)] if joint.grad is not None else None
        enough = slope is None or self._backward(own, slope, images, pieces, states)
        if not self.processes.all_say(enough, images.device):
            return None
        self.processes.add_up_gradients(_trainable(self.model))
        return loss.detach()

    def _backward(
        self, own: Tensor, slope: Tensor, images: Tensor, pieces: list[slice], states: list[Any]
    ) -> bool:
        try:
            if len(pieces) == 1:
                own.backward(slope)
                return True
            for piece, state in zip(pieces, states, strict=True):
                with _generators(images.device, state):
                    self._embed(images[piece]).backward(slope[piece])
            return True
        except torch.OutOfMemoryError:
            return False

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    def _embed(self, images: Tensor) -> Tensor:
        kind = images.device.type
        with torch.autocast(kind, self.precision, enabled=self.precision != torch.float32):
            vectors: Tensor = self.model(images)
        return vectors.float()

    def _embed_without_graph(
        self, images: Tensor, pieces: list[slice], states: list[Any]
    ) -> Tensor:
        parts = []
        with torch.no_grad():
            for piece in pieces:
                states.append(_generator_state(images.device))
                parts.append(self._embed(images[piece]))
        return torch.cat(parts)

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
            "memory ran out: going on with micro-batches of %d images; the batch, and so the "
            "gradient, stays as it was",
            self.micro_batch,
        )


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _generator_state(device: torch.device) -> Any:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


class _generators:
    """Context: the generators as they were, and afterwards as they are now."""

    def __init__(self, device: torch.device, state: Any) -> None:
        self.device, self.state = device, state

    def __enter__(self) -> None:
        self.now = _generator_state(self.device)
        self._set(self.state)

    def __exit__(self, *_: object) -> None:
        self._set(self.now)

    def _set(self, state: Any) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.device)


# ── memory on a CPU, where running out ends the process ──────────────────────────────────────────


def activation_bytes(model: nn.Module, image: Tensor, precision: torch.dtype) -> int:
    """What one image (1, 3, H, W) leaves in memory between forward and backward."""
    own = {p.data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
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
    """`wanted`, or as much of it as the free memory is estimated to hold. ModelError for none."""
    free = available_memory() if free is None else free
    if free is None or image.device.type != "cpu":
        return wanted
    trained = sum(p.numel() * p.element_size() for p in _trainable(model))
    fixed = 4 * trained  # gradients, two moments of Adam, the moving average
    each = 2 * activation_bytes(model, image, precision)  # backward holds about as much again
    fits = int((PART_OF_MEMORY * free - fixed) // max(each, 1))
    if fits < 1:
        raise ModelError(
            f"training needs about {(fixed + each) / 2**30:.1f} GB and {free / 2**30:.1f} GB are "
            "free: use --finetune last or head, a smaller --image-size or a smaller model"
        )
    if fits < wanted:
        log.warning(
            "micro-batches of %d images instead of %d: one image needs about %.0f MB, and %.1f GB "
            "are free; the batch stays as it was",
            fits, wanted, each / 2**20, free / 2**30,
        )  # fmt: skip
    return min(wanted, fits)
