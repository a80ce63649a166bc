import pytest

from numprune import InputError, Recipe, allocate, perplexity, prune, score, suggest
from numprune.evaluation.uniform import cost_of_uniform


def test_says_the_perplexity_of_equal_and_of_free_counts(model, stats):
    scores = score(model, stats)
    recipe = Recipe(ratio=0.5, uniform=True)
    pruned, free = (prune(model, allocate(scores, recipe.replace(uniform=each)), stats) for each in (True, False))
    rows = stats.rows[:4].long()
    equal, other = (float(perplexity(each, rows, sequence_length=32)) for each in (pruned, free))
    sentence = cost_of_uniform(model, pruned, stats, scores, samples=4)
    assert f"by {equal - other:+.3g}, from the {other:.4g} of free counts to {equal:.4g}" in sentence
    assert "on 124 tokens of the calibration text (4 sequences)" in sentence
    assert equal != other


def test_a_model_without_a_recipe_is_refused(model, stats):
    with pytest.raises(InputError, match="has no recipe to compare with"):
        cost_of_uniform(model, model, stats, score(model, stats))


def test_ratios_cannot_be_suggested_for_equal_counts(model, stats):
    with pytest.raises(InputError, match="differ from layer to layer"):
        suggest(model, stats, score(model, stats), Recipe(ratio=0.3, uniform=True))
