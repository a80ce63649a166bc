import re
import shlex
from dataclasses import replace

import gradio as gr
import numpy as np
import pandas as pd
import pytest
import torch

from numprune.calibration.data import documents
from numprune.cli import main
from numprune.errors import Cancelled, InputError
from numprune.evaluation.random_models import Shape
from numprune.evaluation.speed import measure_speed
from numprune.evaluation.sweep import sweep
from numprune.generation import Sampling, generate
from numprune.loading import load
from numprune.plan.keys import ModuleKey
from numprune.plan.presets import METHODS, method_of
from numprune.plan.recipe import CalibrationRecipe, Recipe
from numprune.ui import html
from numprune.ui.app import build
from numprune.ui.bench import bench_dashboard
from numprune.ui.page import toasts
from numprune.ui.session import Unit
from numprune.ui.steps import compare, inspect
from numprune.ui.steps.compare import (
    figures_table,
    measure_one,
    prompts_of,
    sweep_figures,
    sweep_table,
    write_all,
)
from numprune.ui.steps.load import PASTED, UPLOADED, facts, source_of, whole
from numprune.ui.steps.methods import ratios_of
from numprune.ui.steps.prune import small_print, variants_table
from numprune.ui.steps.report import ERRORS, LAYERS, UNITS, numbers, session_report
from numprune.ui.steps.tune import ALLOCATIONS, adopted, command_line, prediction, preset, preset_of
from numprune.ui.workbench import Workbench

# load


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


def test_the_facts_name_what_was_loaded(scored):
    bench, session = scored
    shown = facts(bench.dense(session))
    for part in ("tiny-stories", "LlamaForCausalLM", "3.94 M", "heads a layer", "15.74 MB", "float32 on cpu", "4 x 32"):
        assert part.lower() in shown.lower()


# inspect


def test_a_unit_s_card_agrees_with_the_tables(scored):
    bench, session = scored
    loaded, plan = bench.dense(session), bench.plan(session)
    table = loaded.scores.to_pandas()
    row = table[(table.layer == 3) & (table.module == "mlp")].iloc[17]
    shown = inspect.unit_card(loaded, plan, Unit(ModuleKey(3, "mlp"), 17))
    assert f"{row['score']:.4g}" in shown
    assert f"{row['rank'] + 1:,} of {len(table):,}" in shown
    assert f"{row['rank_in_module'] + 1} of 512" in shown
    weight = loaded.model.module.model.layers[3].mlp.down_proj.weight[:, 17].norm()
    assert f"{weight:.3g}" in shown
    gram = loaded.stats.modules[ModuleKey(3, "mlp")].gram
    assert f"{(gram[17, 17] / loaded.stats.tokens).sqrt():.3g}" in shown


def test_a_forced_unit_says_so(scored):
    bench, session = scored
    unit = Unit(ModuleKey(0, "attention"), 2)
    for how, says in (("keep", "kept forced to stay"), ("prune", "pruned forced to go")):
        forced = session.forced(unit, how)
        assert inspect.how_forced(forced, unit) == how
        assert says in inspect.unit_card(bench.dense(forced), bench.plan(forced), unit)
    assert inspect.how_forced(session, unit) == "auto"


@pytest.mark.parametrize(
    "named", [("mlp", 99, 0), ("mlp", 0, 512), ("mlp", 0, -1), ("moe", 0, 0), ("mlp", None, 0), ("mlp", "x", 0)]
)
def test_units_the_model_does_not_have_are_refused(scored, named):
    bench, session = scored
    with pytest.raises(InputError):
        inspect.checked_unit(bench.dense(session), *named)


