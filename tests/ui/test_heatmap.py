import base64
import io
import json
import re
from html import unescape

import numpy as np
import pytest
from PIL import Image

from numprune.ui.heatmap import (
    COLUMNS,
    GONE,
    KEPT,
    MISSING,
    SHADES,
    STRIP,
    Rows,
    Scale,
    difference_heatmap,
    most_apart,
    score_heatmap,
)


def rows(layers=4, units=8, *, cut=0.3, seed=0, name="channel"):
    generator = np.random.default_rng(seed)
    scores = [generator.normal(0.8, 0.1, units) for _ in range(layers)]
    return Rows(scores, [row < np.quantile(row, cut) for row in scores], name)


def drawn(rows, view="raw", order="index", cut=None, **options):
    return score_heatmap(rows, Scale.of([rows], view, cut), order=order, title="Scores", **options)


def image(html):
    """Palette indices of the first picture."""
    data = re.search(r"<img alt='' src='data:image/png;base64,([^']+)'", html).group(1)
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))))


def behind(html):
    return json.loads(unescape(re.search(r"data-heat='([^']+)'", html).group(1)))


def values(html, name):
    grid = behind(html)["values"][name]
    steps = np.frombuffer(base64.b64decode(grid["data"]), dtype="<u2").astype(float)
    steps[steps == 65535] = np.nan
    return grid["low"] + steps / 65534 * grid["span"]


def test_every_cell_of_a_small_grid_has_its_own_colour_and_value():
    given = rows()
    html = drawn(given)
    assert image(html).shape == (4, 8)
    np.testing.assert_allclose(values(html, "score").reshape(4, 8), np.stack(given.scores), atol=1e-4)
    order = np.argsort(np.stack(given.scores).ravel())
    assert (np.diff(image(html).ravel()[order].astype(int)) >= 0).all()


def test_pruned_cells_are_crossed_and_no_other():
    given = rows(cut=0.5)
    html = drawn(given)
    crossed = {(int(r), int(c)) for c, r in re.findall(r"M(\d+) (\d+)h1v1h-1z", html)}
    assert crossed == {(layer, unit) for layer, row in enumerate(given.pruned) for unit in np.flatnonzero(row)}


def test_by_score_rows_ascend_and_the_line_stands_at_the_cut():
    given = rows(units=100, cut=0.3)
    html = drawn(given, order="sorted")
    shown = values(html, "score").reshape(4, 100)
    np.testing.assert_allclose(shown, np.sort(np.stack(given.scores), axis=1), atol=1e-4)
    line = re.search(r"class='np-over' d='([^']+)'", html).group(1)
    assert line == "M30.000 0V1L30.000 1V2L30.000 2V3L30.000 3V4"


def test_forced_units_stand_left_of_the_line_whatever_their_score():
    scores = np.linspace(0, 1, 10)
    pruned = np.zeros(10, bool)
    pruned[9] = True
    given = Rows([scores], [pruned], "channel")
    assert given.arrangement(0, "sorted")[0] == 9


def test_bins_keep_mean_and_minimum_so_that_outliers_survive():
    given = rows(2, 11008)
    given.scores[1][5000] = -7
    html = drawn(given)
    assert behind(html)["columns"] == COLUMNS
    edges = np.arange(COLUMNS) * 11008 // COLUMNS
    want = np.minimum.reduceat(given.scores[1], edges)
    np.testing.assert_allclose(values(html, "lowest").reshape(2, -1)[1], want, atol=1e-3)
    means = [part.mean() for part in np.split(given.scores[1], edges[1:])]
    np.testing.assert_allclose(values(html, "score").reshape(2, -1)[1], means, atol=1e-3)


def test_many_columns_by_index_show_the_plan_as_a_strip_under_each_layer():
    given = rows(2, 500)
    cells = image(drawn(given))
    assert cells.shape == (2 * (STRIP + 1), 500)
    for layer in range(2):
        strip = cells[layer * (STRIP + 1) + STRIP]
        np.testing.assert_array_equal(strip, np.where(given.pruned[layer], GONE, KEPT))
        assert (cells[layer * (STRIP + 1)] < SHADES).all()


def test_a_layer_without_the_module_or_with_fewer_units_leaves_its_cells_empty():
    given = Rows(
        [np.array([0.5, 0.7]), None, np.array([0.1, 0.2, 0.3])],
        [np.array([True, False]), None, np.zeros(3, bool)],
        "head",
    )
    html = drawn(given)
    cells = image(html)
    assert cells[0, 2] == MISSING
    assert (cells[1] == MISSING).all()
    assert (cells[2] < SHADES).all()
    assert np.isnan(values(html, "score").reshape(3, 3)[1]).all()
    assert given.unit_at(0, 2, "index") is None


