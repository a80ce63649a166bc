"""Edits of the recipe as the page sends them."""

import json
import threading

import pytest

from numprune.errors import InputError
from numprune.plan.keys import ModuleKey
from numprune.plan.presets import METHODS, method_of
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui.channel import apply_all, previewed, situation
from numprune.ui.edits import (
    ALLOCATIONS,
    MOST_EDITS,
    NeedsWork,
    allocation,
    allocation_of,
    applied,
    checked_unit,
    numbered,
    parse_ratio,
    parse_unit,
    ratios_of,
)
from numprune.ui.map_data import plan_data
from numprune.ui.session import Look, Unit

HEAD, MLP = ModuleKey(2, "attention"), ModuleKey(3, "mlp")
OWNER = "tests"


@pytest.fixture
def edit(scored):
    """Applies one edit after the other to a session that has just opened the model."""
    bench, session = scored

    def apply(*edits):
        now = session
        for each in edits:
            now = applied(now, each, situation(bench, now))
        return now

    return apply


def cells(*pairs, **more):
    return {"kind": "cells", "cells": [list(pair) for pair in pairs], **more}


def test_a_ratio_is_taken_and_one_movement_is_one_step_back(edit):
    done = edit(*({"kind": "ratio", "ratio": ratio, "gesture": "ratio 1"} for ratio in (0.31, 0.4, 0.5)))
    assert done.recipe.ratio == 0.5
    assert done.undo().recipe.ratio == 0.3
    again = edit({"kind": "ratio", "ratio": 0.4, "gesture": "a"}, {"kind": "ratio", "ratio": 0.5, "gesture": "b"})
    assert again.undo().recipe.ratio == 0.4


def test_cells_take_fractions_percentages_and_decimal_commas():
    assert [parse_ratio(text) for text in (" 25% ", "0.25", "0,25")] == [0.25] * 3


def test_a_written_cell_is_locked_and_an_emptied_one_free_again(edit):
    assert edit(cells(("3.mlp", "0.25"))).recipe.ratios == {MLP: 0.25}
    assert edit(cells(("3.mlp", "0.25")), cells(("3.mlp", ""))).recipe.ratios == {}


def test_a_lock_holds_a_module_where_the_plan_has_it(edit, scored):
    bench, session = scored
    locked = edit({"kind": "lock", "key": "3.mlp", "on": True})
    more = locked.changed("ratio", ratio=0.6)
    assert bench.plan(more).keep[MLP] == bench.plan(session).keep[MLP]
    assert (
        edit({"kind": "lock", "key": "3.mlp", "on": True}, {"kind": "lock", "key": "3.mlp", "on": False}).recipe.ratios
        == {}
    )


def test_a_pasted_column_or_a_dragged_range_is_one_step_back(edit, scored):
    done = edit(cells(*((f"{layer}.mlp", f"0.{layer}") for layer in range(8))))
    assert len(done.recipe.ratios) == 8
    assert done.undo().recipe == scored[1].recipe


def test_a_unit_is_kept_pruned_and_left_to_its_score(edit):
    force = {"kind": "force", "key": "2.attention", "unit": 5}
    assert edit(force | {"how": "keep"}).recipe.keep == {HEAD: (5,)}
    assert edit(force | {"how": "keep"}, force | {"how": "prune"}).recipe.prune == {HEAD: (5,)}
    assert edit(force | {"how": "prune"}, force | {"how": "auto"}).recipe.prune == {}


def test_undo_redo_and_reset_go_the_same_way(edit, scored):
    ratio = {"kind": "ratio", "ratio": 0.5}
    assert edit(ratio, {"kind": "undo"}).recipe.ratio == 0.3
    assert edit(ratio, {"kind": "undo"}, {"kind": "redo"}).recipe.ratio == 0.5
    changed = edit(ratio, cells(("3.mlp", "0.25")), {"kind": "settings", "name": "healing", "value": 16})
    bench, session = scored
    start = applied(changed, {"kind": "reset"}, situation(bench, changed))
    assert start.recipe == session.recipe
    assert start.undo().recipe == changed.recipe


