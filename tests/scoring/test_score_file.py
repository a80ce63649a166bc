import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import numprune
from numprune import CalibrationRecipe, InputError, ModuleKey, Recipe, ScoreTable, allocate
from numprune.models.outline import ModuleOutline, Outline, outline_of
from numprune.scoring import ModuleScores
from numprune.scoring.score_file import shipped_file

SOURCE = CalibrationRecipe("self", 8, 32, 0)
DEFAULTS = numprune.CalibrationRecipe()


def same(first, second):
    assert dataclasses.replace(first, modules={}).__dict__ == dataclasses.replace(second, modules={}).__dict__
    assert list(first.modules) == list(second.modules)
    for key, module in first.modules.items():
        other = second.modules[key]
        assert (module.cost, module.remainder, module.width) == (other.cost, other.remainder, other.width)
        assert np.array_equal(module.units, other.units)
        assert np.array_equal(other.channels, np.repeat(module.units, module.width))
        assert module.units.dtype == np.float64


@pytest.mark.parametrize("scorer", ["newton", "fisher"])
def test_what_is_read_is_what_was_written(model, stats, tmp_path, scorer):
    scores = numprune.score(model, stats, scorer=scorer)
    numprune.write_scores(tmp_path / "scores.safetensors", scores, SOURCE)
    again, source = numprune.read_scores(tmp_path / "scores.safetensors")
    same(scores, again)
    assert source == SOURCE
    recipe = Recipe(scorer=scorer, ratio=0.4)
    assert allocate(again, recipe) == allocate(scores, recipe)


def test_one_score_a_unit_is_written(tmp_path):
    units = np.array([1.0, 2.0])
    modules = {
        ModuleKey(0, "attention"): ModuleScores(units, np.array([0.0, 2.0, 2.0, 2.0]), 4, 1),
        ModuleKey(0, "mlp"): ModuleScores(units, np.repeat(units, 3), 5),
    }
    scores = ScoreTable(modules, "newton", 0.5, "table", "abc", 100)
    numprune.write_scores(tmp_path / "scores.safetensors", scores, SOURCE)
    with safe_open(tmp_path / "scores.safetensors", framework="np") as file:
        assert set(file.keys()) == {"newton/0.attention", "newton/0.mlp"}
    same(scores, numprune.read_scores(tmp_path / "scores.safetensors")[0])


def damaged(tmp_path, what):
    path = tmp_path / "scores.safetensors"
    scores = ScoreTable({ModuleKey(0, "mlp"): ModuleScores(np.ones(3), np.ones(3), 5)}, "fisher", 0.5, "m", "abc", 15)
    numprune.write_scores(path, scores, SOURCE)
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:-5])
    elif what == "missing":
        path.unlink()
    else:
        with safe_open(path, framework="np") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        about = json.loads(metadata["about"])
        if what == "other format":
            metadata["format"] = "numprune scores 3"
        elif what == "not finite":
            tensors["fisher/0.mlp"][1] = np.nan
        elif what == "another shape":
            tensors["fisher/0.mlp"] = np.ones((3, 2))
        elif what == "module without scores":
            about["modules"]["1.mlp"] = about["modules"]["0.mlp"]
        elif what == "unknown entry":
            about["colour"] = "red"
        save_file(tensors, path, {**metadata, "about": json.dumps(about)})
    return path


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("cut short", "cannot be read"),
        ("missing", "cannot be read"),
        ("other format", "holds no scores that this numprune reads"),
        ("not finite", "0.mlp has a score that is NaN or infinite"),
        ("another shape", r"float64 of shape \(3, 2\)"),
        ("module without scores", "cannot be read"),
        ("unknown entry", "colour"),
    ],
)
def test_damaged_files_are_refused(tmp_path, what, says):
    with pytest.raises(InputError, match=says):
        numprune.read_scores(damaged(tmp_path, what))


