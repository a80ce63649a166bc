"""Healing: a few steps of training that bring a pruned model's predictions back to the dense model's.

This is training and not part of the paper's method; what it made is always named so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from numprune.calibration.sources import SELF, draw_rows, parse_sources
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.models.batches import TRAINED_LOGITS
from numprune.models.model import Model
from numprune.models.prediction import kl_divergence, predicted

RATE = 0.002
"""How far the first step moves a weight, as a share of the root mean square of its matrix."""
STEP_TOKENS = 2048
"""Tokens of a step, unless a single sequence has more; sequences are 16 at most."""
HELD_BACK = 16
"""Sequences the outcome is judged on, at most; an eighth of them where they are fewer than 128."""


@dataclass(frozen=True)
class Healing:
    """What healing did.

    Attributes:
        steps: of Adam.
        before, after: mean KL(dense, pruned) on the sequences held back, in nats per token.
        held_back: sequences it was measured on; the steps never saw them.
        kept: whether the healed weights are in the model; they are not when `after` is no better.
    """

    steps: int
    before: float
    after: float
    held_back: int
    kept: bool

    def __str__(self) -> str:
        change = f"{self.before:.4f} to {self.after:.4f} nats a token on {self.held_back} held-back sequences"
        if self.kept:
            return f"Healed by {self.steps} steps of training: KL to the dense model from {change}."
        return f"Healing was left out, since {self.steps} steps of training brought the KL from {change}."


def heal(
    dense: Model,
    pruned: Model,
    rows: torch.Tensor,
    *,
    steps: int = 128,
    rate: float = RATE,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Healing:
    """Train the matrices of all layers of `pruned`, in place, towards the dense model's predictions on text.

    Minimises KL(dense, pruned) of the next token with Adam, whose step falls linearly to a tenth. A step takes 2,048
    tokens. The last sequences, an eighth and at most 16, are held back; the weights stay as they were when the KL there
    does not fall. Memory is the gradients and four float32 copies of the trained weights, and the activations of the
    sequences whose logits are 2^26 at most.

    Args:
        rows: token ids (sequences, tokens), at least 2, see `rows_for`.
        rate: how far the first step moves a weight, as a share of the root mean square of its matrix.
        seed: of the order of the sequences.

    Raises:
        InputError: a number is out of range, or there are fewer than 2 sequences.
        NumericalError: the loss is not finite; the weights are as before.
        Cancelled: `cancel` was set; the weights are as before.
    """
    if steps < 1 or not 0 < rate < 1:
        raise InputError(f"steps is {steps} and rate {rate}; give at least 1 step and a rate between 0 and 1.")
    if len(rows) < 2:
        raise InputError(f"{len(rows)} sequences were given to heal on; calibrate on at least 2.")
    rows = rows.long().to(pruned.device)
    back = max(1, min(HELD_BACK, len(rows) // 8))
    rows, held = rows[:-back], rows[-back:]
    batch = min(len(rows), sequences_per_step(rows.shape[1]))
    at_once = max(1, TRAINED_LOGITS // (rows.shape[1] * dense.module.get_output_embeddings().out_features))
    weights = _trained(pruned)
    start = [weight.detach().clone() for weight in weights]
    masters = [weight.to(torch.float32, copy=True) for weight in start]
    groups = [{"params": [each], "lr": rate * float(each.square().mean().sqrt())} for each in masters]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.9 * step / steps)
    generator = torch.Generator().manual_seed(seed)
    done = False
    try:
        before = _held_back(dense, pruned, held, at_once, cancel)
        order = torch.empty(0, dtype=torch.long)
        for step in range(steps):
            check_cancelled(cancel)
            if len(order) < batch:
                order = torch.randperm(len(rows), generator=generator)
            chosen, order = order[:batch], order[batch:]
            loss = _gradients(dense, pruned, rows[chosen.to(rows.device)].split(at_once), weights, masters)
            if not math.isfinite(loss):
                raise NumericalError(f"Healing: the loss of step {step} is not finite; lower the rate.")
            optimizer.step()
            schedule.step()
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)
            if progress is not None:
                progress(step + 1, steps, "healing")
        after = _held_back(dense, pruned, held, at_once, cancel)
        done = after < before
    finally:
        for weight, old in zip(weights, start, strict=True):
            weight.requires_grad_(False)
            if not done:
                weight.copy_(old)
    return Healing(steps, before, after, back, done)


def rows_for(
    model: Model,
    stats: CalibrationStats,
    steps: int,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> torch.Tensor:
    """Token ids (sequences, tokens) that so many steps of `heal` do not see twice, and what is held back from them.

    They are windows of the calibration's text that do not overlap, the calibration's own among them, as many as there
    are. Where nobody else has the text, or the model wrote it itself, they are the calibration's own alone.

    Raises:
        InputError: the statistics hold no token ids, or the text cannot be read any more.
    """
    own, source = stats.token_rows("heal on"), stats.source
    trained = steps * sequences_per_step(own.shape[1])
    wanted = trained + min(HELD_BACK, trained // 7)
    if wanted <= len(own) or source.data is None or SELF in parse_sources(source.data):
        return own
    rows = draw_rows(
        model,
        source.data,
        wanted,
        own.shape[1],
        source.seed,
        [],
        bos=source.bos,
        column=source.text_column,
        overlap=False,
        progress=progress,
        cancel=cancel,
    )
    return rows if len(rows) > len(own) else own


def sequences_per_step(length: int) -> int:
    """Sequences of `length` tokens that a step of `heal` takes."""
    return max(1, min(16, STEP_TOKENS // length))


def _trained(model: Model) -> list[torch.Tensor]:
    """The matrices of all layers; embeddings and gains stay."""
    return [weight for layer in model.adapter.layers(model.module) for weight in layer.parameters() if weight.ndim == 2]


def _gradients(
    dense: Model,
    pruned: Model,
    parts: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    masters: Sequence[torch.Tensor],
) -> float:
    """Give the masters the gradients of the mean KL of the sequences, whose value is returned."""
    for weight in weights:
        weight.requires_grad_(True)
    sequences, total = sum(map(len, parts)), 0.0
    for master in masters:
        master.grad = torch.zeros_like(master)
    for part in parts:
        loss = _divergence(dense, pruned, part) * (len(part) / sequences)
        for master, gradient in zip(masters, torch.autograd.grad(loss, weights), strict=True):
            master.grad += gradient
        total += float(loss.detach())
    for weight in weights:
        weight.requires_grad_(False)
    return total


def _divergence(dense: Model, pruned: Model, rows: torch.Tensor) -> torch.Tensor:
    """Mean KL(dense, pruned) over the tokens that are predicted, in nats."""
    with torch.no_grad():
        wanted = dense.module(input_ids=rows, use_cache=False).logits[:, :-1].float()
    counted = predicted(rows, wanted.shape[-1])
    logits = pruned.module(input_ids=rows, use_cache=False).logits[:, :-1].float()
    return kl_divergence(wanted[counted], logits[counted]).mean()


@torch.no_grad()
def _held_back(dense: Model, pruned: Model, rows: torch.Tensor, batch: int, cancel: CancelEvent | None) -> float:
    total = 0.0
    for part in rows.split(batch):
        check_cancelled(cancel)
        total += float(_divergence(dense, pruned, part)) * len(part)
    if total != total:
        raise NumericalError("Healing: predictions are not finite; load the model in float32 or prune less.")
    return total / len(rows)