@pytest.mark.parametrize(
    ("name", "value"),
    [("compensation", "none"), ("damping", 0.1), ("healing", 16), ("round_channels", 64), ("uniform", True)],
)
def test_settings_are_set(edit, name, value):
    assert getattr(edit({"kind": "settings", "name": name, "value": value}).recipe, name) == value


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_allocations_do_what_they_say_and_are_recognised(edit, scored, name):
    bench, session = scored
    done = edit({"kind": "allocation", "allocation": name})
    plan, scores = bench.plan(done), bench.dense(session).scores
    assert allocation_of(done.recipe, scores) == name
    untouched = {key for key in plan.keep if plan.ratio(key) == 0}
    if name in ("attention", "mlp"):
        assert {key for key in plan.keep if key.kind != name} <= untouched
    if name == "ends":
        assert {key for key in plan.keep if key.layer in (0, 7)} <= untouched
    assert allocation_of(done.recipe.replace(ratios={MLP: 0.3}), scores) is None
    with pytest.raises(InputError):
        allocation("magic", scores)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_taken_over_at_once_or_asks_for_its_work(edit, scored, name):
    bench, session = scored
    method = METHODS[name]
    change = {"kind": "method", "method": name}
    if (
        method.chooses
        or method.settings["depth"] != "none"
        or not bench.scored(session, method.applied(session.recipe).scorer)
    ):
        with pytest.raises(NeedsWork):
            edit(change)
    else:
        assert method_of(edit(change).recipe) == name


def test_a_recipe_is_taken_over_and_one_of_another_calibration_or_model_is_refused(edit, scored):
    _, session = scored
    recipe = session.recipe.replace(ratio=0.5, keep={ModuleKey(0, "mlp"): (3,)})
    done = edit({"kind": "recipe", "recipe": recipe.to_dict()})
    assert done.recipe == recipe
    assert done.undo().recipe == session.recipe
    other = recipe.replace(calibration=CalibrationRecipe("c4", 8, 64))
    with pytest.raises(InputError, match="open the model with it first"):
        edit({"kind": "recipe", "recipe": other.to_dict()})
    with pytest.raises(InputError, match="made for"):
        edit({"kind": "recipe", "recipe": recipe.replace(fingerprint="0" * 16).to_dict()})


@pytest.mark.parametrize("text", ["much", "1.5", "-0.1", "nan", "1"])
def test_cells_refuse_what_is_no_ratio(edit, text):
    with pytest.raises(InputError):
        edit(cells(("2.attention", text)))


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"kind": "magic"},
        {"kind": "cells", "cells": 3},
        {"kind": "cells", "cells": [["0.mlp"]]},
        {"kind": "cells", "cells": [["0.mlp", 3]]},
        {"kind": "cells", "cells": [["zero.mlp", "0.1"]]},
        {"kind": "cells", "cells": [["99.mlp", "0.1"]]},
        {"kind": "cells", "cells": [["0.mlp", "0.1"]] * 20000},
        {"kind": "cells", "cells": [["0.mlp", "0.1"]], "gesture": 3},
        {"kind": "lock", "key": "0.mlp", "on": "yes"},
        {"kind": "lock", "key": ["0.mlp"], "on": True},
        {"kind": "force", "key": "0.mlp", "unit": 512, "how": "keep"},
        {"kind": "force", "key": "0.mlp", "unit": True, "how": "keep"},
        {"kind": "force", "key": "0.mlp", "unit": 3, "how": "eat"},
        {"kind": "ratio", "ratio": "0.3"},
        {"kind": "ratio", "ratio": float("nan")},
        {"kind": "settings", "name": "scorer", "value": "taylor"},
        {"kind": "settings", "name": "healing", "value": 1.5},
        {"kind": "settings", "name": "damping", "value": None},
        {"kind": "method", "method": "magic"},
        {"kind": "recipe", "recipe": []},
    ],
)
def test_what_the_page_would_not_send_is_refused(edit, data):
    with pytest.raises(InputError):
        edit(data)


@pytest.mark.parametrize("data", [None, {}, [3], [{"kind": "undo"}], [{"n": True}], [{"n": 1}] * (MOST_EDITS + 1)])
def test_messages_that_are_no_edits_are_refused(data):
    with pytest.raises(InputError):
        numbered(data, 0)


