import numpy as np
import pandas as pd
import pytest

from numprune.ui.figures import (
    BINS,
    HEADS,
    attention_pattern,
    divergence_chart,
    error_bars,
    layer_profile,
    layer_row,
    methods_chart,
    ratio_bars,
    score_distribution,
    sensitivity_curves,
    sweep_chart,
)


def rows(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [None if n is None else generator.normal(0.9, 0.1, n) for n in lengths]


def swept(**columns):
    table = {
        "ratio": [0.0, 0.2, 0.5],
        "decode": [200.0, 220.0, 300.0],
        "decode_low": [190.0, 210.0, 290.0],
        "decode_high": [220.0, 230.0, 310.0],
        "prefill": [1000.0, 1500.0, 2000.0],
        "prefill_low": [900.0, 1400.0, 1900.0],
        "prefill_high": [1100.0, 1600.0, 2100.0],
        "weights": [8e6, 6e6, 4e6],
        "kv": [4096, 4096, 1024],
        "perplexity": [4.0, np.nan, 9.0],
    }
    return pd.DataFrame(table | columns)


def report():
    return pd.DataFrame(
        [
            {"layer": 0, "module": "attention", "units": 8, "kept": 4, "error_before": 0.5, "error_after": 0.2},
            {"layer": 0, "module": "mlp", "units": 8, "kept": 8, "error_before": 0.0, "error_after": 0.0},
        ]
    )


def causal(heads, tokens):
    return np.tril(np.ones((heads, tokens, tokens))) / np.arange(1, tokens + 1)[:, None]


def curves(length=200, names=("30%",)):
    generator = np.random.default_rng(0)
    return [(name, generator.exponential(size=length), generator.random(length) > 0.2) for name in names]


def every_figure(layers=32, channels=11008):
    """All charts, of a large model."""
    heads, mlp = rows(*[32] * layers), rows(*[channels] * layers)
    pruned = np.arange(channels) % 3 == 0
    return {
        "score_distribution": score_distribution(np.concatenate(heads), np.concatenate(mlp), 0.8),
        "layer_profile": layer_profile(heads, mlp),
        "layer_row": layer_row(mlp[0], pruned, 5, "channel"),
        "ratio_bars": ratio_bars([0.3] * layers, [0.5] * layers, [True] * layers, [False] * layers),
        "error_bars": error_bars(report()),
        "divergence_chart": divergence_chart([" token"] * 1024, curves(1024, "abc")),
        "sweep_chart": sweep_chart(swept()),
        "attention_pattern": attention_pattern([" token"] * 48, causal(8, 48), ["head"] * 8),
    }


@pytest.fixture(scope="module")
def figures():
    return every_figure()


def test_backgrounds_are_transparent_and_heights_set(figures):
    for figure in figures.values():
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert 200 <= figure.layout.height <= 1600
        assert figure.layout.title.text is None


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("score_distribution", 16_000),
        ("layer_profile", 16_000),
        ("layer_row", 250_000),
        ("ratio_bars", 16_000),
        ("divergence_chart", 150_000),
        ("sweep_chart", 16_000),
        ("attention_pattern", 150_000),
    ],
)
def test_the_picture_of_a_large_model_is_small(figures, name, limit):
    assert len(figures[name].to_json()) < limit


def test_numbers_travel_as_float32_arrays(figures):
    def check(value, where):
        if isinstance(value, dict):
            for name, part in value.items():
                check(part, f"{where}.{name}")
        elif isinstance(value, np.ndarray) and value.dtype != object:
            assert value.dtype == np.float32, where
        elif isinstance(value, list | tuple | np.ndarray):
            assert not any(isinstance(part, float) for part in value), where

    for name, figure in figures.items():
        for trace in figure.to_plotly_json()["data"]:
            check(trace, name)


def test_distribution_counts_every_unit_and_shows_the_cut():
    attention, mlp = rows(64, 1000)
    figure = score_distribution(attention, mlp, 0.85)
    for trace, values in zip(figure.data, (attention, mlp), strict=True):
        assert len(trace.x) == BINS + 1
        assert trace.y[:-1].sum() == pytest.approx(1, abs=1e-5)
        # A bin in the middle, counted by hand.
        low, high = trace.x[30], trace.customdata[30]
        assert trace.y[30] == pytest.approx(((values >= low) & (values < high)).mean(), abs=1e-3)
    assert len({trace.line.dash for trace in figure.data}) == 2
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == 0.85
    assert figure.layout.annotations[0].text == "cut"


def test_a_long_tail_does_not_squeeze_the_rest():
    _, mlp = rows(1, 1000)
    mlp[:5] = -200
    figure = score_distribution(np.array([]), mlp, None)
    (trace,) = figure.data
    assert trace.x[0] > 0
    assert trace.y[:-1].sum() == pytest.approx(1, abs=1e-5)
    assert not figure.layout.shapes
    outside = int(((mlp < np.percentile(mlp, 5)) | (mlp > np.percentile(mlp, 99.5))).sum())
    assert f"{outside} units farther out" in figure.layout.xaxis.title.text


