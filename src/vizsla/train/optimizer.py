"""What the optimizer trains: which weights, adapters, learning rates, the moving average."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vizsla.errors import MissingExtraError, ModelError, UsageError
from vizsla.model.embedder import Embedder

LAST_SHARE = 0.7  # of the blocks: the first ones cost most and detect what all images contain
SMALL_SHARE = 0.02  # of the largest block's parameters: what has fewer joins another block
ADAPTED_LAYERS = ("qkv", "proj", "fc1", "fc2", "out_proj", "c_fc", "c_proj", "q", "kv")
ADAPTER_RANK = 8
LARGE = 200e6  # parameters of an image tower, from which adapters are the usual way


# ── which weights are trained ────────────────────────────────────────────────────────────────────


def blocks_of(embedder: Embedder) -> list[list[nn.Parameter]]:
    """The parameters that image vectors depend on, in blocks from the first to the last.

    Chains of modules are split into their parts; small parts (norms, a class token) join the block
    before them.
    """
    found: list[list[nn.Parameter]] = []
    _collect_blocks(_image_tower(embedder), found)
    sizes = [sum(p.numel() for p in block) for block in found]
    blocks: list[list[nn.Parameter]] = []
    for block, size in zip(found, sizes, strict=True):
        if blocks and size < SMALL_SHARE * max(sizes):
            blocks[-1].extend(block)
        else:
            blocks.append(list(block))
    return blocks


def _collect_blocks(module: nn.Module, found: list[list[nn.Parameter]]) -> None:
    direct = list(module.parameters(recurse=False))
    if direct:
        found.append(direct)
    for child in module.children():
        if _is_chain(child):
            _collect_blocks(child, found)
        elif parameters := list(child.parameters()):
            found.append(parameters)


def _is_chain(module: nn.Module) -> bool:
    """Whether a module is a list of blocks, or has most of its weights in one part that is."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return sum(_count(c) > 0 and any(True for _ in c.children()) for c in module) > 1
    total = _count(module)
    return any(_count(c) >= 0.8 * total and _is_chain(c) for c in module.children())


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def unfreeze_weights(
    embedder: Embedder, finetune: str, last: int | None = None
) -> list[list[nn.Parameter]]:
    """Sets requires_grad as `finetune` says; returns the blocks that are trained, first to last.

    last: how many of them with "last"; None for LAST_SHARE.
    """
    for p in embedder.parameters():
        p.requires_grad_(False)
    for p in [*embedder.projection.parameters(), *embedder.pool.parameters()]:
        p.requires_grad_(True)
    if finetune in ("none", "head"):
        return []
    blocks = blocks_of(embedder)
    if finetune == "last":
        last = max(1, int(LAST_SHARE * len(blocks))) if last is None else last
        if not 1 <= last <= len(blocks):
            raise UsageError(
                f"--blocks {last}: {embedder.name} has {len(blocks)} blocks, choose from 1 to that"
            )
        blocks = blocks[-last:]
    for p in [p for block in blocks for p in block]:
        p.requires_grad_(True)
    return blocks


# ── adapters (Hu et al., 2021) ───────────────────────────────────────────────────────────────────


def suits_adapters(embedder: Embedder) -> bool:
    """Whether it is usually fine-tuned by adapters: its image tower is a large transformer."""
    tower = _image_tower(embedder)
    return _count(tower) >= LARGE and bool(_adapted_layers(tower))


def _adapted_layers(tower: nn.Module) -> list[str]:
    names = {
        name.rpartition(".")[2] for name, m in tower.named_modules() if isinstance(m, nn.Linear)
    }
    return sorted(names & set(ADAPTED_LAYERS))


def add_adapters(embedder: Embedder, *, seed: int = 0) -> list[nn.Parameter]:
    """Adds low-rank adapters to the linear layers of the image tower; returns their parameters.

    MissingExtraError without peft, ModelError if there is no such layer.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise MissingExtraError("--finetune lora", "lora") from error
    tower = _image_tower(embedder)
    targets = _adapted_layers(tower)
    if not targets:
        raise ModelError(
            f"{embedder.name} has no layers that adapters can be added to: --finetune lora is for "
            "transformers, use full or last"
        )
    config = LoraConfig(
        r=ADAPTER_RANK, lora_alpha=2 * ADAPTER_RANK, target_modules=targets, lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LoraModel(tower, config, "default")
    return [p for name, p in embedder.backbone.named_parameters() if "lora_" in name]


def with_merged_adapters(embedder: Embedder) -> Embedder:
    """A copy without adapters: their product is added to the weights of their layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(embedder)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    return plain


def _image_tower(embedder: Embedder) -> nn.Module:
    network = embedder.backbone.network
    tower: nn.Module = getattr(network, "visual", network)
    return tower


# ── learning rates ───────────────────────────────────────────────────────────────────────────────


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
    """Groups for AdamW: rates fall with depth; norms, biases, GeM's p and the head have no decay.

    blocks: first to last. Weight decay would pull the head from the identity towards zero.
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
    if proxies := [p for p in loss.parameters() if p.requires_grad]:
        groups.append({"params": proxies, "lr": head_learning_rate, "weight_decay": 0.0})
    for group in groups:
        group["full_lr"] = group["lr"]
    return groups


def rate_at(progress: float, warmup: float) -> float:
    """The share of the full learning rate: a linear warm-up, then half a cosine down to 0.

    progress, warmup: shares of the training.
    """
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    rest = (min(progress, 1.0) - warmup) / max(1e-9, 1 - warmup)
    return 0.5 * (1 + math.cos(math.pi * rest))


def set_rates(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Sets each group's learning rate to this share of its full one."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_lr"] * share


# ── weights in training ──────────────────────────────────────────────────────────────────────────


def moving_average(embedder: Embedder, decay: float) -> AveragedModel:
    """An exponential average of the weights, whose decay rises to `decay` in the first steps."""

    @torch.no_grad()
    def average(averaged: Any, current: Any, seen: Any) -> None:
        now = min(decay, (1 + float(seen)) / (10 + float(seen)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return AveragedModel(embedder, multi_avg_fn=average)


def freeze_norms(module: nn.Module) -> None:
    """Puts batch norms into evaluation mode: they use the statistics of the given weights."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def checkpoint_activations(embedder: Embedder) -> None:
    """Recomputes activations in the backward pass; ModelError if the network cannot."""
    switch = getattr(_image_tower(embedder), "set_grad_checkpointing", None)
    if switch is None:
        raise ModelError(f"{embedder.name} cannot recompute activations: leave out --checkpointing")
    switch(True)


def largest_changes(before: dict[str, Tensor], module: nn.Module) -> dict[str, float]:
    """Name → the largest change of any value since `before`."""
    return {
        name: float((p.detach() - before[name]).abs().max()) if p.numel() else 0.0
        for name, p in module.named_parameters()
        if name in before
    }
