"""What every browser tab has open and has made, kept on the server until the tab closes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from numprune.errors import InputError
from numprune.evaluation.cells import Cell
from numprune.plan.recipe import Recipe
from numprune.ui.comparison import DENSE, Measured, Written
from numprune.ui.pictures import Exhibition
from numprune.ui.records import Finding, Point, Tab
from numprune.ui.session import Look, Session

if TYPE_CHECKING:
    from numprune.evaluation.images.quality import ImageQuality
    from numprune.models import Model


class Visits:
    """The tabs by the name of their browser session. One lock guards them all; nothing slower than an edit happens
    inside it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tabs: dict[str, Tab] = {}

    def _tab(self, owner: str) -> Tab:
        return self._tabs.setdefault(owner, Tab())

    # What is open.

    def enter(self, owner: str, session: Session) -> None:
        """Make this the tab's session; what it made of another model is freed."""
        with self._lock:
            tab = self._tabs.get(owner, Tab())
            revision = 0 if tab.session is None else tab.session.revision + 1
            self._tabs[owner] = tab.emptied(replace(session, revision=revision))

    def session(self, owner: str) -> Session:
        """The tab's session.

        Raises:
            InputError: it has none, as after a restart of the program.
        """
        with self._lock:
            tab = self._tabs.get(owner)
        if tab is None or tab.session is None:
            raise InputError("This page was forgotten by the program; reload it, the recipe comes back.")
        return tab.session

    def has_session(self, owner: str) -> bool:
        """Whether a model is open in the tab."""
        with self._lock:
            return self._tabs.get(owner, Tab()).session is not None

    def ratio(self, owner: str) -> float:
        """The ratio of the tab's recipe; that of a new one while nothing is open."""
        with self._lock:
            session = self._tabs.get(owner, Tab()).session
        return Recipe().ratio if session is None else session.recipe.ratio

    def change(self, owner: str, how: Callable[[Session], Session]) -> Session:
        """Change the tab's session, one change after the other; when `how` raises, it stays as it was."""
        with self._lock:
            tab, session = self._tabs.get(owner), how(self.session(owner))
            tab.session = session
        return session

    def look(self, owner: str) -> Look:
        """How the tab looks at its plan."""
        with self._lock:
            return self._tabs.get(owner, Tab()).look

    def look_by(self, owner: str, **values: Any) -> Look:
        """Look at the plan in another way."""
        with self._lock:
            tab = self._tab(owner)
            tab.look = replace(tab.look, **values)
            return tab.look

    def seen(self, owner: str) -> int:
        """Number of the last edit that arrived from the tab."""
        with self._lock:
            return self._tabs.get(owner, Tab()).seen

    def saw(self, owner: str, number: int) -> None:
        """An edit of this number arrived."""
        with self._lock:
            tab = self._tab(owner)
            tab.seen = max(tab.seen, number)

    def token(self, owner: str) -> str:
        """The secret name of a tab, for its own page."""
        with self._lock:
            return self._tab(owner).token

    def owner_of_token(self, token: Any) -> str | None:
        """The tab that goes by this secret name; None when there is none."""
        with self._lock:
            return next((owner for owner, tab in self._tabs.items() if tab.token == token), None)

    # What was made.

    def variants(self, owner: str) -> Mapping[str, Model]:
        """The tab's pruned models by name, oldest first."""
        with self._lock:
            return dict(self._tabs.get(owner, Tab()).variants)

    def pruned(self, owner: str, name: str | None = None) -> Model:
        """A pruned model of the tab; the newest when no name is given."""
        variants = self.variants(owner)
        if not variants:
            raise InputError("There is no pruned model yet; press Prune and compare.")
        name = next(reversed(variants)) if name is None else name
        if name not in variants:
            raise InputError(f"There is no pruned model '{name}' any more; press Prune and compare.")
        return variants[name]

    def remove(self, owner: str, name: str) -> None:
        """Free one of the tab's pruned models."""
        self.pruned(owner, name)
        with self._lock:
            self._forget(owner, name)

    def find(self, owner: str, title: str, table: pd.DataFrame, *parts: Any) -> None:
        """Keep a result of the tab for its report; an earlier one of that title is replaced."""
        with self._lock:
            self._tab(owner).findings[title] = Finding(parts, table)

    def findings(self, owner: str) -> Mapping[str, Finding]:
        """The tab's results by title."""
        with self._lock:
            return dict(self._tabs.get(owner, Tab()).findings)

    def point(self, owner: str, point: Point) -> None:
        """Keep a measured loss of the tab; an earlier one of that name is replaced."""
        with self._lock:
            self._tab(owner).points[point.name] = point

    def points(self, owner: str) -> Sequence[Point]:
        """The tab's measured losses."""
        with self._lock:
            return list(self._tabs.get(owner, Tab()).points.values())

    def exhibit(self, owner: str, shown: Exhibition) -> None:
        """Keep the images of the tab, so that pairs of them can be looked at."""
        with self._lock:
            self._tab(owner).exhibition = shown

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
            tab = self._tab(owner)
            tab.cells = [*(cell for cell in tab.cells if cell.run not in runs), *cells]

    def cells(self, owner: str, run: str | None = None) -> list[Cell]:
        """The tab's cells of a run; of the one that is shown when none is given."""
        with self._lock:
            cells = list(self._tabs.get(owner, Tab()).cells)
        run = cells[-1].run if cells and run is None else run
        return [cell for cell in cells if cell.run == run]

    def choose(self, owner: str, names: Sequence[str]) -> None:
        """Compare these pruned models."""
        with self._lock:
            self._tab(owner).chosen = list(names)

    def chosen(self, owner: str) -> list[str]:
        """The pruned models that are compared; the two newest until some were chosen."""
        with self._lock:
            tab = self._tabs.get(owner, Tab())
            names = list(tab.variants)
            return names[-2:] if tab.chosen is None else [name for name in names if name in tab.chosen]

    def predicted(self, owner: str) -> Mapping[str, float | None]:
        """What the plans of the tab's pruned models were predicted to lose."""
        with self._lock:
            return dict(self._tabs.get(owner, Tab()).predicted)

    def keep_written(self, owner: str, written: Written) -> None:
        """Keep what models wrote; what others wrote before for the same prompts and sampling stays beside it."""
        with self._lock:
            tab = self._tab(owner)
            same = tab.written is not None and (tab.written.prompts, tab.written.sampling) == (
                written.prompts,
                written.sampling,
            )
            texts = {**tab.written.texts, **written.texts} if same else written.texts
            tab.written = replace(written, texts=texts)

    def written(self, owner: str) -> Written | None:
        with self._lock:
            return self._tabs.get(owner, Tab()).written

    def keep_measured(self, owner: str, *measured: Measured) -> None:
        """Keep figures; those on another text go, since they cannot be set beside them."""
        with self._lock:
            tab = self._tab(owner)
            kept = {name: each for name, each in tab.measured.items() if each.text == measured[-1].text}
            tab.measured = kept | {each.name: each for each in measured}
            dense = tab.measured.get(DENSE)
            for each in measured if dense is not None else ():
                if each.name != DENSE:
                    before, after = dense.model, each.model
                    reached = (before.parameters - after.parameters) / before.prunable_parameters
                    loss = each.perplexity.nll - dense.perplexity.nll
                    tab.points[each.name] = Point(each.name, reached, loss, after.recipe)

    def measured(self, owner: str) -> Mapping[str, Measured]:
        with self._lock:
            return dict(self._tabs.get(owner, Tab()).measured)

    def keep_quality(self, owner: str, quality: Mapping[str, ImageQuality]) -> None:
        """Keep the figures of image models."""
        with self._lock:
            self._tab(owner).quality = dict(quality)

    def quality(self, owner: str) -> Mapping[str, ImageQuality]:
        with self._lock:
            return dict(self._tabs.get(owner, Tab()).quality)

    def _forget(self, owner: str, name: str) -> None:
        """Nothing of a model that was removed is left; texts stay, since they need no memory to speak of."""
        tab = self._tab(owner)
        for kept in (tab.variants, tab.points, tab.measured, tab.quality, tab.predicted):
            kept.pop(name, None)
