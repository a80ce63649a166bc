import gradio as gr
import pytest

from numprune.errors import Cancelled, InputError
from numprune.models import ModuleKey, load
from numprune.recipe import CalibrationRecipe, Recipe
from numprune.ui import html
from numprune.ui.app import build
from numprune.ui.page import toasts
from numprune.ui.steps.compare import Measured, figures_table, measure_one, write_both
from numprune.ui.steps.prune import command_line
from numprune.ui.steps.tune import COLUMNS, edited, prediction, ratio_table
from numprune.ui.workbench import LoadRequest, Session, Workbench


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        bench = Workbench(load("tiny-stories"))
        request = LoadRequest("tiny-stories", calibration=CalibrationRecipe("self", 4, 32))
        session = bench.open(bench.load(request, "tab"), Session())
        return bench, bench.prune(session, "tab")


def test_the_table_shows_the_plan_and_marks_what_was_set_by_hand(scored):
    bench, session = scored
    session = edited(session, 2, 1, "0.5")
    table = ratio_table(bench.dense(session), bench.plan(session))
    assert list(table.columns) == COLUMNS
    assert table.loc[2, "Attention ratio"] == "0.500"
    assert table.loc[2, "Heads kept"] == "4 of 8"
    assert table["Set by hand"].tolist() == ["", "", "attention", "", "", "", "", ""]


def test_cells_take_fractions_and_percentages_and_give_them_back(scored):
    _, session = scored
    key = ModuleKey(3, "mlp")
    assert edited(session, 3, 2, " 25% ").recipe.ratios == {key: 0.25}
    assert edited(edited(session, 3, 2, "0.25"), 3, 2, "").recipe.ratios == {}


@pytest.mark.parametrize(("column", "text"), [(1, "much"), (1, "1.5"), (2, "-0.1"), (2, "nan"), (3, "4"), (0, "1")])
def test_cells_refuse_what_is_no_ratio(scored, column, text):
    with pytest.raises(InputError):
        edited(scored[1], 0, column, text)


def test_prediction_is_the_count_of_the_pruned_model(scored):
    bench, session = scored
    shown = prediction(bench.dense(session), bench.plan(session))
    assert f"{bench.pruned(session).parameters:,}" in shown
    assert html.memory(bench.pruned(session).bytes) in shown


def test_the_command_line_is_complete_and_quoted():
    recipe = Recipe(model="my model", ratio=0.25, ratios={ModuleKey(3, "mlp"): 0.5})
    words = command_line(recipe)
    assert words.startswith("numprune prune 'my model' --ratio 0.25 ")
    assert "--set 3.mlp=0.5" in words
    forced = Recipe(keep={ModuleKey(0, "mlp"): (1,)})
    assert "--recipe recipe.json" in command_line(forced)


def test_both_models_write_the_prompt_on_and_end_where_each_would_alone(scored):
    from numprune.generation import Sampling, generate

    bench, session = scored
    dense, pruned = bench.dense(session).model, bench.pruned(session)
    sampling = Sampling(max_new_tokens=12, seed=3)
    steps = list(write_both(dense, pruned, "Once upon a time", sampling, None))
    assert steps[-1][0] == generate(dense, "Once upon a time", max_new_tokens=12, seed=3)
    assert steps[-1][1] == generate(pruned, "Once upon a time", max_new_tokens=12, seed=3)


def test_figures_state_device_dtype_counts_and_spread(scored):
    bench, session = scored
    pair = []
    for model in (bench.dense(session).model, bench.pruned(session)):
        measured = measure_one(model, "Once upon a time there was a dog. " * 20, lambda *_: None, None)
        assert isinstance(measured, Measured)
        pair.append(measured)
    shown = figures_table(*pair)
    for part in ("cpu", "float32", "5 runs", f"{pair[0].perplexity.tokens:,} tokens", "median"):
        assert part in shown


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


def test_every_handler_that_computes_waits_in_one_queue():
    blocks = build(Workbench(load("tiny-stories")))
    computing = {"load_and_score", "carry_out", "write", "measure", "run_example", "first_visit"}
    found = {fn.name: fn for fn in blocks.fns.values() if fn.name in computing}
    assert set(found) == computing
    assert {fn.concurrency_id for fn in found.values()} == {"accelerator"}
    assert {fn.concurrency_limit for fn in found.values()} == {1}


def test_every_control_has_a_label_and_a_line_of_help():
    blocks = build(Workbench(load("tiny-stories")))
    controls = (gr.Slider, gr.Dropdown, gr.Number, gr.Radio, gr.Checkbox)
    found = [block for block in blocks.blocks.values() if isinstance(block, controls)]
    assert len(found) > 10
    assert [block.label for block in found if not block.info] == []
    assert all(block.label for block in found)