def test_several_scorers_and_the_model_without_its_weights_are_kept(model, stats, tmp_path):
    tables = [numprune.score(model, stats, scorer=name) for name in ("fisher", "newton", "wanda_sp")]
    path = tmp_path / "scores.safetensors"
    numprune.write_scores(path, tables, SOURCE, outline_of(model))
    found = numprune.read_score_file(path)
    assert (list(found.tables), found.calibration) == (["fisher", "newton", "wanda_sp"], SOURCE)
    for table in tables:
        same(table, found.tables[table.scorer])
        plan = allocate(table, Recipe(scorer=table.scorer, ratio=0.4))
        assert allocate(found.tables[table.scorer], plan.recipe) == plan
        for context in (0, 5000):
            assert found.outline.sizes(plan, context=context) == numprune.sizes(model, plan, context=context)
    assert found.outline == outline_of(model)
    assert (found.outline.fingerprint, found.outline.layers) == (model.fingerprint(), model.layers)
    assert found.outline.prunable_parameters == model.prunable_parameters


def test_a_file_holds_one_model_and_every_scorer_once(model, stats, tmp_path):
    scores = numprune.score(model, stats, scorer="random")
    other = dataclasses.replace(scores, scorer="magnitude", fingerprint="0123456789abcdef")
    for tables, says in (
        ([], "give each scorer once"),
        ([scores] * 2, "give each scorer once"),
        ([scores, other], "one"),
    ):
        with pytest.raises(InputError, match=says):
            numprune.write_scores(tmp_path / "scores.safetensors", tables, SOURCE)
    with pytest.raises(InputError, match="more than one model"):
        numprune.write_scores(tmp_path / "s.safetensors", other, SOURCE, outline_of(model))
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_earlier_format_are_read(tmp_path):
    about = {"scorer": "fisher", "ratio": 0.5, "model": "m", "fingerprint": "abc", "parameters": 15}
    about |= {"calibration": dataclasses.asdict(SOURCE), "modules": {"0.mlp": {"cost": 5, "remainder": 0, "width": 1}}}
    path = tmp_path / "earlier.safetensors"
    save_file({"0.mlp": np.ones(3)}, path, {"format": "numprune scores 1", "about": json.dumps(about)})
    scores, source = numprune.read_scores(path)
    assert (scores.scorer, scores.model, source) == ("fisher", "m", SOURCE)
    assert numprune.read_score_file(path).outline is None


def seventy_billion():
    """Made-up scores in the shape of a 70B model: 80 layers of 8 KV groups of 8 heads and 28,672 channels."""
    draw = np.random.default_rng(0)
    modules, outlines = {}, {}
    for layer in range(80):
        for kind, units, width, cost in (("attention", 8, 1024, 2 * 8192 * 1152), ("mlp", 28672, 1, 3 * 8192)):
            key = ModuleKey(layer, kind)
            channels = draw.gamma(0.5, size=(units, width))
            modules[key] = ModuleScores(channels.mean(1), channels.reshape(-1), cost)
            outlines[key] = ModuleOutline(units, width, 256 * (kind == "attention"), cost, 0, cost, 2)
    total = 70_553_706_496
    names = {"architecture": "LlamaForCausalLM", "device": "cuda", "dtype": "bfloat16", "unit": "KV group"}
    counts = {"layers": 80, "parameters": total, "bytes": 2 * total, "query_heads": 64, "cache_itemsize": 2}
    rest = {"maximum_length": 8192, "reads_text": True, "class_names": (), "earlier_fingerprint": "b" * 16, "notes": ()}
    outline = Outline(
        name="seventy", fingerprint="a" * 16, windows=(None,) * 80, multiply_adds=total, modules=outlines,
        beside=(2 * 8192,) * 80, **names, **counts, **rest,
    )  # fmt: skip
    return ScoreTable(modules, "fisher", 0.5, "seventy", "a" * 16, total), outline


