"""What the dashboard keeps between clicks: models shared by all sessions, and one small session per browser tab."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from numprune.allocation import PruningPlan, allocate
from numprune.calibration import CalibrationStats, calibrate
from numprune.errors import CancelEvent, InputError, Progress
from numprune.models import Model, load
from numprune.pruning import prune
from numprune.recipe import CalibrationRecipe, Recipe
from numprune.scoring import ScoreTable, score


@dataclass(frozen=True)
class LoadRequest:
    """Everything that decides which scores are shown; equal requests share one loaded model."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    calibration: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    scorer: str = "newton"


@dataclass(frozen=True)
class Loaded:
    """A dense model with its statistics and scores. None of it ever changes."""

    request: LoadRequest
    model: Model
    stats: CalibrationStats
    scores: ScoreTable


@dataclass(frozen=True)
class Session:
    """What one browser tab works on. Handlers return a new one, so a failed step leaves the old one in place."""

    dense: LoadRequest | None = None
    recipe: Recipe = field(default_factory=Recipe)
    pruned: int | None = None


class Workbench:
    """Models by request and pruned models by number, freed when their last browser tab closes.

    `opened` is the model the program starts with; `start` is the request a first visit makes.
    """

    def __init__(self, opened: Model) -> None:
        self._lock = threading.Lock()
        self._building: dict[LoadRequest, threading.Lock] = {}
        self._loaded: dict[LoadRequest, Loaded] = {}
        self._claims: dict[LoadRequest, set[str]] = {}
        self._pruned: dict[int, tuple[Model, str]] = {}
        self._numbers = 0
        self._opened = opened
        self.start = LoadRequest(model=opened.name)

    def load(
        self,
        request: LoadRequest,
        owner: str,
        *,
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> Loaded:
        """The model of `request`, calibrated and scored; built once and shared. `owner` keeps it alive."""
        with self._lock:
            building = self._building.setdefault(request, threading.Lock())
        with building:
            with self._lock:
                loaded = self._loaded.get(request)
            if loaded is None:
                loaded = self._build(request, progress, cancel)
            with self._lock:
                self._loaded[request] = loaded
                self._claims.setdefault(request, set()).add(owner)
        return loaded

    def _build(self, request: LoadRequest, progress: Progress | None, cancel: CancelEvent | None) -> Loaded:
        if request == self.start:
            model = self._opened
        else:
            if progress is not None:
                progress(0, 1, f"loading {request.model}")
            model = load(request.model, device=request.device, dtype=request.dtype)
        source = request.calibration
        if source.data is None:
            raise InputError("There is no calibration data; choose a dataset, a file or the model's own samples.")
        length = min(source.sequence_length, model.maximum_length or source.sequence_length)
        stats = calibrate(
            model,
            source.data,
            samples=source.samples,
            sequence_length=length,
            seed=source.seed,
            progress=progress,
            cancel=cancel,
        )
        scores = score(model, stats, method=request.scorer, progress=progress, cancel=cancel)
        return Loaded(request, model, stats, scores)

    def dense(self, session: Session) -> Loaded:
        """The session's dense model."""
        with self._lock:
            loaded = None if session.dense is None else self._loaded.get(session.dense)
        if loaded is None:
            raise InputError("No model is loaded in this tab; load one in step 1.")
        return loaded

    def pruned(self, session: Session) -> Model:
        """The session's pruned model."""
        with self._lock:
            entry = None if session.pruned is None else self._pruned.get(session.pruned)
        if entry is None:
            raise InputError("There is no pruned model yet; press Prune in step 4.")
        return entry[0]

    def open(self, loaded: Loaded, session: Session) -> Session:
        """The session after loading: a fresh recipe for the model, with the ratio kept."""
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

    def prune(
        self,
        session: Session,
        owner: str,
        *,
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> Session:
        """The session with its recipe carried out; its earlier pruned model is freed."""
        loaded = self.dense(session)
        recipe = session.recipe
        model = prune(
            loaded.model,
            allocate(loaded.scores, recipe),
            loaded.stats,
            compensation=recipe.compensation,
            damping=recipe.damping,
            progress=progress,
            cancel=cancel,
        )
        with self._lock:
            self._numbers += 1
            self._pruned[self._numbers] = (model, owner)
            if session.pruned is not None:
                self._pruned.pop(session.pruned, None)
            return replace(session, pruned=self._numbers)

    def release(self, owner: str, keep: LoadRequest | None = None) -> None:
        """Free what only `owner` used, except its claim on `keep`."""
        with self._lock:
            for request, owners in list(self._claims.items()):
                if request != keep:
                    owners.discard(owner)
                if not owners:
                    del self._claims[request], self._loaded[request]
            if keep is None:
                self._pruned = {number: entry for number, entry in self._pruned.items() if entry[1] != owner}


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
