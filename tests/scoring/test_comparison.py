import dataclasses

import numpy as np
import pytest
from architectures import random_scores, tiny_model
from scipy.stats import spearmanr

from numprune import InputError, agreement
from numprune.plan.keys import ModuleKey
from numprune.scoring.table import ModuleScores


def tables():
    model = tiny_model()
    return random_scores(model, seed=1), random_scores(model, seed=2)


def test_rank_correlation_is_that_of_scipy():
    first, second = tables()
    key = ModuleKey(0, "mlp")
    tied = np.round(second.modules[key].units, 1)
    module = dataclasses.replace(second.modules[key], units=tied, channels=tied)
    second = dataclasses.replace(second, modules={**second.modules, key: module})
    table = agreement(first, second).set_index(["layer", "module"])
    for name, scores in first.modules.items():
        assert table.loc[name, "spearman"] == pytest.approx(spearmanr(scores.units, second.modules[name].units)[0])


def test_units_are_those_one_method_alone_would_remove():
    first, second = tables()
    key = ModuleKey(1, "attention")
    for table, values in ((first, [1.0, 2, 3, 4]), (second, [4.0, 1, 2, 3])):
        table.modules[key] = ModuleScores(np.array(values), np.array(values), 1)
    row = agreement(first, second, ratio=0.5).set_index(["layer", "module"]).loc[key]
    assert (row["removed"], row["both"], row["only_first"], row["only_second"]) == (2, 1, (0,), (2,))


def test_a_method_agrees_with_itself_and_not_with_its_reverse():
    first, _ = tables()
    reverse = dataclasses.replace(
        first,
        modules={key: dataclasses.replace(each, units=-each.units) for key, each in first.modules.items()},
    )
    same, other = agreement(first, first), agreement(first, reverse)
    assert same["spearman"].to_numpy() == pytest.approx(1.0)
    assert (same["both"] == same["removed"]).all()
    assert other["spearman"].to_numpy() == pytest.approx(-1.0)
    assert (other["both"] == 0).all()


def test_equal_scores_have_no_rank_correlation():
    first, second = tables()
    key = ModuleKey(0, "attention")
    second.modules[key] = dataclasses.replace(second.modules[key], units=np.ones(len(second.modules[key].units)))
    assert np.isnan(agreement(first, second).set_index(["layer", "module"]).loc[key, "spearman"])


def test_wrong_arguments_are_refused():
    first, second = tables()
    with pytest.raises(InputError, match="same model"):
        agreement(first, dataclasses.replace(second, fingerprint="other"))
    with pytest.raises(InputError, match="ratio"):
        agreement(first, second, ratio=1.0)