def test_scores_of_seventy_billion_parameters_take_20_mb_at_most(tmp_path):
    scores, outline = seventy_billion()
    path = tmp_path / "scores.safetensors"
    numprune.write_scores(path, scores, SOURCE, outline)
    assert path.stat().st_size <= 20e6
    found = numprune.read_score_file(path)
    assert found.outline == outline
    plan = allocate(found.tables["fisher"], Recipe(scorer="fisher"))
    assert plan == allocate(scores, plan.recipe)


def changed(path, change, *, without=()):
    """The file with other tensors or another description, and without some of its metadata."""
    with safe_open(path, framework="np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    about = json.loads(metadata["about"])
    change(tensors, about)
    kept = {name: text for name, text in metadata.items() if name not in without}
    save_file(tensors, path, {**kept, "about": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors, about: about.pop("calibration"), "calibration"),
        (lambda tensors, about: about.pop("scores"), "scores"),
        (lambda tensors, about: about["scores"].clear(), "no scores"),
        (lambda tensors, about: about["scores"].append(about["scores"][0]), "two scorers"),
        (lambda tensors, about: about["outline"].pop("layers"), "lacks or has too much of layers"),
        (lambda tensors, about: about["outline"].update(parameters="many"), "parameters 'many'"),
        (lambda tensors, about: about["outline"].update(bytes=-1), "bytes '-1'"),
        (lambda tensors, about: about["outline"].update(windows=[]), "window of every layer"),
        (lambda tensors, about: about["outline"]["modules"].popitem(), "another model"),
        (lambda tensors, about: about["outline"].update(fingerprint="0" * 16), "another model"),
        (lambda tensors, about: about["modules"]["0.mlp"].update(cost=0), "cost 0"),
        (lambda tensors, about: about["modules"]["0.mlp"].update(width=10**12), "units of 1000000000000 channels"),
        (lambda tensors, about: about["scores"][0].update(ratio=1.5), "ratio is 1.5"),
        (lambda tensors, about: about.update(parameters="many"), "parameters is no int"),
        (lambda tensors, about: tensors.pop("random/0.mlp"), "random/0.mlp is missing"),
        (lambda tensors, about: tensors.update({"random/0.mlp": np.ones(8, dtype=np.float32)}), "float32"),
    ],
)
def test_files_that_lack_something_or_contradict_themselves_are_refused(model, stats, tmp_path, change, says):
    path = tmp_path / "scores.safetensors"
    numprune.write_scores(path, numprune.score(model, stats, scorer="random"), SOURCE, outline_of(model))
    changed(path, change)
    with pytest.raises(InputError, match=says):
        numprune.read_score_file(path)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize("data", [b"", b"GGUF", b'{"version": 3}', pickle.dumps(Trap()), bytes(100)])
def test_other_files_are_refused_in_a_sentence(tmp_path, data):
    path = tmp_path / "scores.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match="write them") as refused:
        numprune.read_score_file(path)
    assert "\n" not in str(refused.value)


def test_weights_are_not_scores():
    with pytest.raises(InputError, match="holds no scores"):
        numprune.read_scores(shipped_file("tiny-stories", "newton").with_name("model.safetensors"))


@pytest.fixture(scope="module", params=numprune.embedded_models())
def embedded(request):
    model = numprune.load(request.param, device="cpu", dtype="float32")
    stats = numprune.calibrate(model, DEFAULTS.data, samples=DEFAULTS.samples, sequence_length=model.maximum_length)
    return model, stats


