"""Layers that run on inputs of one's own."""

import pytest
import torch
from architectures import ARCHITECTURES, random_ids, tiny_model

from numprune.models.replay import LayerCalls, LayerRuns


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_attention_that_is_settled_is_finished_by_its_last_linear(name):
    """Against the layer as it is, with another last linear than the one its inputs were asked before."""
    model = tiny_model(name)
    adapter, layer = model.adapter, model.adapter.layers(model.module)[0]
    last = next(block.last for block in model.blocks if block.key.kind == "attention")
    linears = [block.last for block in model.blocks if block.key.layer == 0]
    calls = LayerCalls.of(model.module, adapter, list(random_ids(12, 16, seed=1).split(5)))
    runs = LayerRuns(calls, adapter, layer, 0, last)
    for batch, state in enumerate(calls.states):
        runs.inputs_of(last, batch, state)
    last.weight.mul_(-1.5)
    begun = []
    attention = getattr(*adapter.attention_owner(layer))
    hook = attention.register_forward_pre_hook(lambda *_: begun.append(1))
    runs.settle()
    found = [
        (runs.inputs_of(linears[1], batch, state), runs.run(batch, state)) for batch, state in enumerate(calls.states)
    ]
    hook.remove()
    assert len(begun) == 1
    for (inputs, output), state in zip(found, calls.states, strict=True):
        assert torch.equal(inputs, calls.inputs_of(linears[1], layer, state, 0))
        assert torch.equal(output, calls.run(layer, state, 0))


@torch.no_grad()
def test_attention_that_does_more_than_its_last_linear_runs_whole():
    model = tiny_model("llama")
    adapter, layer = model.adapter, model.adapter.layers(model.module)[0]
    last = next(block.last for block in model.blocks if block.key.kind == "attention")
    calls = LayerCalls.of(model.module, adapter, list(random_ids(8, 16, seed=1).split(4)))
    attention = getattr(*adapter.attention_owner(layer))
    hook = attention.register_forward_hook(lambda _, __, output: (2 * output[0], *output[1:]))
    runs = LayerRuns(calls, adapter, layer, 0, last)
    for batch, state in enumerate(calls.states):
        runs.inputs_of(last, batch, state)
    runs.settle()
    for batch, state in enumerate(calls.states):
        assert torch.equal(runs.run(batch, state), calls.run(layer, state, 0))
    hook.remove()
