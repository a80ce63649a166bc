"""LlamaForCausalLM with its own number of heads and MLP channels in every layer, as `per_layer_config` says.

A layer that lost all its heads or all its channels names "attention" or "mlp" under `skip` there, and `output_biases`
names the layers whose output projection got a bias. Written by numprune, which is not needed to run it: torch and
transformers 5.20 or newer are enough.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

transformers may warn that it reads a size from the shared config. It is the full size, and layers are narrowed below.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM

# Names of linears below a layer. A group is a KV head with its query heads, or a head where every head has its own;
# `*_rows` are the out-features that belong to one group or channel, `*_columns` the in-features.
LAYOUT = {
    "layers": "model.layers",
    "attention": "self_attn",
    "groups": "num_key_value_heads",
    "channels": "intermediate_size",
    "attention_rows": {"self_attn.q_proj": 128, "self_attn.k_proj": 128, "self_attn.v_proj": 128},
    "attention_columns": {"self_attn.o_proj": 128},
    "mlp_rows": {"mlp.gate_proj": 1, "mlp.up_proj": 1},
    "mlp_columns": {"mlp.down_proj": 1},
}


class PrunedLlamaForCausalLM(LlamaForCausalLM):
    """The stock model with narrower layers; everything else is inherited."""

    def __init__(self, config: Any):
        # The stock class makes layers at full size, and would warn about layers of other sizes.
        text = config.get_text_config(decoder=True)
        sizes = text.to_dict()["per_layer_config"]
        text.per_layer_config = None
        super().__init__(config)
        text.per_layer_config = sizes
        narrow(self, LAYOUT)

    def _get_static_cache_init_shape(self) -> Any:
        # A layer without attention caches another shape than its config has, so such a cache is made on first use.
        layers = self.config.get_text_config(decoder=True).per_layer_config
        if any("attention" in getattr(each, "skip", ()) for each in layers):
            return None
        return super()._get_static_cache_init_shape()


def narrow(model: nn.Module, layout: dict[str, Any]) -> None:
    """Bring every layer of a model at full size to the size its config says."""
    config = model.config.get_text_config(decoder=True)
    biases = getattr(config, "output_biases", {})
    for index, layer in enumerate(model.get_submodule(layout["layers"])):
        sizes = config.per_layer_config[index]
        skip = getattr(sizes, "skip", ())
        groups = 0 if "attention" in skip else getattr(sizes, layout["groups"])
        channels = 0 if "mlp" in skip else getattr(sizes, layout["channels"])
        for kind, units in (("attention", groups), ("mlp", channels)):
            for name, width in layout[f"{kind}_rows"].items():
                _resize(layer.get_submodule(name), rows=units * width)
            for name, width in layout[f"{kind}_columns"].items():
                last = _resize(layer.get_submodule(name), columns=units * width, bias=index in biases.get(kind, ()))
                if kind == "attention" and not units:
                    setattr(layer, layout["attention"], NoHeads(index, last.bias))
        if groups:
            _settle(layer.get_submodule(layout["attention"]), sizes)


def _resize(linear: nn.Linear, rows: int | None = None, columns: int | None = None, bias: bool = False) -> nn.Linear:
    """The first `rows` out-features and `columns` in-features; a bias where the config adds one."""
    linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())
    elif bias:
        linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
    return linear


def _settle(attention: nn.Module, sizes: Any) -> None:
    """Tell an attention module how many heads are left, where it does not read that off its linears."""
    heads = {"num_attention_heads": sizes.num_attention_heads}
    if hasattr(sizes, "num_key_value_heads"):
        heads["num_key_value_heads"] = sizes.num_key_value_heads
    for name, count in (*heads.items(), ("num_heads", sizes.num_attention_heads)):
        if hasattr(attention, name):
            setattr(attention, name, count)
    attention.config = LayerConfig(attention.config, heads)


class LayerConfig:
    """The model's own config, with the numbers of heads of one layer."""

    def __init__(self, shared: Any, heads: dict[str, int]):
        self.__dict__.update(heads, _shared=shared)

    def __getattr__(self, name: str) -> Any:
        # Copying asks for attributes before _shared exists.
        if name.startswith("__") or name == "_shared":
            raise AttributeError(name)
        return getattr(self._shared, name)


# transformers takes a class named "Attention" in this file as a reason not to let a model change its implementation.
class NoHeads(nn.Module):
    """Where a layer has no head left: zeros, or the bias that stands for them."""

    def __init__(self, layer_idx: int, bias: nn.Parameter | None):
        super().__init__()
        self.layer_idx = layer_idx
        self.bias = bias

    def forward(self, hidden_states: torch.Tensor, *_: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        if cache is not None:
            # Caches read the length off their tensors, so one number a token is stored here too.
            placeholder = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(placeholder, placeholder, self.layer_idx)
        output = torch.zeros_like(hidden_states)
        return (output if self.bias is None else output + self.bias), None
