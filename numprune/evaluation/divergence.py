"""KL divergence of another model's predictions from the dense model's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from numprune.calibration.data import Data, window_start
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.evaluation.perplexity import held_out_windows
from numprune.linalg import all_finite, to_float64
from numprune.models.batches import EXACT_POSITIONS
from numprune.models.model import Model
from numprune.models.prediction import kl_divergence


@dataclass(frozen=True)
class Divergence:
    """Divergence of the predicted distributions, position by position.

    Attributes:
        tokens: the text of every predicted token, or its id in digits for models without a tokenizer.
        kl: KL(dense || other) of the distributions that predict it, in nats, (n,) float64.
        agree: whether both models find the same token the likeliest, (n,) bool.
    """

    tokens: list[str]
    kl: np.ndarray
    agree: np.ndarray

    @property
    def n(self) -> int:
        """Predicted tokens."""
        return len(self.kl)

    @property
    def mean_kl(self) -> float:
        """Mean over positions, in nats."""
        return float(self.kl.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean over positions, taken as independent, which neighbours are not quite; NaN for one."""
        return float(self.kl.std(ddof=1)) / math.sqrt(self.n) if self.n > 1 else math.nan

    @property
    def agreement(self) -> float:
        """Share of positions where both models find the same token the likeliest."""
        return float(self.agree.mean())


@torch.inference_mode()
def divergence(
    dense: Model,
    other: Model,
    text: Data,
    *,
    sequence_length: int = 2048,
    limit: int | None = None,
    bos: bool = True,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Divergence:
    """KL divergence of `other` from `dense` at every predicted token of a text.

    Each document is cut into windows of `sequence_length` tokens, side by side, as `numprune.perplexity` cuts them;
    both models predict every token of a window but the first from those before it in the window.

    Args:
        text: as in `numprune.perplexity`, read with the tokenizer of `dense`.
        sequence_length: tokens per window; capped at what the models support.
        limit: predict at most this many tokens, from the beginning of the text; None for all.
        bos: whether every window begins as the tokenizer begins a text (with BOS, where it adds one); else each
            document does.

    Raises:
        InputError: the models have different vocabularies, the text cannot be read or has no token to predict,
            or a number is out of range.
        NumericalError: the logits of a model, which is named, are not finite.
        Cancelled: `cancel` was set.
    """
    if sequence_length < 2:
        raise InputError(f"sequence_length is {sequence_length}; give at least 2.")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; give at least 1 token, or None for all.")
    _check_vocabularies(dense, other)
    for model in (dense, other):
        sequence_length = min(sequence_length, model.maximum_length or sequence_length)
    start = window_start(dense.tokenizer, text, bos)
    cut = held_out_windows(dense, text, sequence_length, sequence_length - len(start), start, limit)
    windows = [window for window, _ in cut]
    tokens: list[str] = []
    kl: list[np.ndarray] = []
    agree: list[np.ndarray] = []
    for done, window in enumerate(windows, 1):
        check_cancelled(cancel)
        dense_logits, other_logits = _logits(dense, window), _logits(other, window).to(dense.device)
        pairs = zip(dense_logits.split(EXACT_POSITIONS), other_logits.split(EXACT_POSITIONS), strict=True)
        for pair in pairs:
            p, q = (to_float64(logits) for logits in pair)
            # Equal distributions may differ by a rounding error, which has no sign.
            kl.append(kl_divergence(p, q).clamp(min=0).cpu().numpy())
            agree.append((p.argmax(-1) == q.argmax(-1)).cpu().numpy())
        tokens += dense.token_names(window.tolist())[1:]
        if progress is not None:
            progress(done, len(windows), "comparing predictions")
    return Divergence(tokens, np.concatenate(kl), np.concatenate(agree))


def _check_vocabularies(dense: Model, other: Model) -> None:
    rows = [model.module.get_input_embeddings().weight.shape[0] for model in (dense, other)]
    readers = [model.tokenizer for model in (dense, other)]
    same = rows[0] == rows[1]
    if same and None not in readers and readers[0] is not readers[1]:
        same = readers[0].get_vocab() == readers[1].get_vocab()
    if not same:
        raise InputError(
            f"{dense.name} and {other.name} have different vocabularies; compare a model with what it was pruned to."
        )


def _logits(model: Model, window: torch.Tensor) -> torch.Tensor:
    """Logits that predict a window's tokens from its second on, (tokens - 1, vocabulary)."""
    logits = model.module(input_ids=window[None].to(model.device), use_cache=False).logits[0, :-1]
    if not all_finite(logits):
        raise NumericalError(
            f"The logits of {model.name} are not finite on this text; load it in float32 or prune less."
        )
    return logits
