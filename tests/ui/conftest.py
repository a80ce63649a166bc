from dataclasses import replace
from types import SimpleNamespace

import pytest
from servers import parts_of, served

from numprune import compare_speed
from numprune.loading import load
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui.app import compose
from numprune.ui.serving import Policy
from numprune.ui.session import LoadRequest
from numprune.ui.shared import View
from numprune.ui.workbench import Workbench

TAB = "tests"
"""The browser tab that fixtures open."""


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
    return bench, bench.fresh(bench.load(request, "fixture"))


@pytest.fixture
def view(scored):
    """The same as a browser tab sees it."""
    bench, session = scored
    bench.enter(TAB, session)
    yield View(bench, TAB, bench.session(TAB))
    bench.release(TAB)


@pytest.fixture
def pruned(view):
    """A workbench and a session with one pruned model, kept for the tab, and the name it goes by."""
    return view.workbench, view.session, view.workbench.prune(view.session, TAB)


@pytest.fixture
def composed(view):
    """The composed page of the view's workbench: what its parts share, its handlers by name, and the tab's request."""
    blocks, shared = compose(view.workbench)
    shared.parts = parts_of(blocks)
    return shared, {fn.name: fn.fn for fn in blocks.fns.values()}, SimpleNamespace(session_hash=TAB)


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


# In a browser.


@pytest.fixture(scope="module")
def browser():
    """One for a file's tests: while playwright runs, no other test can start it."""
    browsing = pytest.importorskip("browsing")
    with browsing.playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browsing.CHROMIUM, args=browsing.FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, small_url, tmp_path, request):
    """Opens the page in tabs of their own."""
    from browsing import visits

    with visits(browser, small_url, tmp_path, request.session) as opened:
        yield opened


@pytest.fixture
def tab(visit):
    """A browser tab with the page, which must report no error."""
    opened = visit()
    yield opened
    assert opened.problems == []


@pytest.fixture(scope="module")
def open_page(browser, small_url, tmp_path_factory, request):
    from browsing import visits

    with visits(browser, small_url, tmp_path_factory.mktemp("page"), request.session) as opened:
        yield opened()


@pytest.fixture
def seen(open_page):
    """One page for all tests that only look: they leave its plan alone and prune nothing."""
    yield open_page
    assert open_page.problems == []


@pytest.fixture
def short_measures(monkeypatch):
    """On the server, which runs in this process: what is measured is not what these tests are about."""
    monkeypatch.setattr(
        "numprune.ui.engine.compare_speed",
        lambda *models, **given: compare_speed(*models, **given | {"new_tokens": 4}),
    )
    monkeypatch.setattr("numprune.ui.comparison.MOST_MEASURED", 512)
