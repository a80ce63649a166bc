import threading
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
from architectures import make_tokenizer, tiny_model

from numprune.errors import Cancelled, InputError, LoadError
from numprune.loading import load
from numprune.plan.keys import ModuleKey
from numprune.plan.presets import DEFAULT_PRESET, method_of
from numprune.plan.recipe import CalibrationRecipe, Recipe
from numprune.ui import engine, workbench
from numprune.ui.jobs import Jobs
from numprune.ui.serving import Policy
from numprune.ui.session import LoadRequest, Session
from numprune.ui.shared import Shared
from numprune.ui.workbench import BY_MODEL, Workbench, default_budget

SMALL = CalibrationRecipe(data="self", samples=4, sequence_length=32)


@pytest.fixture
def request_():
    return LoadRequest("tiny-stories", calibration=SMALL)


def opened(bench, request, owner="tab"):
    return bench.fresh(bench.load(request, owner))


def test_two_tabs_share_one_model_but_not_their_recipes(request_):
    bench = Workbench(load("tiny-stories"))
    first, second = opened(bench, request_, "a"), opened(bench, request_, "b")
    assert bench.dense(first).scores is bench.dense(second).scores
    first = first.changed("", ratio=0.6)
    assert bench.plan(first).ratio_asked == 0.6
    assert bench.plan(second).ratio_asked == Recipe().ratio


def test_a_model_is_freed_with_its_last_tab(request_):
    bench = Workbench(load("tiny-stories"))
    first, second = opened(bench, request_, "a"), opened(bench, request_, "b")
    bench.release("a")
    assert bench.dense(second)
    bench.release("b")
    with pytest.raises(InputError, match="reload the page"):
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
    name = bench.prune(session, "tab")
    assert bench.pruned("tab", name).parameters == bench.plan(session).parameters_after < before
    assert dense.parameters == before


