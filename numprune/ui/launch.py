"""Starting the dashboard."""

from __future__ import annotations

import logging
import threading

from numprune.models import DEFAULT_MODEL, load
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
    threading.Thread(target=_warm_up, args=(workbench,), daemon=True).start()
    # Importing gradio takes seconds, in which the first scores are computed.
    from numprune.ui.app import serve

    serve(workbench, serving or Serving())


def _warm_up(workbench: Workbench) -> None:
    try:
        workbench.load(workbench.start, owner="the running program")
    except Exception:
        # The first visit meets the same error and shows it.
        logger.exception("Scoring %s failed", workbench.start.model)
