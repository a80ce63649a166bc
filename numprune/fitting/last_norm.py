"""The gains of the last norm, fitted to the dense network: first to what the norm puts out, then to its predictions.

The modules before it are fitted by squared errors, which count every direction of the residual stream alike. The
output layer does not. The gains are where that can be made up for at the price of a few passes over the output layer
alone: one Newton step, as in the paper's score, taken on the divergence of the predictions themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.errors import CancelEvent, NumericalError, check_cancelled
from numprune.linalg import to_float64
from numprune.models.adapter import Adapter
from numprune.models.batches import FIT_SEQUENCES, NEWTON_LOGITS, READ_LOGITS
from numprune.models.model import twin
from numprune.models.prediction import predicted
from numprune.models.replay import Ending
from numprune.ranks import ALONE, Ranks

CAUTION = 10.0
"""What is added to every channel's curvature before the Newton step, as a multiple of their mean. Calibration text is
not the text a model will see, and there a bold step loses more than it gains."""


@torch.no_grad()
def fit_last_norm(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    adapter: Adapter,
    rows: Sequence[torch.Tensor],
    dense_stream: Sequence[torch.Tensor],
    pruned_stream: Sequence[torch.Tensor],
    *,
    damping: float,
    numbers: Sequence[torch.Tensor] | None = None,
    ranks: Ranks = ALONE,
    cancel: CancelEvent | None = None,
) -> str | None:
    """Scale the channels of the norm behind the last layer of `pruned`, in place.

    Every channel is scaled by the s that minimises ||s H' - H||² + gamma (s - 1)², with H and H' what the norm puts out
    in the two models and gamma = damping * mean ||H'_j||²: what is left of a stream that was lost in part is too large
    on the whole. Then all channels take one damped Newton step, with diagonal Hessian, on the mean KL(p, q) of the
    dense predictions p and the pruned ones q, with W the output layer:

        s_j = 1 - g_j / (h_j + 10 mean h),    g_j = E[H'_j (Wᵀ(q - p))_j],    h_j = E[H'_j² Var_q(W_j)].

    The step is taken from all sequences, or every so many where that would be more than 2^29 logits.
    Where there is no such norm, nothing is done. Memory is two float32 copies of the output layer.

    Args:
        dense, pruned: of which only what is outside the layers is used.
        rows: token ids, a batch each (sequences, tokens).
        dense_stream, pruned_stream: the residual streams behind the last layer of the two models on them,
            (sequences, tokens, hidden); they may lie elsewhere than the models.
        numbers: of the sequences among those of all processes, a batch each; None where these are all.
        ranks: the processes that share the sequences.

    Returns:
        A note when the Newton step was left out because the logits are not the output layer on the norm's output, or
        a soft cap of it.

    Raises:
        NumericalError: activations are not finite.
        Cancelled: `cancel` was set.
    """
    norm, fitted = adapter.final_norm(dense), adapter.final_norm(pruned)
    if norm is None or fitted is None:
        return None
    offset = adapter.norm_offset(dense.config)
    _scale(fitted, offset, _least_squares(norm, fitted, dense_stream, pruned_stream, damping, ranks))
    if numbers is None:
        numbers = torch.arange(sum(map(len, rows))).split([len(batch) for batch in rows])
    known = _ends_in_output_layer(Ending(twin(dense), adapter), norm, rows[0][:1], dense_stream[0][:1])
    if ranks.total(known) < ranks.count:
        return "The last norm took no Newton step: more than the output layer stands before the logits."
    _scale(
        fitted, offset, _newton(dense, pruned, norm, fitted, rows, dense_stream, pruned_stream, numbers, ranks, cancel)
    )
    return None


def _scale(norm: nn.Module, offset: float, scale: torch.Tensor) -> None:
    if not bool(torch.isfinite(scale).all()):
        raise NumericalError(
            "Fitting the last norm: activations are not finite; load the model in float32 or bfloat16."
        )
    weight = to_float64(norm.weight) + offset
    norm.weight.copy_(scale.to(weight.device) * weight - offset)


def _scaled_part(norm: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """What the norm put out, without its bias."""
    bias = getattr(norm, "bias", None)
    return output if bias is None else output - bias


def _least_squares(
    norm: nn.Module,
    fitted: nn.Module,
    dense_stream: Sequence[torch.Tensor],
    pruned_stream: Sequence[torch.Tensor],
    damping: float,
    ranks: Ranks,
) -> torch.Tensor:
    product = torch.zeros_like(to_float64(fitted.weight))
    moment = torch.zeros_like(product)
    for state, other in zip(dense_stream, pruned_stream, strict=True):
        wanted, reached = (
            to_float64(_scaled_part(by, by(at.to(by.weight.device)))) for by, at in ((norm, state), (fitted, other))
        )
        product += (wanted * reached).sum((0, 1))
        moment += reached.square().sum((0, 1))
    ranks.add(product, moment)
    gamma = damping * moment.mean()
    return (product + gamma) / (moment + gamma)


class _OutputLayer:
    """From the output of the last norm to logits: the output layer, Granite's divisor, and Gemma 2's soft cap."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layer = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.divisor = getattr(config, "logits_scaling", 1.0)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.layer(hidden).float() / self.divisor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def slopes(self, logits: torch.Tensor) -> torch.Tensor | float:
        """Derivative of the logits by what the layer itself put out."""
        return (1.0 if self.cap is None else 1 - (logits / self.cap).square()) / self.divisor