def test_a_head_is_shown_by_its_attention_and_a_channel_by_its_layer(scored):
    bench, session = scored
    loaded, plan = bench.dense(session), bench.plan(session)
    _, label, table = inspect.unit_picture(loaded, plan, Unit(ModuleKey(1, "attention"), 5), "The cat sat.")
    assert label.startswith("Attention of layer 1, head 5")
    np.testing.assert_allclose(table.iloc[:, 2:].sum(axis=1), 1, rtol=1e-5)
    _, label, table = inspect.unit_picture(loaded, plan, Unit(ModuleKey(1, "mlp"), 5), "")
    assert label == "All channels of layer 1"
    assert table["kept"].sum() == len(plan.keep[ModuleKey(1, "mlp")])
    with pytest.raises(InputError, match="no sentence"):
        inspect.unit_picture(loaded, plan, Unit(ModuleKey(1, "attention"), 5), " ")


# tune


def test_prediction_is_the_count_of_the_pruned_model(pruned):
    bench, session, name = pruned
    shown = prediction(bench.dense(session), bench.plan(session))
    model = bench.pruned("tests", name)
    assert f"{model.parameters:,}" in shown
    assert html.memory(model.bytes) in shown


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_presets_do_what_they_say_and_are_recognised(scored, name):
    bench, session = scored
    scores = bench.dense(session).scores
    session = session.changed("", **preset(name, scores))
    assert preset_of(session.recipe, scores) == name
    ratios = {key: bench.plan(session).ratio(key) for key in scores.modules}
    untouched = {
        "attention": [key for key in ratios if key.kind == "mlp"],
        "mlp": [key for key in ratios if key.kind == "attention"],
        "ends": [key for key in ratios if key.layer in (0, 7)],
    }.get(name, [])
    assert all(ratios[key] == 0 for key in untouched)
    assert any(ratio > 0 for ratio in ratios.values())
    if name == "uniform":
        assert max(ratios.values()) - min(ratios.values()) <= 1 / 8


def test_hand_set_ratios_are_no_preset(scored):
    bench, session = scored
    recipe = session.recipe.replace(ratios={ModuleKey(2, "mlp"): 0.5})
    assert preset_of(recipe, bench.dense(session).scores) is None
    with pytest.raises(InputError, match="not known"):
        preset("magic", bench.dense(session).scores)


def test_a_method_is_recognised_by_its_settings_and_its_ratios(scored):
    bench, session = scored
    keys = list(bench.dense(session).scores.modules)
    assert method_of(session.recipe) == "paper"
    for name, method in METHODS.items():
        ratios = dict.fromkeys(keys[1:], 0.2) if method.suggests else {}
        recipe = session.recipe.replace(**method.settings, ratios=ratios, suggested=method.suggests)
        assert method_of(recipe) == name
    for changes in ({"ratios": {keys[0]: 0.5}}, {"compensation": "bias"}, {"healing": 7}, {"scorer": "newton_boxed"}):
        assert method_of(session.recipe.replace(**changes)) is None


def test_slicegpt_leaves_the_plan_whole_and_says_so(scored):
    bench, session = scored
    session = session.changed("", **METHODS["slicegpt"].settings, ratio=0.2)
    plan, loaded = bench.plan(session), bench.dense(session)
    assert all(plan.ratio(key) == 0 for key in plan.keep)
    assert "narrows the residual stream" in prediction(loaded, plan)
    name = bench.prune(session, "slices")
    sliced = bench.pruned("slices", name)
    assert name == "20% slicegpt"
    assert sliced.parameters < loaded.model.parameters
    assert "—" in variants_table({name: sliced})
    assert "Output error" not in small_print(sliced)
    assert "wide instead of" in small_print(sliced)
    assert name in session_report(loaded, plan, bench.variants("slices"), {})
    assert list(numbers(ERRORS, loaded, plan, bench.variants("slices"), {}).columns[:2]) == ["layer", "module"]
    with pytest.raises(InputError, match="removes no units"):
        session.changed("", ratios={ModuleKey(3, "mlp"): 0.5})
    bench.release("slices")


