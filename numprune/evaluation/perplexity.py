"""Perplexity over sliding windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from numprune.calibration.data import Data, check_ids, spelled, token_rows, window_start
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.models.batches import sequences_per_forward
from numprune.models.model import Model
from numprune.models.prediction import window_losses
from numprune.ranks import joined


class Perplexity(float):
    """exp of the mean negative log-likelihood per token, with how it was measured.

    Attributes:
        tokens: tokens that were predicted.
        nll: mean negative log-likelihood in nats per token.
        standard_error: of `nll`, over windows weighted by their tokens; NaN for a single window.
        windows, sequence_length, stride: the protocol.
        start: what every window begins with, as the tokenizer writes it, such as "<s>"; "" for nothing.
    """

    tokens: int
    nll: float
    standard_error: float
    windows: int
    sequence_length: int
    stride: int
    start: str

    @classmethod
    def of(
        cls, losses: torch.Tensor, counts: torch.Tensor, sequence_length: int, stride: int, start: str = ""
    ) -> Perplexity:
        """From the summed loss and the number of predicted tokens of every window, (windows,) each."""
        nll = float(losses.sum() / counts.sum())
        value = cls(math.exp(nll) if nll < 700 else math.inf)
        value.nll, value.tokens, value.windows = nll, int(counts.sum()), len(losses)
        value.sequence_length, value.stride, value.start = sequence_length, stride, start
        value.standard_error = math.nan
        if len(losses) > 1:
            residuals = losses - nll * counts
            spread = float((residuals**2).sum()) * len(losses) / (len(losses) - 1)
            value.standard_error = math.sqrt(spread) / value.tokens
        return value

    def to_dict(self) -> dict[str, Any]:
        return {
            "perplexity": float(self) if math.isfinite(self) else None,
            "tokens": self.tokens,
            "nll": self.nll,
            "standard_error": None if math.isnan(self.standard_error) else self.standard_error,
            "windows": self.windows,
            "sequence_length": self.sequence_length,
            "stride": self.stride,
            "start": self.start,
        }


@torch.inference_mode()
def perplexity(
    model: Model,
    data: Data,
    *,
    sequence_length: int = 2048,
    stride: int | None = None,
    max_tokens: int | None = None,
    text_column: str | None = None,
    batch_size: int | None = None,
    bos: bool = True,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Perplexity:
    """Perplexity of held-out text, every token weighing the same.

    Each document is cut into windows of `sequence_length` tokens that begin every `stride` tokens; the last may
    be shorter. A window predicts its tokens from those before them in the window, except those an earlier
    window has predicted. Documents never share a window: the rows of a jsonl file, the strings of a list and
    the parts of a text file between <|endoftext|> stand alone; any other text file and the named datasets are
    one document, WikiText-2 joined by blank lines, C4 and PTB by spaces. Where the tokenizer begins a text with BOS,
    so does every window, within its length: Gemma 3 270M has a perplexity of 35.5 on WikiText-2 in windows of 256 that
    way, and of 155.8 where only the first window begins with it. Token ids are taken as they are given.

    With bos=False and the other defaults, wikitext2 follows the usual protocol, that of GPTQ's code, to which the
    paper's 5.68 of the dense LLaMA-7B belongs: the test split as one text, BOS at its beginning alone, windows of 2048
    tokens side by side, all predictions weighing the same. That code drops the last, shorter window, which counts
    here; a text of whole windows gives the same number. Of PTB and C4 other code reads other splits, joins and rows:
    compare the dense models first.

    Args:
        data: as in `numprune.calibrate`, without "self"; named datasets use their test split.
        sequence_length: tokens per window; capped at what the model supports.
        stride: tokens from one window to the next; None for windows side by side, of which the first token is not
            predicted where it is no BOS.
        max_tokens: predict at most this many tokens, from the beginning of the text; None for all. Models of one
            tokenizer read the same windows.
        text_column: the column of rows that holds the text; None for the first that is known by its name.
        batch_size: windows per forward pass; None keeps a batch near 4096 tokens on a CPU, 16384 elsewhere.
        bos: whether every window begins as the tokenizer begins a text; else each document does.

    Raises:
        InputError: the text cannot be read or has no token to predict, or a number is out of range.
        NumericalError: the model's logits are not finite.
        Cancelled: `cancel` was set.
    """
    if sequence_length < 2:
        raise InputError(f"sequence_length is {sequence_length}; give at least 2.")
    sequence_length = min(sequence_length, model.maximum_length or sequence_length)
    start = window_start(model.tokenizer, data, bos)
    most = sequence_length - len(start)
    stride = most if stride is None else stride
    if not 1 <= stride <= most:
        raise InputError(f"stride is {stride}; give a number from 1 to the tokens of text in a window, {most}.")
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; give at least 1 token, or None for all.")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1.")
    windows = held_out_windows(model, data, sequence_length, stride, start, max_tokens, text_column)
    if batch_size is None:
        batch_size = sequences_per_forward(model.device, sequence_length)
    # Windows of like length share a batch, so that little is padded. The longest come first: the time left, judged by
    # the batches that are done, is not told too low, and memory that does not suffice shows at once.
    ranks = joined()
    order = ranks.own(sorted(range(len(windows)), key=lambda i: len(windows[i][0]), reverse=True))
    losses, counts = torch.zeros(len(windows), dtype=torch.float64), torch.zeros(len(windows), dtype=torch.float64)
    for begin in range(0, len(order), batch_size):
        check_cancelled(cancel)
        chosen = order[begin : begin + batch_size]
        losses[chosen], counts[chosen] = window_losses(model, [windows[i] for i in chosen])
        if progress is not None:
            progress(min(begin + batch_size, len(order)), len(order), "measuring perplexity")
    ranks.add(losses, counts)
    if not bool(torch.isfinite(losses).all()):
        raise NumericalError("The model's logits are not finite on this text; load it in float32 or prune less.")
    return Perplexity.of(losses, counts, sequence_length, stride, spelled(model.tokenizer, start))


def held_out_windows(
    model: Model,
    data: Data,
    sequence_length: int,
    stride: int,
    start: Sequence[int],
    most: int | None,
    text_column: str | None = None,
) -> list[tuple[torch.Tensor, int]]:
    """The windows of all documents of held-out text, each with the index of the first token it predicts.

    Args:
        sequence_length, stride, start: as in `cut_windows`.
        most: tokens to predict, from the beginning of the text; None for all.
        text_column: as in `perplexity`.

    Raises:
        InputError: the text cannot be read, has no token to predict, or ids that the model does not know.
    """
    rows = token_rows(data, model.tokenizer, "test", text_column)
    windows = limited([window for row in rows for window in cut_windows(row, sequence_length, stride, start)], most)
    if not windows:
        raise InputError("The text has no token to predict; give at least two tokens.")
    check_ids(rows, model)
    return windows


def cut_windows(
    row: torch.Tensor, sequence_length: int, stride: int, start: Sequence[int] = ()
) -> list[tuple[torch.Tensor, int]]:
    """Windows of one document, each with the index of the first token it predicts.

    Args:
        row: token ids (tokens,), beginning with `start`.
        stride: tokens of text from one window to the next.
        start: what every window begins with; it is not predicted.
    """
    prefix, text = row[: len(start)], row[len(start) :]
    # Without a start, nothing stands before the first token of the text to predict it from.
    windows, predicted = [], 0 if len(start) else 1
    for begin in range(0, len(text), stride):
        window = torch.cat([prefix, text[begin : begin + sequence_length - len(start)]])
        first = max(predicted - begin + len(start), 1)
        if first < len(window):
            windows.append((window, first))
        predicted = begin + len(window) - len(start)
        if predicted >= len(text):
            break
    return windows


def limited(windows: list[tuple[torch.Tensor, int]], most: int | None) -> list[tuple[torch.Tensor, int]]:
    """As many windows, the last cut short, as predict so many tokens; all for None."""
    if most is None:
        return windows
    chosen = []
    for window, begin in windows:
        if most < 1:
            break
        chosen.append((window[: begin + most], begin))
        most -= len(window) - begin
    return chosen
