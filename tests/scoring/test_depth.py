"""Scores of what goes as a whole, against transformers' own hidden states and against models that are pruned so."""

import itertools
import math

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, deep_model, random_ids, random_scores, tiny_model

from numprune import InputError, ModuleKey, Recipe, allocate, calibrate, prune, score_depth
from numprune.models.prediction import mean_loss
from numprune.scoring.depth import groups_of

TEXT = [name for name in ARCHITECTURES if name not in ("janus", "emu3") and not name.startswith("llamagen")]


def calibrated(model, rows=6, tokens=16):
    return calibrate(model, random_ids(rows, tokens, seed=3), samples=rows, sequence_length=tokens)


@torch.no_grad()
def boundaries(model, ids):
    """What enters every layer and leaves the last, (layers + 1, sequences, tokens, hidden), by hooks of its own:
    transformers gives the last one behind the norm."""
    layers, seen = model.adapter.layers(model.module), []

    def note(module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    def note_last(module, args, output):
        seen.append((output if isinstance(output, torch.Tensor) else output[0]).clone())

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    handles.append(layers[-1].register_forward_hook(note_last))
    model.module(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(seen).double()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_block_influence_is_one_minus_the_mean_cosine(name):
    model = deep_model(name)
    states = boundaries(model, random_ids(6, 16, seed=3)).numpy()
    expected = [
        1 - np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y, strict=True)])
        for x, y in zip(states[:-1].reshape(4, -1, 32), states[1:].reshape(4, -1, 32), strict=True)
    ]
    scores = score_depth(model, calibrated(model), scorer="influence", whole="layers", most=0.9)
    np.testing.assert_allclose(scores.by_layer, expected, rtol=1e-4, atol=1e-6)
    order = np.argsort(expected)
    assert [{key.layer for key in gone} for gone in scores.gone] == [set(order[:n].tolist()) for n in range(4)]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox-parallel", "opt"])
def test_the_angle_over_several_layers_is_that_of_last_tokens(name):
    model = deep_model(name, layers=5)
    last = boundaries(model, random_ids(6, 16, seed=3))[:, :, -1].numpy()

    def distance(begin, end):
        pairs = zip(last[begin], last[end], strict=True)
        return np.mean([math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / math.pi for a, b in pairs])

    scores = score_depth(model, calibrated(model), scorer="angular", whole="layers", most=0.9)
    for length, gone in enumerate(scores.gone):
        if length:
            best = min(range(5 - length + 1), key=lambda begin, n=length: distance(begin, begin + n))
            assert sorted({key.layer for key in gone}) == list(range(best, best + length))
    assert scores.loss is None


@pytest.mark.parametrize("whole", ["modules", "layers"])
@pytest.mark.parametrize("name", TEXT)
def test_the_loss_of_what_is_gone_is_that_of_a_model_pruned_so(name, whole):
    model = deep_model(name)
    stats = calibrated(model)
    scores = score_depth(model, stats, whole=whole, most=0.6)
    rows = stats.token_rows("measure on").long()
    table, dense = random_scores(model), mean_loss(model, rows)
    for gone, loss in zip(scores.gone, scores.loss, strict=True):
        plan = allocate(table, Recipe(ratio=0.0, drop=gone, compensation="none"))
        assert mean_loss(prune(model, plan, stats), rows) - dense == pytest.approx(loss, abs=2e-5)


@pytest.mark.parametrize("name", ["llama", "granite", "opt"])
def test_the_greedy_choice_is_the_least_at_every_step_where_losses_only_grow(name):
    """For the parameters that go, against every choice there is; a random network's losses may fall, so the first step
    alone must be the least. In the last two another module adds least to the loss."""
    model = deep_model(name)
    stats = calibrated(model)
    rows, table = stats.token_rows("measure on").long(), random_scores(model)
    scores = score_depth(model, stats, whole="modules", most=0.9)

    def loss(gone):
        return mean_loss(prune(model, allocate(table, Recipe(ratio=0.0, drop=gone, compensation="none")), stats), rows)

    sizes, dense = {block.key: block.units * block.cost for block in model.blocks}, loss(())
    singles = {group: (loss(group) - dense) / sizes[group[0]] for group in groups_of(model, "modules")}
    assert scores.gone[1] == min(singles, key=singles.get)
    for before, after in itertools.pairwise(scores.gone):
        assert set(before) < set(after)
        assert len(after) == len(before) + 1


def test_it_stops_when_enough_is_gone():
    model = deep_model("llama")
    sizes = {block.key: block.units * block.cost for block in model.blocks}
    for whole in ("modules", "layers"):
        scores = score_depth(model, calibrated(model), whole=whole, most=0.3)
        shares = [sum(sizes[key] for key in gone) / model.prunable_parameters for gone in scores.gone]
        assert shares[-2] < 0.3 <= shares[-1]


def test_nothing_of_the_model_changes():
    model = deep_model("llama")
    ids = random_ids(2, 8, seed=1)
    before = model.module(input_ids=ids, use_cache=False).logits
    for scorer in ("loss", "influence", "angular"):
        score_depth(model, calibrated(model), scorer=scorer, whole="layers")
    assert torch.equal(model.module(input_ids=ids, use_cache=False).logits, before)
    assert not any(module._forward_hooks for module in model.module.modules())


def test_layers_that_cannot_go_are_no_candidates():
    model = tiny_model("opt")
    model.config.do_layer_norm_before = False
    assert groups_of(model, "layers") == []
    with pytest.raises(InputError, match="has fewer than two layers that can go; use depth none"):
        score_depth(model, calibrated(model), whole="layers")
    assert groups_of(model, "modules")[0] == (ModuleKey(0, "attention"),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scorer": "depth"}, "depth_scorer 'depth' is not known; use loss, influence, angular"),
        ({"whole": "none"}, "depth is 'none'; use modules or layers"),
        ({"scorer": "influence"}, "Scorer influence is of whole layers and tells nothing of modules; use depth layers"),
        ({"most": 1.0}, "ratio is 1.0"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(given, message):
    model = deep_model("llama")
    with pytest.raises(InputError, match=message):
        score_depth(model, calibrated(model), **given)


def test_statistics_of_another_model_are_refused():
    with pytest.raises(InputError, match="statistics belong to another model"):
        score_depth(deep_model("llama"), calibrated(tiny_model("llama")))