def _ends_in_output_layer(ending: Ending, norm: nn.Module, row: torch.Tensor, state: torch.Tensor) -> bool:
    state = state.to(norm.weight.device)
    logits = ending.logits(row.to(state.device), state).float()
    own = _OutputLayer(ending.model)(norm(state)).to(logits.device)
    return own.shape == logits.shape and float((own - logits).abs().max()) <= 1e-2 * float(logits.abs().max())


def _newton(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    norm: nn.Module,
    fitted: nn.Module,
    rows: Sequence[torch.Tensor],
    dense_stream: Sequence[torch.Tensor],
    pruned_stream: Sequence[torch.Tensor],
    numbers: Sequence[torch.Tensor],
    ranks: Ranks,
    cancel: CancelEvent | None,
) -> torch.Tensor:
    head, narrow_head = _OutputLayer(dense), _OutputLayer(pruned)
    weight = narrow_head.layer.weight.float()
    squares = weight.square()
    gradient = to_float64(weight.new_zeros(weight.shape[1]))
    curvature = torch.zeros_like(gradient)
    tokens, read = 0, ranks.total(sum(batch.numel() for batch in rows))
    # Every so many sequences are enough where the vocabulary is large.
    apart = math.ceil(read * len(weight) / NEWTON_LOGITS)
    chosen = [own % FIT_SEQUENCES % apart == 0 for own in numbers]
    for wanted, reached, factor in _predicting(norm, fitted, rows, dense_stream, pruned_stream, len(weight), chosen):
        check_cancelled(cancel)
        factor, logits = factor.to(weight.device), narrow_head(reached).to(weight.device)
        q, slopes = logits.softmax(-1), narrow_head.slopes(logits)
        error = (q - head(wanted).softmax(-1).to(weight.device)) * slopes
        mean = (q * slopes) @ weight
        variance = (q * slopes**2) @ squares - mean.square()
        gradient += to_float64((error @ weight) * factor).sum(0)
        curvature += to_float64(variance.clamp(min=0) * factor.square()).sum(0)
        tokens += len(factor)
    ranks.add(gradient, curvature)
    if not ranks.total(tokens):
        return torch.ones_like(gradient)
    floor = CAUTION * curvature.mean()
    return 1 - gradient / (curvature + floor).clamp(min=torch.finfo(torch.float64).tiny)


def _predicting(
    norm: nn.Module,
    fitted: nn.Module,
    rows: Sequence[torch.Tensor],
    dense_stream: Sequence[torch.Tensor],
    pruned_stream: Sequence[torch.Tensor],
    vocabulary: int,
    chosen: Sequence[torch.Tensor],
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What the two norms put out where a token is predicted, and the part of the second that its gains scale; of the
    sequences of every batch that are chosen."""
    size = max(1, READ_LOGITS // vocabulary)
    for batch, state, other, mask in zip(rows, dense_stream, pruned_stream, chosen, strict=True):
        batch, state, other = (each[mask.to(each.device)].to(norm.weight.device) for each in (batch, state, other))
        counted = predicted(batch, vocabulary)
        pairs = (each[:, :-1][counted] for each in (state, other))
        for chunk, narrow in zip(*(each.split(size) for each in pairs), strict=True):
            reached = fitted(narrow)
            yield norm(chunk), reached, _scaled_part(fitted, reached).float()
