"""Low-rank adapters for transformers (Hu et al., 2021), through peft; merged before saving."""

import copy
from typing import Any

from torch import nn

from vizsla.errors import MissingExtraError, ModelError
from vizsla.model.embedder import Embedder

TARGETS = ("qkv", "proj", "fc1", "fc2", "out_proj", "c_fc", "c_proj", "q", "kv")
RANK = 8


def add_adapters(embedder: Embedder, *, rank: int = RANK, seed: int = 0) -> Any:
    """Puts adapters beside the linear layers of the image tower; the tuner that can merge them."""
    import torch

    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise MissingExtraError("--finetune lora", "lora") from error
    side = _image_side(embedder)
    names = {
        name.rpartition(".")[2] for name, m in side.named_modules() if isinstance(m, nn.Linear)
    }
    targets = sorted(names & set(TARGETS))
    if not targets:
        raise ModelError(
            f"{embedder.name} has none of the layers that adapters go beside: --finetune lora is "
            "for transformers, use full or last"
        )
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(side, config, "default")


def merged(embedder: Embedder) -> Embedder:
    """A copy without adapters: their product added to the weights they stand beside."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(embedder)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    return plain


def adapter_parameters(embedder: Embedder) -> list[nn.Parameter]:
    return [p for name, p in embedder.backbone.named_parameters() if "lora_" in name]


def _image_side(embedder: Embedder) -> nn.Module:
    network = embedder.backbone.network
    side: nn.Module = getattr(network, "visual", network)
    return side
