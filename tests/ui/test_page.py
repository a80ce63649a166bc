"""The composed page: its handlers, its endpoints, and what its parts do at each moment."""

import re
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from servers import ROOT, parts_of

from numprune.calibration.data import documents
from numprune.errors import Cancelled, InputError
from numprune.loading import load
from numprune.plan.keys import ModuleKey
from numprune.plan.presets import METHODS, method_of
from numprune.plan.recipe import Recipe
from numprune.ui import app, html
from numprune.ui.app import build
from numprune.ui.channel import situation as judged_by
from numprune.ui.channel import worked
from numprune.ui.dock.unit import how_forced, unit_card, unit_picture
from numprune.ui.edits import NeedsWork, applied
from numprune.ui.model_form import PASTED, UPLOADED, source_of, whole
from numprune.ui.numbers import errors
from numprune.ui.session import Unit
from numprune.ui.shared import View, toasts
from numprune.ui.side import pair_of
from numprune.ui.workbench import Workbench

HEAD, MLP = ModuleKey(0, "attention"), ModuleKey(3, "mlp")


@pytest.fixture(scope="module")
def blocks():
    return build(Workbench(load("tiny-stories", device="cpu")))


COMPUTING = {
    "visit",
    "open_model",
    "work",
    "open_recipe",
    "prune_and_compare",
    "write",
    "measure_all",
    "diverge",
    "picture",
    "compare_scores",
    "make_report",
    "export_model",
    "upload",
    "load",
    "score",
    "prune",
    "compare",
    "draw",
    "export",
}


def test_every_handler_that_computes_waits_in_one_queue(blocks):
    found = [fn for fn in blocks.fns.values() if fn.concurrency_id == "accelerator"]
    assert {fn.name for fn in found} >= COMPUTING
    assert {fn.concurrency_limit for fn in found} == {1}


def test_stop_ends_every_long_handler(blocks):
    long = {fn._id for fn in blocks.fns.values() if fn.name in COMPUTING and fn.api_visibility == "private"}
    assert any(long <= set(fn.cancels) for fn in blocks.fns.values())


def test_only_the_named_endpoints_are_public(blocks):
    public = {fn.api_name for fn in blocks.fns.values() if fn.api_visibility == "public"}
    assert public == {"load", "score", "prune", "compare", "draw", "export"}


def test_every_control_has_a_name_of_its_own(blocks):
    controls = (gr.Slider, gr.Dropdown, gr.Number, gr.Radio, gr.Checkbox, gr.CheckboxGroup, gr.Textbox)
    found = [block for block in blocks.blocks.values() if isinstance(block, controls)]
    assert len(found) > 25
    assert all(block.label for block in found)


def test_no_handler_merges_what_the_browser_asked_for(blocks):
    """Gradio's always_last sends the first event's data again in the place of the last one's."""
    assert not [fn.name for fn in blocks.fns.values() if fn.trigger_mode == "always_last"]


def test_everything_that_is_redrawn_is_among_the_outputs(composed, view):
    shared, _, _ = composed
    for moment in ("opened", "planned", "kept", "measured", "sensed", "selected", "compared", "docked"):
        assert set(shared.updates(view, moment)) <= shared.outputs(moment)


def test_a_method_that_needs_scores_makes_them_and_is_one_step(composed, view):
    shared, handlers, tab = composed
    worked(shared, "tests", '{"kind": "method", "method": "magnitude"}', None, None)
    session = view.workbench.session("tests")
    assert method_of(session.recipe) == "magnitude"
    assert session.undo().recipe == view.session.recipe
    assert handlers["work"]("nonsense", tab)
    assert view.workbench.session("tests") == session


def test_a_model_of_many_modules_is_not_measured_module_by_module(composed, view, monkeypatch):
    """As on the command line: curves of every module would take hours."""
    shared, _, _ = composed
    monkeypatch.setattr("numprune.allocation.search.MODULES", 4)
    monkeypatch.setattr("numprune.allocation.tilts.TRIALS", 2)
    worked(shared, "tests", '{"kind": "suggest"}', None, None)
    assert view.workbench.session("tests").recipe.suggested
    assert not view.workbench.findings("tests")


