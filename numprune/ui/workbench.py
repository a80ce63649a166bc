"""The models of the dashboard, shared by all browser tabs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil

from numprune.allocation.threshold import allocate
from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.models.embedded import embedded_models
from numprune.models.outline import Outline
from numprune.plan.plan import PruningPlan
from numprune.plan.presets import DEFAULT_PRESET, PRESETS, method_of
from numprune.plan.recipe import CalibrationRecipe, Recipe
from numprune.scoring.score_file import ScoreFile
from numprune.scoring.table import ScoreTable
from numprune.ui import engine
from numprune.ui.priced import predicted_loss
from numprune.ui.records import Loaded, Opened
from numprune.ui.serving import Policy
from numprune.ui.session import LoadRequest, Session
from numprune.ui.visits import Visits
from numprune.ui.weights import Elsewhere, Here, Weights

if TYPE_CHECKING:
    from numprune.calibration.statistics import CalibrationStats
    from numprune.models import Model

DEFAULT = PRESETS[DEFAULT_PRESET]
FALLBACK = PRESETS["paper"]
"""Where a model cannot be scored for the default method."""
BY_MODEL = frozenset({"samples", "sequence_length"})
"""Sizes of a calibration that nobody asked for."""
MOST_FILES = 4
"""Files of scores that are kept though no tab has them open, so that a reload finds them again."""
PROGRAM = "the running program"
"""Owns what the program starts with."""
FIRST_SCORERS = (DEFAULT.settings["scorer"], FALLBACK.settings["scorer"])


def default_budget(device: Any) -> int:
    """Four fifths of the memory of a device, in bytes."""
    if str(device).startswith("cuda"):
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = psutil.virtual_memory().total
    return total * 4 // 5


class Workbench(Visits):
    """Models by request, shared, and pruned models by tab, freed when their (last) browser tab closes.

    `opened` is the model the program starts with, or where its weights are; `scores` are those that are known of it.
    `start` is the request a first visit makes, `visited` is set once it was answered. `budget` bounds the bytes of all
    models and Gram matrices that are kept.
    """

    def __init__(
        self,
        opened: Model | Weights,
        *,
        policy: Policy | None = None,
        budget: int | None = None,
        scores: Mapping[str, ScoreTable] | None = None,
        start: LoadRequest | None = None,
    ) -> None:
        super().__init__()
        # Two computations at once share the threads of the linear algebra, and its rounding depends on how many there
        # are: only one at a time gives the same bits each time.
        self._computing = threading.Lock()
        self._building: dict[LoadRequest, threading.Lock] = {}
        self._opened: dict[LoadRequest, Opened] = {}
        self._claims: dict[LoadRequest, set[str]] = {}
        self._files: list[LoadRequest] = []
        self._first = opened if isinstance(opened, Weights) else Here(opened)
        self.visited = threading.Event()
        self.policy = policy or Policy()
        self.budget = default_budget(_device(opened)) if budget is None else budget
        name = opened.outline.name if isinstance(opened, Weights) else opened.name
        outline = opened.outline if isinstance(opened, Weights) else opened
        self.start = start or LoadRequest(name, by_model=BY_MODEL).for_model(outline)
        if scores:
            self._claim(self.start, Opened(self._first, None, dict(scores)), PROGRAM)

    @classmethod
    def of_scores(cls, file: ScoreFile, policy: Policy | None = None) -> Workbench:
        """A workbench that starts with the scores of a model whose weights are elsewhere."""
        return cls(Elsewhere(outline_in(file)), policy=policy, scores=file.tables, start=request_for(file))

    @property
    def used_weights(self) -> Weights:
        """Those of the model the program starts with."""
        return self._first

    @property
    def choices(self) -> list[str]:
        """Model names to offer."""
        return list(self.policy.models) if self.policy.models is not None else embedded_models()

    @property
    def used(self) -> int:
        """Bytes of everything that is kept."""
        with self._lock:
            variants = [model for tab in self._tabs.values() for model in tab.variants.values()]
            return sum(model.bytes for model in variants) + sum(opened.bytes for opened in self._opened.values())

    # Dense models.

    def load(
        self,
        request: LoadRequest,
        owner: str,
        *,
        scorers: Sequence[str] = FIRST_SCORERS,
        own_texts: str = "",
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> Loaded:
        """The model of `request`, scored by the first of `scorers` that can; built once and shared.

        `owner` keeps it alive. The request of the result says all sizes.
        """
        if request != self.start:
            self.policy.check(request, own_texts)
        asked = request.calibration
        tokens = max(asked.samples, 0) * max(asked.sequence_length, 0)
        self._check_budget(8 * tokens, f"A calibration on {tokens:.3g} tokens")
        weights = None
        if request.by_model:
            with self._building_of(request):
                weights = self._weights(request, progress)
                request = request.for_model(weights.outline)
        with self._building_of(request):
            with self._lock:
                opened = self._opened.get(request)
            scorer = None if opened is None else next((each for each in scorers if each in opened.scores), None)
            if opened is None or scorer is None:
                with self._computing:
                    check_cancelled(cancel)
                    opened = opened or Opened(weights or self._weights(request, progress))
                    scorer = self._score_first(request, opened, scorers, progress, cancel)
            with self._lock:
                # A tab that closed meanwhile has set it; nobody would free the model.
                check_cancelled(cancel)
                self._claim(request, opened, owner)
        return Loaded(request, opened.weights, opened.scores[scorer], opened.stats)

    def put(self, loaded: Loaded, owner: str) -> None:
        """Keep a model that is scored already; `owner` keeps it alive."""
        scores = {loaded.scores.scorer: loaded.scores}
        self._claim(loaded.request, Opened(loaded.weights, loaded.stats, scores), owner)

    def put_scores(self, file: ScoreFile, owner: str) -> Loaded:
        """Open a file of scores, of a model whose weights are elsewhere; `owner` keeps it, and the last few files are
        kept in any case.

        Raises:
            InputError: the file does not say what it takes to show it.
        """
        request = request_for(file)
        with self._lock:
            opened = self._opened.get(request) or Opened(Elsewhere(outline_in(file)), None, dict(file.tables))
            self._claim(request, opened, owner)
            self._files = [*(each for each in self._files if each != request), request][-MOST_FILES:]
        scorer = next((each for each in FIRST_SCORERS if each in opened.scores), next(iter(opened.scores)))
        return Loaded(request, opened.weights, opened.scores[scorer], None)

    def scores_of(self, recipe: Recipe) -> LoadRequest | None:
        """The file of scores, of those that are kept, that a recipe was made by; None when there is none."""
        with self._lock:
            return next(
                (
                    request
                    for request, opened in self._opened.items()
                    if request.scores
                    and request.calibration == recipe.calibration
                    and opened.weights.outline.fingerprint == recipe.fingerprint
                ),
                None,
            )

    def _building_of(self, request: LoadRequest) -> threading.Lock:
        """Held by whoever builds what a request asks for."""
        with self._lock:
            return self._building.setdefault(request, threading.Lock())

    def _claim(self, request: LoadRequest, opened: Opened, owner: str) -> None:
        with self._lock:
            self._opened[request] = opened
            self._claims.setdefault(request, set()).add(owner)

    def _weights(self, request: LoadRequest, progress: Progress | None) -> Weights:
        """The model of `request`, from another calibration of it when there is one."""
        with self._lock:
            present = {each: opened.weights for each, opened in self._opened.items()} | {self.start: self._first}
        for other, weights in present.items():
            same = (other.model, other.device, other.dtype) == (request.model, request.device, request.dtype)
            if same and weights.elsewhere is None:
                return weights
        if progress is not None:
            progress(0, 1, f"loading {request.model}")
        return Here(
            engine.load(
                request.model, device=request.device, dtype=request.dtype, max_parameters=self.policy.max_parameters
            )
        )

    def _score(
        self,
        request: LoadRequest,
        opened: Opened,
        scorer: str,
        progress: Progress | None,
        cancel: CancelEvent | None,
    ) -> None:
        scores = engine.shipped_scores(opened.weights.model, scorer, request.calibration)
        if scores is None:
            stats = self._calibrate(request, opened, progress, cancel)
            scores = engine.score(opened.weights.model, stats, scorer=scorer, progress=progress, cancel=cancel)
        opened.scores[scorer] = scores

    def _score_first(
        self,
        request: LoadRequest,
        opened: Opened,
        scorers: Sequence[str],
        progress: Progress | None,
        cancel: CancelEvent | None,
    ) -> str:
        """Score by the first of `scorers` that can; returns which. The last one's refusal is final."""
        *others, last = scorers
        for scorer in others:
            try:
                self._score(request, opened, scorer, progress, cancel)
            except InputError as error:
                opened.refused[scorer] = str(error)
            else:
                return scorer
        self._score(request, opened, last, progress, cancel)
        return last

    def _calibrate(
        self, request: LoadRequest, opened: Opened, progress: Progress | None, cancel: CancelEvent | None
    ) -> CalibrationStats:
        """The statistics of a model, taken once."""
        if opened.stats is not None:
            return opened.stats
        model, source = opened.weights.model, request.calibration
        grams = 8 * sum(block.last.in_features**2 for block in model.blocks)
        self._check_budget(model.bytes + grams, f"{request.model} with its Gram matrices")
        opened.stats = engine.calibrate_by_recipe(
            model, used_calibration(opened.weights.outline, source), progress=progress, cancel=cancel
        )
        return opened.stats

    def _check_budget(self, wanted: int, what: str) -> None:
        used = self.used
        if used + wanted > self.budget:
            raise InputError(
                f"{what} needs {wanted / 1e9:.2f} GB, and {used / 1e9:.2f} of {self.budget / 1e9:.2f} GB are in use;"
                " remove pruned models, close other tabs or choose a smaller model."
            )

    def _of(self, session: Session) -> Opened:
        with self._lock:
            opened = self._opened.get(session.dense)
        if opened is None:
            raise InputError("No model is open in this tab any more; reload the page, the recipe comes back.")
        return opened

    def dense(self, session: Session) -> Loaded:
        """The session's dense model, with the scores its recipe goes by."""
        return self.scored_by(session, session.recipe.scorer)

    def scored_by(self, session: Session, scorer: str) -> Loaded:
        """The session's dense model, with the scores of a scorer.

        Raises:
            InputError: it has none of it.
        """
        opened = self._of(session)
        if scorer not in opened.scores:
            raise InputError(f"The model is not scored by {scorer} yet; choose a method that uses it.")
        return Loaded(session.dense, opened.weights, opened.scores[scorer], opened.stats)

    def first(self, session: Session) -> Loaded:
        """The session's dense model, with the scores it was opened by."""
        opened = self._of(session)
        scorer = next((each for each in FIRST_SCORERS if each in opened.scores), None) or next(iter(opened.scores))
        return self.scored_by(session, scorer)

    def refusal(self, session: Session) -> str | None:
        """Why the session's model was not scored for the default method; None when it was, or nobody tried."""
        return self._of(session).refused.get(DEFAULT.settings["scorer"])

    def scored(self, session: Session, scorer: str) -> bool:
        """Whether the session's model is scored by this scorer."""
        return scorer in self._of(session).scores

    def score_by(
        self,
        session: Session,
        scorer: str,
        *,
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> None:
        """Score the session's model by another scorer too; the scores are kept as long as the model is."""
        opened = self._of(session)
        if scorer in opened.scores:
            return
        with self._computing:
            self._score(session.dense, opened, scorer, progress, cancel)

    def stats(
        self, session: Session, *, progress: Progress | None = None, cancel: CancelEvent | None = None
    ) -> CalibrationStats:
        """The calibration statistics of the session's model, taken now where its scores came without."""
        opened = self._of(session)
        with self._computing:
            return self._calibrate(session.dense, opened, progress, cancel)

    def with_depth(
        self,
        session: Session,
        recipe: Recipe,
        *,
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> Recipe:
        """A recipe of the session's model with what goes as a whole, chosen anew; what that goes by is kept with the
        model as far as it was needed."""
        stats = self.stats(session, progress=progress, cancel=cancel)
        opened, loaded = self._of(session), self.scored_by(session, recipe.scorer)
        of = recipe.depth, recipe.depth_scorer
        known, most = opened.depth.get(of, (None, -1.0))
        if most < recipe.ratio:
            most = max(recipe.ratio, 0.5)
            with self._computing:
                known = engine.depth_of(loaded.model, stats, recipe, most=most, progress=progress, cancel=cancel)
            opened.depth[of] = known, most
        return engine.choose_depth(loaded.scores, known, recipe)

    def with_speedup(
        self,
        session: Session,
        recipe: Recipe,
        *,
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> Recipe:
        """A recipe of the session's model with what goes for its speed-up."""
        stats = self.stats(session, progress=progress, cancel=cancel)
        loaded = self.scored_by(session, recipe.scorer)
        with self._computing:
            return engine.with_speedup(loaded.model, stats, loaded.scores, recipe, progress=progress, cancel=cancel)

    def rival(self, session: Session) -> ScoreTable | None:
        """The scores the session compares its own with; None when there are none, or they are its own."""
        if session.against == session.recipe.scorer:
            return None
        return self._of(session).scores.get(session.against)

    def plan(self, session: Session) -> PruningPlan:
        """What the session's recipe would keep."""
        return allocate(self.dense(session).scores, session.recipe)

    # Sessions.

    def recipe(self, loaded: Loaded, ratio: float = Recipe().ratio) -> Recipe:
        """A recipe by the scores of a model, with nothing else decided."""
        return Recipe(
            model=loaded.outline.name,
            fingerprint=loaded.scores.fingerprint,
            calibration=used_calibration(loaded.outline, loaded.request.calibration, loaded.stats),
            scorer=loaded.scores.scorer,
            ratio=ratio,
        )

    def fresh(self, loaded: Loaded, ratio: float = Recipe().ratio) -> Session:
        """A session that has just opened a model: the default method, or the paper's where the model is scored for
        that one only."""
        recipe = self.recipe(loaded, ratio)
        method = next((each for each in (DEFAULT, FALLBACK) if each.settings["scorer"] == loaded.scores.scorer), None)
        return Session(loaded.request, recipe if method is None else method.applied(recipe))

    def prune(
        self,
        session: Session,
        owner: str,
        *,
        name: str = "",
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> str:
        """Carry the session's recipe out and keep the result for the tab; returns the name it is kept under."""
        stats = self.stats(session, progress=progress, cancel=cancel)
        loaded, recipe = self.dense(session), session.recipe
        plan = allocate(loaded.scores, recipe)
        wanted = name.strip()[:40] or f"{recipe.ratio:.0%} {method_of(recipe) or 'by hand'}"
        self._check_budget(loaded.outline.bytes * plan.parameters_after // plan.parameters_before, f"'{wanted}'")
        with self._computing:
            model = engine.prune(loaded.model, plan, stats, progress=progress, cancel=cancel)
            if recipe.uniform:
                cost = engine.cost_of_uniform(
                    loaded.model, model, stats, loaded.scores, progress=progress, cancel=cancel
                )
                model.report.notes.append(cost)
        with self._lock:
            # As of `load`: a tab stops its jobs before it is released, which waits for this lock.
            check_cancelled(cancel)
            tab = self._tab(owner)
            variants = tab.variants
            name, number = wanted, 1
            while name in variants:
                number += 1
                name = f"{wanted} ({number})"
            variants[name] = model
            tab.predicted[name] = predicted_loss(loaded.scores, plan)
        return name

    def release(self, owner: str, keep: LoadRequest | None = None) -> None:
        """Free what only `owner` used, its pruned models included, except its claim on `keep`."""
        with self._lock:
            for request, owners in list(self._claims.items()):
                if request != keep:
                    owners.discard(owner)
                if not owners and request not in self._files:
                    del self._claims[request], self._opened[request]
            if keep is None:
                self._tabs.pop(owner, None)


def used_calibration(
    outline: Outline, asked: CalibrationRecipe, stats: CalibrationStats | None = None
) -> CalibrationRecipe:
    """The calibration a model is really scored with: no sequence is longer than it reads, and a text may be short."""
    if stats is not None:
        return replace(asked, samples=stats.samples, sequence_length=stats.sequence_length)
    return replace(asked, sequence_length=min(asked.sequence_length, outline.maximum_length or asked.sequence_length))


def outline_in(file: ScoreFile) -> Outline:
    """The outline of a file of scores; raises InputError when it has none."""
    if file.outline is None:
        raise InputError(
            "The file of scores does not tell the sizes of its model; write it again by numprune score MODEL --out"
            " scores.safetensors."
        )
    return file.outline


def request_for(file: ScoreFile) -> LoadRequest:
    """What opens a file of scores."""
    return LoadRequest(outline_in(file).name, calibration=file.calibration, scores=file.digest)


def _device(opened: Model | Weights) -> str:
    return opened.outline.device if isinstance(opened, Weights) else str(opened.device)
