"""Models whose residual stream is narrower than the one they were trained with (Ashkboos et al., ICLR 2024).

Heads and channels stay; what reads or writes the residual stream does so in a basis of it. Where the basis changes,
behind every attention and every MLP, the stream itself passes a shortcut matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.errors import UnsupportedArchitecture
from numprune.linalg import to_float64
from numprune.models.adapter import Adapter, make_linear


class ResidualNorm(nn.Module):
    """RMS norm of a narrowed stream: its mean square is taken over the dense width, its weight is in the linears."""

    def __init__(self, dense_width: int, eps: float):
        super().__init__()
        self.dense_width, self.eps = dense_width, eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states if hidden_states.dtype == torch.float64 else hidden_states.float()
        mean_square = x.square().sum(-1, keepdim=True) / self.dense_width
        return (x * torch.rsqrt(mean_square + self.eps)).to(hidden_states.dtype)


class SlicedLayer(nn.Module):
    """A decoder layer whose residual stream changes its basis behind attention and behind the MLP."""

    def __init__(self, layer: nn.Module, attention_shortcut: nn.Linear, mlp_shortcut: nn.Linear):
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        self.attention_shortcut, self.mlp_shortcut = attention_shortcut, mlp_shortcut

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = self.attention_shortcut(hidden_states) + attended
        return self.mlp_shortcut(hidden_states) + self.mlp(self.post_attention_layernorm(hidden_states))


def check_sliceable(adapter: Adapter, config: Any, name: str) -> None:
    """Raise UnsupportedArchitecture unless the residual stream of such a model can be narrowed."""
    if config.model_type not in adapter.sliceable:
        raise UnsupportedArchitecture(
            f"SliceGPT knows no way to narrow the residual stream of {name} (model_type '{config.model_type}'); use"
            " another method, or a Llama, Mistral, Qwen2, Qwen3 or SmolLM3."
        )


def narrow_residual(module: PreTrainedModel, adapter: Adapter, bases: Sequence[torch.Tensor]) -> PreTrainedModel:
    """A copy of `module` that holds its residual stream in the given bases; the embedding is no longer tied.

    With R the residual stream of `module`, the copy's is R Q: Q the first basis behind the embedding, and from then on
    the next one behind every attention and every MLP. Norm weights n go into what reads the stream, W <- W diag(n) Q,
    what writes to it becomes Qᵀ W, and the stream passes Qᵀ Q' from one basis to the next (section 3 of the paper).
    With orthogonal square bases the copy computes what `module` computes.

    Args:
        bases: (hidden, width) float64 each, of orthonormal columns, 1 + 2 per layer; on "meta" for shapes alone.
    """
    layers, final = adapter.layers(module), module.base_model.norm
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    memo: dict[int, nn.Module] = {id(final): _bare(final), id(head): _reading(head, final, bases[-1])}
    memo[id(embedding)] = nn.Embedding.from_pretrained(
        _times(embedding.weight, bases[0]), freeze=True, padding_idx=embedding.padding_idx
    )
    for block in adapter.blocks(module):
        behind = 2 * block.key.layer + (block.key.kind == "mlp")
        layer = layers[block.key.layer]
        norm = layer.input_layernorm if block.key.kind == "attention" else layer.post_attention_layernorm
        memo[id(norm)] = _bare(norm)
        for linear, _ in block.inputs:
            memo[id(linear)] = _reading(linear, norm, bases[behind])
        memo[id(block.last)] = _writing(block.last, bases[behind + 1])
    narrowed = copy.deepcopy(module, memo)
    narrowed.config.tie_word_embeddings = False
    shortcuts = [_shortcut(before, after, embedding.weight) for before, after in pairwise(bases)]
    stack = adapter.layers(narrowed)
    for index, layer in enumerate(stack):
        stack[index] = SlicedLayer(layer, *shortcuts[2 * index : 2 * index + 2])
    return narrowed


def narrowed_parameters(module: PreTrainedModel, adapter: Adapter, width: int) -> int:
    """Parameters of `narrow_residual`'s model, exact, shortcuts and the untied output layer included."""
    embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    hidden, layers = embedding.shape[1], adapter.layers(module)
    crossing = 0  # rows and columns of linears as wide as the stream
    for block in adapter.blocks(module):
        crossing += sum(linear.out_features for linear, _ in block.inputs)
        crossing += block.last.in_features + (block.last.bias is not None)
    tables = len(embedding) + len(head)
    norms = (1 + 2 * len(layers)) * hidden
    held = (crossing + (len(embedding) if head is embedding else tables)) * hidden + norms
    rest = sum(parameter.numel() for parameter in module.parameters()) - held
    return rest + (crossing + tables) * width + 2 * len(layers) * width**2


def _bare(norm: nn.Module) -> ResidualNorm:
    return ResidualNorm(len(norm.weight), norm.variance_epsilon)


def _times(weight: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """weight @ basis in float64, where and as `weight` is."""
    return (to_float64(weight.detach()) @ basis).to(weight.device, weight.dtype)


def _reading(linear: nn.Linear, norm: nn.Module, basis: torch.Tensor) -> nn.Linear:
    weight = _times(linear.weight, to_float64(norm.weight.detach())[:, None].to(basis.device) * basis)
    return make_linear(weight, linear.bias)


def _writing(linear: nn.Linear, basis: torch.Tensor) -> nn.Linear:
    bias = None if linear.bias is None else _times(linear.bias[None], basis)[0]
    return make_linear(_times(linear.weight.T, basis).T, bias)


def _shortcut(before: torch.Tensor, after: torch.Tensor, like: torch.Tensor) -> nn.Linear:
    return make_linear((after.T @ before).to(like.device, like.dtype), None)
