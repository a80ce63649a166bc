"""What runs on a GPU must be what runs on a CPU."""

import copy

import pytest
import torch
from architectures import make_tokenizer, random_ids, tiny_model

from numprune import (
    CalibrationRecipe,
    Model,
    Recipe,
    allocate,
    calibrate,
    calibrate_by_recipe,
    generate,
    load,
    perplexity,
    prune,
    prune_layerwise,
    score,
    score_depth,
)
from numprune import preset as preset_of
from numprune.calibration.statistics import GramAccumulator
from numprune.evaluation.methods import pruned_by
from numprune.evaluation.random_models import Shape
from numprune.evaluation.scale import bench_scale
from numprune.linalg import lower_product, mirror_lower_
from numprune.scoring.newton import numerical_score

pytestmark = pytest.mark.cuda


@pytest.fixture
def pair(model):
    """The same float32 model on the CPU and on the GPU."""
    return model, Model(copy.deepcopy(model.module).cuda(), model.tokenizer, model.adapter, model.name)


@pytest.mark.parametrize("name", ["llama-gqa-tied", "gemma3", "phi3", "gpt-neox-parallel", "opt"])
def test_the_whole_road_agrees_with_the_cpu(name):
    cpu = tiny_model(name, tokenizer=make_tokenizer())
    cuda = Model(copy.deepcopy(cpu.module).cuda(), cpu.tokenizer, cpu.adapter, cpu.name)
    assert cuda.fingerprint() == cpu.fingerprint()
    ids = random_ids(8, 32, seed=1)
    results = []
    for model in (cpu, cuda):
        stats = calibrate(model, ids, samples=8, sequence_length=32)
        table = score(model, stats)
        plan = allocate(table, Recipe(ratio=0.4))
        results.append((stats, table, plan, prune(model, plan, stats)))
    (stats, table, plan, pruned), (cuda_stats, cuda_table, cuda_plan, cuda_pruned) = results
    for key, module in stats.modules.items():
        scale = float(module.gram.diagonal().max())
        torch.testing.assert_close(cuda_stats.modules[key].gram.cpu(), module.gram, rtol=1e-4, atol=1e-4 * scale)
        assert abs(cuda_table.modules[key].units - table.modules[key].units).max() < 1e-2
    assert cuda_plan.keep == plan.keep
    assert {p.device.type for p in cuda_pruned.module.parameters()} == {"cuda"}
    expected = pruned.module(ids).logits
    actual = cuda_pruned.module(ids.cuda()).logits.cpu()
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
    assert perplexity(cuda_pruned, ids) == pytest.approx(perplexity(pruned, ids), rel=1e-2)


@pytest.mark.parametrize("method", ["balanced", "best", "healed", "flap", "taylor", "osscar", "slicegpt"])
def test_every_method_on_the_gpu_loses_what_it_loses_on_the_cpu(pair, method):
    ids, losses = random_ids(8, 32, seed=1), []
    for model in pair:
        stats = calibrate(model, ids, samples=8, sequence_length=32)
        pruned = pruned_by(model, stats, method, Recipe(ratio=0.4)).model
        assert {weight.device for weight in pruned.module.parameters()} == {model.device}
        losses.append(perplexity(pruned, ids).nll)
    # Ties in the order of units may fall otherwise, so losses are compared and not weights.
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_an_image_model_goes_the_whole_road_on_the_gpu():
    model = load("tiny-images", device="cuda")
    stats = calibrate(model, "self", samples=8)
    pruned = pruned_by(model, stats, "balanced", Recipe(ratio=0.3)).model
    drawn = pruned.generate([3, 7], seed=0)
    assert len(drawn) == 2


def test_the_same_seed_writes_the_same_text(pair):
    prompts = ["the cat", "a dog and a mouse"]
    for temperature in (0.0, 0.8):
        texts = [generate(model, prompts, max_new_tokens=16, temperature=temperature, seed=3) for model in pair]
        assert texts[0] == texts[1]


def test_load_save_and_load_again(pair, tmp_path):
    pair[1].save(tmp_path / "saved")
    for device in ("auto", "cuda", "cuda:0", "cpu"):
        model = load(tmp_path / "saved", device=device)
        assert model.device.type == ("cpu" if device == "cpu" else "cuda")
        assert model.fingerprint() == pair[0].fingerprint()


def test_an_emptied_module_runs_on_the_gpu(pair):
    cuda = pair[1]
    stats = calibrate(cuda, random_ids(4, 16), samples=4, sequence_length=16)
    recipe = Recipe(ratio=0.0, ratios={"0.attention": 0.99, "1.mlp": 0.99}, allow_empty=True)
    pruned = prune(cuda, allocate(score(cuda, stats), recipe), stats)
    assert sorted(pruned.units().values())[:2] == [0, 0]
    options = {"prompt": ["the cat", "x"], "max_new_tokens": 8, "temperature": 0}
    text = generate(pruned, **options)
    assert text == generate(Model(pruned.module.cpu(), pruned.tokenizer, pruned.adapter, "on the CPU"), **options)


