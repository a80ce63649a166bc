"""Fisher information against gradients of single predictions, and its prices against the loss they promise."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, make_tokenizer, random_ids, tiny_model
from scipy.optimize import isotonic_regression

from numprune import InputError, Model, calibrate, generate, score
from numprune.linalg import damped_cholesky
from numprune.models.adapter import adapter_for
from numprune.scoring.fisher import draw, fisher_information, rising_prices

ONE_PREDICTION = 2


def calibrated(name, tokens=ONE_PREDICTION, **options):
    model = tiny_model(name, **options)
    return model, calibrate(model, random_ids(8, tokens, seed=3), samples=8, sequence_length=tokens)


def test_is_the_expected_outer_product_of_gradients():
    """Many draws at one position, against the sum over the whole vocabulary."""
    model, stats = calibrated("llama")
    stats.rows = stats.rows[:1].repeat(32, 1)
    draws = [fisher_information(model, dataclasses.replace(stats, seed=seed)) for seed in range(40)]
    for block in model.blocks:
        outputs = []
        hook = block.last.register_forward_hook(lambda m, args, out, outputs=outputs: outputs.append(out))
        ids = stats.rows[:1].long()
        embedded = model.module.get_input_embeddings()(ids).detach().requires_grad_(True)
        logs = model.module(inputs_embeds=embedded, use_cache=False).logits[0, 0].log_softmax(-1)
        hook.remove()
        expected = 0.0
        for token in range(len(logs)):
            gradient = torch.autograd.grad(logs[token], outputs[0], retain_graph=True)[0].reshape(-1, 32).double()
            expected = expected + logs[token].exp().detach().double() * gradient.T @ gradient
        found = sum(draw[block.key] for draw in draws) / len(draws)
        assert float((found - expected).norm() / expected.norm()) < 0.15


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_scored_and_left_without_gradients(name):
    model, stats = calibrated(name, 16)
    table = score(model, stats, scorer="fisher")
    for module in table.modules.values():
        assert np.isfinite(module.units).all()
        assert (module.units >= 0).all()
        assert len(set(module.units.tolist())) == len(module.units)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_the_same_seed_gives_the_same_scores():
    model, stats = calibrated("llama-gqa-tied", 16)
    first, second = (score(model, stats, scorer="fisher") for _ in range(2))
    for key in first.modules:
        np.testing.assert_array_equal(first.modules[key].units, second.modules[key].units)


def test_statistics_without_tokens_are_refused(model, stats):
    stats.rows = None
    with pytest.raises(InputError, match="calibrate again"):
        score(model, stats, scorer="fisher")


@pytest.mark.parametrize("channels", [24, 1300])
def test_the_prices_of_a_module_add_up_to_what_it_is_worth(channels):
    """1/2 tr(F W (G/n + gamma I) Wᵀ) is lost when all units are gone, at any width."""
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=channels, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    module = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    model = Model(module=module, tokenizer=None, adapter=adapter_for(config), name="wide")
    rows = torch.randint(40, (8, 32), generator=torch.Generator().manual_seed(1))
    stats = calibrate(model, rows, samples=8, sequence_length=32)
    table, information = score(model, stats, scorer="fisher"), fisher_information(model, stats)
    for block in model.blocks:
        scores, moments = table.modules[block.key], stats.modules[block.key]
        root, _ = damped_cholesky(information[block.key], 1e-6)
        gram = moments.gram / moments.tokens
        gram = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
        weight = root.T @ block.last.weight.double()
        worth = 0.5 * float(((weight @ gram) * weight).sum())
        assert scores.units.sum() * scores.cost / 1e6 == pytest.approx(worth, rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "llama-gqa-tied"])
def test_the_lowest_score_is_the_least_any_unit_adds_to_the_loss(name):
    """Every unit is removed alone and the others are fitted by least squares; its price is 1/2 tr(F dW H dWᵀ)."""
    model, stats = calibrated(name, 32)
    table, information = score(model, stats, scorer="fisher"), fisher_information(model, stats)
    for block in model.blocks:
        moments, weight = stats.modules[block.key], block.last.weight.double().numpy()
        gram = moments.gram.numpy() / moments.tokens
        root = np.linalg.cholesky(gram + 0.01 * gram.diagonal().mean() * np.eye(len(gram))).T
        added = []
        for unit in range(block.units):
            kept = block.channels([other for other in range(block.units) if other != unit]).numpy()
            lost = root @ weight.T
            lost -= root[:, kept] @ np.linalg.lstsq(root[:, kept], lost, rcond=None)[0]
            added.append(0.5 * float(np.trace(lost @ information[block.key].numpy() @ lost.T)))
        scores = table.modules[block.key]
        assert scores.units.argmin() == np.argmin(added)
        assert scores.units.min() * scores.cost / 1e6 == pytest.approx(min(added), rel=1e-4)


def test_prices_rise_as_isotonic_regression_has_it():
    added = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0, 5.0, 4.0, 9.0, 9.0], dtype=torch.float64)
    prices = rising_prices(added.cumsum(0)).numpy()
    np.testing.assert_allclose(prices, isotonic_regression(added.numpy()).x, rtol=1e-11)
    assert (np.diff(prices) > 0).all()
    assert prices.sum() == pytest.approx(float(added.sum()), rel=1e-14)


def test_other_work_on_the_model_goes_on_beside_it():
    """Generation on another thread once met hooks that asked for gradients."""
    model, stats = calibrated("llama-gqa-tied", 16, tokenizer=make_tokenizer())
    alone, text = score(model, stats, scorer="fisher"), generate(model, "the cat", max_new_tokens=12, seed=3)
    texts = []

    def work(*_):
        thread = threading.Thread(
            target=lambda: texts.append(generate(model, "the cat", max_new_tokens=12, seed=3)), daemon=True
        )
        thread.start()
        thread.join()

    beside = score(model, stats, scorer="fisher", progress=work)
    assert set(texts) == {text}
    for key, module in alone.modules.items():
        np.testing.assert_array_equal(beside.modules[key].units, module.units)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.125, 0.375, 0.0])
    uniform = torch.tensor([0.0, 0.4999, 0.5, 0.6249, 0.625, 1 - 2**-24])
    drawn = draw(probabilities.log().expand(6, -1), uniform)
    assert drawn.tolist() == [1, 1, 3, 3, 4, 4]


def test_draws_over_a_large_vocabulary_follow_their_distribution():
    logits = 2 * torch.randn(49_152, generator=torch.Generator().manual_seed(0))
    uniform = (torch.arange(400) + 0.5) / 400
    drawn = draw(logits.expand(400, -1), uniform)
    # Evenly spread numbers meet every token within one of its expected count.
    likely = logits.double().softmax(0) * 400
    counts = torch.bincount(drawn, minlength=49_152)
    assert bool(((counts - likely).abs() < 1.1).all())
