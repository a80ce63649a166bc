"""The calibration loss of pruned models: what ratios are chosen by."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from numprune.calibration.statistics import CalibrationStats
from numprune.compensation import compensate
from numprune.errors import CancelEvent, InputError
from numprune.evaluation.perplexity import perplexity
from numprune.models.adapter import ModuleKey
from numprune.models.model import Model, slice_module, twin
from numprune.recipe import SEQUENTIAL, Recipe
from numprune.residual import fit_to_residual

Keep = Mapping[ModuleKey, tuple[int, ...]]
TOKENS_PER_CHANNEL = 4
"""Tokens a trial is fitted on at least, for every input channel of the widest module."""
FITTED = 16
"""Sequences a trial is fitted on at least, unless half of those there are is less."""


class Probe:
    """The loss of pruned models, without pruning any."""

    def __init__(self, model: Model, stats: CalibrationStats, recipe: Recipe, samples: int) -> None:
        if stats.rows is None:
            raise InputError("These statistics hold no token ids to measure the loss on; calibrate again.")
        self.rows = stats.rows[:samples].long()
        self.stats, self.recipe = stats, recipe
        self.dense = {block.key: block for block in model.blocks}
        self.model = model.around(twin(model.module))
        self.own = {block.key: block for block in self.model.blocks}
        self.tokens = self.rows[:, 1:].numel()

    def loss(self, keep: Keep) -> float:
        """Nats per token when these modules keep these units and the others all of theirs."""
        changed = [key for key, kept in keep.items() if len(kept) < self.dense[key].units]
        try:
            for key in changed:
                self.own[key].last.weight = nn.Parameter(self._masked(key, keep[key]), requires_grad=False)
            return perplexity(self.model, self.rows, sequence_length=self.rows.shape[1]).nll
        finally:
            for key in changed:
                self.own[key].last.weight = self.dense[key].last.weight

    def _masked(self, key: ModuleKey, kept: tuple[int, ...]) -> torch.Tensor:
        block = self.dense[key]
        weight, channels = block.last.weight.detach(), block.channels(kept)
        masked = torch.zeros_like(weight)
        if len(kept):
            gram = self.stats.modules[key].gram
            whole = self.recipe.compensation in ("none", "bias")
            new = (
                weight[:, channels.to(weight.device)]
                if whole
                else compensate(weight, gram, channels, damping=self.recipe.damping)
            )
            masked[:, channels.to(weight.device)] = new.to(weight.device, weight.dtype)
        return masked


class Trial:
    """The loss of models that are really pruned and fitted one module after the other, as the recipe says.

    The fit sees some of the calibration sequences and the loss is measured on others.
    """

    def __init__(
        self, model: Model, stats: CalibrationStats, recipe: Recipe, samples: int, cancel: CancelEvent | None = None
    ) -> None:
        if stats.rows is None or len(stats.rows) < 2:
            raise InputError("These statistics hold no two sequences to fit on and to measure on; calibrate again.")
        self.model, self.recipe, self.cancel = model, recipe, cancel
        widest = max(block.last.in_features for block in model.blocks)
        needed = math.ceil(TOKENS_PER_CHANNEL * widest / stats.rows.shape[1])
        fitted = min(max(needed, FITTED), len(stats.rows) // 2)
        self.fit_rows, self.rows = stats.rows[:fitted].long(), stats.rows[fitted : fitted + samples].long()

    def pruned(self, keep: Keep) -> Model:
        """The pruned and fitted model."""
        module = slice_module(self.model.module, self.model.adapter, keep)
        fit_to_residual(
            self.model.module,
            module,
            self.model.adapter,
            self.fit_rows,
            keep=keep if self.recipe.compensation == "network" else None,
            damping=self.recipe.damping,
            cancel=self.cancel,
        )
        return self.model.around(module)

    def dense_loss(self) -> float:
        """Nats per token of the model as it is."""
        return perplexity(self.model, self.rows, sequence_length=self.rows.shape[1]).nll

    def loss(self, keep: Keep) -> float:
        """Nats per token when these modules keep these units."""
        return perplexity(self.pruned(keep), self.rows, sequence_length=self.rows.shape[1]).nll


def judge(
    model: Model, stats: CalibrationStats, recipe: Recipe, samples: int, cancel: CancelEvent | None = None
) -> Probe | Trial:
    """What tells the loss of a plan under the recipe's compensation at the least cost."""
    if recipe.compensation in SEQUENTIAL:
        return Trial(model, stats, recipe, samples, cancel)
    return Probe(model, stats, recipe, samples)