@pytest.mark.parametrize("threshold", [-3.0, 7.0])
def test_the_cut_is_inside_the_picture(threshold):
    figure = score_distribution(*rows(64, 100), threshold)
    assert figure.data[0].x[0] <= threshold <= figure.data[0].x[-1]


def test_equal_scores_and_no_scores_still_draw():
    score_distribution(np.array([]), np.array([]), None).to_json()
    assert score_distribution(np.ones(3), np.ones(3), 1.0).data[0].y.sum() >= 1
    assert layer_row(np.ones(4), np.zeros(4, bool), None, "head").layout.yaxis.range[0] < 1
    assert layer_profile([None, None], [None, None]).data == ()


def test_profile_shows_the_median_and_leaves_layers_without_the_module_out():
    attention, mlp = rows(4, None, 2), rows(9, 9, 9, seed=1)
    heads, channels = layer_profile(attention, mlp).data
    np.testing.assert_allclose(channels.y, [np.median(row) for row in mlp], rtol=1e-6)
    np.testing.assert_allclose(heads.y, [np.median(attention[0]), np.nan, np.median(attention[2])], rtol=1e-6)
    np.testing.assert_allclose(channels.y + channels.error_y.array, [np.percentile(row, 95) for row in mlp], rtol=1e-6)
    np.testing.assert_allclose(
        channels.y - channels.error_y.arrayminus, [np.percentile(row, 5) for row in mlp], rtol=1e-6
    )
    np.testing.assert_allclose(channels.customdata[:, 3:], [[row.min(), row.max()] for row in mlp], rtol=1e-6)
    assert heads.line.dash != channels.line.dash
    assert heads.marker.symbol != channels.marker.symbol


def test_row_tells_kept_from_pruned_and_rings_the_selected_unit():
    scores, pruned = rows(100)[0], np.arange(100) < 30
    scores[7] = -300
    kept, gone, ring = layer_row(scores, pruned, 7, "channel").data
    np.testing.assert_array_equal(kept.x, np.arange(30, 100))
    np.testing.assert_array_equal(gone.x, np.arange(30))
    assert kept.marker.symbol != gone.marker.symbol
    assert kept.marker.color != gone.marker.color
    assert (list(ring.x), ring.marker.symbol) == ([7], "circle-open")
    # A score far out is drawn at the edge and told as it is.
    assert gone.customdata[7] == -300
    assert ring.y[0] == gone.y[7] > 0
    assert len(layer_row(scores, pruned, None, "channel").data) == 2


def test_ratio_bars_run_from_layer_zero_down_and_hatch_what_was_set_by_hand():
    figure = ratio_bars([0.25, None, 0.5], [0.1, 0.2, 0.0], [True, False, False], [False, False, True])
    heads, channels, *legend = figure.data
    np.testing.assert_allclose(heads.x, [0.25, np.nan, 0.5])
    np.testing.assert_allclose(channels.x, [0.1, 0.2, 0.0], rtol=1e-6)
    assert list(heads.marker.pattern.shape) == ["x", "", ""]
    assert list(channels.marker.pattern.shape) == ["", "", "x"]
    assert heads.offsetgroup != channels.offsetgroup
    assert [entry.name for entry in legend] == ["attention", "MLP", "set by hand"]
    assert all(np.isnan(entry.x).all() for entry in legend)
    assert figure.layout.xaxis.range == (0, 1)
    assert figure.layout.yaxis.range == (2.5, -0.5)


def test_no_legend_for_hatching_when_nothing_was_set_by_hand():
    figure = ratio_bars([0.1], [0.2], [False], [False])
    assert "set by hand" not in [trace.name for trace in figure.data]


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


def test_attention_maps_are_causal_with_the_first_token_on_top():
    weights = causal(3, 5)
    figure = attention_pattern([" the", " dog", " the", "<b>", "\n"], weights, ["Query head 0", "1", "2"])
    assert len(figure.data) == 3
    z = figure.data[1].z
    assert np.isnan(z[np.triu_indices(5, 1)]).all()
    np.testing.assert_allclose(z[np.tril_indices(5)], weights[1][np.tril_indices(5)], rtol=1e-6)
    assert list(figure.data[0].x) == ["the 0", "dog 1", "the 2", "&lt;b&gt; 3", "↵ 4"]
    assert all(axis.autorange == "reversed" for axis in figure.select_yaxes())
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert [note.text for note in figure.layout.annotations] == ["Query head 0", "1", "2"]


def test_attention_of_many_heads_says_what_is_not_drawn():
    figure = attention_pattern([" a"] * 4, causal(HEADS + 3, 4), [str(head) for head in range(HEADS + 3)])
    assert len(figure.data) == HEADS
    assert "3 more heads" in figure.layout.coloraxis.colorbar.title.text


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
