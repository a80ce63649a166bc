"""Gradients of a loss at what flows into and out of linears; no gradient of a weight is formed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from numprune.models.adapter import Block
from numprune.models.hooks import hooked
from numprune.models.model import Model, twin
from numprune.models.prediction import predictions

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of the logits (predicted tokens, vocabulary) and the tokens that follow (predicted tokens,), a scalar."""


class Differentiator:
    """Gradients of a loss at the linears of a model, batch by batch.

    What a layer computed on the way is computed again on the way back, so that the activations of one layer are in
    memory at a time, beside what every layer put out.

    Attributes:
        blocks: of a twin of the model, whose runs nobody else sees.
    """

    def __init__(self, model: Model) -> None:
        self._module, self._device = twin(model.module), model.device
        self.blocks: list[Block] = model.adapter.blocks(self._module)
        for layer in model.adapter.layers(self._module):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def gradients(
        self,
        rows: torch.Tensor,
        loss: Loss,
        *,
        inputs_of: Sequence[nn.Linear] = (),
        outputs_of: Sequence[nn.Linear] = (),
    ) -> list[tuple[nn.Linear, torch.Tensor, torch.Tensor]]:
        """One forward and one backward pass: for every linear its values (batch, tokens, channels) and their gradients.

        Args:
            rows: token ids (sequences, tokens).
            loss: differentiated; see `Loss`.
            inputs_of, outputs_of: linears of `blocks`, where the values are taken.
        """
        rows = rows.to(self._device)
        values: dict[nn.Linear, torch.Tensor] = {}

        def taken(linear: nn.Linear, value: torch.Tensor) -> None:
            # A layer runs again on the way back. What it computes then is the same, and would lie in memory twice.
            values.setdefault(linear, value)

        def begin(_: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            # Weights may be frozen; the graph then begins at the embeddings.
            return output if output.requires_grad else output.detach().requires_grad_(True)

        after = {linear: lambda args, _, linear=linear: taken(linear, args[0]) for linear in inputs_of}
        after |= {linear: lambda _, output, linear=linear: taken(linear, output) for linear in outputs_of}
        with hooked(after={self._module.get_input_embeddings(): begin, **after}), torch.enable_grad():
            value = loss(*predictions(self._module(input_ids=rows, use_cache=False).logits, rows))
            gradients = torch.autograd.grad(value, list(values.values()))
        return [
            (linear, each.detach(), gradient)
            for (linear, each), gradient in zip(values.items(), gradients, strict=True)
        ]