@pytest.mark.parametrize("order", ["index", "sorted"])
@pytest.mark.parametrize("units", [8, 700, 1024, 5000])
def test_a_unit_is_found_in_the_cell_that_shows_it(order, units):
    given = rows(2, units)
    wider = Rows([*given.scores, np.zeros(units + 300)], [*given.pruned, np.zeros(units + 300, bool)], "channel")
    for unit in range(0, units, max(1, units // 37)):
        column = wider.column_of(1, unit, order)
        first = wider.unit_at(1, column, order)
        after = wider.unit_at(1, column + 1, order) if column + 1 < wider.bins else None
        places = wider.arrangement(1, order).tolist()
        assert places.index(first) <= places.index(unit)
        assert after is None or after == first or places.index(unit) < places.index(after)


def test_the_selected_unit_is_ringed():
    given = rows()
    assert behind(drawn(given, selected=(2, 5)))["ring"] == [2, 5]
    assert behind(drawn(given))["ring"] is None


def test_ranks_run_from_0_to_1_in_every_layer():
    cells = image(drawn(rows(3, 9), view="rank"))
    for row in cells:
        assert sorted(row.tolist()) == np.rint(np.linspace(0, 1, 9) * (SHADES - 1)).tolist()


def test_raw_and_log_share_one_scale_between_pictures_and_log_clips_nothing():
    low, high = rows(2, 50, seed=1), rows(2, 50, seed=2)
    low.scores[0][0] = -1000.0
    raw, log = Scale.of([low, high], "raw", None), Scale.of([low, high], "log", None)
    everything = np.concatenate([*low.scores, *high.scores])
    assert log.low == -1000
    assert log.high == everything.max()
    assert raw.low > 0
    shown = log.fraction(np.sort(everything))
    assert (np.diff(shown) > 0).all()
    assert shown[0] == 0
    assert shown[-1] == 1


def test_the_colour_bar_says_where_the_plan_cuts():
    scale = Scale("raw", 0.0, 2.0, 1.0, 0.5)
    assert "left:25.0%" in scale.legend()
    assert "cuts at 0.5" in scale.legend()
    assert "cuts" not in Scale("raw", 0.0, 2.0, 1.0, None).legend()


def test_equal_scores_and_empty_models_can_be_drawn():
    same = Rows([np.ones(4)], [np.zeros(4, bool)], "head")
    assert (image(drawn(same)) < SHADES).all()
    assert "figure" in drawn(Rows([None], [None], "head"))


def test_names_are_escaped():
    assert "<script>" not in score_heatmap(
        rows(name="<script>"), Scale.of([rows()], "raw", None), order="index", title="<script>"
    )


@pytest.mark.parametrize("order", ["index", "sorted"])
def test_a_seven_billion_model_fits_a_small_payload(order):
    html = drawn(rows(32, 11008), order=order, cut=0.7)
    assert len(html) < 400_000


def apart(first, second):
    return difference_heatmap(first, second, ("ours", "<theirs>"), most=most_apart([(first, second)]), title="Apart")


def test_differences_of_ranks_are_zero_in_the_middle_and_symmetric():
    first, second = rows(3, 9), rows(3, 9, seed=1)
    ranks = [np.argsort(np.argsort(np.stack(each.scores), axis=1), axis=1) / 8 for each in (first, second)]
    difference = ranks[0] - ranks[1]
    cells = image(apart(first, second)).astype(int)
    middle = (SHADES - 1) / 2
    np.testing.assert_allclose(cells - middle, difference / np.abs(difference).max() * middle, atol=0.51)
    np.testing.assert_allclose(values(apart(first, second), "rank by ours").reshape(3, 9), ranks[0], atol=1e-4)
    assert (image(apart(first, first)) == round(middle)).all()


def test_only_units_one_of_two_methods_removes_are_marked():
    first, second = rows(4, 8, cut=0.5), rows(4, 8, cut=0.5, seed=1)
    html = apart(first, second)
    crossed = {(int(r), int(c)) for c, r in re.findall(r"M(\d+) (\d+)h1v1h-1z", html)}
    differ = np.stack(first.pruned) != np.stack(second.pruned)
    assert crossed == set(zip(*(part.tolist() for part in np.nonzero(differ)), strict=True))
    assert behind(html)["words"] == ["removed by only one of the two", "both agree"]
    assert "&lt;theirs&gt; ranks it higher by" in html
    wide, other = rows(2, 500), rows(2, 500, seed=1)
    strip = image(apart(wide, other))[STRIP :: STRIP + 1]
    np.testing.assert_array_equal(strip == GONE, np.stack(wide.pruned) != np.stack(other.pruned))


def test_a_bin_of_differences_shows_the_largest_and_empty_layers_stay_empty():
    first = Rows([np.arange(4096.0), None], [np.zeros(4096, bool), None], "channel")
    moved = first.scores[0].copy()
    moved[100] = 5000
    second = Rows([moved, None], first.pruned, "channel")
    html = apart(first, second)
    largest = values(html, "largest difference").reshape(2, -1)
    assert largest[0, 100 // 4] == pytest.approx(100 / 4095 - 1, abs=1e-4)
    assert np.isnan(largest[1]).all()
    assert (image(html)[STRIP + 1 :][:STRIP] == MISSING).all()
