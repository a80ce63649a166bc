"""Units priced by the loss of the whole model: greedy elimination with outputs weighed by Fisher information.

The reconstruction error of a module counts all directions of its output alike. To second order, what an output error
e costs is 1/2 eᵀ F e in nats a token, with F the Fisher information of the model's own predictions at that output
(the Gauss-Newton Hessian, taken as independent of the module's input as in K-FAC: Martens and Grosse, ICML 2015). In
that measure the prices of units of different modules can be compared.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from numprune.calibration.statistics import CalibrationStats, ModuleStats
from numprune.errors import CancelEvent, NumericalError, Progress, check_cancelled
from numprune.linalg import damped_cholesky, to_float64
from numprune.models.adapter import Block
from numprune.models.batches import sequences_per_backward
from numprune.models.model import Model
from numprune.models.prediction import predicted
from numprune.plan.keys import ModuleKey
from numprune.ranks import Ranks, joined
from numprune.scoring.elimination import eliminate
from numprune.scoring.gradients import Differentiator
from numprune.scoring.registry import MILLION, model_scorer

ROWS = 32
"""Calibration sequences the Fisher information is taken from."""


@model_scorer("fisher", priced=True)
def fisher(
    model: Model,
    stats: CalibrationStats,
    *,
    ratio: float,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> dict[ModuleKey, torch.Tensor]:
    """What the removal of a unit adds to the loss, in nats a token for a million parameters, when it goes in turn.

    Units of a module go one after the other, each time the one that costs least, and the others make up for it
    (`numprune.scoring.elimination.eliminate` with F^1/2 W in the place of W). The prices of a module, times the
    parameters of its units, add up to what its loss is when all are gone, see `rising_prices`.
    """
    information = fisher_information(model, stats, progress=progress, cancel=cancel)
    blocks, ranks, scores = {block.key: block for block in model.blocks}, joined(), {}
    for key in ranks.share_modules({key: block.solving for key, block in blocks.items()}):
        check_cancelled(cancel)
        block = blocks[key]
        weight = to_float64(block.last.weight.detach())
        module = stats.modules[block.key].to(weight.device)
        scores[key] = prices(block, weight, module, information[key], progress=progress, cancel=cancel).cpu()
    return ranks.exchange(scores)


def prices(
    block: Block,
    weight: torch.Tensor,
    stats: ModuleStats,
    information: torch.Tensor,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> torch.Tensor:
    """`fisher` of one module, (in,).

    Args:
        weight: of its last linear, (out, in) float64.
        stats: of what reaches it, on the same device.
        information: of what leaves it, (out, out), from `OutputInformation`.
    """
    # Any root of F does: only tr(ΔW F ΔWᵀ) is priced.
    root, _ = damped_cholesky(information.to(weight.device), 1e-6, raise_damping=True)
    weight, gram = root.T @ weight, stats.gram / stats.tokens
    del root
    order, losses = eliminate(weight, gram, width=block.width, progress=progress, cancel=cancel)
    of_units = torch.empty_like(losses)
    of_units[order] = rising_prices(losses) * (0.5 * MILLION / block.cost)
    return of_units.repeat_interleave(block.width)


def rising_prices(losses: torch.Tensor) -> torch.Tensor:
    """What every unit adds to the loss, in the order in which they go, none below one that went before it.

    Where a unit adds less than those before it, they are worth their mean: nobody who takes the first ones stops
    before it. These are the slopes of the lower convex hull of the losses (isotonic regression by pooling adjacent
    violators), so that the prices of a module add up to its last loss whatever its width.

    Args:
        losses: after every step, (units,) float64, not falling.

    Returns:
        (units,) float64; units that share a mean differ by parts in 10^12, to keep their order.
    """
    pools: list[tuple[float, int]] = []
    for added in losses.diff(prepend=losses.new_zeros(1)).clamp(min=0).tolist():
        total, count = added, 1
        while pools and pools[-1][0] * count >= total * pools[-1][1]:
            total, count = total + pools[-1][0], count + pools[-1][1]
            pools.pop()
        pools.append((total, count))
    prices = []
    for total, count in pools:
        ranks = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) / max(count, 2)
        prices.append(total / count * (1 + 1e-12 * ranks))
    return torch.cat(prices)


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first token of every row whose cumulative probability is above the row's uniform number.

    Drawing by the inverse of the distribution; `torch.multinomial` takes ten times as long over a large vocabulary.

    Args:
        logits: (rows, vocabulary).
        uniform: (rows,) in [0, 1).
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    # Sums are rounded, so the last of them stands for 1.
    reached = uniform.to(cumulative.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, reached, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


class DrawnSurprise:
    """-log p(y) summed over positions, with y drawn from the predictions themselves, one a position, in their order.

    Every sequence has its own random numbers, whichever process runs it.

    Args:
        rows: token ids of all sequences (sequences, tokens).
        own: indices of those that this process runs, in the order in which it does.
        vocabulary: length of the logits.
        seed: of the random numbers.

    Attributes:
        tokens: predicted in all sequences.
    """

    def __init__(self, rows: torch.Tensor, own: torch.Tensor, vocabulary: int, seed: int) -> None:
        counts = predicted(rows, vocabulary).sum(1).tolist()
        self.tokens = sum(counts)
        numbers = torch.rand(self.tokens, generator=torch.Generator().manual_seed(seed))
        of_rows = numbers.split(counts)
        self._numbers = torch.cat([of_rows[row] for row in own.tolist()])

    def __call__(self, logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        own, self._numbers = self._numbers[: len(logits)], self._numbers[len(logits) :]
        return functional.cross_entropy(logits, draw(logits.detach(), own), reduction="sum")


class OutputInformation:
    """E[g gᵀ] of gradients g at the outputs of modules, streamed."""

    def __init__(self) -> None:
        self._sums: dict[ModuleKey, torch.Tensor] = {}

    def add(self, key: ModuleKey, gradient: torch.Tensor) -> None:
        """`gradient` is (batch, tokens, out)."""
        flat = gradient.reshape(-1, gradient.shape[-1]).float()
        product = to_float64(flat.T @ flat)
        self._sums[key] = self._sums[key].add_(product) if key in self._sums else product

    def finish(self, tokens: int, ranks: Ranks) -> dict[ModuleKey, torch.Tensor]:
        """The mean over so many tokens that all processes have predicted, (out, out) float64 by module.

        Raises:
            NumericalError: a gradient is not finite.
        """
        ranks.add(*self._sums.values())
        means = {key: total / tokens for key, total in self._sums.items()}
        for key, matrix in means.items():
            if not bool(torch.isfinite(matrix).all()):
                raise NumericalError(f"The gradient at {key} is not finite; load the model in float32 or bfloat16.")
        return means


def fisher_information(
    model: Model,
    stats: CalibrationStats,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> dict[ModuleKey, torch.Tensor]:
    """E[g gᵀ] a token, (out, out) float64 by module; g is the gradient of log p(y) at the output of its last linear.

    y is drawn from the model's own predictions, one token at every position of the first 32 calibration sequences,
    by the seed of the calibration. Needs backward passes through the whole model, at most four sequences, 1,024
    tokens and 2^25 logits at a time, but one sequence at least.

    Raises:
        InputError: the statistics hold no token ids.
        NumericalError: a gradient is not finite.
        Cancelled: `cancel` was set.
    """
    rows, ranks = stats.token_rows("differentiate predictions on")[:ROWS].long(), joined()
    differentiator = Differentiator(model)
    keys = {block.last: block.key for block in differentiator.blocks}
    vocabulary = model.module.get_output_embeddings().out_features
    batches = ranks.batches(len(rows), sequences_per_backward(rows.shape[1], vocabulary))
    surprise, information = DrawnSurprise(rows, torch.cat(batches), vocabulary, stats.seed), OutputInformation()
    for done, batch in enumerate(batches, 1):
        check_cancelled(cancel)
        for linear, _, gradient in differentiator.gradients(rows[batch], surprise, outputs_of=list(keys)):
            information.add(keys[linear], gradient)
        if progress is not None:
            progress(done, len(batches), "differentiating predictions")
    return information.finish(surprise.tokens, ranks)
