"""Starting the dashboard."""

from __future__ import annotations

import logging
import threading

from numprune.models import DEFAULT_MODEL, load
from numprune.ui.workbench import Workbench

logger = logging.getLogger("numprune")


def launch(model: str = DEFAULT_MODEL, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Open `model` and serve the dashboard until interrupted.

    Raises:
        LoadError: when the model cannot be opened.
        OSError: when the port is taken.
    """
    workbench = Workbench(load(model))
    threading.Thread(target=_warm_up, args=(workbench,), daemon=True).start()
    # Importing gradio takes seconds, in which the first scores are computed.
    from numprune.ui.app import serve

    serve(workbench, host, port)


def _warm_up(workbench: Workbench) -> None:
    try:
        workbench.load(workbench.start, owner="the running program")
    except Exception:
        # The first visit meets the same error and shows it.
        logger.exception("Scoring %s failed", workbench.start.model)
