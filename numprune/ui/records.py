"""What is kept for a browser tab, as data."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from numprune.evaluation.cells import Cell
from numprune.models.outline import Outline
from numprune.plan.recipe import Recipe
from numprune.scoring import ScoreTable
from numprune.ui.comparison import Measured, Written
from numprune.ui.pictures import Exhibition
from numprune.ui.session import LoadRequest, Look, Session
from numprune.ui.weights import Weights

if TYPE_CHECKING:
    from numprune.calibration import CalibrationStats
    from numprune.evaluation.images.quality import ImageQuality
    from numprune.models import Model
    from numprune.scoring.depth import DepthScores


@dataclass(frozen=True)
class Loaded:
    """A dense model with the scores of one scorer. None of it ever changes.

    `stats` are None while nothing needed them: scores that ship with a model come without.
    """

    request: LoadRequest
    weights: Weights
    scores: ScoreTable
    stats: CalibrationStats | None

    @property
    def model(self) -> Model:
        """The model itself, waited for while it is loaded; raises InputError where only its scores are here."""
        return self.weights.model

    @property
    def outline(self) -> Outline:
        """The model without its weights, which is there at once."""
        return self.weights.outline


@dataclass
class Opened:
    """A dense model, its statistics once they were taken, and its scores by scorer; `refused` says why a scorer could
    not score it. `depth` holds what goes as a whole first, by kind and scorer, and up to which ratio."""

    weights: Weights
    stats: CalibrationStats | None = None
    scores: dict[str, ScoreTable] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    depth: dict[tuple[str, str], tuple[DepthScores, float]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory of the weights and of the Gram matrices."""
        grams = () if self.stats is None else (module.gram for module in self.stats.modules.values())
        return self.weights.bytes + sum(gram.numel() * gram.element_size() for gram in grams)


@dataclass(frozen=True)
class Finding:
    """A result for the report: pieces of HTML and figures, and the numbers behind them."""

    parts: tuple[Any, ...]
    table: pd.DataFrame


@dataclass(frozen=True)
class Point:
    """A measured loss, for the frontier.

    Attributes:
        name: of what was measured, such as "30% balanced".
        reached: share of the prunable parameters that went.
        loss: ln PPL pruned - ln PPL dense, in nats a token.
        recipe: that repeats it; None where nobody knows.
    """

    name: str
    reached: float
    loss: float
    recipe: Recipe | None = None


@dataclass
class Tab:
    """What one browser tab has open and what its long steps have made.

    Attributes:
        session: None until a model is open.
        look: how it looks at the plan.
        seen: number of the last edit that arrived.
        token: by which the page's own script names the tab; nobody else knows it.
        variants: pruned models by name.
        findings: by title.
        exhibition: the images that were drawn last.
        cells: in which methods were compared; those of the run that is shown last.
        points: measured losses, by what they are of.
        chosen: names of the pruned models that are compared; None for the newest ones.
        predicted: losses of the pruned models, in nats a token, where their scores are prices.
        written, measured, quality: what the models wrote last, and the figures of each, of texts or of images.
    """

    session: Session | None = None
    look: Look = field(default_factory=Look)
    seen: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    variants: dict[str, Model] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    exhibition: Exhibition | None = None
    cells: list[Cell] = field(default_factory=list)
    points: dict[str, Point] = field(default_factory=dict)
    chosen: list[str] | None = None
    predicted: dict[str, float | None] = field(default_factory=dict)
    written: Written | None = None
    measured: dict[str, Measured] = field(default_factory=dict)
    quality: dict[str, ImageQuality] = field(default_factory=dict)

    def emptied(self, session: Session) -> Tab:
        """The tab after another model was opened: nothing of the old one's is left."""
        return Tab(session, look=self.look, seen=self.seen, token=self.token)
