"""Layers that run on inputs of one's own."""

import pytest
import torch
from architectures import ARCHITECTURES, random_ids, tiny_model

from numprune.models.hooks import first, hooked
from numprune.models.model import twin
from numprune.models.replay import Ending, LayerCalls, behind_attention, watched


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_layer_behind_its_attention_is_finished_by_the_attention_s_last_linear(name):
    """Against the layer as it is, with another last linear than the one its inputs were asked before."""
    model = tiny_model(name)
    adapter, layer = model.adapter, model.adapter.layers(model.module)[0]
    last = next(block.last for block in model.blocks if block.key.kind == "attention")
    down = next(block.last for block in model.blocks if block.key == (0, "mlp"))
    calls = LayerCalls.of(model.module, adapter, list(random_ids(12, 16, seed=1).split(5)))
    reached = [calls.inputs_of(last, layer, state, 0) for state in calls.states]
    last.weight.mul_(-1.5)
    attention = getattr(*adapter.attention_owner(layer))
    rest, known = behind_attention(adapter, layer)
    runs = []
    for inputs, state in zip(reached, calls.states, strict=True):
        known.output = last(inputs).reshape(state.shape)
        with hooked(before={attention: lambda *_: runs.append(1)}):
            entering, output = calls.inputs_of(down, rest, state, 0), calls.run(rest, state, 0)
        assert torch.equal(known.output, calls.output_of(attention, layer, state, 0))
        assert torch.equal(entering, calls.inputs_of(down, layer, state, 0))
        assert torch.equal(output, calls.run(layer, state, 0))
    assert not runs


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_outputs_are_added_to_the_stream_where_the_adapter_says_so(name):
    """Also where single activations are thousands of times as large as the rest, which no tolerance would survive."""
    model = tiny_model(name)
    model.module.get_input_embeddings().weight[:, 3] *= 1e4
    adapter, layer = model.adapter, model.adapter.layers(model.module)[0]
    down = next(block.last for block in model.blocks if block.key == (0, "mlp"))
    calls = LayerCalls.of(model.module, adapter, [random_ids(4, 16, seed=1)])
    state = calls.states[0]
    with watched([getattr(*adapter.attention_owner(layer)), down]) as seen:
        end = calls.run(layer, state, 0)
    added = state + seen[0].output + seen[1].output.reshape(state.shape)
    others = [channel for channel in range(state.shape[-1]) if channel != 3]
    gap = (added - end)[..., others].abs().max() / (end - state)[..., others].abs().max()
    assert (float(gap) < 1e-2) == adapter.adds_outputs(model.config)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.startswith("llamagen")])
def test_the_ending_makes_the_models_logits_of_its_stream(name):
    model = tiny_model(name)
    ids, ends = random_ids(3, 16, seed=1), []
    last = model.adapter.layers(model.module)[-1]
    with hooked(after={last: lambda _, output: ends.append(first(output))}):
        expected = model.module(input_ids=ids, use_cache=False).logits
    ending = Ending(twin(model.module), model.adapter)
    torch.testing.assert_close(ending.logits(ids, ends[0]), expected, rtol=0, atol=0)
    assert not torch.allclose(ending.logits(ids, ends[0].flip(0)), expected)
