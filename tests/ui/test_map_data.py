"""What the map is drawn from, against the scores and the plan themselves."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest

from numprune.evaluation.random_models import Shape
from numprune.plan.keys import ModuleKey
from numprune.ui.bench import synthetic
from numprune.ui.channel import drawn
from numprune.ui.map import picked, ring, table_of
from numprune.ui.map_data import MISSING, STRIP, place_of, plan_data, scores_data, unit_at
from numprune.ui.session import Look, Unit
from numprune.ui.shared import View
from numprune.ui.workbench import Workbench

HEAD, MLP = ModuleKey(2, "attention"), ModuleKey(3, "mlp")


def cells(grid, layers):
    return np.frombuffer(base64.b64decode(grid["cells"]), np.uint8).reshape(layers, grid["bins"])


def values(grid, layers):
    steps = np.frombuffer(base64.b64decode(grid["values"]["data"]), "<u2").reshape(layers, grid["bins"]).astype(float)
    return grid["values"]["low"] + steps / 65534 * grid["values"]["span"]


def test_heads_stand_by_index_and_channels_by_score(view):
    data = scores_data(view.loaded, Look())
    scores = view.loaded.scores.modules
    heads, channels = data["grids"]["attention"], data["grids"]["mlp"]
    span = heads["values"]["span"] / 65534
    np.testing.assert_allclose(values(heads, 8)[2], scores[HEAD].units, atol=span)
    span = channels["values"]["span"] / 65534
    np.testing.assert_allclose(values(channels, 8)[3], np.sort(scores[MLP].units), atol=span)
    by_index = scores_data(view.loaded, Look(order="index"))["grids"]["mlp"]
    np.testing.assert_allclose(values(by_index, 8)[3], scores[MLP].units, atol=span)
    assert (np.diff(cells(channels, 8)[3].astype(int)) >= 0).all()


def test_the_colour_of_a_higher_score_is_never_darker(view):
    everything = np.concatenate([module.units for module in view.loaded.scores.modules.values()])
    for name in ("log", "raw"):
        data = scores_data(view.loaded, Look(view=name, order="index"))
        shades = np.concatenate(
            [cells(data["grids"][kind], 8)[layer] for layer in range(8) for kind in ("attention", "mlp")]
        )
        assert (np.diff(shades[np.argsort(everything, kind="stable")].astype(int)) >= 0).all()
    ranks = cells(scores_data(view.loaded, Look(view="rank"))["grids"]["attention"], 8)
    assert all(sorted(row) == sorted(ranks[0]) for row in ranks)


def test_the_plan_says_which_heads_and_how_many_channels_go(view):
    view = view_of(view, ratios={MLP: 0.5}, keep={HEAD: (1,)}, prune={HEAD: (5,)})
    data = plan_data(view.loaded, view.plan, Look())
    for layer in range(8):
        bits = np.unpackbits(np.frombuffer(base64.b64decode(data["heads"][layer]), np.uint8))[:8].astype(bool)
        np.testing.assert_array_equal(bits, view.plan.removed(ModuleKey(layer, "attention")))
        assert data["gone"]["mlp"][layer] == 512 - len(view.plan.keep[ModuleKey(layer, "mlp")])
    assert data["locks"] == ["3.mlp"]
    assert data["forced"] == {"2.attention.1": "keep", "2.attention.5": "prune"}
    assert data["after"]["parameters"] == view.plan.parameters_after
    assert "strips" not in data


def view_of(view, **values):
    view.workbench.change(view.owner, lambda session: session.changed("", **values))
    return View(view.workbench, view.owner, view.workbench.session(view.owner))


def test_by_index_a_bit_says_where_channels_go(view):
    data = plan_data(view.loaded, view.plan, Look(order="index"))
    bits = np.unpackbits(np.frombuffer(base64.b64decode(data["strips"][3]), np.uint8)).astype(bool)
    np.testing.assert_array_equal(bits[:512], view.plan.removed(MLP))


def test_a_layer_without_a_module_has_nothing_to_show(view):
    modules = {key: module for key, module in view.loaded.scores.modules.items() if key != HEAD}
    loaded = replace(view.loaded, scores=replace(view.loaded.scores, modules=modules))
    data = scores_data(loaded, Look())
    assert data["units"]["attention"][2] == 0
    assert (cells(data["grids"]["attention"], 8)[2] == MISSING).all()
    assert unit_at(loaded, "attention", 2, 0.5, "index") is None


@pytest.mark.parametrize("order", ["sorted", "index"])
def test_a_unit_is_found_where_it_stands(view, order):
    for key, index in ((HEAD, 0), (HEAD, 7), (MLP, 0), (MLP, 511), (MLP, 120)):
        place = place_of(view.loaded, key, index, order)
        assert unit_at(view.loaded, key.kind, key.layer, place, order) == index
    for place in (-0.1, 1.0, float("nan")):
        assert unit_at(view.loaded, "mlp", 3, place, order) is None


def test_a_click_selects_what_stands_there_and_rings_it(view):
    lowest = int(np.argmin(view.loaded.scores.modules[MLP].units))
    unit = picked(view, {"key": "3.mlp", "place": 0.0001})
    assert unit == Unit(MLP, lowest)
    view.workbench.change(view.owner, lambda session: replace(session, selected=unit))
    shown = ring(View(view.workbench, view.owner, view.workbench.session(view.owner)))
    assert (shown["key"], shown["unit"]) == ("3.mlp", lowest)
    assert shown["place"] < 1 / 512


@pytest.mark.parametrize("data", [{}, {"key": "3.mlp"}, {"key": 3, "place": 0.5}, {"key": "3.mlp", "place": True}])
def test_clicks_that_no_page_makes_are_refused(view, data):
    with pytest.raises(Exception, match="unreadable"):
        picked(view, data)


def test_the_numbers_behind_the_map_are_complete(view):
    units = table_of(view, "units")
    assert len(units) == 8 * (8 + 512)
    assert units["kept"].sum() == sum(map(len, view.plan.keep.values()))
    layers = table_of(view, "layers")
    first = units[(units.layer == 0) & (units.module == "attention")]
    assert len(layers) == 16
    assert layers.loc[0, "score_50%"] == pytest.approx(first["score"].median())
    assert layers.loc[0, "kept"] == first["kept"].sum()


@pytest.mark.parametrize("order", ["sorted", "index"])
def test_a_step_of_a_seventy_billion_model_is_small(order):
    loaded = synthetic(Shape(hidden=64, channels=28672, layers=80, heads=64, vocabulary=100))
    bench = Workbench(loaded.model, budget=0)
    bench.put(loaded, "tab")
    bench.enter("tab", bench.fresh(loaded))
    bench.look_by("tab", order=order)
    step = json.dumps(drawn(View(bench, "tab", bench.session("tab"))))
    assert len(step) <= 20_000
    assert STRIP == 512  # as many as map.js unpacks
