"""LlamaForCausalLM with its own number of heads and MLP channels in every layer, as `per_layer_config` says.

`output_biases` there names the layers whose output projection got a bias. Written by numprune, which is not needed to
run it: torch and transformers 5.20 or newer are enough, and vLLM takes the same file.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

transformers may warn that it reads a size from the shared config. It is the full size, and layers are narrowed below.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import LlamaForCausalLM, LlamaModel

# Where the layers are below the base model, and names of linears below a layer. A group is a KV head with its query
# heads, or a head where every head has its own; `*_rows` are the out-features that belong to one group or channel,
# `*_columns` the in-features.
LAYOUT = {
    "layers": "layers",
    "attention": "self_attn",
    "groups": "num_key_value_heads",
    "channels": "intermediate_size",
    "attention_rows": {"self_attn.q_proj": 128, "self_attn.k_proj": 128, "self_attn.v_proj": 128},
    "attention_columns": {"self_attn.o_proj": 128},
    "mlp_rows": {"mlp.gate_proj": 1, "mlp.up_proj": 1},
    "mlp_columns": {"mlp.down_proj": 1},
}


class Narrower:
    """Makes the stock class it stands before at full size, and then its layers narrower."""

    def __init__(self, config: Any):
        # The stock class would warn about layers of other sizes.
        text = config.get_text_config(decoder=True)
        sizes = text.to_dict()["per_layer_config"]
        text.per_layer_config = None
        super().__init__(config)
        text.per_layer_config = sizes
        narrow(self.base_model, LAYOUT)


class PrunedLlamaModel(Narrower, LlamaModel):
    """Without the output layer: what serving engines build their own around."""


class PrunedLlamaForCausalLM(Narrower, LlamaForCausalLM):
    """The whole model."""


def narrow(base: nn.Module, layout: dict[str, Any]) -> None:
    """Bring every layer of a base model at full size to the size its config says."""
    config = base.config.get_text_config(decoder=True)
    biases = getattr(config, "output_biases", {})
    for index, layer in enumerate(base.get_submodule(layout["layers"])):
        sizes = config.per_layer_config[index]
        for kind, counted in (("attention", "groups"), ("mlp", "channels")):
            units = getattr(sizes, layout[counted])
            for name, width in layout[f"{kind}_rows"].items():
                _resize(layer.get_submodule(name), rows=units * width)
            for name, width in layout[f"{kind}_columns"].items():
                _resize(layer.get_submodule(name), columns=units * width, bias=index in biases.get(kind, ()))
        _settle(layer.get_submodule(layout["attention"]), sizes)


def _resize(linear: nn.Linear, rows: int | None = None, columns: int | None = None, bias: bool = False) -> None:
    """The first `rows` out-features and `columns` in-features; a bias where the config adds one."""
    linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())
    elif bias:
        linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


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
