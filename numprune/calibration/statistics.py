"""What calibration leaves behind: one Gram matrix, mean and token count per module."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from numprune.errors import InputError
from numprune.linalg import BLOCK, lower_product, mirror_lower_
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import CalibrationRecipe
from numprune.ranks import ALONE, Ranks

UNNAMED = ("texts", "tokens")
"""What data is called that only the caller has."""


@dataclass
class ModuleStats:
    """Second moments of the inputs of a module's last linear.

    Attributes:
        gram: XᵀX, (channels, channels) float64.
        mean: mean of every channel, (channels,) float64.
        tokens: rows of X.
    """

    gram: torch.Tensor
    mean: torch.Tensor
    tokens: int

    def to(self, device: torch.device) -> ModuleStats:
        """The same on a device; where all matrices together do not fit, they wait on the CPU."""
        return ModuleStats(self.gram.to(device), self.mean.to(device), self.tokens)

    @property
    def rms(self) -> torch.Tensor:
        """Root mean square activation of every channel, (channels,)."""
        return (self.gram.diagonal() / self.tokens).clamp(min=0).sqrt()


@dataclass
class CalibrationStats:
    """Statistics of all prunable modules and where they came from.

    Attributes:
        modules: statistics by module.
        data: what was read: a dataset name, a file, "self", "texts" or "tokens".
        samples, sequence_length, tokens: what was used, in sequences and tokens.
        fingerprint: of the model the statistics belong to.
        notes: what differs from the request, in sentences.
        seconds: wall-clock time.
        bos: whether every sequence begins as the tokenizer begins a text, see `numprune.calibrate`.
        text_column: the column of rows that was read, when one was named.
        rows: the token ids that were read, (samples, sequence_length) int32 on the CPU; None when only the
            moments are known.
        influence: block influence of every layer (`BlockInfluence`), (layers,) float64; None where it was not taken.
    """

    modules: dict[ModuleKey, ModuleStats]
    data: str
    samples: int
    sequence_length: int
    tokens: int
    seed: int
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    rows: torch.Tensor | None = None
    bos: bool = True
    text_column: str | None = None
    influence: torch.Tensor | None = None

    @property
    def source(self) -> CalibrationRecipe:
        """What a recipe says of this calibration; data that only the caller has is not named."""
        data = None if self.data in UNNAMED else self.data
        return CalibrationRecipe(data, self.samples, self.sequence_length, self.seed, self.bos, self.text_column)

    def token_rows(self, purpose: str) -> torch.Tensor:
        """The token ids, for something that needs them.

        Raises:
            InputError: only the moments are known; `purpose` says what the ids are for.
        """
        if self.rows is None:
            raise InputError(f"These statistics hold no token ids to {purpose}; calibrate again.")
        return self.rows


class BlockInfluence:
    """1 - mean cosine of what enters and what leaves every layer, ShortGPT's block influence (Men et al. 2024, arXiv
    2403.03853, equation 1)."""

    def __init__(self, layers: int) -> None:
        self.sums, self.tokens = torch.zeros(layers, dtype=torch.float64), torch.zeros(layers, dtype=torch.float64)

    def add(self, layer: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        """Add what a layer made of a batch, (sequences, tokens, hidden) each."""
        turned = 1 - F.cosine_similarity(entering.float(), leaving.float(), dim=-1)
        # Not every device has float64.
        self.sums[layer] += turned.sum().cpu().double()
        self.tokens[layer] += turned.numel()

    def finish(self, ranks: Ranks) -> torch.Tensor:
        """Of every layer, over the batches of all processes, (layers,) float64."""
        ranks.add(self.sums, self.tokens)
        return self.sums / self.tokens


class GramAccumulator:
    """Running XᵀX and sum of X. Batches are multiplied in float32 and summed in float64, so that a million
    tokens lose no more than one batch does."""

    def __init__(self, channels: int, device: torch.device):
        self.gram = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        self.sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, x: torch.Tensor) -> bool:
        """Add a batch (tokens, channels); False when it holds a non-finite value (or one too large to square)."""
        product = lower_product(x)
        product = product.to(self.gram.device)
        for begin in range(0, len(product), BLOCK):
            # By rows: the sum of two data types makes a copy of one of them.
            self.gram[begin : begin + BLOCK] += product[begin : begin + BLOCK]
        self.sum += x.sum(dim=0, dtype=torch.float32).to(self.sum.device)
        self.tokens += x.shape[0]
        return bool(torch.isfinite(product.diagonal()).all())

    def finish(self, ranks: Ranks = ALONE) -> ModuleStats:
        """What all batches of all processes come to."""
        ranks.add(self.gram, self.sum)
        self.tokens = ranks.total(self.tokens)
        return ModuleStats(mirror_lower_(self.gram), self.sum / self.tokens, self.tokens)
