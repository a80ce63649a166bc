import copy
import math
import threading

import pytest
import torch
from architectures import ARCHITECTURES, random_ids, random_scores, tiny_model
from torch.func import functional_call
from torch.nn import functional

from numprune import Cancelled, NumericalError, Recipe, allocate
from numprune.fitting.last_norm import CAUTION, fit_last_norm
from numprune.fitting.sequential import fit_to_dense
from numprune.models.adapter import adapter_for
from numprune.models.model import slice_module
from numprune.models.replay import LayerCalls

ROWS = random_ids(12, 24, seed=1)


@pytest.fixture
def pruned(request, monkeypatch):
    """A dense model and a pruned one whose last norm was fitted by least squares alone."""
    model = tiny_model(getattr(request, "param", "llama"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm = model.adapter.final_norm(model.module)
        norm.weight.add_(0.3 * torch.randn(norm.weight.shape, generator=generator))
        # Random weights predict next to nothing.
        output = model.module.get_output_embeddings().weight
        output.mul_(0.5 / output.std())
    whole = {block.key: tuple(range(block.units)) for block in model.blocks}
    keep = {**whole, **allocate(random_scores(model, seed=3), Recipe(ratio=0.4)).keep}
    narrow = slice_module(model.module, model.adapter, keep)
    with monkeypatch.context() as patch:
        patch.setattr("numprune.fitting.last_norm.CAUTION", math.inf)
        fit_to_dense(model.module, narrow, model.adapter, ROWS, keep=keep, damping=1e-7)
    return model.module, narrow, keep


def states(module, rows):
    """Hidden states behind the last layer, before the last norm."""
    adapter = adapter_for(module.config)
    calls = LayerCalls.of(module, adapter, [rows])
    state = calls.states[0]
    with torch.no_grad():
        for index, layer in enumerate(adapter.layers(module)):
            state = calls.run(layer, state, index)
    return state


def fit(dense, narrow, rows=ROWS, **settings):
    adapter = adapter_for(dense.config)
    streams, theirs = ([states(each, part) for part in rows.split(5)] for each in (dense, narrow))
    note = fit_last_norm(dense, narrow, adapter, rows.split(5), streams, theirs, **{"damping": 1e-7, **settings})
    assert note is None
    return adapter.final_norm(narrow).weight


def divergence_of(dense, narrow, scale):
    """Mean KL(dense, narrow) of the predicted tokens when the gains of the narrow model are scaled, from its logits."""
    adapter = adapter_for(dense.config)
    norm, offset = adapter.final_norm(narrow), adapter.norm_offset(dense.config)
    name = next(name for name, each in narrow.named_parameters() if each is norm.weight)
    gains = {name: scale * (norm.weight.detach() + offset) - offset}
    arguments = {"input_ids": ROWS, "use_cache": False}
    with torch.no_grad():
        wanted = dense(**arguments).logits[:, :-1].log_softmax(-1)
    found = functional_call(narrow, gains, kwargs=arguments).logits[:, :-1].log_softmax(-1)
    predicted = ROWS[:, 1:] < wanted.shape[-1]
    return functional.kl_div(found[predicted], wanted[predicted], reduction="batchmean", log_target=True)


@pytest.mark.parametrize("pruned", ARCHITECTURES, indirect=True)
def test_the_gains_solve_their_least_squares_problem(pruned):
    """Against torch.linalg.lstsq channel by channel, on what the model without the gains would put out."""
    dense, narrow, _ = pruned
    adapter = adapter_for(dense.config)
    norm, fitted = adapter.final_norm(dense), adapter.final_norm(narrow)
    assert not torch.equal(fitted.weight, norm.weight)
    state = states(narrow, ROWS)
    with torch.no_grad():
        wanted, found, plain = norm(states(dense, ROWS)), fitted(state), norm(state)
    bias = getattr(norm, "bias", 0.0)
    for channel in range(len(norm.weight)):
        x, y = ((each - bias)[..., channel].reshape(-1, 1).detach().double() for each in (plain, wanted))
        expected = x * torch.linalg.lstsq(x, y).solution
        torch.testing.assert_close((found - bias)[..., channel].reshape(-1, 1).double(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("pruned", ARCHITECTURES, indirect=True)
def test_the_newton_step_is_that_of_the_divergence(pruned):
    """Against derivatives by autograd through the whole model, the second ones channel by channel."""
    dense, narrow, _ = pruned
    adapter = adapter_for(dense.config)
    offset = adapter.norm_offset(dense.config)
    start = adapter.final_norm(narrow).weight.clone() + offset
    ones = torch.ones(len(start), requires_grad=True)
    (gradient,) = torch.autograd.grad(divergence_of(dense, narrow, ones), ones, create_graph=True)
    curvature = torch.stack(
        [torch.autograd.grad(gradient[channel], ones, retain_graph=True)[0][channel] for channel in range(len(ones))]
    )
    gradient = gradient.detach()
    scale = (fit(dense, narrow) + offset) / start
    torch.testing.assert_close(scale, 1 - gradient / (curvature + CAUTION * curvature.mean()), atol=1e-4, rtol=1e-3)
    assert float((scale - 1).abs().max()) > 1e-3


@pytest.mark.parametrize("pruned", ARCHITECTURES, indirect=True)
def test_the_newton_step_brings_the_predictions_nearer(pruned):
    dense, narrow, _ = pruned
    ones = torch.ones(narrow.config.get_text_config().hidden_size)
    with torch.no_grad():
        before = float(divergence_of(dense, narrow, ones))
        fit(dense, narrow)
        assert float(divergence_of(dense, narrow, ones)) < before


def test_logits_that_are_no_output_layer_s_take_no_newton_step(pruned, monkeypatch):
    dense, narrow, keep = pruned
    start = narrow.model.norm.weight.clone()
    # The config tells of a soft cap that the model does not apply.
    monkeypatch.setattr(dense.config, "final_logit_softcapping", 1.0, raising=False)
    fit = fit_to_dense(dense, narrow, adapter_for(dense.config), ROWS, keep=keep, damping=1e-7)
    assert [note.partition(":")[0] for note in fit.notes] == ["The last norm took no Newton step"]
    torch.testing.assert_close(narrow.model.norm.weight, start, atol=1e-4, rtol=1e-3)


def test_chunks_do_not_matter(pruned, monkeypatch):
    dense, narrow, _ = pruned
    other = copy.deepcopy(narrow)
    whole = fit(dense, narrow)
    monkeypatch.setattr("numprune.fitting.last_norm.READ_LOGITS", 1000)
    torch.testing.assert_close(fit(dense, other), whole, atol=1e-6, rtol=1e-5)


def test_a_large_vocabulary_is_read_on_every_so_many_sequences(pruned, monkeypatch):
    """The least squares before the step see all of them."""
    dense, narrow, _ = pruned
    norms, half = [], 12 * 24 * dense.config.vocab_size // 2
    adapter = adapter_for(dense.config)
    streams = [[states(each, ROWS)] for each in (dense, narrow)]
    for rows, limit in ((ROWS, half), (ROWS[::2], 10 * half)):
        chosen = [[state[:: 12 // len(rows)] for state in stream] for stream in streams]
        monkeypatch.setattr("numprune.fitting.last_norm.NEWTON_LOGITS", limit)
        other = copy.deepcopy(narrow)
        monkeypatch.setattr("numprune.fitting.last_norm._least_squares", lambda norm, *_: torch.ones_like(norm.weight))
        assert fit_last_norm(dense, other, adapter, [rows], *chosen, damping=1e-7) is None
        norms.append(adapter.final_norm(other).weight)
    torch.testing.assert_close(norms[0], norms[1], atol=1e-7, rtol=1e-6)
    assert not torch.equal(norms[0], adapter.final_norm(narrow).weight)


def test_a_model_without_last_norm_stays_as_it_is(pruned, monkeypatch):
    dense, narrow, _ = pruned
    start = narrow.model.norm.weight.clone()
    monkeypatch.setattr(type(adapter_for(dense.config)), "final_norm", lambda self, model: None)
    streams = [states(dense, ROWS)]
    fit_last_norm(dense, narrow, adapter_for(dense.config), [ROWS], streams, streams, damping=0.01)
    assert torch.equal(narrow.model.norm.weight, start)


def test_activations_that_are_not_finite_are_refused(pruned):
    dense, narrow, _ = pruned
    streams, theirs = [states(dense, ROWS)], [states(narrow, ROWS)]
    theirs[0][0, 0, 0] = math.nan
    with pytest.raises(NumericalError, match="last norm: activations are not finite"):
        fit_last_norm(dense, narrow, adapter_for(dense.config), [ROWS], streams, theirs, damping=0.01)


def test_the_newton_step_can_be_cancelled(pruned):
    dense, narrow, _ = pruned
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        fit(dense, narrow, cancel=cancel)
