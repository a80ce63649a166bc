"""Pruned layer by layer, from files, against pruned in memory."""

import dataclasses
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, deep_model, make_tokenizer, tiny_model

import numprune
from numprune import Cancelled, InputError, NumpruneError, Recipe, allocate, calibrate_by_recipe, load, prune, score
from numprune.layerwise import prune_layerwise, score_layerwise
from numprune.layerwise import run as layerwise_run

TEXT = "the cat and the dog sat on a mat and then the hen ran to the barn. " * 40
READING = [name for name in ARCHITECTURES if not name.startswith("llamagen")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints by name, written when they are first asked for."""
    root = tmp_path_factory.mktemp("checkpoints")
    (root / "text.txt").write_text(TEXT)

    def written(name="llama-gqa-tied", layers=2):
        place = root / f"{name}-{layers}"
        if not place.exists():
            make = tiny_model(name, tokenizer=make_tokenizer())
            model = make if layers == 2 else deep_model(name, layers=layers, tokenizer=make_tokenizer())
            model.module.save_pretrained(place)
            model.tokenizer.save_pretrained(place)
        return place

    written.text = str(root / "text.txt")
    return written


def recipe_for(folder, **changes):
    source = numprune.CalibrationRecipe(folder.text, samples=6, sequence_length=16)
    return Recipe(**{"ratio": 0.4, "calibration": source, **changes})


def opened(path):
    return load(path, device="cpu", dtype="checkpoint")


def in_memory(path, recipe, out):
    model = load(path, device="cpu")
    stats = calibrate_by_recipe(model, recipe.calibration)
    pruned = prune(model, allocate(score(model, stats, scorer=recipe.scorer), recipe), stats)
    pruned.save(out)
    return pruned


def same(one, other, exact=False):
    """Two folders hold the same model and say the same of it."""
    first, second = (load(folder, device="cpu") for folder in (one, other))
    assert first.units() == second.units()
    expected, state = first.module.state_dict(), second.module.state_dict()
    assert list(expected) == list(state)
    for name, tensor in expected.items():
        limit = 0.0 if exact or not tensor.numel() else 1e-5 * float(tensor.abs().max())
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=limit)
    assert first.recipe == second.recipe
    for ours, theirs in zip(first.report.modules, second.report.modules, strict=True):
        assert (ours.layer, ours.module, ours.units, ours.kept) == (
            theirs.layer,
            theirs.module,
            theirs.units,
            theirs.kept,
        )
        assert ours.error_after == pytest.approx(theirs.error_after, rel=1e-4, abs=1e-6)
    before, after = first.report.to_dict(), second.report.to_dict()
    for name in ("parameters_before", "parameters_after", "bytes_after", "ratio_reached", "dtype", "compensation"):
        assert before[name] == after[name]


@pytest.mark.parametrize("name", READING)
def test_every_architecture_comes_out_as_in_memory(folder, tmp_path, name):
    recipe = recipe_for(folder)
    in_memory(folder(name), recipe, tmp_path / "whole")
    prune_layerwise(opened(folder(name)), recipe, tmp_path / "layers")
    same(tmp_path / "whole", tmp_path / "layers")
    assert not (tmp_path / "layers.partial").exists()


BALANCED = {"scorer": "fisher", "compensation": "network"}


@pytest.mark.parametrize("name", READING)
def test_every_architecture_is_priced_and_fitted_as_in_memory(folder, tmp_path, name):
    recipe = recipe_for(folder, **BALANCED)
    in_memory(folder(name), recipe, tmp_path / "whole")
    prune_layerwise(opened(folder(name)), recipe, tmp_path / "layers")
    same(tmp_path / "whole", tmp_path / "layers")
    assert not (tmp_path / "layers.partial").exists()


@pytest.mark.parametrize("name", READING)
def test_every_architecture_has_the_prices_it_has_in_memory(folder, tmp_path, name):
    """Plans and weights forgive prices that are a little off; here they are compared themselves."""
    source = recipe_for(folder).calibration
    tables, used, _ = score_layerwise(opened(folder(name)), ["fisher", "newton"], source, tmp_path / "out")
    model = load(folder(name), device="cpu")
    stats = calibrate_by_recipe(model, source)
    assert used == stats.source
    for scorer, table in tables.items():
        expected = score(model, stats, scorer=scorer)
        assert list(table.modules) == list(expected.modules)
        for key, module in expected.modules.items():
            limit = 1e-3 * abs(module.units).max()
            assert table.modules[key].units == pytest.approx(module.units, rel=1e-3, abs=limit)


@pytest.mark.parametrize(
    "changes",
    [
        {"scorer": "fisher"},
        {"compensation": "residual"},
        {"compensation": "network", "scorer": "flap", "ratio": 0.0},
        {**BALANCED, "ratios": {"0.attention": 0.99, "1.mlp": 0.99}, "allow_empty": True},
        {**BALANCED, "ratios": {"0.attention": 0.0, "0.mlp": 0.0}},
    ],
)
def test_every_fit_over_the_network_comes_out_as_in_memory(folder, tmp_path, changes):
    recipe = recipe_for(folder, **changes)
    recipe = recipe.replace(calibration=dataclasses.replace(recipe.calibration, samples=20))
    in_memory(folder(), recipe, tmp_path / "whole")
    prune_layerwise(opened(folder()), recipe, tmp_path / "layers")
    same(tmp_path / "whole", tmp_path / "layers")


@pytest.mark.parametrize(
    "changes",
    [
        {"scorer": "flap", "compensation": "bias"},
        {"scorer": "magnitude", "compensation": "none"},
        {"scorer": "wanda_sp"},
        {"scorer": "osscar"},
        {"allocation": "uniform", "uniform": True},
        {"ratios": {"0.attention": 0.99, "1.mlp": 0.99}, "allow_empty": True},
        {"ratios": {"0.attention": 0.99}, "allow_empty": True, "scorer": "flap", "compensation": "bias"},
    ],
)
def test_every_method_that_looks_at_one_module_comes_out_as_in_memory(folder, tmp_path, changes):
    recipe = recipe_for(folder, **changes)
    in_memory(folder(), recipe, tmp_path / "whole")
    prune_layerwise(opened(folder()), recipe, tmp_path / "layers")
    same(tmp_path / "whole", tmp_path / "layers")


@pytest.mark.parametrize(
    "changes",
    [{}, BALANCED, {"compensation": "bias", "scorer": "flap"}, {"compensation": "none", "ratio": 0.0}],
    ids=["paper", "balanced", "bias", "none"],
)
@pytest.mark.parametrize("name", READING)
def test_layers_and_modules_that_are_dropped_come_out_as_in_memory(folder, tmp_path, name, changes):
    recipe = recipe_for(folder, drop=("1", "3.attention"), **changes)
    whole = in_memory(folder(name, layers=4), recipe, tmp_path / "whole")
    prune_layerwise(opened(folder(name, layers=4)), recipe, tmp_path / "layers")
    same(tmp_path / "whole", tmp_path / "layers")
    reopened = load(tmp_path / "layers", device="cpu")
    assert reopened.layers == whole.layers == (4 if recipe.compensation == "bias" else 3)
    assert reopened.origins == whole.origins


def test_what_goes_by_its_own_score_needs_the_model_in_memory_and_says_so(folder, tmp_path):
    recipe = recipe_for(folder, depth="modules", **BALANCED)
    with pytest.raises(InputError, match="Depth modules needs the whole model in memory"):
        prune_layerwise(opened(folder()), recipe, tmp_path / "out")
    # What was chosen before is carried out.
    prune_layerwise(opened(folder()), recipe.replace(drop=("1.mlp",)), tmp_path / "out")
    assert load(tmp_path / "out", device="cpu").units()[numprune.ModuleKey(1, "mlp")] == 0


def test_a_speed_up_is_carried_out_where_it_was_chosen_before(folder, tmp_path):
    recipe = recipe_for(folder, depth="modules", speedup=1.5, **BALANCED)
    with pytest.raises(InputError, match=r"Choosing what makes decoding 1\.5 times as fast needs the whole model"):
        prune_layerwise(opened(folder()), recipe, tmp_path / "out")
    # Nothing goes as a whole here: heads and channels alone were the better choice.
    chosen = recipe.replace(ratios={"0.mlp": 0.5, "1.mlp": 0.25}, suggested=True)
    prune_layerwise(opened(folder()), chosen, tmp_path / "out")
    reopened = load(tmp_path / "out", device="cpu")
    assert reopened.recipe.speedup == 1.5
    assert reopened.units()[numprune.ModuleKey(0, "mlp")] < reopened.units()[numprune.ModuleKey(1, "mlp")]


def test_a_pruned_model_of_half_precision_is_pruned_again(folder, tmp_path):
    half = tiny_model("qwen3", tokenizer=make_tokenizer())
    half.module.to(torch.bfloat16)
    half.save(tmp_path / "half")
    recipe = recipe_for(folder)
    prune_layerwise(opened(tmp_path / "half"), recipe, tmp_path / "once")
    assert opened(tmp_path / "once").dtype == torch.bfloat16
    in_memory(tmp_path / "once", recipe, tmp_path / "whole")
    prune_layerwise(opened(tmp_path / "once"), recipe, tmp_path / "layers")
    first, second = (load(tmp_path / each, device="cpu") for each in ("whole", "layers"))
    assert first.units() == second.units()
    for name, tensor in first.module.state_dict().items():
        # One step of bfloat16 where float32 sums were rounded otherwise.
        torch.testing.assert_close(second.module.state_dict()[name], tensor, rtol=2**-7, atol=1e-4)


def test_an_existing_output_is_replaced_and_another_folder_is_not(folder, tmp_path):
    recipe = recipe_for(folder)
    prune_layerwise(opened(folder()), recipe, tmp_path / "out")
    prune_layerwise(opened(folder()), recipe.replace(ratio=0.2), tmp_path / "out")
    assert load(tmp_path / "out", device="cpu").recipe.ratio == 0.2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with pytest.raises(InputError, match="was not written by numprune"):
        prune_layerwise(opened(folder()), recipe, tmp_path / "mine")
    assert [file.name for file in tmp_path.iterdir()] == ["out", "mine"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scorer": "taylor"}, "Scorer taylor needs the whole model in memory; give --preset balanced or paper"),
        ({"swaps": 4}, "Swaps needs the whole model"),
        ({"healing": 4}, "Healing needs the whole model"),
        ({"removal": "slicegpt"}, "Method slicegpt needs the whole model"),
        ({"scorer": "nothing"}, "scorer 'nothing' is not known"),
        ({"calibration": numprune.CalibrationRecipe(None)}, "calibrated on text it does not name"),
    ],
)
def test_what_needs_the_whole_model_is_refused(folder, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        prune_layerwise(opened(folder()), recipe_for(folder, **changes), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Stop:
    """A stop event that is set after so many questions."""

    def __init__(self, after):
        self.left = after

    def is_set(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stopped_run_goes_on_with_the_same_bits(folder, tmp_path, after, monkeypatch):
    recipe = recipe_for(folder)
    prune_layerwise(opened(folder()), recipe, tmp_path / "straight")
    with pytest.raises(Cancelled):
        prune_layerwise(opened(folder()), recipe, tmp_path / "out", cancel=Stop(after))
    assert (tmp_path / "out.partial").is_dir()
    assert not (tmp_path / "out").exists()
    computed = []
    keep = layerwise_run.State.keep_scores
    monkeypatch.setattr(
        layerwise_run.State,
        "keep_scores",
        lambda self, index, *rest: computed.append(index) or keep(self, index, *rest),
    )
    prune_layerwise(opened(folder()), recipe, tmp_path / "out")
    assert computed == [0, 1][after:]
    same(tmp_path / "straight", tmp_path / "out", exact=True)
    for file in (tmp_path / "straight").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


VICTIMS = {
    "paper": "rows:1 keep_moments:1 keep_scores:1 keep_moments:2 keep_scores:2 write_layer:1 write_layer:2"
    " write_rest:1",
    "balanced": "keep_boundary:1 keep_moments:1 keep_boundary:3 keep_scores:1 write_layer:1 keep_streams:1"
    " write_layer:2 keep_streams:2 write_rest:1",
}


@pytest.mark.parametrize(
    ("preset", "victim"), [(preset, victim) for preset in VICTIMS for victim in VICTIMS[preset].split()]
)
def test_a_killed_run_goes_on_with_the_same_bits(forking, folder, tmp_path, preset, victim):
    recipe = numprune.preset(preset).applied(recipe_for(folder))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    command = ["prune_layerwise", tmp_path / "recipe.json", folder(), tmp_path / "out"]
    method, count = victim.split(":")
    [killed] = forking.run(command, cwd=str(tmp_path), dies=[method, int(count)])
    assert killed.code == -signal.SIGKILL, killed.err
    assert not (tmp_path / "out").exists()
    prune_layerwise(opened(folder()), recipe, tmp_path / "out")
    prune_layerwise(opened(folder()), recipe, tmp_path / "straight")
    same(tmp_path / "straight", tmp_path / "out", exact=True)
    assert not (tmp_path / "out.partial").exists()


def test_a_run_with_other_settings_does_not_go_on(folder, tmp_path):
    recipe = recipe_for(folder)
    with pytest.raises(Cancelled):
        prune_layerwise(opened(folder()), recipe, tmp_path / "out", cancel=Stop(2))
    with pytest.raises(InputError, match=r"out.partial was left by a run with other settings; delete it"):
        prune_layerwise(opened(folder()), recipe.replace(ratio=0.3), tmp_path / "out")
    prune_layerwise(opened(folder()), recipe, tmp_path / "out")


def test_two_runs_do_not_write_one_folder(folder, tmp_path, monkeypatch):
    recipe, seen = recipe_for(folder), []
    keep = layerwise_run.State.keep_scores

    def beside(self, *rest):
        with pytest.raises(InputError, match=r"Another run is writing .*out; wait for it"):
            prune_layerwise(opened(folder()), recipe, tmp_path / "out")
        seen.append(1)
        return keep(self, *rest)

    monkeypatch.setattr(layerwise_run.State, "keep_scores", beside)
    prune_layerwise(opened(folder()), recipe, tmp_path / "out")
    assert len(seen) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize(
    ("size", "preset"), [("40k", "paper"), ("80k", "paper"), ("80k", "balanced"), ("140k", "balanced")]
)
def test_a_full_disk_loses_nothing(folder, tmp_path, size, preset):
    disk, recipe = tmp_path / "disk", numprune.preset(preset).applied(recipe_for(folder))
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        with pytest.raises(NumpruneError, match=r"out.partial failed: .*; free some space and run the same command"):
            prune_layerwise(opened(folder()), recipe, disk / "out")
        assert not (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        prune_layerwise(opened(folder()), recipe, disk / "out")
        prune_layerwise(opened(folder()), recipe, tmp_path / "straight")
        same(tmp_path / "straight", disk / "out", exact=True)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_missing_or_damaged_shard_is_named(folder, tmp_path, fault):
    model = tiny_model("llama", tokenizer=make_tokenizer())
    model.module.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    model.tokenizer.save_pretrained(tmp_path / "shards")
    shard = sorted((tmp_path / "shards").glob("model-*.safetensors"))[1]
    if fault == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(NumpruneError, match=shard.name if fault == "missing" else "damaged or cut short"):
        opened(tmp_path / "shards")


def test_weights_are_read_from_the_files_and_not_held(folder, tmp_path):
    """Tensors of a model that is opened in its own type are views of the file."""
    model = opened(folder())
    assert "model.safetensors" in Path("/proc/self/maps").read_text()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    prune_layerwise(model, recipe_for(folder), tmp_path / "out")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())


def test_layers_are_let_go(folder, tmp_path, monkeypatch):
    """One layer at a time is in memory beside the files."""
    import weakref

    alive, most = [], []
    layer_of = layerwise_run.Stage.layer

    def counted(self, index):
        layer = layer_of(self, index)
        alive.append(weakref.ref(layer))
        most.append(sum(each() is not None for each in alive))
        return layer

    monkeypatch.setattr(layerwise_run.Stage, "layer", counted)
    prune_layerwise(opened(folder()), recipe_for(folder), tmp_path / "out")
    assert len(alive) == 4
    assert max(most) <= 2
    alive.clear()
    most.clear()
    prune_layerwise(opened(folder()), recipe_for(folder, **BALANCED), tmp_path / "out")
    assert len(alive) == 6
    assert max(most) <= 2
