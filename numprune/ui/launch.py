"""Starting the dashboard."""

from __future__ import annotations

import logging
import threading

from numprune.errors import Cancelled
from numprune.loading import load
from numprune.models import DEFAULT_MODEL
from numprune.ui.serving import Policy, Serving
from numprune.ui.workbench import Workbench

logger = logging.getLogger("numprune")


def launch(model: str = DEFAULT_MODEL, serving: Serving | None = None, policy: Policy | None = None) -> None:
    """Open `model` and serve the dashboard until interrupted.

    Raises:
        LoadError: when the model cannot be opened.
        OSError: when the port is taken.
    """
    workbench = Workbench(load(model), policy=policy)
    stop = threading.Event()
    warm_up = threading.Thread(target=_warm_up, args=(workbench, stop), daemon=True)
    warm_up.start()
    try:
        # Importing gradio takes seconds, in which the first scores are computed.
        from numprune.ui.app import serve

        serve(workbench, serving or Serving())
    finally:
        # A thread that computes while the interpreter ends would abort the process.
        stop.set()
        warm_up.join()


def _warm_up(workbench: Workbench, stop: threading.Event) -> None:
    try:
        loaded = workbench.load(workbench.start, owner="the running program", cancel=stop)
        from numprune.ui.tabs.export import reasons

        reasons(loaded.model)
    except Cancelled:
        return
    except Exception:
        # The first visit meets the same error and shows it.
        logger.exception("Scoring %s failed", workbench.start.model)
