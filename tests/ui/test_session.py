import pytest

from numprune.errors import InputError
from numprune.plan.keys import ModuleKey
from numprune.ui.session import HISTORY, LoadRequest, Session, Unit

FRESH = Session(LoadRequest("tiny-stories"))
HEAD = Unit(ModuleKey(1, "attention"), 3)


def test_changes_can_be_undone_and_redone():
    first = FRESH
    second = first.changed("", ratio=0.4)
    third = second.changed("", allocation="uniform")
    assert third.undo().recipe == second.recipe
    assert third.undo().undo().recipe == first.recipe
    assert third.undo().undo().redo().redo().recipe == third.recipe


def test_one_drag_of_a_slider_is_one_step_back():
    session = FRESH
    for ratio in (0.31, 0.35, 0.4):
        session = session.changed("ratio", ratio=ratio)
    assert session.undo().recipe == FRESH.recipe
    session = session.changed("", allocation="uniform").changed("ratio", ratio=0.5)
    assert session.undo().recipe.ratio == 0.4


def test_a_new_change_forgets_what_could_be_redone():
    session = FRESH.changed("", ratio=0.4).undo().changed("", ratio=0.5)
    with pytest.raises(InputError, match="nothing to redo"):
        session.redo()


def test_nothing_to_undo_says_so():
    with pytest.raises(InputError, match="nothing to undo"):
        FRESH.undo()


def test_a_change_that_changes_nothing_is_no_step():
    session = FRESH
    assert session.changed("", ratio=session.recipe.ratio) is session


def test_a_refused_change_leaves_the_session():
    session = FRESH
    with pytest.raises(InputError):
        session.changed("", ratio=1.5)
    assert session.recipe.ratio == 0.3


def test_history_is_bounded():
    session = FRESH
    for step in range(HISTORY + 20):
        session = session.changed("", ratio=step / 1000)
    assert len(session.past) == HISTORY


def test_a_unit_is_forced_one_way_at_a_time():
    kept = FRESH.forced(HEAD, "keep")
    assert kept.recipe.keep == {HEAD.key: (3,)}
    gone = kept.forced(HEAD, "prune")
    assert gone.recipe.keep == {}
    assert gone.recipe.prune == {HEAD.key: (3,)}
    free = gone.forced(HEAD, "auto")
    assert free.recipe.keep == free.recipe.prune == {}


def test_every_change_of_the_recipe_counts_and_nothing_else_does():
    session = FRESH.changed("", ratio=0.4).undo().redo()
    assert session.revision == 3
    assert session.changed("", ratio=0.4).revision == 3