def test_suggested_ratios_are_taken_over_at_once_and_their_curves_are_kept(composed, view):
    shared, _, _ = composed
    view.workbench.change("tests", lambda session: session.changed("", ratio=0.4))
    worked(shared, "tests", '{"kind": "suggest"}', None, None)
    session = view.workbench.session("tests")
    assert session.recipe.suggested
    assert session.recipe.ratio == 0.4
    assert len(session.recipe.ratios) == 15
    assert session.undo().recipe.ratios == {}
    assert "What each module costs" in view.findings


def test_a_speedup_is_one_step_and_ended_by_a_ratio_or_by_hand(composed, view, clock):
    shared, _, _ = composed
    bench = view.workbench
    worked(shared, "tests", '{"kind": "method", "method": "fast"}', None, None)
    session = bench.session("tests")
    assert method_of(session.recipe) == "fast"
    assert session.recipe.speedup == 1.5
    assert session.undo().recipe == view.session.recipe
    plan = bench.plan(session)
    assert plan.ratio_reached == pytest.approx(session.recipe.ratio)
    worked(shared, "tests", '{"kind": "speedup", "speedup": 1.2}', None, None)
    slower = bench.session("tests")
    assert slower.recipe.speedup == 1.2
    assert bench.plan(slower).ratio_reached < plan.ratio_reached
    judged = judged_by(bench, slower)
    assert applied(slower, {"kind": "speedup", "speedup": 1.2}, judged) == slower
    for value in (1.0, "fast", None):
        with pytest.raises(InputError):
            applied(slower, {"kind": "speedup", "speedup": value}, judged)
    with pytest.raises(NeedsWork):
        applied(slower, {"kind": "speedup", "speedup": 1.3}, judged)
    by_ratio = applied(slower, {"kind": "ratio", "ratio": 0.2}, judged).recipe
    assert (by_ratio.ratio, by_ratio.ratios, by_ratio.drop, method_of(by_ratio)) == (0.2, {}, (), "balanced")
    by_hand = applied(slower, {"kind": "cells", "cells": [["0.mlp", "0.1"]]}, judged).recipe
    assert (by_hand.speedup, by_hand.suggested, method_of(by_hand)) == (None, False, None)


def test_a_stopped_method_leaves_the_plan(composed, view, monkeypatch):
    _, handlers, tab = composed

    def stopped(*args, **options):
        raise Cancelled("Stopped.")

    monkeypatch.setattr(view.workbench, "score_by", stopped)
    with pytest.warns(UserWarning, match=r"Stopped\."):
        handlers["work"]('{"kind": "method", "method": "magnitude"}', tab)
    assert view.workbench.session("tests") == view.session


def test_an_edit_of_a_page_that_was_forgotten_says_so(composed):
    _, handlers, _ = composed
    with pytest.raises(gr.Error, match="reload it"):
        handlers["edit"]("[]", SimpleNamespace(session_hash="nobody"))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_recognised_by_its_settings(name):
    method = METHODS[name]
    recipe = method.applied(Recipe()).replace(suggested=method.chooses)
    assert method_of(recipe.replace(ratio=0.6)) == name
    assert method_of(recipe.replace(damping=0.5)) == name
    if method.settings["removal"] == "units" and not method.chooses:
        assert method_of(recipe.replace(ratios={MLP: 0.3})) is None


def test_slicegpt_leaves_the_plan_whole_and_says_so(view):
    view.workbench.change("tests", lambda session: session.changed("", **METHODS["slicegpt"].settings))
    now = View(view.workbench, "tests", view.workbench.session("tests"))
    assert now.plan.ratio_reached == 0
    assert "residual stream" in " ".join(now.plan.remarks)


# The form of the model.


def test_pasted_and_uploaded_texts_are_kept_so_that_a_recipe_can_be_repeated(tmp_path):
    pasted = source_of(PASTED, None, "Once upon a time.")
    assert pasted == source_of(PASTED, None, "Once upon a time.") != source_of(PASTED, None, "Another.")
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "Once"}\n')
    kept = source_of(UPLOADED, str(file), None)
    assert kept.endswith(".jsonl")
    file.unlink()
    assert documents(kept, "train") == ["Once"]
    assert source_of("self", None, None) == "self"


@pytest.mark.parametrize("given", [(PASTED, None, " "), (UPLOADED, None, None), (None, None, None), ("", None, None)])
def test_a_source_without_text_is_refused(given):
    with pytest.raises(InputError):
        source_of(*given)


@pytest.mark.parametrize("value", [None, 1.5, True])
def test_counts_from_the_page_are_whole_numbers(value):
    with pytest.raises(InputError, match="whole number"):
        whole(value, "Samples")


