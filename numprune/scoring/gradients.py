"""Gradients of a loss at what flows into and out of linears; no gradient of a weight is formed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from numprune.models.model import Model

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of the logits (predicted tokens, vocabulary) and the tokens that follow (predicted tokens,), a scalar."""


def activation_gradients(
    model: Model,
    rows: torch.Tensor,
    loss: Loss,
    *,
    inputs_of: Iterable[nn.Linear] = (),
    outputs_of: Iterable[nn.Linear] = (),
) -> list[tuple[nn.Linear, torch.Tensor, torch.Tensor]]:
    """One forward and one backward pass: for every linear its values (batch, tokens, channels) and their gradients.

    Args:
        rows: token ids (sequences, tokens), on the model's device.
        loss: differentiated; see `Loss`.
        inputs_of, outputs_of: where the values are taken.
    """
    seen: dict[nn.Linear, torch.Tensor] = {}

    def begin(_: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        # Weights may be frozen; the graph then begins at the embeddings.
        return output if output.requires_grad else output.detach().requires_grad_(True)

    hooks = [model.module.get_input_embeddings().register_forward_hook(begin)]
    hooks += [each.register_forward_hook(lambda m, args, output: seen.update({m: args[0]})) for each in inputs_of]
    hooks += [each.register_forward_hook(lambda m, args, output: seen.update({m: output})) for each in outputs_of]
    try:
        with torch.enable_grad():
            logits = model.module(input_ids=rows, use_cache=False).logits[:, :-1].float()
            # What a model reads but never predicts (the caption of an image) does not count.
            predicted = rows[:, 1:] < logits.shape[-1]
            value = loss(logits[predicted], rows[:, 1:][predicted])
            gradients = torch.autograd.grad(value, list(seen.values()))
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (linear, values.detach(), gradient) for (linear, values), gradient in zip(seen.items(), gradients, strict=True)
    ]