def test_edits_that_arrived_before_are_left_out():
    assert [number for number, _ in numbered([{"n": 1}, {"n": 2}, {"n": 3}], 2)] == [3]


@pytest.mark.parametrize("named", ["99.mlp.0", "0.mlp.512", "0.moe.0", "0.mlp", "x", "0.mlp.-1", "", "1.mlp.2.3"])
def test_units_the_model_does_not_have_are_refused(scored, named):
    bench, session = scored
    scores = bench.dense(session).scores
    with pytest.raises(InputError):
        parse_unit(named, scores)


def test_a_unit_is_named_by_layer_module_and_number(scored):
    bench, session = scored
    scores = bench.dense(session).scores
    assert parse_unit(" 3.mlp.120 ", scores) == checked_unit(scores, "3.mlp", 120) == Unit(MLP, 120)


def test_ratios_to_measure_are_numbers():
    assert ratios_of("0.3 0 10%") == [0, 0.1, 0.3]
    for text in ("", "many", " ".join(map(str, range(20)))):
        with pytest.raises(InputError):
            ratios_of(text)


# What becomes of a message.


def message(*edits, first=1):
    return json.dumps([{**each, "n": first + place} for place, each in enumerate(edits)])


def send(view, text):
    problems = []
    kinds, work = apply_all(view.workbench, OWNER, text, problems)
    return view.workbench.session(OWNER), kinds, work, problems


def test_a_message_is_applied_in_order_and_a_repeated_one_only_once(view):
    lock = {"kind": "cells", "cells": [["2.attention", "0.5"]]}
    text = message({"kind": "ratio", "ratio": 0.4}, lock, {"kind": "undo"})
    session, kinds, work, problems = send(view, text)
    assert (session.recipe.ratio, session.recipe.ratios) == (0.4, {})
    assert (kinds, work, problems) == ({"ratio", "cells", "undo"}, None, [])
    assert send(view, text)[0] == session
    assert send(view, message(lock, first=4))[0].recipe.ratios == {HEAD: 0.5}


def test_two_edits_at_once_are_both_kept(view):
    """Sixty edits of a second, some of them in the same message, some sent again since no answer came."""
    edits = [{"kind": "cells", "cells": [[f"{place % 8}.mlp", f"{place / 100:.2f}"]]} for place in range(60)]
    edits[30] = {"kind": "undo"}
    numbers = [(0, 7), (3, 20), (20, 45), (44, 60), (10, 60)]
    threads = [
        threading.Thread(target=send, args=(view, message(*edits[start:end], first=start + 1)))
        for start, end in numbers
    ]
    for thread in threads:
        thread.start()
        thread.join()
    ratios = view.workbench.session(OWNER).recipe.ratios
    assert ratios == {ModuleKey(place % 8, "mlp"): pytest.approx(place / 100) for place in range(52, 60)}


def test_a_refused_edit_says_why_and_the_others_hold(view):
    bad = {"kind": "cells", "cells": [["0.mlp", "1.5"]]}
    session, _, _, problems = send(
        view, message({"kind": "ratio", "ratio": 0.4}, bad, {"kind": "ratio", "ratio": 0.45})
    )
    assert session.recipe.ratio == 0.45
    assert session.recipe.ratios == {}
    assert problems == ["ratio is 1.5; give a number from 0 up to but not including 1."]
    assert send(view, "{")[3] == ["The page sent something unreadable; reload it."]


def test_an_edit_that_takes_long_is_handed_back(view):
    change = {"kind": "method", "method": "best"}
    session, _, work, problems = send(view, message({"kind": "ratio", "ratio": 0.4}, change))
    assert work == {**change, "n": 2}
    assert (session.recipe.ratio, problems) == (0.4, [])
    assert send(view, message({"kind": "suggest"}, first=3))[2]["kind"] == "suggest"


def test_a_preview_is_what_the_edit_would_make_and_changes_nothing(view):
    token, edit = view.workbench.token(OWNER), {"kind": "cells", "cells": [["3.mlp", "0.75"]]}
    shown = previewed(view.workbench, {"token": token, "edits": [edit]})
    assert shown["gone"]["mlp"][3] == 384
    assert shown["locks"] == ["3.mlp"]
    assert view.workbench.session(OWNER) == view.session
    assert send(view, message(edit))[0].recipe.ratios == {MLP: 0.75}


