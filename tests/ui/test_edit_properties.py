"""Whatever a browser sends, a session changes by the rules or the edit is refused in one sentence."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import answered

from numprune import Recipe
from numprune.ui import edits
from numprune.ui.channel import situation
from numprune.ui.session import Session

quick = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
plain = st.none() | st.booleans() | st.integers(-3, 10**9) | st.floats() | st.text(max_size=6)
names = st.sampled_from(["0.attention", "1.mlp", "99.mlp", "", "x"])
anything = st.recursive(
    plain | names, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
FIELDS = (
    *("ratio", "cells", "gesture", "module", "index", "unit", "locked", "name", "to", "recipe", "method", "value"),
    *("layer", "what"),
)
kinds = st.sampled_from([*edits._APPLY, "nothing"]) | anything


messages = st.tuples(kinds, st.dictionaries(st.sampled_from(FIELDS), anything, max_size=4)).map(
    lambda each: {"kind": each[0], **each[1]}
)


@quick
@given(edit=messages | anything)
def test_an_edit_is_applied_or_refused_in_one_sentence(scored, edit):
    bench, session = scored
    after = answered(lambda: edits.applied(session, edit, situation(bench, session)))
    assert after is None or isinstance(after, Session)


@quick
@given(data=anything)
def test_a_message_is_numbered_or_refused(data):
    found = answered(lambda: edits.numbered(data, 0))
    assert found is None or all(number > 0 for number, _ in found)


@quick
@given(text=st.text(max_size=12) | st.sampled_from(["nan", "1e999", "-3%", "50 %", "0,5;0.2"]))
def test_typed_ratios_are_taken_or_refused_by_the_recipe(text):
    def typed():
        return [Recipe(ratio=ratio).ratio for ratio in edits.ratios_of(text)]

    found = answered(typed)
    assert found is None or all(0 <= ratio < 1 for ratio in found)
