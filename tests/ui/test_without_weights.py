"""The page while the weights of a model are on their way, or on another machine."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from servers import parts_of

import numprune
from numprune import InputError, Recipe
from numprune.models.outline import outline_of
from numprune.scoring.registry import BUILT_IN
from numprune.ui.app import compose
from numprune.ui.launch import of_file, shown_at_once
from numprune.ui.session import Unit
from numprune.ui.shared import View
from numprune.ui.weights import Coming
from numprune.ui.workbench import MOST_FILES, Workbench

TAB = "tests"


@pytest.fixture(scope="module")
def file(small, tmp_path_factory):
    """Scores of the embedded model by two methods, and the model they are of."""
    bench, request = small
    bench.load(request, "fixture")
    session = bench.fresh(bench.load(request, "fixture"))
    bench.score_by(session, "newton")
    model = bench.dense(session).model
    tables = [bench.scored_by(session, name).scores for name in ("fisher", "newton")]
    path = tmp_path_factory.mktemp("scores") / "scores.safetensors"
    numprune.write_scores(path, tables, session.recipe.calibration, outline_of(model))
    return path, model


@pytest.fixture
def page(file):
    """A page that shows the file: its view, its parts, its handlers and the tab's request."""
    bench = of_file(str(file[0]))
    blocks, shared = compose(bench)
    bench.enter(TAB, bench.fresh(bench.load(bench.start, TAB)))
    handlers = {fn.name: fn.fn for fn in blocks.fns.values()}
    return View(bench, TAB, bench.session(TAB)), shared, parts_of(blocks), handlers, SimpleNamespace(session_hash=TAB)


def test_everything_that_is_drawn_without_weights_is_what_the_model_gives(page, file):
    view, shared, parts, *_ = page
    model = file[1]
    recipe = view.session.recipe
    assert recipe == replace(recipe, model="tiny-stories", fingerprint=model.fingerprint(), scorer="fisher")
    assert view.loaded.outline.sizes(view.plan) == numprune.sizes(model, view.plan)
    updates = shared.updates(view, "opened", "planned")
    drawn = updates[parts["np-channel"]].constructor_args["plan"]
    assert drawn["after"]["parameters"] == numprune.sizes(model, view.plan).parameters
    assert drawn["curve"] is not None
    assert not updates[parts["np-prune"]].interactive
    assert "without its weights" in updates[parts["np-elsewhere"]].value
    assert "scores only" in updates[parts["np-chip"]]


def test_what_needs_weights_says_so_and_the_plan_stays(page):
    view, shared, parts, handlers, request = page
    bench = view.workbench
    for work in (lambda: view.loaded.model, lambda: bench.prune(view.session, TAB), lambda: bench.stats(view.session)):
        with pytest.raises(InputError, match="numprune prune --recipe where the weights are"):
            work()
    with pytest.raises(InputError, match="without its weights"):
        bench.score_by(view.session, "flap")
    with pytest.raises(gr.Error, match="without its weights"):
        list(
            handlers["prune_and_compare"](
                {part: part.value for part in shared.making.inputs} | {parts["Name of the result"]: ""}, request
            )
        )
    assert bench.session(TAB) == view.session
    # The other scorer that the file has is there at once.
    bench.score_by(view.session, "newton")


def test_a_unit_is_explained_as_far_as_scores_go(page):
    view, shared, parts, *_ = page
    bench = view.workbench
    for key in ("2.attention", "2.mlp"):
        session = bench.change(TAB, lambda now, key=key: replace(now, selected=Unit(numprune.ModuleKey.parse(key), 3)))
        card = shared.updates(View(bench, TAB, session), "selected")[parts["np-unit"]]
        assert "score by fisher" in card
        assert "norm of its weights" not in card