def test_pruned_models_are_kept_by_name_until_removed(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    names = [bench.prune(session, "tab"), bench.prune(session, "tab"), bench.prune(session, "tab", name=" mine ")]
    assert names == ["30% balanced", "30% balanced (2)", "mine"]
    assert list(bench.variants("tab")) == names
    assert bench.pruned("tab") is bench.pruned("tab", "mine")
    bench.remove("tab", "30% balanced")
    assert list(bench.variants("tab")) == names[1:]
    with pytest.raises(InputError, match="no pruned model '30% balanced'"):
        bench.pruned("tab", "30% balanced")


def test_a_tab_sees_only_its_own_pruned_models_and_results(request_):
    bench = Workbench(load("tiny-stories"))
    bench.prune(opened(bench, request_, "a"), "a")
    opened(bench, request_, "b")
    bench.find("a", "Measured", pd.DataFrame(), "<table></table>")
    assert bench.findings("a")["Measured"].parts == ("<table></table>",)
    assert bench.variants("b") == bench.findings("b") == {}
    bench.release("a")
    assert bench.variants("a") == bench.findings("a") == {}
    with pytest.raises(InputError, match="press Prune"):
        bench.pruned("a")


@pytest.mark.parametrize("what", ["opened", "pruned"])
def test_a_tab_that_closes_at_the_moment_its_model_is_done_keeps_nothing(what, request_, monkeypatch):
    bench, stop, done = Workbench(load("tiny-stories")), threading.Event(), threading.Event()
    session = opened(bench, request_) if what == "pruned" else None

    def close():
        stop.set()
        bench.release("tab")

    def check(cancel):
        real(cancel)
        if done.is_set():
            closing.start()
            closing.join(0.2)

    def last(*args, **options):
        found = work(*args, **options)
        done.set()
        return found

    real, closing = workbench.check_cancelled, threading.Thread(target=close)
    owner, name = (engine, "prune") if what == "pruned" else (bench, "_score_first")
    work = getattr(owner, name)
    monkeypatch.setattr(workbench, "check_cancelled", check)
    monkeypatch.setattr(owner, name, last)
    if session is None:
        bench.load(request_, "tab", cancel=stop)
    else:
        bench.prune(session, "tab", cancel=stop)
    closing.join()
    assert bench.variants("tab") == {}
    assert bench.used == 0


def test_memory_has_a_budget_and_a_refusal_leaves_everything_usable(request_):
    model = load("tiny-stories")
    bench = Workbench(model)
    session = opened(bench, request_)
    grams = sum(8 * module.gram.numel() for module in bench.dense(session).stats.modules.values())
    assert bench.used == model.bytes + grams
    bench.budget = bench.used + model.bytes // 2
    with pytest.raises(InputError, match="remove pruned models"):
        bench.prune(session, "tab")
    assert bench.variants("tab") == {}
    with pytest.raises(InputError, match="needs"):
        bench.load(LoadRequest("tiny-stories", calibration=CalibrationRecipe("self", 2, 16)), "tab")
    assert bench.plan(session)
    bench.budget = default_budget(model.device)
    assert bench.prune(session, "tab")


def test_one_model_serves_several_calibrations(request_):
    bench = Workbench(load("tiny-stories"))
    first = opened(bench, request_)
    second = opened(bench, LoadRequest("tiny-stories", calibration=CalibrationRecipe("self", 2, 16)))
    assert bench.dense(first).model is bench.dense(second).model


def test_a_list_of_models_keeps_others_and_the_server_s_files_out(request_, tmp_path):
    bench = Workbench(load("tiny-stories"), policy=Policy(models=("tiny-stories",)))
    assert bench.choices == ["tiny-stories"]
    with pytest.raises(InputError, match="may not be loaded here"):
        bench.load(LoadRequest("someone/else"), "tab")
    secret = tmp_path / "secret.txt"
    secret.write_text("Once upon a time there was a dog. " * 50)
    reading = LoadRequest("tiny-stories", calibration=CalibrationRecipe(str(secret), 2, 16))
    with pytest.raises(InputError, match="may not be read"):
        bench.load(reading, "tab", own_texts=str(tmp_path / "texts"))
    assert bench.load(reading, "tab", own_texts=str(tmp_path))
    assert opened(bench, request_)


def test_large_models_are_refused_before_their_weights_are_read(tmp_path):
    model = load("tiny-stories")
    bench = Workbench(model, policy=Policy(max_parameters=1000))
    model.module.config.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(LoadError, match="3,935,424 parameters"):
        bench.load(LoadRequest(str(tmp_path)), "tab")


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
    session = opened(bench, request_)
    bench.prune(session, "tab")
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        bench.prune(session, "tab", cancel=stop)
    assert list(bench.variants("tab")) == ["30% balanced"]


def test_a_bad_name_does_not_disturb_the_loaded_model(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    with pytest.raises(Exception, match="no-such-model"):
        bench.load(LoadRequest("no-such-model"), "tab")
    assert bench.dense(session)


def test_the_program_s_model_is_used_without_loading_it_again(request_):
    model = load("tiny-stories")
    bench = Workbench(model)
    bench.start = request_
    assert bench.load(bench.start, "tab").model is model


def test_stop_reaches_only_the_jobs_of_its_tab():
    jobs = Jobs()
    mine, theirs = jobs.begin("a"), jobs.begin("b")
    assert jobs.stop("a") == 1
    assert mine.cancel.is_set()
    assert not theirs.cancel.is_set()
    jobs.end("a", mine)
    assert jobs.stop("a") == 0


def test_hand_set_ratios_reach_the_plan(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    key = ModuleKey(0, "mlp")
    pinned = session.changed("", ratios={key: 0.5})
    assert len(bench.plan(pinned).keep[key]) == 256


def test_a_recipe_of_another_scorer_plans_by_its_scores_once_they_are_there(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    other = session.changed("", scorer="wanda_sp")
    with pytest.raises(InputError, match="not scored by wanda_sp"):
        bench.plan(other)
    bench.score_by(other, "wanda_sp")
    assert bench.dense(other).scores.scorer == "wanda_sp"
    assert bench.dense(other).model is bench.dense(session).model
    assert bench.dense(session).scores.scorer == "fisher"
    assert bench.plan(other).keep != bench.plan(session).keep
    assert bench.first(other).scores is bench.first(session).scores is bench.dense(session).scores
    assert bench.scored(session, "wanda_sp")
    assert not bench.scored(session, "magnitude")
    bench.release("tab")
    again = opened(bench, request_)
    with pytest.raises(InputError, match="not scored by"):
        bench.plan(again.changed("", scorer="wanda_sp"))


def test_the_scores_of_the_opening_are_a_rival_of_the_method_s(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    bench.score_by(session, "wanda_sp")
    by_wanda = replace(session, recipe=session.recipe.replace(scorer="wanda_sp"), against="fisher")
    assert bench.rival(by_wanda) is bench.dense(session).scores
    assert bench.rival(replace(session, against="fisher")) is None


def test_scoring_needs_a_model_and_heeds_a_stop(request_):
    bench = Workbench(load("tiny-stories"))
    with pytest.raises(InputError, match="reload the page"):
        bench.score_by(Session(request_), "magnitude")
    session, stop = opened(bench, request_), threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        bench.score_by(session, "magnitude", cancel=stop)
    with pytest.raises(InputError, match="not scored by magnitude"):
        bench.dense(session.changed("", scorer="magnitude"))


def test_a_model_opens_by_the_default_method_with_nothing_decided(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    assert method_of(session.recipe) == DEFAULT_PRESET
    assert (session.recipe.ratio, session.past, session.recipe.ratios) == (Recipe().ratio, (), {})
    assert bench.fresh(bench.load(request_, "tab"), ratio=0.5).recipe.ratio == 0.5


def test_a_model_the_default_cannot_score_opens_by_the_paper_s_method_and_says_why(request_, monkeypatch):
    def score(model, stats, *, scorer, **options):
        if scorer == "fisher":
            raise InputError("It has no gradients.")
        return real(model, stats, scorer=scorer, **options)

    real = engine.score
    monkeypatch.setattr(engine, "score", score)
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    assert method_of(session.recipe) == "paper"
    assert bench.refusal(session) == "It has no gradients."
    assert bench.refusal(replace(session, recipe=session.recipe.replace(ratio=0.5))) is not None


def test_scores_that_ship_need_no_calibration_until_something_is_pruned():
    bench = Workbench(load("tiny-stories", device="cpu"))
    session = opened(bench, bench.start)
    assert bench.dense(session).stats is None
    assert session.recipe.calibration.sequence_length == 256
    stats = bench.stats(session)
    assert bench.stats(session) is stats is bench.dense(session).stats


def test_every_change_of_a_session_holds_or_none(request_):
    bench = Workbench(load("tiny-stories"))
    bench.enter("tab", opened(bench, request_))
    with pytest.raises(InputError):
        bench.change("tab", lambda session: session.changed("", ratio=2))
    assert bench.session("tab").recipe.ratio == 0.3
    revision = bench.change("tab", lambda session: session.changed("", ratio=0.5)).revision
    bench.enter("tab", opened(bench, request_))
    assert bench.session("tab").revision > revision
    bench.release("tab")
    with pytest.raises(InputError, match="reload it, the recipe comes back"):
        bench.session("tab")


def test_only_its_own_page_knows_a_tab_s_token(request_):
    bench = Workbench(load("tiny-stories"))
    bench.enter("a", opened(bench, request_))
    assert bench.owner_of_token(bench.token("a")) == "a"
    assert bench.token("b") != bench.token("a")
    for other in ("a", "", None, 3, {"$ne": None}):
        assert bench.owner_of_token(other) is None


def test_removing_a_model_forgets_its_figures(request_):
    bench = Workbench(load("tiny-stories"))
    session = opened(bench, request_)
    bench.enter("tab", session)
    name = bench.prune(session, "tab")
    assert bench.predicted("tab")[name] > 0
    assert bench.chosen("tab") == [name]
    bench.remove("tab", name)
    assert bench.predicted("tab") == bench.measured("tab") == {}
    assert bench.chosen("tab") == []
    assert bench.points("tab") == []


def test_a_job_tells_how_far_it_is_and_how_long_it_takes(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("numprune.ui.jobs.time.monotonic", lambda: clock[0])
    job = Jobs().begin("a")
    job.progress(0, 32, "scoring")
    clock[0] = 12.0
    assert job.to_dict() == {"what": "scoring", "done": 0, "total": 32, "left": None}
    job.progress(12, 32, "scoring")
    assert job.to_dict() == {"what": "scoring", "done": 12, "total": 32, "left": 20}
    job.progress(0, 4, "writing")
    assert job.seconds_left is None


def test_a_long_step_says_on_the_page_how_long_it_takes_and_a_short_one_nothing(monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr("numprune.waiting.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("numprune.ui.shared.gr.Info", lambda sentence, **how: said.append(sentence))
    jobs = Jobs()
    shared = Shared(None, jobs, None, None, None, None)
    with shared.job(SimpleNamespace(session_hash="a")) as job:
        for total, seconds in ((100, 30), (8, 2.0)):
            for done in range(1, 6):
                clock[0] += seconds
                job.progress(done, total, "calibrating")
    assert said == ["Calibrating will take about 49 minutes on this device. Stop, at the top, ends it."]
    assert jobs.running("a") == []


def test_sizes_nobody_gave_follow_from_the_model(monkeypatch):
    """Shared with who gives them, and with the model the program starts with."""
    bench = Workbench(load("tiny-stories", device="cpu"))
    assert bench.start.calibration == CalibrationRecipe()
    monkeypatch.setattr("numprune.calibration.budget.WRITTEN_ON_CPU", 3e8)
    loaded = bench.load(LoadRequest("tiny-stories", by_model=BY_MODEL), "tab")
    size = CalibrationRecipe("self", 8, 128)
    assert loaded.request == LoadRequest("tiny-stories", calibration=size)
    assert loaded.stats.source == size
    assert bench.load(LoadRequest("tiny-stories", calibration=size), "other").stats is loaded.stats
    four = LoadRequest(
        "tiny-stories", calibration=CalibrationRecipe("self", 4), by_model=frozenset({"sequence_length"})
    )
    assert bench.load(four, "tab").stats.source == CalibrationRecipe("self", 4, 128)


def test_the_model_of_a_request_without_sizes_is_loaded_once(monkeypatch, tmp_path):
    bench = Workbench(load("tiny-stories", device="cpu"))
    tiny_model(tokenizer=make_tokenizer()).save(tmp_path / "tiny")
    seen = []
    monkeypatch.setattr("numprune.calibration.budget.SIZES", ((4, 32),))
    monkeypatch.setattr("numprune.ui.engine.load", lambda name, **how: seen.append(name) or load(name, **how))
    size = CalibrationRecipe("self", 4, 32)
    bench.load(LoadRequest(str(tmp_path / "tiny"), "cpu", calibration=size, by_model=frozenset({"samples"})), "tab")
    assert seen == [str(tmp_path / "tiny")]
