"""The first-order Taylor score of LLM-Pruner (Ma et al., NeurIPS 2023), without its fine-tuning."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, NumericalError, Progress, check_cancelled
from numprune.models.batches import sequences_per_backward
from numprune.models.model import Model
from numprune.plan.keys import ModuleKey
from numprune.ranks import joined
from numprune.scoring.gradients import Differentiator
from numprune.scoring.registry import model_scorer


@model_scorer("taylor")
def taylor(
    model: Model,
    stats: CalibrationStats,
    *,
    ratio: float,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> dict[ModuleKey, torch.Tensor]:
    """|Σ w ∂L/∂w| over all weights and biases that go with a unit; L is the loss on the calibration text.

    The sum over a row of a linear is Σ y ∂L/∂y of its output and that over a column Σ x ∂L/∂x of its input, so no
    gradient of a weight is formed. Needs a backward pass through the whole model, in batches as for `fisher`.
    """
    differentiator = Differentiator(model)
    sums: dict[nn.Linear, torch.Tensor] = {}
    sequences = stats.token_rows("differentiate the loss on").long()
    vocabulary = model.module.get_output_embeddings().out_features
    ranks = joined()
    batches = ranks.batches(len(sequences), sequences_per_backward(sequences.shape[1], vocabulary))
    for done, own in enumerate(batches, 1):
        check_cancelled(cancel)
        _add_batch(differentiator, sequences[own], sums)
        if progress is not None:
            progress(done, len(batches), "differentiating the loss")
    ranks.add(*sums.values())
    scores = {}
    for block in differentiator.blocks:
        total = sums[block.last].reshape(block.units, block.width).sum(1)
        for linear, sections in block.inputs:
            for section in sections:
                rows = section.indices(range(block.units))
                total = total + sums[linear][rows].reshape(block.units, section.width).sum(1)
        if not bool(torch.isfinite(total).all()):
            raise NumericalError(f"The gradient at {block.key} is not finite; load the model in float32 or bfloat16.")
        scores[block.key] = total.abs().repeat_interleave(block.width)
    return scores


def _add_batch(differentiator: Differentiator, rows: torch.Tensor, sums: dict[nn.Linear, torch.Tensor]) -> None:
    """Add Σ x ∂L/∂x of the inputs of last linears and Σ y ∂L/∂y of the outputs of the others, per channel."""
    gradients = differentiator.gradients(
        rows,
        partial(functional.cross_entropy, reduction="sum"),
        inputs_of=[block.last for block in differentiator.blocks],
        outputs_of=[linear for block in differentiator.blocks for linear, _ in block.inputs],
    )
    for linear, values, gradient in gradients:
        products = (values.float() * gradient.float()).reshape(-1, values.shape[-1])
        added = products.sum(0, dtype=torch.float64 if values.device.type != "mps" else None).cpu().double()
        sums[linear] = sums.get(linear, torch.zeros_like(added)) + added
