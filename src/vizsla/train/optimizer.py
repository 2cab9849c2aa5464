"""How weights move: which ones do, how fast each one, and their moving average."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vizsla.errors import ModelError, UsageError
from vizsla.model.embedder import Embedder

LAST = 0.7  # of the blocks: the first ones cost most, and know what all pictures have
SMALL = 0.02  # a part with fewer of the largest part's parameters is no block of its own


# ── which weights ────────────────────────────────────────────────────────────────────────────────


def blocks_of(embedder: Embedder) -> list[list[nn.Parameter]]:
    """The parameters that make image vectors, in blocks from the first to the last.

    Chains of modules are taken apart; what is small (norms, a class token) joins its neighbour.
    """
    network = embedder.backbone.network
    image_side = getattr(network, "visual", network)
    found: list[list[nn.Parameter]] = []
    _collect(image_side, found)
    sizes = [sum(p.numel() for p in block) for block in found]
    blocks: list[list[nn.Parameter]] = []
    for block, size in zip(found, sizes, strict=True):
        if blocks and size < SMALL * max(sizes):
            blocks[-1].extend(block)
        else:
            blocks.append(list(block))
    return blocks


def _collect(module: nn.Module, found: list[list[nn.Parameter]]) -> None:
    direct = list(module.parameters(recurse=False))
    if direct:
        found.append(direct)
    for child in module.children():
        if _is_chain(child):
            _collect(child, found)
        elif own := list(child.parameters()):
            found.append(own)


def _is_chain(module: nn.Module) -> bool:
    """Whether a module is a list of blocks, or has most of its weights in one part that is."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return sum(_count(c) > 0 and any(True for _ in c.children()) for c in module) > 1
    total = _count(module)
    return any(_count(c) >= 0.8 * total and _is_chain(c) for c in module.children())


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def open_weights(
    embedder: Embedder, finetune: str, last: int | None = None
) -> list[list[nn.Parameter]]:
    """Sets requires_grad for `finetune`; the blocks that are trained, first to last.

    last: how many with "last"; None for most of them.
    """
    for p in embedder.parameters():
        p.requires_grad_(False)
    for p in [*embedder.projection.parameters(), *embedder.pool.parameters()]:
        p.requires_grad_(True)
    if finetune in ("none", "head"):
        return []
    blocks = blocks_of(embedder)
    if finetune == "last":
        last = max(1, int(LAST * len(blocks))) if last is None else last
        if not 1 <= last <= len(blocks):
            raise UsageError(
                f"the last {last} blocks of {embedder.name}: it has {len(blocks)}, choose from 1"
            )
        blocks = blocks[-last:]
    for p in [p for block in blocks for p in block]:
        p.requires_grad_(True)
    return blocks


# ── how fast ─────────────────────────────────────────────────────────────────────────────────────


def parameter_groups(
    embedder: Embedder,
    blocks: list[list[nn.Parameter]],
    loss: nn.Module,
    *,
    learning_rate: float,
    head_learning_rate: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Groups for AdamW: rates that fall with depth; no decay on norms, biases, p and the head.

    The head's decay would pull it away from the identity, towards nothing.
    """
    groups: list[dict[str, Any]] = []
    for depth, block in enumerate(reversed(blocks)):
        rate = learning_rate * layer_decay**depth
        for decayed in (True, False):
            chosen = [p for p in block if (p.ndim > 1) == decayed]
            if chosen:
                decay = weight_decay if decayed else 0.0
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    head = [*embedder.projection.parameters(), *embedder.pool.parameters()]
    if head:
        groups.append({"params": head, "lr": learning_rate, "weight_decay": 0.0})
    if own := [p for p in loss.parameters() if p.requires_grad]:
        groups.append({"params": own, "lr": head_learning_rate, "weight_decay": 0.0})
    for group in groups:
        group["full_lr"] = group["lr"]
    return groups


def rate_at(progress: float, warmup: float) -> float:
    """The share of the full learning rate: up in a line, then down in a half cosine."""
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    rest = (min(progress, 1.0) - warmup) / max(1e-9, 1 - warmup)
    return 0.5 * (1 + math.cos(math.pi * rest))


def set_rates(optimiser: torch.optim.Optimizer, share: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["full_lr"] * share


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────


def moving_average(embedder: Embedder, decay: float) -> AveragedModel:
    """Averages from the first step on, slowly at first no more than what it has seen."""

    @torch.no_grad()
    def average(averaged: Any, current: Any, seen: Any) -> None:
        now = min(decay, (1 + float(seen)) / (10 + float(seen)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return AveragedModel(embedder, multi_avg_fn=average)


def freeze_norms(module: nn.Module) -> None:
    """Batch norms use the statistics that they came with."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def checkpoint_activations(embedder: Embedder) -> None:
    """Trades time for memory; ModelError where the network cannot."""
    network = embedder.backbone.network
    part = getattr(network, "visual", network)
    switch = getattr(part, "set_grad_checkpointing", None)
    if switch is None:
        raise ModelError(f"{embedder.name} cannot recompute activations: leave --checkpointing out")
    switch(True)


def distance_moved(before: dict[str, Tensor], module: nn.Module) -> dict[str, float]:
    """Name → the largest change of any value since `before`."""
    return {
        name: float((p.detach() - before[name]).abs().max()) if p.numel() else 0.0
        for name, p in module.named_parameters()
        if name in before
    }
