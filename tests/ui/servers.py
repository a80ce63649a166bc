"""Running dashboards, as a program of their own or within the tests."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import pytest

from numprune.ui import app
from numprune.ui.serving import Serving

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def program(folder, *flags, port=None):
    """`python app.py` on a free port, or on this one; yields its address."""
    port, log = port or free_port(), folder / "log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NUMPRUNE_CACHE": str(folder)}
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), *flags],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(480):
            if server.poll() is not None:
                pytest.fail(f"the server ended:\n{log.read_text()}")
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.25)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def served(bench, **options):
    """The page of a workbench, served by this process, which needs not import everything again; yields its address."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "build", lambda bench: made.append(app.compose(bench)[0]) or made[0])
        patch.setattr(gr.Blocks, "block_thread", lambda blocks: None)
        serving = Serving(port=free_port(), **options)
        app.serve(bench, serving)
    try:
        yield f"http://127.0.0.1:{serving.port}"
    finally:
        made[0].close(verbose=False)


def parts_of(blocks):
    """The page's components by label and by elem_id."""
    parts = {}
    for block in blocks.blocks.values():
        for name in (getattr(block, "label", None), getattr(block, "elem_id", None)):
            parts.setdefault(name, block)
    return parts
