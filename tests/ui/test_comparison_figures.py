"""What is measured of a model, and the columns it is shown in."""

import re

import pytest

from numprune.errors import InputError
from numprune.evaluation.speed_comparison import compare_speed
from numprune.generation import Sampling, generate
from numprune.ui import engine
from numprune.ui.comparison import (
    DENSE,
    Written,
    columns,
    loss_added,
    measure_models,
    measured_table,
    prompts_of,
    write_all,
    written_table,
)
from numprune.ui.dock.result import small_print, variants_table
from numprune.ui.shared import View
from numprune.ui.side import models_of, side_by_side

TEXT = "Once upon a time there was a dog. " * 20


@pytest.fixture
def models(pruned):
    bench, session, name = pruned
    return models_of(View(bench, "tests", session), [name])


@pytest.fixture
def measured(models, monkeypatch):
    few = {"prompt_tokens": 4, "new_tokens": 4}
    monkeypatch.setattr(engine, "compare_speed", lambda models, **given: compare_speed(models, **given | few))
    return {each.name: each for each in measure_models(models, TEXT, None, None)}


def test_every_model_writes_every_prompt_as_it_would_alone(models):
    prompts = ["Once upon a time", "The cat"]
    *_, last = write_all(models, prompts, Sampling(max_new_tokens=12, seed=3), None)
    for name, model in models.items():
        assert last.texts[name] == generate(model, prompts, max_new_tokens=12, seed=3)
    table = written_table(last)
    assert len(table) == 4
    assert set(table["seed"]) == {3}


def test_prompts_are_lines():
    assert prompts_of(" One \n\n two\n") == ["One", "two"]
    for text in ("", " \n", "x\n" * 9):
        with pytest.raises(InputError):
            prompts_of(text)


def test_figures_state_device_dtype_counts_and_spread_and_are_set_against_the_dense_model(measured):
    first, second = measured.values()
    names = list(measured)
    shown = columns(names, None, measured, predicted={names[1]: 0.041}, figures=True)
    for part in ("cpu", "float32", "3 runs", f"{first.perplexity.tokens:,} tokens", "median", "first token"):
        assert part in shown
    assert f"{second.model.parameters / first.model.parameters:.2f}x" in shown
    added = loss_added(first.perplexity, second.perplexity)
    assert added == pytest.approx(second.perplexity.nll - first.perplexity.nll)
    assert f"({added:+.3f} nats, +0.041 predicted)" in shown
    assert f"<b>{second.decode_gain[0]:.2f}×</b>" in shown
    for gain in (second.decode_gain, second.prefill_gain):
        assert f"{gain[0]:.2f}x</dd>" in shown
    assert measured_table(list(measured.values()))["parameters"].tolist() == [
        first.model.parameters,
        second.model.parameters,
    ]


def test_a_perplexity_that_is_known_is_not_measured_again(models, measured, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(engine, "perplexity", refuse)
    known = {name: each.perplexity for name, each in measured.items()}
    assert [each.perplexity for each in measure_models(models, TEXT, None, None, known)] == list(known.values())


def test_every_model_has_its_column_with_its_figures_below(measured):
    names = list(measured)
    written = Written(("Once",), Sampling(), {name: ["Once more"] for name in names})
    shown = columns(names, written, measured, predicted={}, figures=True)
    articles = re.findall(r"<article class='np-text' aria-label='([^']+)'", shown)
    figures = re.findall(r"<dl aria-label='Figures of ([^']+)'", shown)
    assert articles == figures == names
    assert shown.count("--n:2") == 2
    assert columns(names, None, {}, predicted={}, figures=True) == ""


def test_nothing_stands_where_nothing_was_made(view, pruned):
    _, _, name = pruned
    assert side_by_side(view, [name], figures=True) == ""
    view.workbench.remove("tests", name)
    with pytest.raises(InputError, match="press Prune and compare"):
        models_of(view, [])


def test_measured_losses_are_points_of_the_frontier(view, measured):
    bench = view.workbench
    bench.keep_measured("tests", *measured.values())
    (point,) = bench.points("tests")
    dense, other = measured.values()
    assert point.loss == pytest.approx(other.perplexity.nll - dense.perplexity.nll)
    assert point.reached == pytest.approx(view.plan.ratio_reached, abs=1e-6)
    assert point.recipe.ratio == 0.3
    bench.keep_measured("tests", *measure_models({DENSE: dense.model}, "Another text, a story. " * 9, None, None))
    assert list(bench.measured("tests")) == [DENSE]


def test_texts_of_the_same_prompts_stand_beside_each_other_and_others_are_new(view):
    bench, one = view.workbench, Sampling(seed=1)
    bench.keep_written("tests", Written(("Once",), one, {DENSE: ["Once a"]}))
    bench.keep_written("tests", Written(("Once",), one, {"30%": ["Once b"]}))
    assert list(bench.written("tests").texts) == [DENSE, "30%"]
    bench.keep_written("tests", Written(("Once",), Sampling(seed=2), {DENSE: ["Once c"]}))
    assert bench.written("tests").texts == {DENSE: ["Once c"]}


def test_pruned_models_are_listed_with_counted_sizes_and_errors(pruned):
    bench, _, name = pruned
    model = bench.pruned("tests", name)
    shown = variants_table(bench.variants("tests"))
    assert f"{model.parameters:,}" in shown
    before, after = map(float, re.search(r"([\d.]+) → ([\d.]+)", shown).groups())
    assert 0 < after < before
    line = small_print(name, model)
    assert "on cpu in float32" in line
    assert f"{before:.3f} without compensation, {after:.3f} as pruned" in line
