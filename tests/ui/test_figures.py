import numpy as np
import pandas as pd
import pytest
from charts import curves, report, swept

from numprune.ui.figures import divergence_chart, error_bars, methods_chart, sensitivity_curves, sweep_chart


def test_error_bars_show_pruned_modules_only():
    figure = error_bars(report())
    assert list(figure.data[0].x) == ["0 attn"]
    assert list(figure.data[0].y) == [0.5]
    assert figure.data[1].y == pytest.approx([0.2])


def test_divergence_stands_at_its_square_root_and_marks_other_tokens():
    kl, agree = np.array([0.0, 4.0, -1e-9, 0.25]), np.array([True, False, True, False])
    figure = divergence_chart([" a", "<b>", "\n", " "], [("30% <i>", kl, agree)])
    line, marks = figure.data
    np.testing.assert_allclose(line.y, [0, 2, 0, 0.5])
    np.testing.assert_allclose(line.customdata, kl)
    assert list(line.text) == ["a", "&lt;b&gt;", "↵", "␣"]
    assert "<i>" not in line.name + line.hovertemplate
    assert list(marks.x) == [1, 3]
    np.testing.assert_allclose(marks.y, [2, 0.5])
    axis = figure.layout.yaxis
    np.testing.assert_allclose(np.square(axis.tickvals), [float(text) for text in axis.ticktext])
    assert axis.tickvals[0] == 0
    assert axis.range[1] > 2


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-3, 1.0, 50.0])
def test_ticks_suit_every_size_of_divergence(scale):
    kl = scale * np.linspace(0, 1, 10)
    axis = divergence_chart([" a"] * 10, [("30%", kl, kl < 1)]).layout.yaxis
    assert 3 <= len(axis.tickvals) <= 7
    assert np.diff(axis.tickvals).min() > 0


def test_variants_differ_in_colour_dash_and_symbol():
    figure = divergence_chart([" a"] * 200, curves(names="abcd"))
    lines, marks = figure.data[::2], figure.data[1::2]
    assert len({line.line.color for line in lines}) == len({line.line.dash for line in lines}) == 4
    assert len({mark.marker.symbol for mark in marks}) == 4


def test_sweep_is_relative_to_the_lowest_ratio():
    traces = {trace.name: trace for trace in sweep_chart(swept().iloc[::-1]).data}
    assert list(traces) == ["decode", "prefill", "weights", "KV cache", "perplexity"]
    np.testing.assert_allclose(traces["decode"].x, [0, 0.2, 0.5])
    np.testing.assert_allclose(traces["decode"].y, [1, 1.1, 1.5])
    np.testing.assert_allclose(traces["decode"].error_y.array, [0.1, 0.05, 0.05])
    np.testing.assert_allclose(traces["decode"].error_y.arrayminus, [0.05, 0.05, 0.05])
    np.testing.assert_allclose(traces["prefill"].y, [1, 1.5, 2])
    np.testing.assert_allclose(traces["weights"].y, [1, 0.75, 0.5])
    np.testing.assert_allclose(traces["KV cache"].y, [1, 1, 0.25])
    np.testing.assert_allclose(traces["perplexity"].x, [0, 0.5])
    np.testing.assert_allclose(traces["perplexity"].y, [4, 9])


def test_sweep_without_perplexity_or_ratio_zero():
    figure = sweep_chart(swept(perplexity=np.nan)[1:])
    assert "perplexity" not in [trace.name for trace in figure.data]
    assert "ratio 20% = 1" in figure.layout.yaxis.title.text
    assert figure.data[0].y[0] == 1


def test_first_point_of_a_sweep_and_a_model_without_a_cache():
    figure = sweep_chart(swept(kv=0)[:1])
    assert figure.layout.xaxis.range[0] < 0 < figure.layout.xaxis.range[1]
    assert np.isnan(figure.data[3].y).all()


def test_sensitivity_curves_name_modules_and_tell_them_apart_without_colour():
    table = pd.DataFrame(
        {
            "layer": [0, 0, 1, 1],
            "module": ["attention", "attention", "mlp", "mlp"],
            "parameters_removed": [0, 10, 0, 20],
            "share": [0.0, 1.0, 0.0, 1.0],
            "loss_increase": [0.0, 0.5, 0.0, 0.1],
        }
    )
    attention, mlp = sensitivity_curves(table).data
    assert (attention.name, mlp.name) == ("0 attn", "1 mlp")
    assert list(mlp.y) == pytest.approx([0.0, 0.1**0.5])
    assert list(mlp.customdata[1]) == pytest.approx([20, 0.1])
    assert attention.line.dash != mlp.line.dash
    assert attention.marker.symbol != mlp.marker.symbol


def test_methods_chart_shows_every_method_with_its_spread():
    table = pd.DataFrame(
        {
            "method": ["paper", "paper", "best"],
            "ratio": [0.1, 0.3, 0.3],
            "seeds": [3, 3, 3],
            "parameters": [90, 70, 70],
            "measure": [0.04, 0.25, 0.01],
            "lowest": [0.01, 0.16, 0.01],
            "highest": [0.09, 0.36, 0.01],
            "seconds": [1.0, 2.0, 9.0],
        }
    )
    figure = methods_chart(table, "excess loss")
    loss, time, best, _ = figure.data
    assert (loss.name, best.name) == ("paper", "best")
    np.testing.assert_allclose(loss.y, [0.2, 0.5], rtol=1e-6)
    np.testing.assert_allclose(loss.error_y.array, [0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(loss.error_y.arrayminus, [0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(time.y, [1, 2])


def test_methods_chart_draws_published_curves_dashed_beside_ours():
    table = pd.DataFrame(
        {
            "method": ["flap", "flap"],
            "ratio": [0.1, 0.3],
            "seeds": [1, 1],
            "parameters": [90, 70],
            "measure": [0.04, 0.25],
            "lowest": [0.04, 0.25],
            "highest": [0.04, 0.25],
            "seconds": [1.0, 2.0],
        }
    )
    paper = pd.DataFrame(
        {
            "method": ["slicegpt", "flap", "flap"],
            "label": ["SliceGPT, paper", "FLAP, paper", "FLAP, paper"],
            "ratio": [0.3, 0.3, 0.1],
            "measure": [4.0, 0.36, 0.09],
        }
    )
    figure = methods_chart(table, "excess loss", paper=paper)
    traces = {trace.name: trace for trace in figure.data if trace.showlegend is not False}
    assert list(traces) == ["flap", "SliceGPT, paper", "FLAP, paper"]
    ours, theirs = traces["flap"], traces["FLAP, paper"]
    assert (ours.line.dash, theirs.line.dash) == ("solid", "dash")
    assert ours.line.color == theirs.line.color != traces["SliceGPT, paper"].line.color
    np.testing.assert_allclose(theirs.x, [0.1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(theirs.y, [0.3, 0.6], rtol=1e-6)
    np.testing.assert_allclose(theirs.customdata, [0.09, 0.36])
    # The axis reaches as far as they do.
    assert max(figure.layout.yaxis.tickvals) > 2 * 0.6
    plain = methods_chart(table, "excess loss")
    assert [trace.name for trace in plain.data] == ["flap", "flap"]
    assert methods_chart(table, "excess loss", paper=paper.head(0)).to_json() == plain.to_json()