def test_what_goes_as_a_whole_is_scored_as_on_the_cpu(pair):
    found = []
    for model in pair:
        stats = calibrate(model, random_ids(4, 16), samples=4, sequence_length=16)
        found.append([score_depth(model, stats, scorer=name, whole="layers") for name in ("loss", "influence")])
    for here, there in zip(*found, strict=True):
        assert here.gone == there.gone
    torch.testing.assert_close(torch.tensor(found[0][0].loss), torch.tensor(found[1][0].loss), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        torch.tensor(found[0][1].by_layer), torch.tensor(found[1][1].by_layer), rtol=1e-3, atol=0
    )
    plan = allocate(score(pair[1], stats), Recipe(ratio=0.0, drop=("1",), compensation="network"))
    pruned = prune(pair[1], plan, stats)
    assert pruned.layers == pair[1].layers - 1
    options = {"prompt": ["the cat", "x"], "max_new_tokens": 8, "temperature": 0}
    text = generate(pruned, **options)
    assert text == generate(Model(pruned.module.cpu(), pruned.tokenizer, pruned.adapter, "on the CPU"), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [64, 1000, 2500])
def test_half_precision_gram_on_tensor_cores_is_the_float64_gram(dtype, channels):
    generator = torch.Generator().manual_seed(0)
    x = (0.5 + torch.randn(4096, channels, generator=generator)).to(dtype)
    expected = x.double().T @ x.double()
    actual = mirror_lower_(lower_product(x.cuda())).double().cpu()
    # Exact products, summed in float32 by tensor cores that cut off what does not fit instead of rounding it (up to
    # 2.1e-5 of 4,096 tokens on an H200): far from the 2^-8 that rounding to bfloat16 would cost.
    assert float((actual - expected).abs().max() / expected.diagonal().max()) < 5e-5
    assert torch.equal(actual, actual.T)


def test_statistics_of_many_batches_on_the_gpu():
    generator = torch.Generator().manual_seed(0)
    accumulator = GramAccumulator(32, torch.device("cuda"))
    gram, total = torch.zeros(32, 32, dtype=torch.float64), torch.zeros(32, dtype=torch.float64)
    for _ in range(64):
        x = (5 + torch.randn(4096, 32, generator=generator)).to(torch.bfloat16)
        assert accumulator.add(x.cuda())
        gram += x.double().T @ x.double()
        total += x.double().sum(0)
    stats = accumulator.finish()
    # What tensor cores cut off in a batch, see above, does not grow with the batches.
    assert float(((stats.gram.cpu() - gram) / gram).abs().max()) < 1e-5
    torch.testing.assert_close(stats.mean.cpu(), total / stats.tokens, rtol=1e-6, atol=0)


def test_scores_on_the_gpu_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=generator)
    x = torch.randn(400, 96, generator=generator, dtype=torch.float64)
    gram = x.T @ x / (x**2).sum()
    for solver in ("closed_form", "newton", "boxed"):
        options = {"ratio": 0.4, "solver": solver, "steps": 100}
        expected = numerical_score(weight, gram, **options)
        actual = numerical_score(weight.cuda(), gram.cuda(), **options).cpu()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_device_number_that_does_not_exist_is_refused():
    from numprune import InputError

    with pytest.raises(InputError, match="Device 'cuda:99' is not available here"):
        load("tiny-stories", device="cuda:99")


@pytest.mark.parametrize("preset", ["paper", "balanced"])
def test_layer_by_layer_on_the_gpu_is_as_in_memory(tmp_path, preset):
    model = tiny_model("llama-gqa-tied", tokenizer=make_tokenizer())
    model.module.save_pretrained(tmp_path / "dense")
    model.tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("the cat and the dog sat on a mat and then the hen ran to the barn. " * 40)
    source = CalibrationRecipe(str(tmp_path / "text.txt"), samples=8, sequence_length=16)
    recipe = preset_of(preset).applied(Recipe(ratio=0.4, calibration=source))
    model = load(tmp_path / "dense", device="cuda")
    stats = calibrate_by_recipe(model, source)
    whole = prune(model, allocate(score(model, stats, scorer=recipe.scorer), recipe), stats)
    filed = load(tmp_path / "dense", device="cpu", dtype="checkpoint")
    prune_layerwise(filed, recipe, tmp_path / "out", device="cuda")
    layers = load(tmp_path / "out", device="cuda")
    assert layers.units() == whole.units()
    for name, tensor in whole.module.state_dict().items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(layers.module.state_dict()[name], tensor, rtol=0, atol=1e-4 * scale)


def test_scale_is_measured_under_the_memory_of_a_card():
    shape = Shape(hidden=64, channels=176, layers=3, heads=4, vocabulary=2048)
    result = bench_scale(shape, samples=2, sequence_length=32, device="cuda", card=2e9)
    peaks = [figure.median for figure in result.figures if "peak" in figure.name]
    assert len(peaks) == 2
    assert all(0 < peak < 2 for peak in peaks)
