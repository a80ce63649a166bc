from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from numprune.errors import InputError
from numprune.plan.keys import ModuleKey
from numprune.scoring import score
from numprune.ui.dock.rivals import COMPARED, LISTED, Rivalry
from numprune.ui.dock.rivals import compared as numbers
from numprune.ui.session_report import session_report
from numprune.ui.shared import View

HEADS, CHANNELS = ModuleKey(0, "attention"), ModuleKey(3, "mlp")


@pytest.fixture
def compared(scored):
    """A workbench, a session that is compared with magnitude, and both methods at its plan."""
    bench, session = scored
    session = session.changed("", ratio=0.4, keep={HEADS: (1,)}, prune={CHANNELS: (7,)})
    session = replace(session, against="magnitude")
    bench.score_by(session, session.against)
    return bench, session, Rivalry.at(bench.dense(session), bench.plan(session), bench.rival(session))


def test_both_methods_remove_as_many_units_of_every_module_the_lowest_by_their_own_scores(compared):
    _, _, found = compared
    for key, units in found.plan.units.items():
        forced_in, forced_out = ({HEADS: [1]}.get(key, []), {CHANNELS: [7]}.get(key, []))
        for plan, table in ((found.plan, found.loaded.scores), (found.rival_plan, found.rival)):
            free = np.setdiff1d(np.arange(units), forced_in + forced_out)
            lowest = free[np.argsort(table.modules[key].units[free], kind="stable")]
            count = units - len(found.plan.keep[key]) - len(forced_out)
            assert set(np.flatnonzero(plan.removed(key))) == {*lowest[:count].tolist(), *forced_out}


def test_the_rival_s_scores_are_its_own_and_shared_by_sessions(compared):
    bench, session, found = compared
    loaded = bench.dense(session)
    again = score(loaded.model, loaded.stats, scorer="magnitude")
    for key, module in again.modules.items():
        np.testing.assert_array_equal(found.rival.modules[key].units, module.units)
    assert bench.rival(replace(session, past=())) is found.rival
    assert bench.rival(replace(session, against="")) is None


def test_a_rival_goes_with_its_model(compared):
    bench, session, _ = compared
    bench.release("fixture")
    with pytest.raises(InputError, match="No model is open"):
        bench.rival(session)
    bench.load(session.dense, "fixture")
    assert bench.rival(session) is None


def test_the_disputed_units_are_the_ones_a_set_difference_finds(compared):
    _, _, found = compared
    wanted = set()
    for key in found.plan.units:
        ours, theirs = (set(np.flatnonzero(plan.removed(key)).tolist()) for plan in (found.plan, found.rival_plan))
        wanted |= {(key.layer, key.kind, unit, "fisher") for unit in ours - theirs}
        wanted |= {(key.layer, key.kind, unit, "magnitude") for unit in theirs - ours}
    table = found.disputed()
    assert {tuple(row) for row in table[["layer", "module", "unit", "removed by"]].itertuples(index=False)} == wanted
    apart = (table["rank fisher"] - table["rank magnitude"]).abs()
    assert apart.is_monotonic_decreasing
    removed = sum(int(found.plan.removed(key).sum()) for key in found.plan.units)
    assert f"Of the {removed:,} units the plan removes {removed - len(wanted) // 2:,} would also go" in found.figures()


def test_rank_correlations_are_those_pandas_finds(compared):
    _, _, found = compared
    table = found.table()
    assert len(table) == 8 * (8 + 512)
    shown = found.figures()
    for layer in (0, 5):
        part = table[(table.layer == layer) & (table.module == "mlp")]
        value = part["score_fisher"].corr(part["score_magnitude"], method="spearman")
        row = shown.split(f"<th scope='row'>{layer}</th>")[1].split("</tr>")[0]
        assert f"<td>{value:.2f}</td>" in row


def test_the_numbers_and_the_report_hold_the_comparison(compared):
    bench, session, found = compared
    everything = (bench.dense(session), bench.plan(session), {}, {}, bench.rival(session))
    pd.testing.assert_frame_equal(numbers(View(bench, "tests", session)), found.table())
    text = session_report(*everything)
    assert f"{COMPARED}: fisher and magnitude" in text
    assert text.count("class='np-heat'") == 4
    assert text.count("<td>magnitude</td>") <= LISTED


def test_the_pictures_hold_each_method_s_own_scores_and_choices(compared):
    _, _, found = compared
    key = ModuleKey(3, "attention")
    for rows, table, plan in zip(
        found.rows("attention"), (found.loaded.scores, found.rival), (found.plan, found.rival_plan), strict=True
    ):
        assert rows.name == "head"
        np.testing.assert_array_equal(rows.scores[3], table.modules[key].units)
        np.testing.assert_array_equal(rows.pruned[3], plan.removed(key))
