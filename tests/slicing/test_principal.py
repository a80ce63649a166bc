"""SliceGPT, against principal components of activations that were collected one by one."""

import threading

import numpy as np
import pytest
import torch
from architectures import make_tokenizer, random_ids, tiny_model

import numprune
from numprune import Cancelled, InputError, ModuleKey, NumericalError, Recipe, UnsupportedArchitecture, calibrate
from numprune.slicing.principal import (
    principal_bases,
    principal_components,
    slice_by_recipe,
    width_for,
)
from numprune.slicing.stream import narrow_residual, narrowed_parameters

ROWS = random_ids(40, 24, seed=1)


def calibrated(name="llama", **options):
    model = tiny_model(name, tokenizer=make_tokenizer(), **options)
    return model, calibrate(model, ROWS, samples=len(ROWS), sequence_length=24)


def streams(module):
    """The residual stream behind the embedding, every attention and every MLP, (places, tokens, hidden)."""
    found = []

    def note(_, args, kwargs):
        found.append((args[0] if args else kwargs["hidden_states"]).reshape(-1, 32))

    layers = module.model.layers
    readers = [reader for layer in layers for reader in (layer, layer.post_attention_layernorm)]
    hooks = [each.register_forward_pre_hook(note, with_kwargs=True) for each in (*readers, module.model.norm)]
    with torch.no_grad():
        module(input_ids=ROWS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", ["llama", "llama-gqa-tied", "mistral", "qwen3"])
def test_bases_are_the_principal_components_of_what_arrives(name):
    """Numpy's SVD of the streams of the model that is narrow up to each place and whole from there on."""
    model, _ = calibrated(name)
    width = 18
    bases = principal_bases(model, ROWS, width)
    whole = torch.eye(32, dtype=torch.float64)
    for place, basis in enumerate(bases):
        # Directions that are cut stay as zeros, so that the places behind keep their own basis.
        cut = [each @ torch.diag((torch.arange(32) < width).double()) for each in bases[:place]]
        so_far = narrow_residual(model.module, model.adapter, [*cut, *[whole] * (len(bases) - place)])
        x = streams(so_far)[place].double().numpy()
        _, sizes, expected = np.linalg.svd(x, full_matrices=False)
        agreement = np.abs(np.sum(basis.numpy() * expected.T, axis=0))
        apart = np.minimum(np.diff(sizes**2, append=0) / -(sizes**2), np.diff(sizes**2, prepend=np.inf) / -(sizes**2))
        clear = apart > 1e-3
        assert clear.sum() > 20
        np.testing.assert_allclose(agreement[clear], 1, atol=1e-3)
        torch.testing.assert_close(basis.T @ basis, whole, rtol=0, atol=1e-10)


def test_more_components_lose_less_of_the_output():
    model, _ = calibrated()
    with torch.no_grad():
        dense = model.module(input_ids=ROWS).logits
        lost = []
        for width in (8, 16, 24, 32):
            bases = [basis[:, :width] for basis in principal_bases(model, ROWS, width)]
            sliced = narrow_residual(model.module, model.adapter, bases)
            lost.append(float((sliced(input_ids=ROWS).logits - dense).square().sum()))
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 1e-6 * lost[0]


@pytest.mark.parametrize("name", ["llama", "llama-gqa-tied", "llama-biases", "qwen2"])
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5])
def test_the_parameters_are_those_of_the_ratio(name, ratio):
    """No width is nearer to what pruning units to this ratio would leave."""
    model, stats = calibrated(name)
    sliced = numprune.slicegpt(model, stats, ratio)
    width = sliced.adapter.residual_width(sliced.module)
    target = model.parameters - ratio * model.prunable_parameters
    counts = {each: narrowed_parameters(model.module, model.adapter, each) for each in range(1, 33)}
    assert counts[width] == sliced.parameters == sliced.report.parameters_after
    assert abs(counts[width] - target) == min(abs(count - target) for count in counts.values())
    assert sliced.report.ratio_reached == (model.parameters - sliced.parameters) / model.prunable_parameters
    assert sliced.bytes == sliced.report.bytes_after == 4 * sliced.parameters
    assert width_for(model, ratio, multiple=8) % 8 == 0


