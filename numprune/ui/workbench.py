"""The models of the dashboard, shared by all browser tabs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import psutil
import torch

from numprune.allocation.threshold import allocate
from numprune.calibration import CalibrationStats, calibrate
from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.evaluation.cells import Cell
from numprune.evaluation.uniform import cost_of_uniform
from numprune.loading import load
from numprune.models import Model, embedded_models
from numprune.plan.plan import PruningPlan
from numprune.plan.presets import DEFAULT_PRESET, PRESETS, method_of
from numprune.plan.recipe import Recipe
from numprune.pruning import prune
from numprune.scoring import ScoreTable, score
from numprune.ui.pictures import Exhibition
from numprune.ui.serving import Policy
from numprune.ui.session import LoadRequest, Session


@dataclass(frozen=True)
class Loaded:
    """A dense model with its statistics and scores. None of it ever changes."""

    request: LoadRequest
    model: Model
    stats: CalibrationStats
    scores: ScoreTable

    @property
    def bytes(self) -> int:
        """Memory of the weights and of the Gram matrices."""
        grams = (module.gram for module in self.stats.modules.values())
        return self.model.bytes + sum(gram.numel() * gram.element_size() for gram in grams)


def default_budget(device: torch.device) -> int:
    """Four fifths of the memory of a device, in bytes."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = psutil.virtual_memory().total
    return total * 4 // 5


@dataclass(frozen=True)
class Finding:
    """A result for the report: pieces of HTML and figures, and the numbers behind them."""

    parts: tuple[Any, ...]
    table: pd.DataFrame


@dataclass
class Tab:
    """What the long steps of one browser tab have made: pruned models by name, findings by title, the images that
    were drawn last, and the cells in which methods were compared, those of the run that is shown last."""

    variants: dict[str, Model] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    exhibition: Exhibition | None = None
    cells: list[Cell] = field(default_factory=list)


