import json
import re

import numpy as np
import pytest

from numprune import CalibrationRecipe, InputError, ModuleKey, Recipe, preset
from numprune.plan.presets import method_of

FULL = {
    "model": "tiny-stories",
    "fingerprint": "0123456789abcdef",
    "calibration": CalibrationRecipe(data="wikitext2", samples=3, sequence_length=17, seed=5),
    "removal": "units",
    "scorer": "newton_boxed",
    "allocation": "uniform",
    "ratio": 0.123456789012345,
    "ratios": {ModuleKey(1, "mlp"): 0.5, ModuleKey(0, "attention"): 0.25},
    "suggested": True,
    "keep": {ModuleKey(0, "mlp"): (3, 1)},
    "prune": {ModuleKey(0, "mlp"): (0, 2), ModuleKey(2, "attention"): (4,)},
    "swaps": 4,
    "compensation": "none",
    "damping": 0.05,
    "scarcity": 50.0,
    "healing": 3,
    "round_heads": 2,
    "round_channels": 64,
    "uniform": True,
    "allow_empty": True,
}


def refused(changes, says):
    """A recipe's JSON with some values changed must be refused."""
    with pytest.raises(InputError, match=says) as caught:
        Recipe.from_dict({**Recipe().to_dict(), **changes})
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(**FULL)], ids=["defaults", "everything set"])
def test_json_round_trip(recipe, tmp_path):
    assert Recipe.from_json(recipe.to_json()) == recipe
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert Recipe.read(tmp_path / "recipe.json") == recipe
    assert Recipe.from_json(recipe.to_json()).to_json() == recipe.to_json()


def test_json_names_everything_and_the_version():
    plain = json.loads(Recipe(**FULL).to_json())
    assert plain["version"] == 3
    assert set(plain) == {"version", "method", *FULL} - {"removal"}
    assert plain["ratios"] == {"0.attention": 0.25, "1.mlp": 0.5}
    assert plain["keep"] == {"0.mlp": [1, 3]}
    assert plain["calibration"] == {"data": "wikitext2", "samples": 3, "sequence_length": 17, "seed": 5, "bos": True}


def test_what_is_left_out_has_its_default():
    assert Recipe.from_json('{"version": 3, "ratio": 0.2}') == Recipe(ratio=0.2)


def test_a_recipe_of_version_1_was_calibrated_without_bos_in_every_sequence():
    earlier = Recipe.from_json('{"version": 1, "calibration": {"data": "c4"}}')
    assert earlier == Recipe(calibration=CalibrationRecipe("c4", bos=False), scarcity=100)
    assert Recipe.from_json(earlier.to_json()) == earlier
    assert Recipe.from_json('{"version": 1}').calibration.bos is False


@pytest.mark.parametrize("version", [1, 2])
def test_a_recipe_of_versions_before_3_was_fitted_with_a_scarcity_of_100(version):
    assert Recipe.from_dict({"version": version}).scarcity == 100
    assert Recipe.from_dict({"version": version, "scarcity": 500}).scarcity == 500


def test_modules_may_be_named_by_text_key_or_tuple():
    expected = Recipe(ratios={ModuleKey(3, "mlp"): 0.5})
    assert Recipe(ratios={"3.mlp": 0.5}) == Recipe(ratios={(3, "mlp"): 0.5}) == expected


def test_units_are_sorted_and_single_and_empty_lists_vanish():
    recipe = Recipe(keep={"0.mlp": [5, 1, 5], "1.mlp": []})
    assert recipe.keep == {ModuleKey(0, "mlp"): (1, 5)}


def test_replace_checks_like_a_new_recipe():
    recipe = Recipe(keep={"0.mlp": (1,)})
    assert recipe.replace(ratio=0.5) == Recipe(ratio=0.5, keep={"0.mlp": (1,)})
    with pytest.raises(InputError, match="ratio is 2"):
        recipe.replace(ratio=2)
    with pytest.raises(InputError, match="forced to stay and forced to go"):
        recipe.replace(prune={"0.mlp": (1,)})


def test_a_unit_cannot_both_stay_and_go():
    with pytest.raises(InputError, match=r"Unit 2 of 1.mlp is both forced to stay and forced to go; choose one"):
        Recipe(keep={"1.mlp": (2, 3)}, prune={"1.mlp": (2,)})
    assert Recipe(keep={"1.mlp": (2,)}, prune={"2.mlp": (2,)}).keep == {ModuleKey(1, "mlp"): (2,)}