def test_a_sliced_model_is_a_model(tmp_path):
    model, stats = calibrated("llama-gqa-tied")
    sliced = numprune.slicegpt(model, stats, 0.2)
    loss = numprune.perplexity(sliced, ROWS, sequence_length=24)
    assert loss > numprune.perplexity(model, ROWS, sequence_length=24)
    assert numprune.divergence(model, sliced, ROWS, sequence_length=24).mean_kl > 0
    assert numprune.generate(sliced, "the cat", max_new_tokens=5, temperature=0).startswith("the cat")
    assert numprune.measure_speed(sliced, prompt_tokens=4, new_tokens=4, repetitions=1).decode[0] > 0
    dense, narrow = numprune.sizes(model), numprune.sizes(sliced)
    assert narrow.parameters == sliced.parameters
    assert narrow.flops < dense.flops
    assert narrow.kv_bytes == dense.kv_bytes
    assert numprune.attention_patterns(sliced, "the cat", 1).weights.shape[0] == 8
    sliced.save(tmp_path / "sliced")
    opened = numprune.load(tmp_path / "sliced", device="cpu")
    assert (opened.recipe, opened.report) == (sliced.recipe, sliced.report)
    assert numprune.perplexity(opened, ROWS, sequence_length=24) == loss
    assert list(opened.report.to_pandas().columns[:4]) == ["layer", "module", "units", "kept"]


def test_the_recipe_repeats_it_to_the_same_bits():
    model, stats = calibrated()
    first = numprune.slicegpt(model, stats, 0.3)
    recipe = Recipe.from_json(first.recipe.to_json())
    assert (recipe.removal, recipe.ratio, recipe.fingerprint) == ("slicegpt", 0.3, model.fingerprint())
    scores = numprune.score(model, stats)
    plan = numprune.allocate(scores, recipe)
    assert all(plan.ratio(key) == 0 for key in plan.keep)
    assert "narrows the residual stream" in plan.notes[0]
    for again in (slice_by_recipe(model, stats, recipe), numprune.prune(model, plan, stats)):
        state = again.module.state_dict()
        assert all(torch.equal(state[name], value) for name, value in first.module.state_dict().items())
        assert again.recipe == first.recipe


@pytest.mark.parametrize(
    "changes",
    [
        {"ratios": {ModuleKey(0, "mlp"): 0.5}},
        {"keep": {ModuleKey(0, "mlp"): (1,)}},
        {"prune": {ModuleKey(0, "mlp"): (1,)}},
        {"swaps": 4},
        {"healing": 16},
    ],
)
def test_a_recipe_of_slicegpt_holds_nothing_of_units(changes):
    with pytest.raises(InputError, match="removes no units"):
        Recipe(removal="slicegpt", **changes)
    with pytest.raises(InputError, match="method 'prunellm'"):
        Recipe(removal="prunellm")


def test_what_cannot_be_sliced_is_refused_before_any_work(monkeypatch):
    model, stats = calibrated()
    pruned = numprune.prune(model, numprune.allocate(numprune.score(model, stats), Recipe()), stats)
    monkeypatch.setattr("numprune.slicing.principal.principal_bases", None)
    with pytest.raises(InputError, match="pruned already"):
        numprune.slicegpt(pruned, stats, 0.2)
    other = tiny_model("gemma")
    with pytest.raises(UnsupportedArchitecture, match="tiny gemma"):
        numprune.slicegpt(other, stats, 0.2)
    with pytest.raises(InputError, match="another model"):
        numprune.slicegpt(tiny_model("llama", seed=1), stats, 0.2)
    stats.rows = None
    with pytest.raises(InputError, match="calibrate again"):
        numprune.slicegpt(model, stats, 0.2)


def test_streams_that_are_not_finite_are_named():
    with pytest.raises(NumericalError, match=r"behind 1\.mlp"):
        principal_components([torch.full((2, 3, 4), torch.inf)], "1.mlp")


def test_a_stop_is_heeded_and_progress_is_told():
    model, stats = calibrated()
    told, stop = [], threading.Event()
    numprune.slicegpt(model, stats, 0.2, progress=lambda done, total, what: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    stop.set()
    with pytest.raises(Cancelled):
        numprune.slicegpt(model, stats, 0.2, cancel=stop)
    assert not any(each._forward_pre_hooks or each._forward_hooks for each in model.module.modules())


def test_formats_that_have_no_such_layers_refuse_the_model():
    model, stats = calibrated()
    refused = numprune.formats_for(numprune.slicegpt(model, stats, ratio=0.2))
    assert refused["numprune"] is None
    for name in ("transformers", "stock", "gguf"):
        assert "SliceGPT" in refused[name]