class Workbench:
    """Models by request, shared, and pruned models by tab, freed when their (last) browser tab closes.

    `opened` is the model the program starts with; `start` is the request a first visit makes. `budget` bounds
    the bytes of all models and Gram matrices that are kept.
    """

    def __init__(self, opened: Model, *, policy: Policy | None = None, budget: int | None = None) -> None:
        self._lock = threading.Lock()
        # Two computations at once share the threads of the linear algebra, and its rounding depends on how many there
        # are: only one at a time gives the same bits each time.
        self._computing = threading.Lock()
        self._building: dict[LoadRequest, threading.Lock] = {}
        self._loaded: dict[LoadRequest, Loaded] = {}
        self._scores: dict[LoadRequest, dict[str, ScoreTable]] = {}
        self._claims: dict[LoadRequest, set[str]] = {}
        self._tabs: dict[str, Tab] = {}
        self._opened = opened
        self.policy = policy or Policy()
        self.budget = default_budget(opened.device) if budget is None else budget
        self.start = LoadRequest(model=opened.name)

    @property
    def choices(self) -> list[str]:
        """Model names to offer."""
        return list(self.policy.models) if self.policy.models is not None else embedded_models()

    @property
    def used(self) -> int:
        """Bytes of everything that is kept."""
        with self._lock:
            variants = [model for tab in self._tabs.values() for model in tab.variants.values()]
            return sum(model.bytes for model in variants) + sum(loaded.bytes for loaded in self._loaded.values())

    def load(
        self,
        request: LoadRequest,
        owner: str,
        *,
        own_texts: str = "",
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> Loaded:
        """The model of `request`, calibrated and scored; built once and shared. `owner` keeps it alive."""
        if request != self.start:
            self.policy.check(request, own_texts)
        with self._lock:
            building = self._building.setdefault(request, threading.Lock())
        with building:
            with self._lock:
                loaded = self._loaded.get(request)
            if loaded is None:
                with self._computing:
                    check_cancelled(cancel)
                    loaded = self._build(request, progress, cancel)
            # A tab that closed meanwhile has set it; nobody would free the model.
            check_cancelled(cancel)
            self.put(loaded, owner)
        return loaded

    def put(self, loaded: Loaded, owner: str) -> None:
        """Keep a model that is calibrated and scored; `owner` keeps it alive."""
        with self._lock:
            self._loaded[loaded.request] = loaded
            self._claims.setdefault(loaded.request, set()).add(owner)

    def _build(self, request: LoadRequest, progress: Progress | None, cancel: CancelEvent | None) -> Loaded:
        model = self._model(request, progress)
        source = request.calibration
        if source.data is None:
            raise InputError("There is no calibration data; choose a dataset, a file or the model's own samples.")
        grams = 8 * sum(block.last.in_features**2 for block in model.blocks)
        self._check_budget(model.bytes + grams, f"{request.model} with its Gram matrices")
        length = min(source.sequence_length, model.maximum_length or source.sequence_length)
        stats = calibrate(
            model,
            source.data,
            samples=source.samples,
            sequence_length=length,
            seed=source.seed,
            text_column=source.text_column,
            progress=progress,
            cancel=cancel,
        )
        scores = score(model, stats, scorer=request.scorer, progress=progress, cancel=cancel)
        return Loaded(request, model, stats, scores)

    def _model(self, request: LoadRequest, progress: Progress | None) -> Model:
        """The model of `request`, from another calibration of it when there is one."""
        with self._lock:
            present = {loaded.request: loaded.model for loaded in self._loaded.values()} | {self.start: self._opened}
        for other, model in present.items():
            if (other.model, other.device, other.dtype) == (request.model, request.device, request.dtype):
                return model
        if progress is not None:
            progress(0, 1, f"loading {request.model}")
        return load(
            request.model, device=request.device, dtype=request.dtype, max_parameters=self.policy.max_parameters
        )

    def _check_budget(self, wanted: int, what: str) -> None:
        used = self.used
        if used + wanted > self.budget:
            raise InputError(
                f"{what} needs {wanted / 1e9:.2f} GB, and {used / 1e9:.2f} of {self.budget / 1e9:.2f} GB are in use;"
                " remove pruned models in step 4, close other tabs or choose a smaller model."
            )

    def opened(self, session: Session) -> Loaded:
        """The session's dense model, with the scores it was loaded with."""
        with self._lock:
            loaded = None if session.dense is None else self._loaded.get(session.dense)
        if loaded is None:
            raise InputError("No model is loaded in this tab; load one in step 1.")
        return loaded

    def dense(self, session: Session) -> Loaded:
        """The session's dense model, with the scores its recipe goes by."""
        loaded, scorer = self.opened(session), session.recipe.scorer
        if scorer == loaded.request.scorer:
            return loaded
        with self._lock:
            scores = self._scores.get(loaded.request, {}).get(scorer)
        if scores is None:
            raise InputError(
                f"The model is not scored by {scorer} here; choose a method of step 3 that uses it, or load the model"
                f" with scorer {scorer} in step 1."
            )
        return replace(loaded, scores=scores)

    def scored(self, session: Session, scorer: str) -> bool:
        """Whether the session's model is scored by this method."""
        request = self.opened(session).request
        with self._lock:
            return scorer == request.scorer or scorer in self._scores.get(request, {})

    def by_default(self, session: Session, recipe: Recipe) -> Recipe:
        """The recipe by the default method, once its scores are there; by those of the load where another scorer
        than Newton's was chosen for it."""
        scorer, default = self.opened(session).request.scorer, PRESETS[DEFAULT_PRESET].applied(recipe)
        if scorer == Recipe().scorer and self.scored(session, default.scorer):
            return default
        return recipe.replace(scorer=scorer)

    def variants(self, owner: str) -> Mapping[str, Model]:
        """The tab's pruned models by name, oldest first."""
        with self._lock:
            return dict(self._tabs.get(owner, Tab()).variants)

    def pruned(self, owner: str, name: str | None = None) -> Model:
        """A pruned model of the tab; the newest when no name is given."""
        variants = self.variants(owner)
        if not variants:
            raise InputError("There is no pruned model yet; press Prune in step 4.")
        name = next(reversed(variants)) if name is None else name
        if name not in variants:
            raise InputError(f"There is no pruned model '{name}'; press Prune in step 4.")
        return variants[name]

    def find(self, owner: str, title: str, table: pd.DataFrame, *parts: Any) -> None:
        """Keep a result of the tab for its report; an earlier one of that title is replaced."""
        with self._lock:
            self._tabs.setdefault(owner, Tab()).findings[title] = Finding(parts, table)

    def findings(self, owner: str) -> Mapping[str, Finding]:
        """The tab's results by title."""
        with self._lock:
            return dict(self._tabs.get(owner, Tab()).findings)

    def exhibit(self, owner: str, shown: Exhibition) -> None:
        """Keep the images of the tab, so that pairs of them can be looked at."""
        with self._lock:
            self._tabs.setdefault(owner, Tab()).exhibition = shown

    def exhibition(self, owner: str) -> Exhibition:
        """The tab's images; raises InputError when there are none."""
        with self._lock:
            shown = self._tabs.get(owner, Tab()).exhibition
        if shown is None:
            raise InputError("There are no images yet; press Draw side by side.")
        return shown

    def keep_cells(self, owner: str, cells: Sequence[Cell]) -> None:
        """Keep all cells of one run, in the place of those of that run; it becomes the one that is shown."""
        runs = {cell.run for cell in cells}
        with self._lock:
            tab = self._tabs.setdefault(owner, Tab())
            tab.cells = [*(cell for cell in tab.cells if cell.run not in runs), *cells]

    def cells(self, owner: str, run: str | None = None) -> list[Cell]:
        """The tab's cells of a run; of the one that is shown when none is given."""
        with self._lock:
            cells = list(self._tabs.get(owner, Tab()).cells)
        run = cells[-1].run if cells and run is None else run
        return [cell for cell in cells if cell.run == run]

    def open(self, loaded: Loaded, session: Session) -> Session:
        """The session after loading: a fresh recipe by the scores of the load, with the ratio kept."""
        recipe = Recipe(
            model=loaded.model.name,
            fingerprint=loaded.scores.fingerprint,
            calibration=replace(
                loaded.request.calibration,
                samples=loaded.stats.samples,
                sequence_length=loaded.stats.sequence_length,
            ),
            scorer=loaded.request.scorer,
            ratio=session.recipe.ratio,
        )
        return Session(dense=loaded.request, recipe=recipe)

    def plan(self, session: Session) -> PruningPlan:
        """What the session's recipe would keep."""
        return allocate(self.dense(session).scores, session.recipe)

    def score_by(
        self,
        session: Session,
        scorer: str,
        *,
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> None:
        """Score the session's model by another method too; the scores are kept as long as the model is."""
        loaded = self.opened(session)
        if self.scored(session, scorer):
            return
        with self._computing:
            scores = score(loaded.model, loaded.stats, scorer=scorer, progress=progress, cancel=cancel)
        check_cancelled(cancel)
        with self._lock:
            if loaded.request in self._loaded:
                self._scores.setdefault(loaded.request, {})[scorer] = scores

    def rival(self, session: Session) -> ScoreTable | None:
        """The scores the session compares its own with; None when there are none, or they are its own."""
        if session.dense is None or session.against == session.recipe.scorer:
            return None
        with self._lock:
            loaded = self._loaded.get(session.dense)
            if loaded is not None and session.against == loaded.request.scorer:
                return loaded.scores
            return self._scores.get(session.dense, {}).get(session.against)

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
        loaded = self.dense(session)
        recipe = session.recipe
        plan = allocate(loaded.scores, recipe)
        what = method_of(recipe) or recipe.allocation
        wanted = name.strip()[:40] or f"{recipe.ratio:.0%} {what}"
        self._check_budget(loaded.model.bytes * plan.parameters_after // plan.parameters_before, f"'{wanted}'")
        with self._computing:
            model = prune(loaded.model, plan, loaded.stats, progress=progress, cancel=cancel)
            if recipe.uniform:
                cost = cost_of_uniform(
                    loaded.model, model, loaded.stats, loaded.scores, progress=progress, cancel=cancel
                )
                model.report.notes.append(cost)
        check_cancelled(cancel)
        with self._lock:
            variants = self._tabs.setdefault(owner, Tab()).variants
            name, number = wanted, 1
            while name in variants:
                number += 1
                name = f"{wanted} ({number})"
            variants[name] = model
        return name

    def remove(self, owner: str, name: str) -> None:
        """Free one of the tab's pruned models."""
        self.pruned(owner, name)
        with self._lock:
            del self._tabs[owner].variants[name]

    def release(self, owner: str, keep: LoadRequest | None = None) -> None:
        """Free what only `owner` used, its pruned models included, except its claim on `keep`."""
        with self._lock:
            for request, owners in list(self._claims.items()):
                if request != keep:
                    owners.discard(owner)
                if not owners:
                    del self._claims[request], self._loaded[request]
                    self._scores.pop(request, None)
            self._tabs.pop(owner, None)


class Jobs:
    """The stop event of every running job, by session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[str, set[threading.Event]] = {}

    def begin(self, owner: str) -> threading.Event:
        event = threading.Event()
        with self._lock:
            self._events.setdefault(owner, set()).add(event)
        return event

    def end(self, owner: str, event: threading.Event) -> None:
        with self._lock:
            self._events.get(owner, set()).discard(event)

    def stop(self, owner: str) -> int:
        """Ask the owner's jobs to stop; returns how many were running."""
        with self._lock:
            events = list(self._events.get(owner, ()))
        for event in events:
            event.set()
        return len(events)


ProgressBar = Callable[..., object]
"""gr.Progress, called with (done, total) and desc."""


def reporter(bar: ProgressBar) -> Progress:
    """An engine progress callback that moves a gr.Progress bar."""

    def report(done: int, total: int, what: str) -> None:
        bar((done, total), desc=what.capitalize())

    return report