def test_unknown_keys_are_refused():
    refused({"rato": 0.5}, "unknown key 'rato'; known are .*ratio")
    refused({"calibration": {"sample": 3}}, "recipe's calibration has an unknown key 'sample'; known are data")


@pytest.mark.parametrize("version", [0, 4, "1", None])
def test_other_versions_are_refused(version):
    refused({"version": version}, f"has version {version}; this numprune reads versions 1 to 3")


def test_a_recipe_without_version_is_refused():
    with pytest.raises(InputError, match="version None"):
        Recipe.from_json('{"ratio": 0.5}')


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ratio": "0.5"}, "'ratio' in the recipe is '0.5'; expected"),
        ({"ratio": True}, "'ratio' in the recipe is True"),
        ({"ratio": None}, "'ratio'"),
        ({"model": 7}, "'model' in the recipe is 7; expected str"),
        ({"round_heads": 1.5}, "'round_heads' in the recipe is 1.5; expected int"),
        ({"allow_empty": 1}, "'allow_empty' in the recipe is 1; expected bool"),
        ({"ratios": [0.5]}, "'ratios' in the recipe is .*; expected dict"),
        ({"keep": None}, "'keep' in the recipe is None; expected dict"),
        ({"damping": "much"}, "'damping'"),
        ({"calibration": "self"}, "calibration in the recipe must be an object"),
        ({"calibration": {"samples": "many"}}, "'samples' in the recipe's calibration is 'many'; expected int"),
        ({"calibration": {"data": 3}}, "'data' in the recipe's calibration is 3"),
        ({"ratios": {"0.mlp": "half"}}, "ratio is half"),
        ({"ratios": {"0.mlp": None}}, "ratio is None"),
        ({"keep": {"0.mlp": 3}}, "keep of 0.mlp is 3; give a list of unit numbers"),
        ({"keep": {"0.mlp": "12"}}, "keep of 0.mlp is '12'; give a list of unit numbers"),
        ({"prune": {"0.mlp": ["a"]}}, r"prune of 0.mlp is \['a'\]; give a list of unit numbers"),
        ({"prune": {"0.mlp": [1.5]}}, r"prune of 0.mlp is \[1.5\]; give a list of unit numbers"),
        ({"prune": {"0.mlp": [None]}}, r"prune of 0.mlp is \[None\]; give a list of unit numbers"),
    ],
)
def test_values_of_the_wrong_type_are_refused(changes, says):
    refused(changes, says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"ratio": -0.5}, "ratio is -0.5"),
        ({"ratios": {"0.mlp": 1}}, "ratio is 1;"),
        ({"method": "rows"}, "method 'rows' is not known; use units, slicegpt"),
        ({"allocation": "greedy"}, "allocation 'greedy' is not known; use global, uniform, paper_printed"),
        ({"compensation": "full"}, "compensation 'full' is not known; use paper, residual, network, bias, none"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"round_heads": 0}, "round_heads is 0"),
        ({"round_channels": -8}, "round_channels is -8"),
        ({"ratios": {"mlp": 0.5}}, "'mlp' does not name a module; write LAYER.KIND"),
        ({"keep": {"0.attn": [1]}}, "'0.attn' does not name a module"),
        ({"prune": {"-1.mlp": [1]}}, "'-1.mlp' does not name a module"),
        ({"ratios": {"².mlp": 0.5}}, "'².mlp' does not name a module"),
    ],
)
def test_values_out_of_range_are_refused(changes, says):
    refused(changes, says)


@pytest.mark.parametrize("text", ["", "ratio: 0.5", "{", '{"version": 1, "ratio": NaN}'])
def test_text_that_is_no_recipe_is_refused(text):
    with pytest.raises(InputError, match=r"not JSON|ratio is nan"):
        Recipe.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"'])
