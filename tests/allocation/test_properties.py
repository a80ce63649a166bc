"""Whatever recipe arrives, the plan keeps its promises or the recipe is refused in one sentence."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import answered

from numprune import ModuleKey, Recipe, allocate
from numprune.scoring.table import ModuleScores, ScoreTable

LAYERS, HEADS, CHANNELS = 3, 4, 12
KEYS = [ModuleKey(layer, kind) for layer in range(LAYERS) for kind in ("attention", "mlp")]
UNITS = {key: HEADS if key.kind == "attention" else CHANNELS for key in KEYS}
COST = {"attention": 40, "mlp": 12}
REMAINDER, BESIDE = 7, 11
PARAMETERS = 5000

quick = settings(max_examples=200, deadline=None, derandomize=True)
keys = st.sampled_from(KEYS)
fractions = st.floats(0, 1, exclude_max=True)


def units_of(key, least=0):
    return st.lists(st.integers(0, UNITS[key] - 1), min_size=least, max_size=UNITS[key], unique=True)


by_module = keys.flatmap(lambda key: st.tuples(st.just(key), units_of(key)))
recipes = st.fixed_dictionaries(
    {
        "ratio": fractions,
        "ratios": st.dictionaries(keys, fractions, max_size=3),
        "keep": st.lists(by_module, max_size=2).map(dict),
        "prune": st.lists(by_module, max_size=2).map(dict),
        "allocation": st.sampled_from(["global", "uniform", "paper_printed", "none"]),
        "drop": st.lists(keys | st.integers(0, LAYERS).map(str), max_size=3),
        "round_heads": st.integers(1, 5),
        "round_channels": st.integers(1, 14),
        "uniform": st.booleans(),
        "allow_empty": st.booleans(),
    }
)


@st.composite
def tables(draw):
    modules = {}
    for key in KEYS:
        scores = draw(st.lists(st.floats(-1e6, 1e6), min_size=UNITS[key], max_size=UNITS[key]))
        cost, rest = COST[key.kind], REMAINDER if key.kind == "attention" else 0
        modules[key] = ModuleScores(np.array(scores), np.array(scores), cost, rest)
    beside = draw(st.tuples(*[st.sampled_from([None, BESIDE])] * LAYERS))
    return ScoreTable(modules, "newton", 0.5, "random", "0" * 16, PARAMETERS, beside)


@quick
@given(tables(), recipes)
def test_a_plan_counts_what_it_removes_and_keeps_its_locks(table, asked):
    plan = answered(lambda: allocate(table, Recipe(**asked)))
    if plan is None:
        return
    recipe = plan.recipe
    assert list(plan.keep) == KEYS
    gone = whole = 0
    for key, kept in plan.keep.items():
        assert list(kept) == sorted(set(kept))
        assert all(0 <= unit < UNITS[key] for unit in kept)
        assert kept or recipe.allow_empty or key in recipe.drop, key
        assert not (kept and key in recipe.drop), key
        assert set(recipe.keep.get(key, ())) <= set(kept), key
        if set(recipe.prune.get(key, ())) & set(kept):
            assert any(str(key) in note or "kept" in note or "keep" in note for note in plan.notes), plan.notes
        module = table.modules[key]
        whole += UNITS[key] * module.cost
        gone += (UNITS[key] - len(kept)) * module.cost
        if not kept:
            gone += module.remainder
    empty = [layer for layer in range(LAYERS) if not any(plan.keep[key] for key in KEYS if key.layer == layer)]
    able = [layer for layer in empty if table.beside[layer] is not None]
    assert list(plan.gone) == (able if len(able) < LAYERS else able[1:])
    assert plan.parameters_after == PARAMETERS - gone - BESIDE * len(plan.gone)
    assert plan.prunable_parameters == whole
    widest = max(COST["attention"] * recipe.round_heads, COST["mlp"] * recipe.round_channels)
    if not plan.notes and not recipe.uniform and recipe.allocation == "global":
        removed = sum((UNITS[key] - len(kept)) * COST[key.kind] for key, kept in plan.keep.items())
        assert abs(removed - recipe.ratio * whole) <= widest


@quick
@given(tables(), recipes)
def test_the_same_recipe_and_scores_make_the_same_plan(table, asked):
    first = answered(lambda: allocate(table, Recipe(**asked)))
    if first is not None:
        again = allocate(table, Recipe.from_json(first.recipe.to_json()))
        assert again.keep == first.keep


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([*Recipe().to_dict(), "suggested", "depth", "depth_scorer", "drop", "nothing"])


@quick
@given(st.dictionaries(names, anything, max_size=4))
def test_a_recipe_file_is_read_or_refused_in_one_sentence(changes):
    recipe = answered(lambda: Recipe.from_dict({**Recipe().to_dict(), **changes}))
    assert recipe is None or Recipe.from_json(recipe.to_json()) == recipe


@quick
@given(anything)
def test_what_is_no_recipe_is_refused_in_one_sentence(given_instead):
    assert answered(lambda: Recipe.from_json(json.dumps(given_instead))) is None
