import numpy as np
import pandas as pd
import pytest

from numprune.ui.figures import COLUMNS, attention_heatmap, channel_heatmap, error_bars


def rows(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [None if n is None else rng.normal(size=n) for n in lengths]


def nothing(scores):
    return [None if row is None else np.zeros(len(row), dtype=bool) for row in scores]


def test_attention_heatmap_shows_every_head_and_marks_the_pruned_ones():
    scores, pruned = rows(4, 4), [np.array([0, 1, 0, 0], bool), np.array([1, 0, 0, 1], bool)]
    figure = attention_heatmap(scores, pruned)
    heatmap, crosses = figure.data
    np.testing.assert_allclose(heatmap.z, np.stack(scores), rtol=1e-6)
    assert set(zip(crosses.y, crosses.x, strict=True)) == {(0, 1), (1, 0), (1, 3)}


def test_layers_of_unequal_length_and_without_attention_leave_blank_cells():
    figure = attention_heatmap(rows(4, None, 2), nothing(rows(4, None, 2)))
    z = np.array(figure.data[0].z)
    assert z.shape == (3, 4)
    assert np.isnan(z[1]).all()
    assert np.isnan(z[2, 2:]).all()
    assert np.isfinite(z[2, :2]).all()


def test_rank_view_runs_from_zero_to_one_in_every_layer():
    figure = attention_heatmap([np.array([3.0, -50.0, 4.0])], [np.zeros(3, bool)], view="rank")
    np.testing.assert_allclose(figure.data[0].z, [[0.5, 0.0, 1.0]])


def test_sorted_channels_ascend_and_the_line_stands_at_the_pruned_share():
    scores = rows(100, 100)
    order = [np.argsort(row) for row in scores]
    pruned = nothing(scores)
    pruned[0][order[0][:25]] = True
    pruned[1][order[1][:60]] = True
    figure = channel_heatmap(scores, pruned)
    assert (np.diff(figure.data[0].z, axis=1) >= 0).all()
    np.testing.assert_allclose(figure.data[-1].x, [25, 25, 60, 60])
    np.testing.assert_allclose(figure.data[-1].y, [-0.5, 0.5, 0.5, 1.5])


def test_units_forced_against_their_score_still_stand_on_their_side_of_the_line():
    scores, pruned = [np.arange(10.0)], [np.arange(10) >= 8]
    figure = channel_heatmap(scores, pruned)
    np.testing.assert_allclose(figure.data[0].z[0], [8, 9, 0, 1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_allclose(figure.data[-1].x, [20, 20])


def test_by_index_pruned_channels_are_blank():
    figure = channel_heatmap([np.arange(6.0)], [np.array([0, 1, 0, 0, 1, 0], bool)], order="index")
    z = np.array(figure.data[0].z)[0]
    assert np.flatnonzero(np.isnan(z)).tolist() == [1, 4]
    np.testing.assert_allclose(z[[0, 2, 3, 5]], [0, 2, 3, 5])


def test_wide_layers_are_binned_to_their_means():
    scores = rows(4 * COLUMNS)
    figure = channel_heatmap(scores, nothing(scores), order="index")
    z = np.array(figure.data[0].z)
    assert z.shape == (1, COLUMNS)
    np.testing.assert_allclose(z[0], scores[0].reshape(COLUMNS, 4).mean(1), rtol=1e-5)


def test_the_picture_of_a_large_model_stays_below_a_megabyte():
    scores = rows(*[11008] * 32)
    figure = channel_heatmap(scores, nothing(scores))
    assert len(figure.data[0].z[0]) == COLUMNS
    assert len(figure.to_json()) < 1_000_000


@pytest.mark.parametrize("view", ["raw", "rank"])
def test_equal_scores_still_have_a_colour_range(view):
    figure = attention_heatmap([np.ones(3)], [np.zeros(3, bool)], view=view)
    assert figure.data[0].zmax > figure.data[0].zmin


def test_error_bars_show_pruned_modules_only():
    report = pd.DataFrame(
        [
            {"layer": 0, "module": "attention", "units": 8, "kept": 4, "error_before": 0.5, "error_after": 0.2},
            {"layer": 0, "module": "mlp", "units": 8, "kept": 8, "error_before": 0.0, "error_after": 0.0},
        ]
    )
    figure = error_bars(report)
    assert list(figure.data[0].x) == ["0 attn"]
    assert list(figure.data[0].y) == [0.5]
    assert list(figure.data[1].y) == [0.2]


def test_backgrounds_are_transparent_for_the_dark_page():
    for figure in (attention_heatmap(rows(3), nothing(rows(3))), channel_heatmap(rows(9), nothing(rows(9)))):
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
