from dataclasses import replace

import pytest
from servers import served

from numprune.loading import load
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui.serving import Policy
from numprune.ui.session import LoadRequest, Session
from numprune.ui.workbench import Workbench


@pytest.fixture(scope="session")
def small():
    """The embedded model, calibrated on next to nothing."""
    bench = Workbench(load("tiny-stories", device="cpu"))
    request = LoadRequest("tiny-stories", "cpu", calibration=CalibrationRecipe("self", 4, 32))
    bench.load(request, "fixture")
    return bench, request


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


@pytest.fixture(scope="session")
def small_url(tmp_path_factory):
    """Address of a dashboard whose first visit finds the model calibrated on little text."""
    bench = Workbench(load("tiny-stories"), policy=Policy(push=True, exports=tmp_path_factory.mktemp("exports")))
    bench.start = replace(bench.start, calibration=CalibrationRecipe("self", 8, 64))
    bench.load(bench.start, "the running program")
    with served(bench) as address:
        yield address


@pytest.fixture(scope="session")
def images_url(images_folder):
    """Address of a dashboard that starts with the tiny image model."""
    with served(Workbench(load(images_folder))) as address:
        yield address
