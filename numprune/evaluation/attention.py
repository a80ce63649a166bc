"""Attention weights of a layer's heads on a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from numprune.errors import InputError, NumericalError
from numprune.models.hooks import hooked
from numprune.models.model import Model, twin
from numprune.plan.keys import ModuleKey


@dataclass(frozen=True)
class AttentionPatterns:
    """Attention weights of one layer on one text.

    Attributes:
        layer: its index.
        units: KV groups of the layer, as many as are left in a pruned model.
        tokens: the text of every token, (t,).
        weights: how much of each key's value a query takes, (query_heads, t, t) float32 on the CPU: rows are
            queries and sum to 1, columns are keys.
    """

    layer: int
    units: int
    tokens: list[str]
    weights: torch.Tensor

    def heads_of_unit(self, unit: int) -> range:
        """The query heads that a KV group serves; indices into `weights`.

        Args:
            unit: among the groups the layer has, so in a pruned model among those that were kept.

        Raises:
            InputError: the layer has no such group.
        """
        if not 0 <= unit < self.units:
            raise InputError(f"Unit {unit} is not in {self.layer}.attention; give 0 to {self.units - 1}.")
        group = len(self.weights) // self.units
        return range(unit * group, (unit + 1) * group)


@torch.inference_mode()
def attention_patterns(model: Model, text: str | torch.Tensor, layer: int, *, limit: int = 48) -> AttentionPatterns:
    """Attention weights of every query head of a layer, whichever attention implementation the model runs with.

    Args:
        text: read as the tokenizer begins a text (with BOS where it adds one); or token ids (t,), such as a row of an
            image model.
        layer: index of a decoder layer.
        limit: read at most this many tokens, from the beginning; the model's maximum length also ends the text.

    Raises:
        InputError: the layer does not exist or has no heads left, the model has no tokenizer, the text is empty,
            or `limit` is out of range.
        NumericalError: the weights are not finite.
    """
    if limit < 1:
        raise InputError(f"limit is {limit}; give at least 1 token.")
    if not 0 <= layer < model.layers:
        raise InputError(f"Layer {layer} is not in {model.name}; give 0 to {model.layers - 1}.")
    if model.tokenizer is None and isinstance(text, str):
        raise InputError("This model has no tokenizer; give token ids, or load it with a tokenizer to read a text.")
    units = model.units()[ModuleKey(layer, "attention")]
    if not units:
        raise InputError(f"Layer {layer} of {model.name} has no attention head left; choose another layer.")
    ids = model.tokenizer(text, verbose=False)["input_ids"] if isinstance(text, str) else text.tolist()
    ids = ids[: min(limit, model.maximum_length or limit)]
    if not ids:
        raise InputError("The text is empty; give at least one word.")
    module = _eager_twin(model.module)
    owner, name = model.adapter.attention_owner(model.adapter.layers(module)[layer])
    outputs: list[torch.Tensor] = []
    with hooked(after={getattr(owner, name): lambda _, output: outputs.append(output[1])}):
        module.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    weights = outputs[0][0].float().cpu()
    if not bool(torch.isfinite(weights).all()):
        raise NumericalError(f"The attention of layer {layer} is not finite on this text; load the model in float32.")
    # Half precision rounds the weights, and with them their sum.
    return AttentionPatterns(layer, units, model.token_names(ids), weights / weights.sum(-1, keepdim=True))


def _eager_twin(module: PreTrainedModel) -> PreTrainedModel:
    """A model of the same tensors with eager attention.

    Only eager attention returns its weights, and masks are made for one implementation throughout a model. The
    twin has a config of its own, so the original goes on undisturbed, on other threads too.
    """
    eager = twin(module)
    eager.set_attn_implementation("eager")
    return eager