@pytest.mark.parametrize("method", ["paper", numprune.DEFAULT_PRESET])
def test_what_ships_is_what_scoring_gives(embedded, method):
    """assets/scripts/score_models.py writes it anew after training."""
    model, stats = embedded
    recipe = numprune.preset(method).applied(Recipe())
    shipped = numprune.shipped_scores(model, recipe.scorer, DEFAULTS)
    computed = numprune.score(model, stats, scorer=recipe.scorer)
    assert numprune.read_scores(shipped_file(model.name, recipe.scorer))[1] == stats.source
    said = [dataclasses.replace(table, modules={}, influence=()).__dict__ for table in (shipped, computed)]
    assert said[0] == said[1]
    assert shipped.influence == pytest.approx(computed.influence, rel=1e-4)
    for key, module in computed.modules.items():
        ours = shipped.modules[key]
        assert (ours.cost, ours.remainder, ours.width) == (module.cost, module.remainder, module.width)
        # Another machine's matrix products round otherwise. Where predictions are drawn a few draws then fall the other
        # way, and the prices of the units that cost least of all move with them.
        if method == "paper":
            close = np.isclose(ours.units, module.units, rtol=1e-3, atol=1e-9)
            assert close.mean() > 0.99, f"{key}: {np.abs(ours.units / module.units - 1).max():.1e}"
        else:
            assert ours.units.sum() == pytest.approx(module.units.sum(), rel=0.01)
            orders = [table.argsort().argsort() for table in (ours.units, module.units)]
            assert np.corrcoef(*orders)[0, 1] > 0.99
    for ratio in (0.1, 0.3, 0.5):
        plans = [allocate(table, recipe.replace(ratio=ratio)) for table in (shipped, computed)]
        moved = sum(len(set(plans[0].keep[key]) ^ set(plans[1].keep[key])) for key in plans[0].keep)
        assert moved <= 0.005 * sum(plans[0].units.values())


def test_scores_ship_for_one_calibration_of_one_model_only(embedded, monkeypatch, tmp_path):
    model, _ = embedded
    assert numprune.shipped_scores(model, "fisher", DEFAULTS) is not None
    for other in ({"samples": 64}, {"seed": 1}, {"data": "wikitext2"}, {"sequence_length": 16}):
        assert numprune.shipped_scores(model, "fisher", dataclasses.replace(DEFAULTS, **other)) is None
    assert numprune.shipped_scores(model, "random", DEFAULTS) is None
    assert numprune.shipped_scores(dataclasses.replace(model, name="a/b"), "fisher", DEFAULTS) is None
    with torch.no_grad():
        weight = next(model.module.parameters())
        kept = weight.clone()
        weight.mul_(1.5)
    assert numprune.shipped_scores(model, "fisher", DEFAULTS) is None
    with torch.no_grad():
        weight.copy_(kept)
    assert numprune.shipped_scores(model, "fisher", DEFAULTS) is not None


def test_scores_of_float32_do_not_pass_for_those_of_another_type():
    model = numprune.load("tiny-stories", device="cpu", dtype="bfloat16")
    assert numprune.shipped_scores(model, "fisher", DEFAULTS) is None


def told(model, stats, tmp_path):
    path = tmp_path / "scores.safetensors"
    numprune.write_scores(path, numprune.score(model, stats), stats.source, outline_of(model))
    return path


def test_a_file_of_an_earlier_version_tells_of_no_layer_that_can_go(model, stats, tmp_path):
    path = told(model, stats, tmp_path)
    found = numprune.read_score_file(path)
    table = found.tables["newton"]
    assert table.beside == found.outline.beside == model.beside
    assert all(model.beside)
    assert table.influence == pytest.approx(stats.influence.tolist())
    changed(
        path,
        lambda _, about: (about.pop("beside"), about.pop("influence"), about["outline"].pop("beside")),
        without=["sha256"],
    )
    earlier = numprune.read_score_file(path)
    assert earlier.tables["newton"].beside == earlier.tables["newton"].influence == ()
    assert earlier.outline.beside == (None,) * model.layers
    plan = allocate(earlier.tables["newton"], Recipe(ratio=0.0, drop=("1",)))
    assert plan.gone == ()
    assert earlier.outline.sizes(plan).parameters == plan.parameters_after


@pytest.mark.parametrize(
    ("name", "value"), [("beside", [-1, 3]), ("beside", ["x"]), ("influence", ["x"]), ("influence", [None])]
)
def test_a_file_with_nonsense_about_layers_is_refused(model, stats, tmp_path, name, value):
    path = told(model, stats, tmp_path)
    changed(path, lambda _, about: about.update({name: value}))
    with pytest.raises(InputError, match=f"its {name} is no list"):
        numprune.read_score_file(path)
