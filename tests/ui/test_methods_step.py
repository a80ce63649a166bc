from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import gradio as gr
import pytest
import transformers
from cells import DENSE
from numprune.ui.steps.methods import BY_METHOD, cells_chart, cells_table, common_recipe, one_run, seeds_of

from numprune.cli import main
from numprune.errors import InputError
from numprune.evaluation import measurement, methods
from numprune.evaluation.cells import read_cells
from numprune.evaluation.measurement import Bench, run_of
from numprune.models import held_out_text
from numprune.ui.app import compose
from numprune.ui.session import Session
from numprune.ui.workbench import Workbench

PRUNED = replace(DENSE, method="paper", ratio=0.2, parameters=80, seconds=3.0, nll=1.25, perplexity=3.49, kl=0.5)


def test_seeds_are_whole_numbers_without_repetition():
    assert seeds_of("2, 0 1;0") == [2, 0, 1]
    for text in ("", "one", "1.5", "-1", " ".join(map(str, range(11)))):
        with pytest.raises(InputError, match="whole numbers"):
            seeds_of(text)


def test_a_table_has_the_spread_over_seeds_and_no_empty_columns():
    shown = cells_table([DENSE, PRUNED, replace(PRUNED, seed=1, nll=1.75)])
    assert "<td>0.5000 (0.2500 to 0.7500)</td>" in shown
    assert "perplexity 2.718 over 50 tokens" in shown
    assert "calibration seeds 0, 1" in shown
    assert "Decode" not in shown
    assert "Recognised" not in shown
    assert "Decode" in cells_table([DENSE, replace(PRUNED, decode=9.0)])


def test_images_are_told_by_their_distance():
    drawn = {"tokens": None, "nll": None, "perplexity": None, "kl": None, "images": 1000, "recognised": 0.5}
    shown = cells_table([replace(DENSE, fid=1.0, **drawn), replace(PRUNED, fid=2.5, **drawn)])
    assert "<td>2.5000</td>" in shown
    assert "1.0000 over 1,000 images" in shown
    assert "50.0%" in shown


def test_there_is_no_picture_of_the_dense_model_alone():
    assert cells_chart([DENSE]) is None
    assert "<tbody></tbody>" in cells_table([DENSE])
    assert [trace.name for trace in cells_chart([DENSE, PRUNED]).data] == ["paper", "paper"]


def test_the_paper_s_curves_stand_beside_the_cells_of_its_models():
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = transformers.LlamaConfig(**shape, num_key_value_heads=32, vocab_size=32000)
    llama = SimpleNamespace(name="m", recipe=None, config=config)
    figure = cells_chart([DENSE, replace(PRUNED, data="wikitext2")], llama)
    assert {trace.line.dash for trace in figure.data if trace.line.dash} >= {"solid", "dash"}
    assert "LLaMA-7B on wikitext2" in figure.layout.title.text
    other = SimpleNamespace(name="another", recipe=None, config=config)
    assert cells_chart([DENSE, PRUNED], other).layout.title.text is None


def test_a_tab_keeps_every_run_and_shows_the_last(small):
    bench = small[0]
    other = replace(PRUNED, run="s")
    bench.keep_cells("cells", [DENSE])
    bench.keep_cells("cells", [other])
    assert bench.cells("cells") == [other]
    bench.keep_cells("cells", [DENSE, PRUNED])
    assert bench.cells("cells") == [DENSE, PRUNED]
    assert bench.cells("cells", "s") == [other]
    assert bench.cells("cells", "t") == bench.cells("somebody else") == []
    bench.release("cells")
    assert bench.cells("cells") == []


def test_a_file_of_several_runs_is_not_opened():
    assert one_run([DENSE, PRUNED]) == [DENSE, PRUNED]
    for cells in ([], [DENSE, replace(PRUNED, run="s")]):
        with pytest.raises(InputError, match="several runs"):
            one_run(cells)


def test_locks_and_ratios_of_the_page_are_not_shared_by_the_methods(scored):
    _, session = scored
    key = next(iter(Workbench.plan(scored[0], session).keep))
    locked = session.changed("", ratios={key: 0.5}, keep={key: (0,)}, damping=0.02, ratio=0.6)
    recipe = common_recipe(locked)
    assert (recipe.ratios, recipe.keep, recipe.damping) == ({}, {}, 0.02)
    assert recipe.calibration == session.dense.calibration


@pytest.fixture
def few_words(monkeypatch):
    """Whatever is to be measured on, a few words stand for it."""
    words = ["Once upon a time there was a little dog."]
    for name in ("perplexity", "divergence"):
        real = getattr(measurement, name)
        short = partial(lambda real, *models_and_data, **options: real(*models_and_data[:-1], words, **options), real)
        monkeypatch.setattr(measurement, name, short)


def test_a_stopped_comparison_keeps_its_cells_and_goes_on_with_the_missing_ones(scored, few_words, monkeypatch):
    bench, session = scored
    blocks, page = compose(bench)
    handler = next(fn.fn for fn in blocks.fns.values() if fn.name == "compare_cells")
    part, images = page.compare.methods, page.compare.images
    given = {
        page.session: session,
        page.compare.own_text: "",
        images.samples: 2,
        images.guidance: 4,
        part.methods: ["magnitude", "random"],
        part.ratios: "0 0.3",
        part.seeds: "0",
        part.repetitions: 0,
    }
    tab = SimpleNamespace(session_hash="stopping")
    run = handler(given, tab, lambda *_, **__: None)
    next(run)
    next(run)
    page.jobs.stop("stopping")
    with pytest.raises(gr.Error) as stopped:
        next(run)
    assert stopped.value.title == "Stopped"
    assert [cell.method for cell in bench.cells("stopping")] == ["dense", "magnitude"]
    pruned = []
    real = methods.pruned_by
    monkeypatch.setattr(methods, "pruned_by", lambda *args, **kw: pruned.append(args[2]) or real(*args, **kw))
    *_, last = handler(given, tab, lambda *_, **__: None)
    assert pruned == ["random"]
    assert [cell.method for cell in bench.cells("stopping")] == ["dense", "magnitude", "random"]
    assert "random" in last[part.figures]
    assert bench.findings("stopping")[BY_METHOD].table["method"].tolist() == ["dense", "magnitude", "random"]
    bench.release("stopping")


def test_the_command_line_s_cells_are_of_the_page_s_run(scored, few_words, tmp_path):
    bench, session = scored
    file = tmp_path / "cells.csv"
    flags = ["--samples", "4", "--sequence-length", "32", "--repetitions", "0", "--device", "cpu", "--quiet"]
    line = ["sweep", "tiny-stories", "--methods", "magnitude", "--ratios", "0.5", "--out", str(file), *flags]
    assert main(line) == 0
    fresh = Session(dense=session.dense, recipe=session.recipe)
    own = Bench(data=held_out_text(), sequence_length=32, images=1000, drawing={"cfg_scale": 4.0, "top_k": 0})
    run = run_of(bench.dense(session).model, common_recipe(fresh), own)
    assert {cell.run for cell in one_run(read_cells(file))} == {run}
