import json
import re
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import pytest
import transformers
from cells import DENSE

from numprune.errors import InputError
from numprune.plan.presets import method_of
from numprune.plan.recipe import CalibrationRecipe, Recipe
from numprune.ui.cells import cells_chart, cells_table, edits_of, one_run, points_of, recipe_of, seeds_of

PRUNED = replace(
    DENSE, method="paper", ratio=0.2, reached=0.21, parameters=80, seconds=3.0, nll=1.25, perplexity=3.49, kl=0.5
)
OWN = Recipe(
    model="m",
    fingerprint="abc",
    calibration=CalibrationRecipe("self", 4, 32),
    ratio=0.6,
    ratios={"0.mlp": 0.5},
    keep={"1.mlp": (0,)},
    damping=0.02,
    round_channels=8,
)


def test_seeds_are_whole_numbers_without_repetition():
    assert seeds_of("2, 0 1;0") == [2, 0, 1]
    for text in ("", "one", "1.5", "-1", " ".join(map(str, range(11)))):
        with pytest.raises(InputError, match="whole numbers"):
            seeds_of(text)


def test_a_table_has_the_spread_over_seeds_and_no_empty_columns():
    shown = cells_table([DENSE, PRUNED, replace(PRUNED, seed=1, nll=1.75)])
    assert "<td>0.5000 (0.2500 to 0.7500)</td>" in shown
    assert "perplexity 2.718 over 50 tokens" in shown
    assert "calibration seeds 0, 1" in shown
    assert "Decode" not in shown
    assert "Recognised" not in shown
    assert "Decode" in cells_table([DENSE, replace(PRUNED, decode=9.0)])


def test_images_are_told_by_their_distance():
    drawn = {"tokens": None, "nll": None, "perplexity": None, "kl": None, "images": 1000, "recognised": 0.5}
    cells = [replace(DENSE, fid=1.0, **drawn), replace(PRUNED, fid=2.5, **drawn)]
    shown = cells_table(cells)
    assert "<td>2.5000</td>" in shown
    assert "1.0000 over 1,000 images" in shown
    assert "50.0%" in shown
    assert points_of(cells, OWN) == []


def test_there_is_no_picture_of_the_dense_model_alone():
    assert cells_chart([DENSE]) is None
    assert "<tbody></tbody>" in cells_table([DENSE])
    assert [trace.name for trace in cells_chart([DENSE, PRUNED]).data] == ["paper", "paper"]


def test_the_paper_s_curves_stand_beside_the_cells_of_its_models():
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = transformers.LlamaConfig(**shape, num_key_value_heads=32, vocab_size=32000)
    llama = SimpleNamespace(name="m", recipe=None, config=config)
    figure = cells_chart([DENSE, replace(PRUNED, data="wikitext2")], llama)
    assert {trace.line.dash for trace in figure.data if trace.line.dash} >= {"solid", "dash"}
    assert "LLaMA-7B on wikitext2" in figure.layout.title.text
    other = SimpleNamespace(name="another", recipe=None, config=config)
    assert cells_chart([DENSE, PRUNED], other).layout.title.text is None


def test_a_file_of_several_runs_is_not_opened():
    assert one_run([DENSE, PRUNED]) == [DENSE, PRUNED]
    for cells in ([], [DENSE, replace(PRUNED, run="s")]):
        with pytest.raises(InputError, match="several runs"):
            one_run(cells)


@pytest.mark.parametrize("method", ["paper", "balanced", "flap", "osscar", "random"])
def test_a_cell_s_recipe_is_the_method_s_with_what_all_of_them_share(method):
    recipe = recipe_of(method, 0.4, OWN)
    assert method_of(recipe) == method
    assert (recipe.ratio, recipe.ratios, recipe.keep) == (0.4, {}, {})
    assert (recipe.damping, recipe.round_channels) == (0.02, 8)
    assert (recipe.model, recipe.fingerprint, recipe.calibration) == ("m", "abc", OWN.calibration)


def test_methods_whose_ratios_the_model_suggests_are_asked_for_anew():
    assert recipe_of("best", 0.4, OWN) is None
    assert edits_of("best", 0.4, OWN) == [{"kind": "ratio", "ratio": 0.4}, {"kind": "method", "method": "best"}]
    assert edits_of("a method of tomorrow", 0.4, OWN) == []


def test_methods_open_their_recipes_where_they_are_the_page_s_model_s():
    cells = [DENSE, PRUNED, replace(PRUNED, method="<new>")]
    shown = cells_table(cells, OWN)
    (edits,) = [json.loads(unescape(text)) for text in re.findall(r"data-edits='([^']*)'", shown)]
    assert edits == [{"kind": "recipe", "recipe": recipe_of("paper", 0.2, OWN).to_dict()}]
    assert "aria-label='Open the recipe of paper at 20%'" in shown
    assert "&lt;new&gt;" in shown
    assert "data-edits" not in cells_table(cells)


def test_losses_become_points_of_the_frontier():
    cells = [DENSE, PRUNED, replace(PRUNED, seed=1, nll=1.75), replace(PRUNED, method="best", nll=1.5)]
    paper, best = points_of(cells, OWN)
    assert (paper.name, paper.reached, paper.loss) == ("20% paper, among methods", 0.21, 0.5)
    assert paper.recipe == recipe_of("paper", 0.2, OWN)
    assert (best.loss, best.recipe) == (0.5, None)
    # Without the dense model there is nothing to take the difference to.
    assert points_of([PRUNED], OWN) == []
