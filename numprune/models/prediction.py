"""What a model predicts: which positions count, what they cost, how far two models are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from numprune.errors import CancelEvent, NumericalError, check_cancelled
from numprune.models.batches import sequences_per_forward
from numprune.models.model import Model
from numprune.ranks import joined


def predicted(ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Which tokens are predicted from those before them, bool, one shorter than `ids` (..., tokens).

    All but the first, except what a model reads and never predicts, such as the class or caption of an image: ids that
    its logits do not have.

    Args:
        vocabulary: length of the logits.
    """
    return ids[..., 1:] < vocabulary


def predictions(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that predict a token, (predicted tokens, vocabulary) float32, and these tokens, (predicted tokens,).

    Args:
        logits: (sequences, tokens, vocabulary).
        ids: token ids (sequences, tokens), on the same device.
    """
    counted = predicted(ids, logits.shape[-1])
    return logits[:, :-1].float()[counted], ids[:, 1:][counted]


def kl_divergence(dense: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(p, q) in nats of the distributions p and q of two models, position by position.

    Args:
        dense, other: logits of p and q (positions, vocabulary), in the precision to compute in.

    Returns:
        (positions,); rounding may leave equal distributions a little below 0.
    """
    p, q = dense.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def window_losses(model: Model, windows: Sequence[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood of some windows, in nats, and the tokens it is of, (windows,) float64 each.

    Args:
        windows: token ids (tokens,) with the index of the first token that counts; all run at once.
    """
    length = max(len(window) for window, _ in windows)
    # Attention is causal, so what stands to the right of a window's end changes nothing in it.
    ids = torch.stack([F.pad(window, (0, length - len(window))) for window, _ in windows]).to(model.device)
    logits = model.module(input_ids=ids, use_cache=False).logits
    counted = predicted(ids, logits.shape[-1])
    losses, counts = [], []
    for row, (window, begin) in enumerate(windows):
        places = slice(begin - 1, len(window) - 1)
        chosen = counted[row, places]
        own, targets = logits[row, places].float(), ids[row, 1:][places]
        losses.append(F.cross_entropy(own[chosen], targets[chosen], reduction="sum"))
        counts.append(chosen.sum())
    return torch.stack(losses).double().cpu(), torch.stack(counts).double().cpu()


@torch.inference_mode()
def mean_loss(model: Model, rows: torch.Tensor, *, cancel: CancelEvent | None = None) -> float:
    """Mean negative log-likelihood of whole sequences, in nats a predicted token.

    Args:
        rows: token ids (sequences, tokens), each row a window of its own; several processes share them.

    Raises:
        NumericalError: the logits are not finite.
        Cancelled: `cancel` was set.
    """
    ranks, sums = joined(), torch.zeros(2, dtype=torch.float64)
    for batch in ranks.own(rows).split(sequences_per_forward(model.device, rows.shape[1])):
        check_cancelled(cancel)
        if len(batch):
            sums += torch.stack([each.sum() for each in window_losses(model, [(row, 1) for row in batch])])
    ranks.add(sums)
    loss, count = sums.tolist()
    if not math.isfinite(loss):
        raise NumericalError("The model's logits are not finite on this text; load it in float32 or prune less.")
    return loss / count
