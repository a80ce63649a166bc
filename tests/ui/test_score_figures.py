import numpy as np
import pytest
from charts import causal, rows

from numprune.ui.score_figures import (
    BINS,
    HEADS,
    attention_pattern,
    layer_profile,
    layer_row,
    ratio_bars,
    score_distribution,
)


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


def test_prices_that_span_decades_have_a_logarithmic_axis():
    prices = 10.0 ** np.linspace(-4, 2, 600)
    figure = score_distribution(prices[::10], prices, 0.01)
    assert figure.layout.xaxis.type == "log"
    for trace in figure.data:
        assert trace.y[:-1].sum() == pytest.approx(1, abs=1e-5)
        # As many a decade, as many a bin.
        assert trace.y[1:-2].max() < 3 * trace.y[1:-2].mean()
    (line,), (text,) = figure.layout.shapes, figure.layout.annotations
    assert (line.x0, text.x) == (0.01, -2)
    assert layer_profile([prices], [prices]).layout.yaxis.type == "log"
    assert score_distribution(*rows(64, 1000), 0.85).layout.xaxis.type is None


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
