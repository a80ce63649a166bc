"""Scores of what can go as a whole: attentions and MLPs, or layers.

`influence` is ShortGPT's block influence, which calibration takes (`numprune.calibration.statistics.BlockInfluence`),
`angular` the distance over several layers (Gromov et al. 2024, arXiv 2403.17887, equation 6), `loss` what the model's
own loss rises by, taken one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.models.batches import sequences_per_forward
from numprune.models.model import Model, twin
from numprune.models.prediction import predictions
from numprune.models.replay import Ending, LayerCalls
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import DEPTHS, check_ratio

TOKENS = 2048
"""Calibration tokens that `loss` is measured on, at least one sequence."""
FIRST_TOKENS = 512
"""Of them those that every candidate is measured on once, before the first choice; at least one sequence."""
TRIED_AGAIN = 4
"""Candidates whose loss is measured again at once, from the lowest up."""

Group = tuple[ModuleKey, ...]
"""What goes at once: one module, or the modules of a layer."""


@dataclass(frozen=True)
class DepthScores:
    """What goes as a whole first, second, and so on.

    Attributes:
        scorer: a name in `DEPTH_SCORERS`.
        whole: "modules" or "layers", what goes at once.
        fingerprint: of the model.
        gone: the modules that are gone after 0, 1, 2, ... steps, each ascending; the first is empty.
        loss: what the model's loss has risen by then without any compensation, in nats a token, (steps,); None for a
            scorer that does not measure it.
        by_layer: the score of every layer, (layers,); None for a scorer that has none for a layer alone.
        tokens: it was measured on.
    """

    scorer: str
    whole: str
    fingerprint: str
    gone: tuple[Group, ...]
    loss: np.ndarray | None
    by_layer: np.ndarray | None
    tokens: int


class DepthScorer(Protocol):
    """Scores the groups of a model that may go; see `DepthScores` for what comes back."""

    def __call__(
        self,
        run: LayerRun,
        groups: Sequence[Group],
        enough: Callable[[Group], bool],
        *,
        progress: Progress | None,
    ) -> tuple[list[Group], np.ndarray | None, np.ndarray | None]: ...


DEPTH_SCORERS: dict[str, DepthScorer] = {}
"""By name. A new one becomes known by `DEPTH_SCORERS[name] = function`."""
OF_LAYERS = ("influence", "angular")
"""Those that score layers only."""


def score_depth(
    model: Model,
    stats: CalibrationStats,
    *,
    scorer: str = "loss",
    whole: str = "modules",
    most: float = 0.5,
    savings: Mapping[ModuleKey, float] | None = None,
    until: Callable[[Group, float], bool] | None = None,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> DepthScores:
    """The order in which modules or layers go as a whole.

    Args:
        stats: of this model; its token ids are run again.
        scorer: a name in `DEPTH_SCORERS`.
        whole: "modules", single attentions and MLPs; or "layers".
        most: stop when this share of `savings` is gone, in [0, 1).
        savings: what every module saves when it goes, such as seconds; its parameters by default. Scorer `loss` takes
            what costs least for what it saves.
        until: told what is gone and what scorer `loss` says that has added to the loss, after every step; true stops.

    Raises:
        InputError: an unknown scorer, one of layers for modules, a ratio out of range, a model whose layers cannot go,
            or statistics of another model or without token ids.
        NumericalError: activations are not finite.
        Cancelled: `cancel` was set.
    """
    check_ratio(most)
    check_depth_scorer(scorer, whole)
    fingerprint = model.check_own(statistics=stats.fingerprint)
    groups = groups_of(model, whole)
    if len(groups) < 2:
        raise InputError(f"{model.name} has fewer than two {whole} that can go; use depth none.")
    rows = stats.token_rows("score modules on").long()
    savings = savings or {block.key: block.units * block.cost for block in model.blocks}
    due = most * sum(savings.values())

    def enough(gone: Group) -> bool:
        return sum(savings[key] for key in gone) >= due

    run = LayerRun(model, rows, stats.influence, savings, cancel)
    run.until = until
    gone, loss, by_layer = DEPTH_SCORERS[scorer](run, groups, enough, progress=progress)
    return DepthScores(scorer, whole, fingerprint, tuple(gone), loss, by_layer, run.tokens)


def check_depth_scorer(scorer: str, whole: str) -> None:
    """Raise InputError unless a scorer is known and scores what is to go at once."""
    if scorer not in DEPTH_SCORERS:
        raise InputError(f"depth_scorer '{scorer}' is not known; use {', '.join(DEPTH_SCORERS)}.")
    if whole not in DEPTHS[1:]:
        raise InputError(f"depth is '{whole}'; use {' or '.join(DEPTHS[1:])}.")
    if scorer in OF_LAYERS and whole != "layers":
        raise InputError(
            f"Scorer {scorer} is of whole layers and tells nothing of {whole}; use depth layers, or depth_scorer loss."
        )


def groups_of(model: Model, whole: str) -> list[Group]:
    """What can go at once: every module, or the modules of every layer that can go as a whole."""
    keys = [block.key for block in model.blocks]
    if whole == "modules":
        return [(key,) for key in keys]
    able = [layer for layer, count in enumerate(model.beside) if count is not None]
    groups = (tuple(key for key in keys if key.layer == layer) for layer in able)
    return [group for group in groups if group]


class LayerRun:
    """Runs a model on calibration text with some of its modules gone.

    Attributes:
        tokens: of the text.
        influence: block influence of every layer, from its calibration.
        savings: what every module saves when it goes.
        until: whether to stop when so much is gone and has added so much to the loss.
    """

    def __init__(
        self,
        model: Model,
        rows: torch.Tensor,
        influence: torch.Tensor | None,
        savings: Mapping[ModuleKey, float],
        cancel: CancelEvent | None,
    ) -> None:
        self.adapter, self.cancel, self.beside, self.influence = model.adapter, cancel, model.beside, influence
        self.savings = savings
        self.all_rows, self.tokens = rows, rows.numel()
        self.module, self.device = model.module, model.device
        own = twin(model.module)
        self.layers = list(model.adapter.layers(own))
        self.blocks = {block.key: block for block in model.adapter.blocks(own)}
        self.gone: frozenset[ModuleKey] = frozenset()
        self.until: Callable[[Group, float], bool] | None = None
        for key, block in self.blocks.items():
            block.last.register_forward_hook(self._silence(key))

    def _silence(self, key: ModuleKey) -> Callable[..., torch.Tensor | None]:
        def hook(linear: torch.nn.Linear, _: Any, output: torch.Tensor) -> torch.Tensor | None:
            if key not in self.gone:
                return None
            # As an emptied module: the bias of its output stays.
            return torch.zeros_like(output) if linear.bias is None else linear.bias.expand_as(output)

        return hook

    def on(self, tokens: int | None = None, batch: int | None = None) -> LayerRun:
        """The same on the first sequences that have this many tokens together, in batches of so many; at least one."""
        if tokens is not None:
            self.all_rows = self.all_rows[: max(1, math.ceil(tokens / self.all_rows.shape[1]))]
            self.tokens = self.all_rows.numel()
        size = max(1, sequences_per_forward(self.device, self.all_rows.shape[1]) // 2)
        if batch is not None:
            size = max(1, math.ceil(batch / self.all_rows.shape[1]))
        self.batches = list(self.all_rows.to(self.device).split(size))
        self.calls = LayerCalls.without_layers(twin(self.module), self.adapter, self.batches)
        self.ending = Ending(twin(self.module), self.adapter)
        return self

    def through(self, state: torch.Tensor, begin: int, gone: Set[ModuleKey], end: int | None = None) -> torch.Tensor:
        """Bring a residual stream from before one layer to before another, None for behind the last."""
        self.gone = frozenset(gone)
        for index in range(begin, len(self.layers) if end is None else end):
            check_cancelled(self.cancel)
            if not self._left_out(index):
                state = self.calls.run(self.layers[index], state, index)
        return state

    def _left_out(self, index: int) -> bool:
        own = [key for key in self.blocks if key.layer == index]
        return self.beside[index] is not None and bool(own) and all(key in self.gone for key in own)

    def loss(self, rows: torch.Tensor, stream: torch.Tensor) -> tuple[float, int]:
        """Summed negative log-likelihood of a batch, in nats, and the tokens it is of."""
        logits, targets = predictions(self.ending.logits(rows, stream), rows)
        return float(F.cross_entropy(logits, targets, reduction="sum")), len(targets)

    @torch.inference_mode()
    def losses(
        self,
        gone: Set[ModuleKey],
        candidates: Sequence[Group],
        tell: Callable[[int, int], None] | None = None,
        *,
        batches: int | None = None,
    ) -> np.ndarray:
        """Mean loss in nats a token when a candidate goes as well, (candidates,).

        The layers before a candidate run once for all of them; two residual streams are held.

        Args:
            tell: called with what is done and what there is to do.
            batches: how many of the batches it is measured on; all by default.
        """
        used = self.batches[:batches]
        sums, count, done = np.zeros(len(candidates)), 0, 0
        by_layer: dict[int, list[int]] = {}
        for number, group in enumerate(candidates):
            by_layer.setdefault(min((key.layer for key in group), default=0), []).append(number)
        for rows, start in zip(used, self.calls.states, strict=False):
            state, at = start, 0
            for layer, numbers in sorted(by_layer.items()):
                state, at = self.through(state, at, gone, layer), layer
                for number in numbers:
                    stream = self.through(state, layer, gone | set(candidates[number]))
                    summed, tokens = self.loss(rows, stream)
                    sums[number] += summed
                    done += 1
                    if tell is not None:
                        tell(done, len(candidates) * len(used))
            count += tokens
        if not np.isfinite(sums).all():
            raise NumericalError("The model's logits are not finite on this text; load it in float32 or bfloat16.")
        return sums / count


def by_loss(
    run: LayerRun, groups: Sequence[Group], enough: Callable[[Group], bool], *, progress: Progress | None
) -> tuple[list[Group], np.ndarray, None]:
    """Greedily, the group next that adds least to the loss for what it saves.

    What a group adds is taken not to fall while others go, so that it is measured again only for those that may be the
    least (lazy greedy, Minoux 1978); at first every group is measured on fewer tokens.
    """
    run.on(TOKENS, FIRST_TOKENS)

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, "measuring the loss without each module")

    base, *first = run.losses(set(), [(), *groups], tell, batches=1).tolist()
    saved = {group: _saved(run, group) for group in groups}
    adds = {group: loss - base for group, loss in zip(groups, first, strict=True)}
    dense = float(run.losses(set(), [()])[0])
    gone: set[ModuleKey] = set()
    steps, losses = [()], [dense]
    while len(adds) > 1 and not enough(steps[-1]):
        fresh = set(adds) if not gone and len(run.batches) == 1 else set()
        while (best := min(adds, key=lambda group: adds[group] / saved[group])) not in fresh:
            stale = sorted(adds.keys() - fresh, key=lambda group: adds[group] / saved[group])[:TRIED_AGAIN]
            found = run.losses(gone, stale) - losses[-1]
            adds.update(zip(stale, found.tolist(), strict=True))
            fresh |= set(stale)
        losses.append(losses[-1] + adds.pop(best))
        gone |= set(best)
        steps.append(tuple(sorted(gone)))
        if progress is not None:
            progress(len(steps) - 1, len(groups), "choosing what goes next")
        if run.until is not None and run.until(steps[-1], losses[-1] - dense):
            break
    return steps, np.array(losses) - dense, None


def _saved(run: LayerRun, group: Group) -> float:
    """What a group saves; something at least, since all of it is worth going when nothing is left."""
    least = 1e-6 * max(run.savings.values())
    return max(sum(run.savings[key] for key in group), least, 1e-30)


def by_influence(
    run: LayerRun, groups: Sequence[Group], enough: Callable[[Group], bool], *, progress: Progress | None
) -> tuple[list[Group], None, np.ndarray]:
    """By block influence, the lowest first."""
    if run.influence is None:
        raise InputError("These statistics hold no block influence; calibrate the model in memory again.")
    influence = run.influence.numpy()
    if not np.isfinite(influence).all():
        raise NumericalError("A layer's block influence is not finite; load the model in float32 or bfloat16.")
    order = sorted(groups, key=lambda group: influence[group[0].layer])
    return _until(enough, order), None, influence


@torch.inference_mode()
def by_angle(
    run: LayerRun, groups: Sequence[Group], enough: Callable[[Group], bool], *, progress: Progress | None
) -> tuple[list[Group], None, None]:
    """For every number n of layers, those n in a row over which the last token of a sequence turns least:
    arccos(cosine) / pi, on average over the sequences."""
    run.on()
    count = len(run.layers)
    distance = np.zeros((count + 1, count + 1))
    for done, start in enumerate(run.calls.states):
        state, lasts = start, [start[:, -1].cpu().double()]
        for index in range(count):
            state = run.through(state, index, set(), index + 1)
            lasts.append(state[:, -1].cpu().double())
        unit = F.normalize(torch.stack(lasts), dim=-1)
        cosines = torch.einsum("lsd,msd->slm", unit, unit).clamp(-1, 1)
        distance += (cosines.arccos() / math.pi).sum(0).numpy()
        if progress is not None:
            progress(done + 1, len(run.batches), "angular distance")
    if not np.isfinite(distance).all():
        raise NumericalError("Activations are not finite; load the model in float32 or bfloat16.")
    by_layer = {group[0].layer: group for group in groups}
    steps: list[Group] = [()]
    for length in range(1, count):
        blocks = [range(begin, begin + length) for begin in range(count - length + 1)]
        able = [block for block in blocks if all(layer in by_layer for layer in block)]
        if not able or enough(steps[-1]):
            break
        best = min(able, key=lambda block: distance[block.start, block.stop])
        steps.append(tuple(key for layer in best for key in by_layer[layer]))
    return steps, None, None


def _until(enough: Callable[[Group], bool], order: Iterable[Group]) -> list[Group]:
    """What is gone after each step of an order, until it is enough; one group stays."""
    steps: list[Group] = [()]
    for group in list(order)[:-1]:
        if enough(steps[-1]):
            break
        steps.append(tuple(sorted((*steps[-1], *group))))
    return steps


DEPTH_SCORERS.update(loss=by_loss, influence=by_influence, angular=by_angle)
