"""The Taylor score, against gradients of the weights themselves."""

import numpy as np
import pytest
from architectures import ARCHITECTURES, random_ids, tiny_model
from torch.nn import functional

from numprune import InputError, calibrate, score


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_sum_weight_times_gradient_over_everything_that_goes(name):
    model = tiny_model(name)
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    expected = {}
    rows = stats.rows.long()
    for parameter in model.module.parameters():
        parameter.requires_grad_(True)
    logits = model.module(input_ids=rows, use_cache=False).logits[:, :-1].float()
    predicted = rows[:, 1:] < logits.shape[-1]
    functional.cross_entropy(logits[predicted], rows[:, 1:][predicted], reduction="sum").backward()
    for block in model.blocks:
        sums = []
        for unit in range(block.units):
            columns = block.channels([unit])
            total = (block.last.weight * block.last.weight.grad)[:, columns].double().sum()
            for linear, sections in block.inputs:
                for section in sections:
                    members = section.indices([unit])
                    total += (linear.weight * linear.weight.grad)[members].double().sum()
                    if linear.bias is not None:
                        total += (linear.bias * linear.bias.grad)[members].double().sum()
            sums.append(abs(float(total.detach())))
        expected[block.key] = np.array(sums)
    table = score(model, stats, scorer="taylor")
    for key, sums in expected.items():
        np.testing.assert_allclose(table.modules[key].units, sums, rtol=2e-3, atol=2e-3 * sums.max())


def test_weights_are_left_without_gradients(model, stats):
    score(model, stats, scorer="taylor")
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_statistics_without_tokens_are_refused(model, stats):
    stats.rows = None
    with pytest.raises(InputError, match="calibrate again"):
        score(model, stats, scorer="taylor")
