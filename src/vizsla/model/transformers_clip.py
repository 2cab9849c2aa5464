"""CLIP as transformers names its weights → as OpenCLIP does."""

import torch

from vizsla.model.weights import State

SIGN = "vision_model.embeddings.class_embedding"  # a name that only such files have
NAMES = {  # the beginning of a name in transformers → in OpenCLIP, of the first that fits
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
}
PARTS = {  # of a layer
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
TRANSPOSED = ("text_projection", "visual.proj")  # used as x @ w, not as a linear layer


def from_transformers(state: State) -> State:
    """The same weights under OpenCLIP's names; names that are not CLIP's stay as they are."""
    state = {name: t for name, t in state.items() if not name.endswith(".position_ids")}
    converted: State = {}
    for name, tensor in state.items():
        new = _renamed(name)
        if ".self_attn.q_proj." in new:
            three = [state[name.replace(".q_proj.", f".{one}_proj.")] for one in "qkv"]
            converted[new.replace(".self_attn.q_proj.", ".attn.in_proj_")] = torch.cat(three)
        elif ".self_attn.k_proj." not in new and ".self_attn.v_proj." not in new:
            converted[new] = tensor.T if new in TRANSPOSED else tensor
    return converted


def _renamed(name: str) -> str:
    start = next((old for old in NAMES if name.startswith(old)), None)
    if start is not None:
        name = NAMES[start] + name.removeprefix(start)
    for old, new in PARTS.items():
        name = name.replace(old, new)
    return name
