import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from numprune.loading import load
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui.session import LoadRequest, Session
from numprune.ui.workbench import Workbench

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The embedded model, calibrated on next to nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        bench = Workbench(load("tiny-stories", device="cpu"))
        request = LoadRequest("tiny-stories", "cpu", calibration=CalibrationRecipe("self", 4, 32))
        bench.load(request, "fixture")
        yield bench, request


@pytest.fixture
def scored(small):
    """A workbench with a loaded model, and a session that has it open."""
    bench, request = small
    return bench, bench.open(bench.load(request, "fixture"), Session())


@pytest.fixture
def pruned(scored):
    """The same with one pruned model, kept for the tab "tests", and the name it goes by."""
    bench, session = scored
    yield bench, session, bench.prune(session, "tests")
    bench.release("tests")


@contextmanager
def serving(folder, *flags):
    """`python app.py` on a free port; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
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
        for _ in range(240):
            if server.poll() is not None:
                pytest.fail(f"the server ended:\n{log.read_text()}")
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="session")
def url(tmp_path_factory):
    """Address of a running dashboard."""
    with serving(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture
def images_url(tmp_path_factory, images_folder):
    """Address of a dashboard that starts with the tiny image model."""
    with serving(tmp_path_factory.mktemp("server"), "--model", str(images_folder)) as address:
        yield address
