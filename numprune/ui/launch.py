"""Starting the dashboard."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from numprune.errors import Cancelled
from numprune.models.embedded import DEFAULT_MODEL
from numprune.plan.recipe import CalibrationRecipe
from numprune.scoring.score_file import read_score_file, shipped_for, shipped_outline
from numprune.ui import engine
from numprune.ui.app import serve
from numprune.ui.serving import Policy, Serving
from numprune.ui.weights import Coming, only_cpu
from numprune.ui.workbench import FIRST_SCORERS, PROGRAM, Workbench

logger = logging.getLogger("numprune")
NOBODY_CAME = 20.0
"""Seconds after which the model is loaded though nobody has looked at the page."""
DRAWN = 1.5
"""Seconds a browser is left to draw the page before torch is imported beside it."""


def launch(
    model: str = DEFAULT_MODEL,
    serving: Serving | None = None,
    policy: Policy | None = None,
    *,
    scores: str | None = None,
    prepare: Callable[[], Any] | None = None,
) -> None:
    """Open a model, or a file of scores instead, and serve the dashboard until interrupted.

    An embedded model whose scores ship is shown at once; its weights, and what computes with them, follow.

    Args:
        scores: the file; `model` is then not opened.
        prepare: called before a model is loaded.

    Raises:
        LoadError: when the model cannot be opened.
        InputError: when the file of scores cannot be.
        OSError: when the port is taken.
    """

    def load() -> Any:
        if prepare is not None:
            prepare()
        return engine.load(model)

    workbench = (
        of_file(scores, policy) if scores else (shown_at_once(model, load, policy) or Workbench(load(), policy=policy))
    )
    stop = threading.Event()
    warm_up = threading.Thread(target=_warm_up, args=(workbench, stop), daemon=True)
    warm_up.start()
    try:
        serve(workbench, serving or Serving())
    finally:
        # A thread that computes while the interpreter ends would abort the process.
        stop.set()
        workbench.visited.set()
        warm_up.join()


def of_file(path: str, policy: Policy | None = None) -> Workbench:
    """A workbench that starts with a file of scores.

    Raises:
        InputError: the file cannot be read.
    """
    return Workbench.of_scores(read_score_file(path), policy)


def shown_at_once(model: str, load: Callable[[], Any], policy: Policy | None = None) -> Workbench | None:
    """A workbench that starts with the scores that ship with an embedded model, whose weights come when they are
    needed; None where there are none, or where a GPU may want the model in another data type."""
    default = FIRST_SCORERS[0]
    outline = shipped_outline(model, default) if only_cpu() else None
    if outline is None:
        return None
    tables = shipped_for(model, outline.maximum_length, FIRST_SCORERS, CalibrationRecipe())
    return Workbench(Coming(outline, load), policy=policy, scores=tables) if default in tables else None


def _warm_up(workbench: Workbench, stop: threading.Event) -> None:
    """Have ready what the first visit will need; of a model that is shown already, what its first work will."""
    try:
        if workbench.used_weights.elsewhere is not None:
            return
        if not workbench.used_weights.ready:
            workbench.visited.wait(NOBODY_CAME)
            if not stop.wait(DRAWN):
                _ = workbench.used_weights.model
            return
        workbench.load(workbench.start, owner=PROGRAM, cancel=stop)
    except Cancelled:
        return
    except Exception:
        # Whoever first needs it meets the same error and is shown it.
        logger.exception("Opening %s failed", workbench.start.model)
