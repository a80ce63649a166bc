import re

import pytest

from numprune.errors import InputError
from numprune.plan.keys import ModuleKey
from numprune.ui.ratios import Edit, edited, parse_ratio, ratio_table, ratios_by_layer
from numprune.ui.session import Session

HEAD, MLP = ModuleKey(2, "attention"), ModuleKey(3, "mlp")


def test_the_table_shows_the_plan_and_marks_what_is_locked(scored):
    bench, session = scored
    session = edited(session, bench.plan(session), Edit(((HEAD, "0.5"),)))
    plan = bench.plan(session)
    html = ratio_table(plan, 8, "head")
    assert html.count("data-cell=") == 16
    assert re.search(r"data-cell='2.attention' value='0.500'", html)
    assert "4 of 8" in html
    assert re.findall(r"data-lock='([^']+)' [^>]*checked", html) == ["2.attention"]


def test_cells_take_fractions_percentages_and_decimal_commas():
    assert [parse_ratio(text) for text in (" 25% ", "0.25", "0,25")] == [0.25] * 3


def test_an_emptied_cell_is_free_again(scored):
    bench, session = scored
    plan = bench.plan(session)
    locked = edited(session, plan, Edit(((MLP, "0.25"),)))
    assert locked.recipe.ratios == {MLP: 0.25}
    assert edited(locked, plan, Edit(((MLP, ""),))).recipe.ratios == {}


def test_a_lock_holds_a_module_where_the_plan_has_it(scored):
    bench, session = scored
    plan = bench.plan(session)
    locked = edited(session, plan, Edit(lock=(MLP, True)))
    more = locked.changed("ratio", ratio=0.6)
    assert bench.plan(more).keep[MLP] == plan.keep[MLP]
    assert edited(locked, plan, Edit(lock=(MLP, False))).recipe.ratios == {}


def test_a_pasted_column_is_one_step_back(scored):
    bench, session = scored
    cells = tuple((ModuleKey(layer, "mlp"), f"0.{layer}") for layer in range(8))
    done = edited(session, bench.plan(session), Edit(cells))
    assert len(done.recipe.ratios) == 8
    assert done.undo().recipe == session.recipe


@pytest.mark.parametrize("text", ["much", "1.5", "-0.1", "nan", "1"])
def test_cells_refuse_what_is_no_ratio(scored, text):
    bench, session = scored
    with pytest.raises(InputError):
        edited(session, bench.plan(session), Edit(((HEAD, text),)))


def test_modules_the_model_does_not_have_are_refused(scored):
    bench, session = scored
    with pytest.raises(InputError, match=r"no 99\.mlp"):
        edited(session, bench.plan(session), Edit(((ModuleKey(99, "mlp"), "0.5"),)))


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"cells": 3},
        {"cells": [["0.mlp"]]},
        {"cells": [["0.mlp", 3]]},
        {"cells": [["zero.mlp", "0.1"]]},
        {"cells": [["0.mlp", "0.1"]] * 20000},
        {"lock": ["0.mlp", "yes"]},
        {"lock": "0.mlp"},
    ],
)
def test_what_the_page_would_not_send_is_refused(data):
    with pytest.raises(InputError):
        Edit.parse(data)


def test_what_the_page_sends_is_read():
    assert Edit.parse({"cells": [["2.attention", "0.5"]]}) == Edit(((HEAD, "0.5"),))
    assert Edit.parse({"lock": ["3.mlp", True]}) == Edit((), (MLP, True))


def test_ratios_by_layer_say_which_are_locked(scored):
    bench, session = scored
    session = edited(session, bench.plan(session), Edit(((HEAD, "0.5"),)))
    ratios, locked = ratios_by_layer(bench.plan(session), 8, "attention")
    assert ratios[2] == 0.5
    assert locked == [layer == 2 for layer in range(8)]


def test_an_untouched_session_stays_the_same_object(scored):
    bench, session = scored
    assert edited(session, bench.plan(session), Edit()) is session
    assert isinstance(session, Session)