# A unit.


def test_a_unit_s_card_agrees_with_the_tables(view):
    loaded = view.loaded
    table = loaded.scores.to_pandas()
    row = table[(table.layer == 3) & (table.module == "mlp")].iloc[17]
    shown = unit_card(loaded, view.plan, Unit(MLP, 17))
    assert f"{row['score']:.4g}" in shown
    assert f"{row['rank'] + 1:,} of {len(table):,}" in shown
    assert f"{row['rank_in_module'] + 1} of 512" in shown
    weight = loaded.model.module.model.layers[3].mlp.down_proj.weight[:, 17].norm()
    assert f"{weight:.3g}" in shown
    gram = loaded.stats.modules[MLP].gram
    activation = f"{(gram[17, 17] / loaded.stats.tokens).sqrt():.3g}"
    assert activation in shown
    assert "activation" not in unit_card(replace(loaded, stats=None), view.plan, Unit(MLP, 17))


def test_a_forced_unit_says_so(scored):
    bench, session = scored
    unit = Unit(HEAD, 2)
    for how, says in (("keep", "kept forced to stay"), ("prune", "pruned forced to go")):
        forced = session.forced(unit, how)
        assert how_forced(forced, unit) == how
        assert says in unit_card(bench.dense(forced), bench.plan(forced), unit)
    assert how_forced(session, unit) == "auto"


def test_a_head_is_shown_by_its_attention_and_a_channel_by_its_layer(composed, view):
    shared, _, _ = composed
    _, label, table = unit_picture(shared, view, Unit(ModuleKey(1, "attention"), 5), "The cat sat.", None)
    assert label.startswith("Attention of layer 1, head 5")
    np.testing.assert_allclose(table.iloc[:, 2:].sum(axis=1), 1, rtol=1e-5)
    _, label, table = unit_picture(shared, view, Unit(ModuleKey(1, "mlp"), 5), "", None)
    assert label == "All channels of layer 1"
    assert table["kept"].sum() == len(view.plan.keep[ModuleKey(1, "mlp")])
    with pytest.raises(InputError, match="no sentence"):
        unit_picture(shared, view, Unit(ModuleKey(1, "attention"), 5), " ", None)


# Pieces.


def test_the_errors_of_every_pruned_model_are_one_table(view, pruned):
    _, _, name = pruned
    table = errors(view)
    assert set(table["model"]) == {name}
    assert len(table) == 16


@pytest.mark.parametrize(
    "message", [None, "", "[]", '{"index": "1", "model": "x"}', '{"index": 1}', '{"index": 1, "model": 3}']
)
def test_pairs_that_no_page_names_are_refused(message):
    with pytest.raises(InputError):
        pair_of(message)


def test_values_are_escaped():
    assert "<script>" not in html.cards([("<script>", "x")]) + html.table(["<script>"], [("a", "<script>")])


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (InputError("Bad ratio."), "That did not work"),
        (Cancelled("Stopped."), "Stopped"),
        (MemoryError(), "Out of memory"),
        (RuntimeError("boom"), "Unexpected error"),
    ],
)
def test_every_error_becomes_a_toast(error, title):
    with pytest.raises(gr.Error) as caught, toasts():
        raise error
    assert caught.value.title == title
    assert caught.value.message


def test_scripts_name_the_events_they_trigger(blocks):
    """Gradio finds a component's own events by their quoted names in its script."""
    scripts = [block.js_on_load for block in blocks.blocks.values() if isinstance(block, gr.HTML) and block.js_on_load]
    assert sum(bool(re.search(r"trigger\(", script)) for script in scripts) >= 5


def test_a_tab_is_one_file_and_one_line(view, tmp_path, monkeypatch):
    """The one that docs/extending.md shows."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf8")
    code = re.search(r'```python\n("""Counts:.*?)```', text, re.DOTALL).group(1)
    counts = ModuleType("counts")
    exec(code, vars(counts))
    monkeypatch.setattr(app, "TABS", (*app.TABS, ("counts", "Counts", counts)))
    blocks, shared = app.compose(view.workbench)
    table = parts_of(blocks)["Units"]
    assert shared.updates(view, "planned")[table].equals(view.plan.to_pandas())
    sort = next(fn.fn for fn in blocks.fns.values() if fn.name == "sort")
    assert sort(SimpleNamespace(session_hash="tests"))[table]["kept"].is_monotonic_decreasing