def test_a_file_is_opened_on_the_page_and_its_recipe_comes_back(small, file, page):
    bench = Workbench(file[1])
    blocks, _ = compose(bench)
    handlers = {fn.name: fn.fn for fn in blocks.fns.values()}
    request = SimpleNamespace(session_hash=TAB)
    handlers["open_scores"](str(file[0]), request)
    session = bench.session(TAB)
    assert session.dense.scores
    assert bench.dense(session).weights.elsewhere is not None
    # A reload asks for the model of the recipe; the file is still open and means it.
    assert bench.scores_of(session.recipe) == session.dense
    assert bench.scores_of(Recipe()) is None
    bench.release(TAB)
    assert bench.scores_of(session.recipe) == session.dense
    # It makes room for others.
    held = numprune.read_score_file(file[0])
    for number in range(MOST_FILES):
        bench.put_scores(replace(held, digest=str(number)), "another")
    bench.release(TAB)
    assert session.dense not in bench._opened
    assert bench.scores_of(session.recipe).scores == "0"


@pytest.mark.parametrize("data", [b"", b"\x80\x04.", b"{}"])
def test_other_files_are_refused_on_the_page_and_it_stays(page, tmp_path, data):
    view, _, _, handlers, request = page
    path = tmp_path / "scores.safetensors"
    path.write_bytes(data)
    with pytest.raises(gr.Error, match=r"scores\.safetensors cannot be read") as refused:
        handlers["open_scores"](str(path), request)
    assert str(tmp_path) not in str(refused.value)
    assert view.workbench.session(TAB) == view.session


def test_weights_that_come_are_loaded_once_and_only_when_they_are_needed(file):
    model, loads = file[1], []
    coming = Coming(outline_of(model), lambda: loads.append(1) or model)
    assert (coming.ready, loads) == (False, [])
    assert coming.model is coming.model is model
    assert (coming.ready, loads) == (True, [1])


def test_weights_that_are_others_than_those_scored_are_refused(file):
    model = file[1]
    coming = Coming(replace(outline_of(model), fingerprint="0" * 16), lambda: model)
    with pytest.raises(InputError, match="of other weights"):
        _ = coming.model


def test_other_models_are_opened_first(monkeypatch, tmp_path):
    assert shown_at_once(str(tmp_path), lambda: None) is None
    monkeypatch.setattr("numprune.ui.launch.only_cpu", lambda: False)
    assert shown_at_once("tiny-stories", lambda: None) is None


def test_pruning_waits_for_the_weights(monkeypatch):
    monkeypatch.setattr("numprune.ui.launch.only_cpu", lambda: True)
    bench = shown_at_once("tiny-stories", lambda: numprune.load("tiny-stories", device="cpu"))
    session = bench.fresh(bench.load(bench.start, TAB))
    assert not bench.dense(session).weights.ready
    bench.enter(TAB, session.changed("", compensation="none"))
    plan = bench.plan(bench.session(TAB))
    name = bench.prune(bench.session(TAB), TAB)
    assert bench.pruned(TAB, name).parameters == plan.parameters_after


CODE = """
import sys
from types import SimpleNamespace
from numprune.ui import launch
from numprune.scoring.registry import BUILT_IN
from numprune.ui.app import compose
launch.only_cpu = lambda: True
bench = launch.shown_at_once("tiny-stories", None)
blocks, shared = compose(bench)
visit = {fn.name: fn.fn for fn in blocks.fns.values()}["visit"]
visit(None, SimpleNamespace(session_hash="tab", query_params={}))
print(*sorted({"torch", "transformers", "scipy", "accelerate"} & set(sys.modules)), bench.session("tab").recipe.model)
"""


def test_a_first_visit_is_answered_before_torch_is_imported():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["tiny-stories"], done.stderr


def test_scorers_and_formats_are_known_by_name_before_they_are_imported():
    assert set(BUILT_IN) == set(numprune.SCORERS)
    assert {"newton", "fisher"} <= set(BUILT_IN)
    priced = {"fisher"}
    assert priced == numprune.PRICED
    model = numprune.load("tiny-stories", device="cpu")
    for name, reason in numprune.formats_for(model).items():
        assert reason is None or isinstance(reason, str), name
        assert numprune.FORMATS[name].about