def test_the_command_line_is_complete_and_quoted():
    recipe = Recipe(model="my model", ratio=0.25, ratios={ModuleKey(3, "mlp"): 0.5}, round_channels=64)
    words = command_line(recipe)
    assert words.startswith("numprune prune 'my model' --ratio 0.25 ")
    assert "--set 3.mlp=0.5" in words
    assert "--round-channels 64" in words
    forced = Recipe(keep={ModuleKey(0, "mlp"): (1,)})
    assert "--recipe recipe.json" in command_line(forced)


def test_the_command_line_makes_the_same_recipe(scored, tmp_path):
    _, session = scored
    ratios = {ModuleKey(3, "mlp"): 0.25, ModuleKey(0, "attention"): 0.5}
    session = session.changed("", ratio=0.42, ratios=ratios, swaps=2)
    words = shlex.split(command_line(session.recipe))
    assert words[0] == "numprune"
    assert main([*words[1:-1], str(tmp_path / "out"), "--quiet", "--device", "cpu"]) == 0
    written = Recipe.read(tmp_path / "out" / "recipe.json")
    assert written == session.recipe


def test_an_opened_recipe_is_adopted_and_one_of_another_calibration_is_refused(scored):
    _, session = scored
    recipe = session.recipe.replace(ratio=0.5, keep={ModuleKey(0, "mlp"): (3,)})
    done = adopted(session, recipe)
    assert done.recipe == recipe
    assert done.undo().recipe == session.recipe
    with pytest.raises(InputError, match="load the model with it in step 1"):
        adopted(session, replace(recipe, calibration=CalibrationRecipe("c4", 8, 64)))


# prune


def test_pruned_models_are_listed_with_counted_sizes_and_errors(pruned):
    bench, _, name = pruned
    model = bench.pruned("tests", name)
    shown = variants_table(bench.variants("tests"))
    assert f"{model.parameters:,}" in shown
    assert html.memory(model.bytes) in shown
    before, after = map(float, re.search(r"([\d.]+) → ([\d.]+)", shown).groups())
    assert 0 < after < before
    assert "on cpu in float32" in small_print(model)


# compare


def test_every_model_writes_every_prompt_as_it_would_alone(pruned):
    bench, session, name = pruned
    models = [bench.dense(session).model, bench.pruned("tests", name)]
    prompts = ["Once upon a time", "The cat"]
    *_, last = write_all(models, prompts, Sampling(max_new_tokens=12, seed=3), None)
    for model, texts in zip(models, last, strict=True):
        assert texts == generate(model, prompts, max_new_tokens=12, seed=3)


def test_prompts_are_lines():
    assert prompts_of(" One \n\n two\n") == ["One", "two"]
    for text in ("", " \n", "x\n" * 9):
        with pytest.raises(InputError):
            prompts_of(text)


def test_ratios_to_measure_are_numbers():
    assert ratios_of("0.3 0 10%") == [0, 0.1, 0.3]
    for text in ("", "many", " ".join(map(str, range(20)))):
        with pytest.raises(InputError):
            ratios_of(text)


def test_figures_state_device_dtype_counts_and_spread(pruned, monkeypatch):
    bench, session, name = pruned
    measured = {}

    def short(model, *, prompt_tokens, new_tokens, **options):
        measured.update(prompt_tokens=prompt_tokens, new_tokens=new_tokens)
        return measure_speed(model, prompt_tokens=4, new_tokens=4, **options)

    monkeypatch.setattr(compare, "measure_speed", short)
    text = "Once upon a time there was a dog. " * 20
    pair = [
        measure_one(title, model, text, None, None)
        for title, model in (("Dense", bench.dense(session).model), (name, bench.pruned("tests", name)))
    ]
    shown = figures_table(pair)
    for part in ("cpu", "float32", "5 runs", f"{pair[0].perplexity.tokens:,} tokens", "median", "first token"):
        assert part in shown
    assert measured == {"prompt_tokens": 64, "new_tokens": 64}
    assert f"{pair[1].model.parameters / pair[0].model.parameters:.2f}x" in shown