def test_json_that_is_no_object_is_refused(text):
    with pytest.raises(InputError, match="is a JSON object"):
        Recipe.from_json(text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing.json cannot be read .*; choose a recipe.json"):
        Recipe.read(tmp_path / "nothing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary.json cannot be read"):
        Recipe.read(tmp_path / "binary.json")
    with pytest.raises(InputError, match="cannot be read"):
        Recipe.read(tmp_path)


def test_files_call_the_removal_method():
    """As recipes did before the attribute had a name of its own."""
    written = Recipe(removal="slicegpt", compensation="none").to_dict()
    assert written["method"] == "slicegpt"
    assert "removal" not in written
    refused({"removal": "units"}, "unknown key 'removal'; known are model, fingerprint, calibration, method")


def test_module_keys_read_as_they_are_written():
    for key in (ModuleKey(0, "attention"), ModuleKey(31, "mlp")):
        assert ModuleKey.parse(str(key)) == key


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_numbers_of_other_libraries_become_plain_ones(kind):
    half = kind(0) if kind is np.int64 else kind(0.5)
    recipe = Recipe(ratio=half, damping=half, ratios={"0.mlp": half}, swaps=np.int64(2), round_channels=np.int32(8))
    assert all(type(value) is float for value in (recipe.ratio, recipe.damping, recipe.ratios[0, "mlp"]))
    assert (recipe.swaps, recipe.round_channels) == (2, 8)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert CalibrationRecipe(samples=np.int64(4)) == CalibrationRecipe(samples=4)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"swaps": 1.5}, "swaps is 1.5; give a whole number"),
        ({"damping": "much"}, "damping is 'much'; give a number"),
        ({"healing": True}, "healing is True"),
        ({"ratio": True}, "ratio is True"),
    ],
)
def test_what_is_no_number_is_refused(values, says):
    with pytest.raises(InputError, match=says):
        Recipe(**values)


def test_suggested_ratios_are_known_as_such_only():
    """Earlier versions took any ratios of all modules but one for suggested ones, and do not know the key."""
    by_hand = Recipe(ratios={"0.attention": 0.2, "0.mlp": 0.3, "1.attention": 0.1})
    priced = preset("best").applied(by_hand)
    assert method_of(priced) is None
    assert method_of(priced.replace(suggested=True)) == "best"
    assert method_of(preset("balanced").applied(Recipe())) == "balanced"
    assert "suggested" not in by_hand.to_dict()
    assert Recipe.from_json(priced.replace(suggested=True).to_json()).suggested


def test_what_goes_as_a_whole_is_named_by_module_or_layer():
    recipe = Recipe(drop=["5", "3.mlp", (2, "attention")])
    assert [str(key) for key in recipe.drop] == ["2.attention", "3.mlp", "5.attention", "5.mlp"]
    assert Recipe.from_json(recipe.to_json()) == recipe
    plain = Recipe().to_dict()
    assert not plain.keys() & {"depth", "depth_scorer", "drop"}  # so that earlier versions read it


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"drop": ["3", "3.mlp"]}, "The recipe drops 3.mlp twice; name it once"),
        ({"drop": ["-1"]}, "'-1' does not name a module"),
        ({"drop": ["x"]}, "'x' does not name a module"),
        ({"drop": "3"}, "'drop' in the recipe is '3'; expected list"),
        ({"drop": [3.5]}, "'3.5' does not name a module"),
        ({"drop": [[3, "mlp", 1]]}, "does not name a module"),
        ({"drop": ["3"], "ratios": {"3.mlp": 0.5}}, "drops 3.mlp as a whole and names it in ratios too; choose one"),
        ({"drop": ["3"], "keep": {"3.attention": [0]}}, "drops 3.attention as a whole and names it in keep too"),
        ({"drop": ["3"], "method": "slicegpt"}, "Method slicegpt removes no units; leave out ratios, drop, depth"),
        ({"depth": "rows"}, "depth 'rows' is not known; use none, modules, layers"),
        ({"depth": 1}, "'depth' in the recipe is 1; expected str"),
    ],
)
def test_bad_drops_are_refused_in_one_sentence(given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Recipe.from_dict({"version": 3, **given})


def test_a_recipe_that_drops_what_a_model_has_not_or_all_it_has_is_refused():
    units = {ModuleKey(layer, kind): 4 for layer in range(2) for kind in ("attention", "mlp")}
    with pytest.raises(InputError, match=r"The recipe drops 7.attention, which m does not have; correct it"):
        Recipe(drop=["7"]).check_for("m", ["f"], units)
    with pytest.raises(InputError, match="The recipe drops every module of m; leave at least one"):
        Recipe(drop=["0", "1"]).check_for("m", ["f"], units)
