"""The calibration loss of pruned models: what ratios are chosen by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, NumericalError
from numprune.fitting.compensation import compensate
from numprune.fitting.sequential import fit_to_dense
from numprune.models.model import Model, slice_module, twin
from numprune.models.prediction import mean_loss
from numprune.plan.keys import ModuleKey
from numprune.plan.plan import gone_layers
from numprune.plan.recipe import SEQUENTIAL, Recipe

Keep = Mapping[ModuleKey, tuple[int, ...]]
TOKENS_PER_CHANNEL = 4
"""Tokens a fitted trial is fitted on at least, for every input channel of the widest module."""
FITTED = 16
"""Sequences it is fitted on at least, unless half of those there are is less."""


MEASURED = 8192
"""Tokens the loss of a fitted trial is measured on at most, but at least one sequence."""


class Trial(Protocol):
    """Tells the loss of a plan before it is decided for."""

    def loss(self, keep: Keep) -> float:
        """Nats per token when these modules keep these units and the others all of theirs; infinite where the model
        that is left predicts nothing finite, or cannot be fitted."""
        ...

    def dense_loss(self) -> float:
        """Nats per token of the model as it is."""
        ...


class MaskedTrial:
    """The loss under compensations that refit every module alone: columns are set to zero, nothing is sliced."""

    def __init__(self, model: Model, stats: CalibrationStats, recipe: Recipe, samples: int) -> None:
        self.rows = stats.token_rows("measure the loss on")[:samples].long()
        self.stats, self.recipe, self.fingerprint = stats, recipe, stats.fingerprint
        self.dense = {block.key: block for block in model.blocks}
        self.model = model.around(twin(model.module))
        self.own = {block.key: block for block in self.model.blocks}
        self.tokens = self.rows[:, 1:].numel()

    def dense_loss(self) -> float:
        """Nats per token of the model as it is."""
        return mean_loss(self.model, self.rows)

    def loss(self, keep: Keep) -> float:
        """Nats per token when these modules keep these units and the others all of theirs."""
        changed = [key for key, kept in keep.items() if len(kept) < self.dense[key].units]
        try:
            for key in changed:
                self.own[key].last.weight = nn.Parameter(self._masked(key, keep[key]), requires_grad=False)
            return mean_loss(self.model, self.rows)
        except NumericalError:
            return math.inf
        finally:
            for key in changed:
                self.own[key].last.weight = self.dense[key].last.weight

    def _masked(self, key: ModuleKey, kept: tuple[int, ...]) -> torch.Tensor:
        block = self.dense[key]
        weight, channels = block.last.weight.detach(), block.channels(kept)
        masked = torch.zeros_like(weight)
        if len(kept):
            refitted = weight[:, channels.to(weight.device)]
            if self.recipe.compensation not in ("none", "bias"):
                refitted = compensate(weight, self.stats.modules[key].gram, channels, damping=self.recipe.damping)
            masked[:, channels.to(weight.device)] = refitted.to(weight.device, weight.dtype)
        return masked


class FittedTrial:
    """The loss of models that are pruned and fitted one module after the other, as the recipe says.

    The fit sees some of the calibration sequences and the loss is measured on others.
    """

    def __init__(
        self, model: Model, stats: CalibrationStats, recipe: Recipe, samples: int, cancel: CancelEvent | None = None
    ) -> None:
        rows = stats.token_rows("fit on and to measure on")
        if len(rows) < 2:
            raise InputError("One calibration sequence cannot be fitted on and measured on; calibrate on at least two.")
        self.model, self.recipe, self.cancel, self.fingerprint = model, recipe, cancel, stats.fingerprint
        widest = max(block.last.in_features for block in model.blocks)
        needed = math.ceil(TOKENS_PER_CHANNEL * widest / rows.shape[1])
        fitted = min(max(needed, FITTED), len(rows) // 2)
        measured = min(samples, max(1, MEASURED // rows.shape[1]))
        self.fit_rows, self.rows = rows[:fitted].long(), rows[fitted : fitted + measured].long()

    def pruned(self, keep: Keep) -> Model:
        """The pruned and fitted model."""
        gone = gone_layers(keep, self.model.beside)
        module = slice_module(self.model.module, self.model.adapter, keep, gone=gone)
        fit_to_dense(
            self.model.module,
            module,
            self.model.adapter,
            self.fit_rows,
            keep=keep if self.recipe.compensation == "network" else None,
            gone=gone,
            damping=self.recipe.damping,
            scarcity=self.recipe.scarcity,
            cancel=self.cancel,
        )
        return self.model.around(module)

    def dense_loss(self) -> float:
        """Nats per token of the model as it is."""
        return mean_loss(self.model, self.rows)

    def loss(self, keep: Keep) -> float:
        """Nats per token when these modules keep these units."""
        try:
            return mean_loss(self.pruned(keep), self.rows)
        except NumericalError:
            return math.inf


def trial_for(
    model: Model, stats: CalibrationStats, recipe: Recipe, samples: int, cancel: CancelEvent | None = None
) -> MaskedTrial | FittedTrial:
    """What tells the loss of a plan under the recipe's compensation at the least cost."""
    if recipe.compensation in SEQUENTIAL:
        return FittedTrial(model, stats, recipe, samples, cancel)
    return MaskedTrial(model, stats, recipe, samples)
