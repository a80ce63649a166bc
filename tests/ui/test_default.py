"""The method the plan goes over to after a model was opened."""

from dataclasses import replace

import pytest

from numprune.loading import load
from numprune.plan.presets import method_of
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui.session import LoadRequest, Session
from numprune.ui.steps.default import adopted, waits
from numprune.ui.steps.inspect import cut_of
from numprune.ui.steps.report import session_report
from numprune.ui.workbench import Workbench


@pytest.fixture
def workbench():
    """Nothing but the Newton scores is there."""
    return Workbench(load("tiny-stories", device="cpu"))


def opened(bench, scorer="newton", seed=0):
    request = LoadRequest("tiny-stories", "cpu", calibration=CalibrationRecipe("self", 4, 32, seed), scorer=scorer)
    return bench.open(bench.load(request, "tab"), Session())


def method(session):
    return method_of(session.recipe)


def test_the_default_method_waits_for_its_scores_and_keeps_what_was_set(workbench):
    session = opened(workbench).changed("ratio", ratio=0.4)
    assert waits(workbench, session)
    assert method(adopted(workbench, session)) == "paper"
    workbench.score_by(session, "fisher")
    taken = adopted(workbench, session)
    assert method(taken) == "balanced"
    assert (taken.recipe.ratio, taken.past, taken.dense) == (0.4, session.past, session.dense)
    assert not waits(workbench, taken)
    assert adopted(workbench, taken) is taken


def test_the_report_shows_the_scores_of_the_load_and_those_of_the_method(workbench):
    session = opened(workbench)
    workbench.score_by(session, "fisher")
    taken = adopted(workbench, session)
    loaded, plan = workbench.dense(taken), workbench.plan(taken)
    both = session_report(loaded, plan, {}, {}, also=workbench.opened(taken).scores)
    assert "Attention: layer x head, newton" in both
    assert "Attention: layer x head, fisher" in both
    assert "layer x head, newton" not in session_report(loaded, plan, {}, {})
    # Only the scores the plan goes by have a place where it cuts.
    assert cut_of(loaded, plan) == plan.threshold
    assert cut_of(workbench.opened(taken), plan) is None


def test_what_was_chosen_by_hand_stays(workbench):
    by_magnitude = opened(workbench, "magnitude")
    workbench.score_by(by_magnitude, "fisher")
    fresh = opened(workbench)
    workbench.score_by(fresh, "fisher")
    locked = fresh.changed("", ratios=dict.fromkeys(list(workbench.opened(fresh).scores.modules)[:1], 0.5))
    for session in (by_magnitude, locked, fresh.changed("", compensation="none"), fresh.changed("", healing=16)):
        assert not waits(workbench, session)
        assert adopted(workbench, session) is session


def test_a_recipe_starts_again_from_the_default_method_or_from_the_scores_of_the_load(workbench):
    unscored = opened(workbench, seed=1)
    assert workbench.by_default(unscored, unscored.recipe) == unscored.recipe
    workbench.score_by(unscored, "fisher")
    assert workbench.by_default(unscored, unscored.recipe).compensation == "network"
    other = opened(workbench, "magnitude")
    changed = replace(other, recipe=other.recipe.replace(scorer="newton"))
    assert workbench.by_default(changed, changed.recipe) == other.recipe
