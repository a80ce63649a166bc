"""The tab Speed opens what `numprune bench engines --out` wrote."""

import json
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from engine_runs import COMPARISON

from numprune.files import to_json
from numprune.ui.app import compose
from numprune.ui.engine_figures import engine_chart, engine_table
from numprune.ui.report import Section, report_html
from numprune.ui.tabs.speed import BY_ENGINE

TAB = "engines"
REQUEST = SimpleNamespace(session_hash=TAB)


@pytest.fixture
def tab(small):
    """The composed page: its workbench, what its parts share, the handler and the parts it fills."""
    bench, request = small
    bench.enter(TAB, bench.fresh(bench.load(request, "fixture")))
    blocks, shared = compose(bench)
    opened = next(fn.fn for fn in blocks.fns.values() if fn.name == "open_engines")
    parts = blocks.blocks.values()
    table = next(part for part in parts if getattr(part, "elem_id", None) == "np-speed-engines")
    bars = next(part for part in parts if isinstance(part, gr.Plot) and part.label == BY_ENGINE)
    yield bench, shared, opened, table, bars
    bench.release(TAB)


def written(folder, comparison=COMPARISON):
    file = folder / "engines.json"
    file.write_text(to_json(comparison.to_dict()))
    return str(file)


def test_a_file_becomes_a_table_and_bars_and_a_part_of_the_report(tab, tmp_path):
    bench, _, opened, table, bars = tab
    shown = opened(written(tmp_path), REQUEST)
    assert "transformers, batch 8, pruned" in shown[table]
    assert shown[bars].visible
    finding = bench.findings(TAB)[BY_ENGINE]
    assert len(finding.table) == 6
    report = report_html([Section(BY_ENGINE, finding.parts)], title="t", facts={})
    assert "llama.cpp, batch 1, dense" in report


def test_figures_stand_beside_what_sizes_promise():
    table = engine_table(COMPARISON)
    assert "125.0<small>115.0 to 135.0</small>" in table
    assert "1.25x<small>1.20x to 1.30x</small>" in table
    assert "1.50x" in table
    assert table.count("<tr>") == 1 + 2 * 2 + 2 + 1 + 1
    for said in (
        "3 runs of each model",
        "64 prompt and 32 new",
        "2 threads of a processor",
        "transformers 5.23.0 on cpu",
    ):
        assert said in table


def test_whatever_a_file_says_stays_text():
    table = engine_table(COMPARISON)
    assert "not measured: the dense model: heads are &lt;24&gt; wide" in table
    assert "not measured: the pruned model: out of &lt;memory&gt;" in table
    assert "big &lt;b&gt;model&lt;/b&gt;" in table
    hostile = replace(COMPARISON, engines=[replace(COMPARISON.engines[0], engine="<img src=x onerror=alert(1)>")])
    assert "<img" not in engine_table(hostile)
    for trace in engine_chart(hostile).data:
        assert all(name.startswith("&lt;img") for name in trace.x)


def test_bars_are_gains_with_their_range_and_diamonds_promises():
    chart = engine_chart(COMPARISON)
    decode, promised, prefill, _ = chart.data
    assert list(decode.x) == ["transformers, batch 1", "transformers, batch 8", "llama.cpp, batch 1"]
    assert list(decode.y) == [1.25] * 3
    assert decode.error_y.array[0] == pytest.approx(0.05)
    assert list(promised.y) == [1.5] * 3
    assert prefill.y[0] == pytest.approx(1.1)
    assert prefill.error_y.arrayminus[0] == pytest.approx(0.2)


def test_where_nothing_was_measured_the_reasons_stand_alone(tab, tmp_path):
    _, _, opened, table, bars = tab
    nothing = replace(COMPARISON, engines=COMPARISON.engines[2:])
    assert engine_chart(nothing) is None
    shown = opened(written(tmp_path, nothing), REQUEST)
    assert "heads are" in shown[table]
    assert not shown[bars].visible


@pytest.mark.parametrize("text", ["", "{}", "[1]", json.dumps({"kind": "recipe"}), "<html>", "\x00"])
def test_another_file_is_refused_in_a_sentence_and_what_was_there_stays(tab, tmp_path, text):
    bench, _, opened, *_ = tab
    opened(written(tmp_path), REQUEST)
    before = bench.findings(TAB)[BY_ENGINE]
    other = tmp_path / "other.json"
    other.write_text(text)
    with pytest.raises(gr.Error, match=r"other\.json was not written by") as refused:
        opened(str(other), REQUEST)
    assert refused.value.title == "That did not work"
    assert bench.findings(TAB)[BY_ENGINE] is before


def test_another_model_clears_it(tab):
    _, shared, _, table, bars = tab
    updates = shared.updates(shared.view(REQUEST), "opened")
    assert "numprune bench engines" in updates[table]
    assert not updates[bars].visible
