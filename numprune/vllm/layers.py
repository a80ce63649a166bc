"""Decoders of vLLM whose layers have sizes of their own, as the config's `per_layer_config` says."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2Model
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
from vllm.model_executor.models.utils import extract_layer_index


def layer_config(config: Any, prefix: str) -> Any:
    """The config of one layer: its own numbers of heads and channels, the width of heads that all layers have."""
    own = copy.copy(config.per_layer_config[extract_layer_index(prefix)])
    # Otherwise the hidden size would be divided by the heads that are left.
    own.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type == "qwen2":
        own.qkv_bias = True
    return own


def add_biases(layer: nn.Module, config: Any, prefix: str, quant_config: Any) -> None:
    """Give the projections back to the residual stream the biases that compensation left; `output_biases` of the
    config names them."""
    index, biases = extract_layer_index(prefix), getattr(config, "output_biases", {})
    for kind, module, name in (("attention", "self_attn", "o_proj"), ("mlp", "mlp", "down_proj")):
        if index in biases.get(kind, ()):
            owner = getattr(layer, module)
            biased = RowParallelLinear(
                getattr(owner, name).input_size,
                config.hidden_size,
                bias=True,
                quant_config=quant_config,
                prefix=f"{prefix}.{module}.{name}",
            )
            setattr(owner, name, biased)


class PrunedLlamaDecoderLayer(LlamaDecoderLayer):
    """A layer of Llama, Mistral or Qwen2, which is Llama's with biases of queries, keys and values."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        super().__init__(vllm_config, prefix, config=layer_config(config, prefix))
        add_biases(self, config, prefix, self.get_quant_config(vllm_config))


class PrunedLlama(LlamaForCausalLM):
    """Llama, Mistral or Qwen2."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=PrunedLlamaDecoderLayer)


class PrunedQwen3DecoderLayer(Qwen3DecoderLayer):
    """A layer of Qwen3, whose queries and keys are normalised."""

    def __init__(self, config: Any, cache_config: Any = None, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__(layer_config(config, prefix), cache_config, quant_config, prefix)
        add_biases(self, config, prefix, quant_config)


class PrunedQwen3(LlamaForCausalLM):
    """Qwen3. vLLM's own class does not let its layers be chosen; around them it is Llama's."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=PrunedQwen3DecoderLayer)

    def _init_model(self, vllm_config: VllmConfig, prefix: str, layer_type: type[nn.Module]) -> nn.Module:
        return Qwen2Model(vllm_config=vllm_config, prefix=prefix, decoder_layer_type=layer_type)