def test_a_sweep_is_tabled_as_it_is_drawn(scored):
    bench, session = scored
    loaded = bench.dense(session)
    points = list(
        sweep(
            loaded.model,
            loaded.stats,
            loaded.scores,
            session.recipe,
            [0, 0.5],
            repetitions=1,
            prompt_tokens=4,
            new_tokens=2,
        )
    )
    table = sweep_table(points)
    assert table["ratio"].tolist() == [0, 0.5]
    assert table["weights"].tolist() == [point.sizes.bytes for point in points]
    assert np.isnan(table["perplexity"]).all()
    assert f"{points[1].sizes.parameters:,}" in sweep_figures(points)


# report


def test_the_report_holds_what_the_tab_found(pruned):
    bench, session, name = pruned
    bench.find("tests", "Measured", pd.DataFrame({"n": [1]}), "<p>the figures</p>")
    text = session_report(bench.dense(session), bench.plan(session), bench.variants("tests"), bench.findings("tests"))
    for part in ("tiny-stories", "np-heat", "the figures", name, "numprune prune", "float32", torch.__version__):
        assert part in text


def test_the_numbers_behind_the_pictures_are_complete(pruned):
    bench, session, name = pruned
    loaded, plan = bench.dense(session), bench.plan(session)
    everything = (loaded, plan, bench.variants("tests"), bench.findings("tests"))
    units = numbers(UNITS, *everything)
    assert len(units) == 8 * (8 + 512)
    assert units["kept"].sum() == sum(map(len, plan.keep.values()))
    layers = numbers(LAYERS, *everything)
    assert len(layers) == 16
    first = units[(units.layer == 0) & (units.module == "attention")]
    assert layers.loc[0, "score_50%"] == pytest.approx(first["score"].median())
    assert layers.loc[0, "kept"] == first["kept"].sum()
    errors = numbers(ERRORS, *everything)
    assert set(errors["model"]) == {name}
    assert len(errors) == 16
    with pytest.raises(InputError, match="press Measure"):
        numbers("Measured", *everything)


# page


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


@pytest.fixture(scope="module")
def blocks():
    return build(Workbench(load("tiny-stories", device="cpu")))


def test_every_handler_that_computes_waits_in_one_queue(blocks):
    computing = {"load_and_score", "carry_out", "write", "measure", "diverge", "by_ratio", "run_example", "first_visit"}
    computing |= {
        "suggest_ratios",
        "picture",
        "make",
        "compare_scores",
        "compare_cells",
        "download",
        "upload",
        "load",
        "score",
        "prune",
        "compare",
    }
    found = [fn for fn in blocks.fns.values() if fn.name in computing]
    assert {fn.name for fn in found} == computing
    assert {fn.concurrency_id for fn in found} == {"accelerator"}
    assert {fn.concurrency_limit for fn in found} == {1}


def test_only_the_named_endpoints_are_public(blocks):
    public = {fn.api_name for fn in blocks.fns.values() if fn.api_visibility == "public"}
    assert public == {"load", "score", "prune", "compare", "draw", "export"}


def test_every_control_has_a_label_and_a_line_of_help(blocks):
    controls = (gr.Slider, gr.Dropdown, gr.Number, gr.Radio, gr.Checkbox, gr.CheckboxGroup, gr.Textbox)
    found = [block for block in blocks.blocks.values() if isinstance(block, controls)]
    assert len(found) > 25
    assert [block.label for block in found if not block.info] == []
    assert all(block.label for block in found)


def test_a_slider_move_on_a_seven_billion_model_is_small():
    result = bench_dashboard(Shape(hidden=64, channels=11008, layers=32, heads=32, vocabulary=100), repetitions=1)
    assert all(figure.max < 1_000_000 for figure in result.figures if figure.unit == "bytes")