@pytest.mark.parametrize(
    "data",
    [None, {}, {"token": "guessed", "edits": []}, {"token": None}, {"token": "mine", "edits": [{"kind": "magic"}]}],
)
def test_a_preview_of_a_stranger_or_of_nonsense_is_none(view, data):
    if isinstance(data, dict) and data.get("token") == "mine":
        data = data | {"token": view.workbench.token(OWNER)}
    assert previewed(view.workbench, data) is None


def drop(layer, what):
    return {"kind": "drop", "layer": layer, "what": what}


def test_a_layer_goes_as_a_whole_by_module_or_altogether_and_comes_back(edit):
    def names(session):
        return [str(key) for key in session.recipe.drop]

    assert names(edit(drop(2, "layer"))) == ["2.attention", "2.mlp"]
    assert names(edit(drop(2, "layer"), drop(2, "mlp"), drop(5, "attention"))) == ["2.mlp", "5.attention"]
    assert names(edit(drop(2, "layer"), drop(2, "none"))) == []
    assert edit(drop(2, "layer")).undo().recipe.drop == ()
    # What was set for a module goes with it, and a ratio brings it back.
    kept = {"kind": "force", "key": "2.mlp", "unit": 3, "how": "keep"}
    done = edit(cells(("2.mlp", "0.5"), ("3.mlp", "0.5")), kept, drop(2, "layer"))
    assert {str(key) for key in done.recipe.ratios} == {"3.mlp"}
    assert not done.recipe.keep
    back = edit(drop(2, "layer"), cells(("2.mlp", "0.25")))
    assert names(back) == ["2.attention"]
    assert back.recipe.ratios == {ModuleKey(2, "mlp"): 0.25}


def test_the_plan_of_a_dropped_layer_keeps_the_budget_and_names_it(edit, scored):
    bench, session = scored
    done = edit({"kind": "ratio", "ratio": 0.4}, drop(2, "layer"), drop(4, "attention"))
    plan = bench.plan(done)
    assert plan.gone == (2,)
    assert plan.keep[ModuleKey(4, "attention")] == ()
    assert plan.ratio_reached == pytest.approx(0.4, abs=0.01)
    data = plan_data(bench.dense(session), plan, Look())
    assert data["dropped"] == ["2.attention", "2.mlp", "4.attention"]


@pytest.mark.parametrize(
    "data",
    [
        drop(99, "layer"),
        drop(-1, "layer"),
        drop(True, "layer"),
        drop("2", "layer"),
        drop(2, "half"),
        drop(2, ["layer"]),
        {"kind": "drop"},
        {"kind": "settings", "name": "depth", "value": "rows"},
        {"kind": "settings", "name": "depth", "value": ["modules"]},
    ],
)
def test_drops_the_page_would_not_send_are_refused(edit, data):
    with pytest.raises(InputError):
        edit(data)


def test_a_dropped_module_is_neither_locked_nor_are_its_units_forced_and_the_last_one_stays(edit, scored):
    _, session = scored
    with pytest.raises(InputError, match="dropped as a whole, which a ratio cannot lock"):
        edit(drop(2, "layer"), {"kind": "lock", "key": "2.mlp", "on": True})
    with pytest.raises(InputError, match=r"drops 2\.mlp as a whole and names it in keep too"):
        edit(drop(2, "layer"), {"kind": "force", "key": "2.mlp", "unit": 3, "how": "keep"})
    layers = {key.layer for key in scored[0].dense(session).scores.modules}
    with pytest.raises(InputError, match="leave at least one"):
        edit(*(drop(layer, "layer") for layer in sorted(layers)))


def test_what_goes_by_its_own_score_is_chosen_by_work_and_anew_at_another_ratio(edit):
    for change in ({"kind": "settings", "name": "depth", "value": "modules"}, {"kind": "method", "method": "drop"}):
        with pytest.raises(NeedsWork):
            edit(change)
    assert edit(drop(2, "layer"), {"kind": "settings", "name": "depth", "value": "none"}).recipe.drop
