import threading

import pytest

from numprune.errors import Cancelled, InputError
from numprune.models import ModuleKey, load
from numprune.recipe import CalibrationRecipe, Recipe
from numprune.ui.workbench import Jobs, LoadRequest, Session, Workbench

SMALL = CalibrationRecipe(data="self", samples=4, sequence_length=32)


@pytest.fixture
def request_(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMPRUNE_CACHE", str(tmp_path))
    return LoadRequest("tiny-stories", calibration=SMALL)


def opened(bench, request, owner="tab"):
    return bench.open(bench.load(request, owner), Session())


def test_two_tabs_share_one_model_but_not_their_recipes(request_):
    bench = Workbench(load("tiny-stories"))
    first, second = opened(bench, request_, "a"), opened(bench, request_, "b")
    assert bench.dense(first) is bench.dense(second)
    first = Session(first.dense, first.recipe.replace(ratio=0.6))
    assert bench.plan(first).ratio_asked == 0.6
    assert bench.plan(second).ratio_asked == Recipe().ratio


def test_a_model_is_freed_with_its_last_tab(request_):
    bench = Workbench(load("tiny-stories"))
    first, second = opened(bench, request_, "a"), opened(bench, request_, "b")
    bench.release("a")
    assert bench.dense(second)
    bench.release("b")
    with pytest.raises(InputError, match="load one in step 1"):
        bench.dense(first)


def test_loading_another_model_keeps_only_the_new_claim(request_):
    bench = Workbench(load("tiny-stories"))
    old = opened(bench, request_)
    other = LoadRequest("tiny-stories", calibration=CalibrationRecipe("self", 2, 32, seed=1))
    new = opened(bench, other)
    bench.release("tab", keep=other)
    assert bench.dense(new)
    with pytest.raises(InputError):
        bench.dense(old)


def test_pruning_makes_a_smaller_model_and_leaves_the_dense_one(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    dense = bench.dense(session).model
    before = dense.parameters
    done = bench.prune(session, "tab")
    assert bench.pruned(done).parameters == bench.plan(session).parameters_after < before
    assert dense.parameters == before
    again = bench.prune(done, "tab")
    with pytest.raises(InputError, match="press Prune"):
        bench.pruned(done)
    bench.release("tab")
    with pytest.raises(InputError):
        bench.pruned(again)


def test_the_recipe_says_what_was_really_used(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, LoadRequest("tiny-stories", calibration=CalibrationRecipe("self", 2, 99999)))
    assert session.recipe.calibration.sequence_length == 256
    assert session.recipe.fingerprint == bench.dense(session).model.fingerprint()


def test_a_stopped_load_leaves_no_model_behind_and_can_be_repeated(request_):
    bench = Workbench(load("tiny-stories"))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        bench.load(request_, "tab", cancel=stop)
    assert opened(bench, request_).dense == request_


def test_a_stopped_prune_leaves_the_session_as_it_was(request_):
    bench = Workbench(load("tiny-stories"))
    session = bench.prune(opened(bench, request_), "tab")
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        bench.prune(session, "tab", cancel=stop)
    assert bench.pruned(session)


def test_a_bad_name_does_not_disturb_the_loaded_model(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    with pytest.raises(Exception, match="no-such-model"):
        bench.load(LoadRequest("no-such-model"), "tab")
    assert bench.dense(session)


def test_the_program_s_model_is_used_without_loading_it_again(request_):
    model = load("tiny-stories")
    bench = Workbench(model)
    assert bench._build(bench.start, None, None).model is model


def test_stop_reaches_only_the_jobs_of_its_tab():
    jobs = Jobs()
    mine, theirs = jobs.begin("a"), jobs.begin("b")
    assert jobs.stop("a") == 1
    assert mine.is_set()
    assert not theirs.is_set()
    jobs.end("a", mine)
    assert jobs.stop("a") == 0


def test_hand_set_ratios_reach_the_plan(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    key = ModuleKey(0, "mlp")
    pinned = Session(session.dense, session.recipe.replace(ratios={key: 0.5}))
    assert len(bench.plan(pinned).keep[key]) == 256
