from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import gradio as gr
import pytest
from cells import DENSE

from numprune.cli import main
from numprune.evaluation import measurement, methods
from numprune.evaluation.cells import read_cells, write_cells
from numprune.evaluation.measurement import Bench, run_of
from numprune.models import held_out_text
from numprune.plan.presets import method_of
from numprune.ui.app import compose
from numprune.ui.cells import edits_of, one_run
from numprune.ui.channel import situation
from numprune.ui.edits import applied
from numprune.ui.tabs.methods import BY_METHOD, common_recipe

TAB = "methods"
REQUEST = SimpleNamespace(session_hash=TAB)


@pytest.fixture
def tab(small):
    """The composed page with the small model open: what its parts share, handlers by name and parts by label."""
    bench, request = small
    bench.enter(TAB, bench.fresh(bench.load(request, "fixture")))
    blocks, shared = compose(bench)
    handlers = {fn.name: fn.fn for fn in blocks.fns.values()}
    parts = {part.label: part for part in blocks.blocks.values() if getattr(part, "label", None)}
    parts |= {part.elem_id: part for part in blocks.blocks.values() if getattr(part, "elem_id", None)}
    yield bench, shared, handlers, parts
    bench.release(TAB)


@pytest.fixture
def few_words(monkeypatch):
    """Whatever is to be measured on, a few words stand for it."""
    words = ["Once upon a time there was a little dog."]
    for name in ("perplexity", "divergence"):
        real = getattr(measurement, name)
        short = partial(lambda real, *models_and_data, **options: real(*models_and_data[:-1], words, **options), real)
        monkeypatch.setattr(measurement, name, short)


def asked(shared, parts, chosen, ratios="0 0.3"):
    making = shared.making
    return {
        making.text: "",
        making.samples: 2,
        making.guidance: 4,
        parts["np-methods"]: chosen,
        parts["Calibration seeds"]: "0",
        parts["Runs for speed, 0 for none"]: 0,
        next(part for part in _inputs(parts) if part.label == "Ratios" and part.value == "0.2 0.4"): ratios,
    }


def _inputs(parts):
    blocks = parts["np-methods"].parent
    while blocks.parent is not None:
        blocks = blocks.parent
    return [part for part in blocks.blocks.values() if isinstance(part, gr.Textbox)]


def test_a_stopped_comparison_keeps_its_cells_and_goes_on_with_the_missing_ones(tab, few_words, monkeypatch):
    bench, shared, handlers, parts = tab
    given = asked(shared, parts, ["magnitude", "random"])
    run = handlers["compare_cells"](given, REQUEST)
    next(run)
    next(run)
    shared.jobs.stop(TAB)
    with pytest.raises(gr.Error) as stopped:
        next(run)
    assert stopped.value.title == "Stopped"
    assert [cell.method for cell in bench.cells(TAB)] == ["dense", "magnitude"]
    pruned = []
    real = methods.pruned_by
    monkeypatch.setattr(methods, "pruned_by", lambda *args, **kw: pruned.append(args[2]) or real(*args, **kw))
    *_, last = handlers["compare_cells"](given, REQUEST)
    assert pruned == ["random"]
    assert [cell.method for cell in bench.cells(TAB)] == ["dense", "magnitude", "random"]
    assert "random" in last[parts["np-cells"]]
    finding = bench.findings(TAB)[BY_METHOD]
    assert finding.table["method"].tolist() == ["dense", "magnitude", "random"]
    # A report has nobody to hand an edit to.
    assert "data-edits" not in finding.parts[0]
    assert [point.name for point in bench.points(TAB)] == ["30% magnitude, among methods", "30% random, among methods"]


def test_an_opened_cell_becomes_the_recipe_of_the_page(small):
    """The edits behind a cell go the way of all edits."""
    bench, request = small
    session = bench.fresh(bench.load(request, "fixture")).changed("", ratios={"0.mlp": 0.9}, damping=0.02)
    for method in ("paper", "flap"):
        bench.score_by(session, {"paper": "newton", "flap": "flap"}[method])
        changed = session
        for edit in edits_of(method, 0.4, session.recipe):
            changed = applied(changed, edit, situation(bench, changed))
        assert method_of(changed.recipe) == method
        assert (changed.recipe.ratio, changed.recipe.damping, changed.recipe.ratios) == (0.4, 0.02, {})
        assert changed.undo().recipe == session.recipe


def test_cells_of_a_file_are_shown_and_those_of_another_model_open_nothing(tab, tmp_path):
    bench, _, handlers, parts = tab
    pruned = replace(DENSE, method="paper", ratio=0.2, reached=0.2, nll=1.2, perplexity=3.3, kl=0.1, seconds=1.0)
    for name, opens in (("tiny-stories", True), ("another", False)):
        cells = [replace(cell, model=name, run=name) for cell in (DENSE, pruned)]
        write_cells(tmp_path / "cells.csv", cells)
        shown = handlers["open_cells"](str(tmp_path / "cells.csv"), REQUEST)
        assert ("data-edits" in shown[parts["np-cells"]]) == opens
        assert bench.cells(TAB) == cells
    assert [point.name for point in bench.points(TAB)] == ["20% paper, among methods"]


def test_a_file_that_holds_no_cells_is_refused(tab, tmp_path):
    file = tmp_path / "cells.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(gr.Error, match="was not written by"):
        tab[2]["open_cells"](str(file), REQUEST)


def test_there_is_nothing_to_save_before_something_was_measured(tab):
    with pytest.raises(gr.Error, match="no cells yet"):
        tab[2]["save_cells"](REQUEST)


def test_locks_and_ratios_of_the_page_are_not_shared_by_the_methods(tab):
    bench = tab[0]
    session = bench.session(TAB)
    key = next(iter(bench.plan(session).keep))
    recipe = common_recipe(session.changed("", ratios={key: 0.5}, keep={key: (0,)}, damping=0.02, ratio=0.6))
    assert (recipe.ratios, recipe.keep, recipe.damping) == ({}, {}, 0.02)
    assert recipe.calibration == session.dense.calibration


def test_a_tab_keeps_every_run_and_shows_the_last(small):
    bench = small[0]
    other = replace(DENSE, run="s")
    bench.keep_cells("cells", [DENSE])
    bench.keep_cells("cells", [other])
    assert bench.cells("cells") == [other]
    bench.keep_cells("cells", [DENSE])
    assert bench.cells("cells") == [DENSE]
    assert bench.cells("cells", "s") == [other]
    assert bench.cells("cells", "t") == bench.cells("somebody else") == []
    bench.release("cells")
    assert bench.cells("cells") == []


def test_the_command_line_s_cells_are_of_the_page_s_run(tab, few_words, tmp_path):
    bench = tab[0]
    session = bench.session(TAB)
    file = tmp_path / "cells.csv"
    flags = ["--samples", "4", "--sequence-length", "32", "--repetitions", "0", "--device", "cpu", "--quiet"]
    line = ["sweep", "tiny-stories", "--methods", "magnitude", "--ratios", "0.5", "--out", str(file), *flags]
    assert main(line) == 0
    own = Bench(data=held_out_text(), sequence_length=32, images=1000, drawing={"cfg_scale": 4.0, "top_k": 0})
    run = run_of(bench.dense(session).model, common_recipe(session), own)
    assert {cell.run for cell in one_run(read_cells(file))} == {run}
