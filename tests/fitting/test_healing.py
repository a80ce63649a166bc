import threading
from itertools import pairwise

import pytest
import torch
from architectures import random_ids, random_scores, tiny_model, with_recipe

from numprune import (
    PRESETS,
    Cancelled,
    InputError,
    NumericalError,
    Recipe,
    allocate,
    calibrate,
    divergence,
    heal,
    preset,
    prune,
)
from numprune.cli import main
from numprune.fitting import healing
from numprune.loading import load


@pytest.fixture
def plan(model):
    return allocate(random_scores(model), Recipe(ratio=0.4, allocation="uniform"))


@pytest.fixture
def pruned(model, plan, stats):
    return prune(model, plan, stats)


ROWS = random_ids(8, 32, seed=1)
# What is held back is also trained on: text without any order has nothing that would carry over.
TWICE = ROWS[:2].repeat(4, 1)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def test_healing_brings_the_predictions_back(model, pruned, dense_state):
    before = weights(pruned)
    held = divergence(model, pruned, TWICE[-1:], sequence_length=32).mean_kl
    healing = heal(model, pruned, TWICE, steps=16)
    assert healing.kept
    assert healing.held_back == 1
    # Measured by another path, in float64.
    assert healing.before == pytest.approx(held, rel=1e-4)
    assert healing.after == pytest.approx(divergence(model, pruned, TWICE[-1:], sequence_length=32).mean_kl, rel=1e-4)
    assert healing.after < 0.95 * healing.before
    changed = {name for name, tensor in weights(pruned).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    assert all(torch.equal(tensor, dense_state[name]) for name, tensor in weights(model).items())
    assert not any(parameter.requires_grad for parameter in pruned.module.parameters())


def test_what_is_held_back_is_not_trained_on(model, plan, stats):
    """Another last sequence, which is the one held back, leaves the trained weights as they are."""
    trained = ROWS[:2].repeat(4, 1)[1:]
    results = []
    for held in ROWS[:2]:
        pruned = prune(model, plan, stats)
        assert heal(model, pruned, torch.cat([trained, held[None]]), steps=16).kept
        results.append(weights(pruned))
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_steps_fall_from_the_rate_to_a_tenth_of_it(model, pruned):
    """Adam moves a weight whose gradient stays the same by the rate of the step."""
    last = [block.last.weight for block in pruned.blocks]
    passed = [[weight.clone() for weight in last]]
    rate, steps = 1e-4, 10
    one = ROWS[:1].repeat(3, 1)
    heal(model, pruned, one, steps=steps, rate=rate, progress=lambda *_: passed.append([w.clone() for w in last]))
    for index, weight in enumerate(passed[0]):
        scale = float(weight.square().mean().sqrt())
        moves = [float((new[index] - old[index]).abs().median()) / scale for old, new in pairwise(passed)]
        assert moves == pytest.approx([rate * (1 - 0.9 * step / steps) for step in range(steps)], rel=0.02)


def test_the_same_seed_gives_the_same_bits(model, plan, stats):
    results = [prune(model, with_recipe(plan, healing=3), stats) for _ in range(2)]
    first, second = map(weights, results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert results[0].recipe.healing == 3
    assert any("3 steps of training" in note for note in results[0].report.notes)
    plain = weights(prune(model, plan, stats))
    once = heal(model, prune(model, plan, stats), stats.rows, steps=3)
    assert once.kept != all(torch.equal(first[name], plain[name]) for name in first)


def test_weights_stay_when_training_does_not_help(model):
    """A model that is pruned of nothing has nothing to win."""
    whole = prune(model, allocate(random_scores(model), Recipe(ratio=0.0)), _stats(model))
    before = weights(whole)
    healing = heal(model, whole, ROWS, steps=2)
    assert not healing.kept
    assert "was left out" in str(healing)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(whole).items())


def _stats(model):
    return calibrate(model, ROWS, samples=8, sequence_length=32)


@pytest.mark.parametrize("stop", ["cancel", "nan"])
def test_what_was_not_finished_leaves_no_trace(model, pruned, stop):
    before = weights(pruned)
    event = threading.Event()

    def after_two(done, total, what):
        if done == 2:
            if stop == "cancel":
                event.set()
            else:
                model.module.lm_head.weight.data.fill_(float("nan"))

    with pytest.raises(Cancelled if stop == "cancel" else NumericalError):
        heal(model, pruned, ROWS, steps=6, progress=after_two, cancel=event)
    ours = weights(pruned)
    assert all(torch.equal(ours[name], before[name]) for name in before if "proj" in name)


def test_an_image_model_heals_too():
    model = tiny_model("llamagen")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 105, (1, 65), generator=generator).repeat(6, 1)
    rows[:, 0] = 107
    stats = calibrate(model, rows, samples=6, sequence_length=65)
    pruned = prune(model, allocate(random_scores(model), Recipe(ratio=0.4, allocation="uniform")), stats)
    healing = heal(model, pruned, rows, steps=8)
    assert healing.after < healing.before


@pytest.mark.parametrize(
    ("options", "rows", "says"),
    [({"steps": 0}, ROWS, "steps is 0"), ({"rate": 2.0}, ROWS, "rate 2.0"), ({}, ROWS[:1], "1 sequences")],
)
def test_what_cannot_be_healed_is_refused(model, pruned, options, rows, says):
    with pytest.raises(InputError, match=says):
        heal(model, pruned, rows, **options)


def test_presets_change_the_method_and_nothing_else():
    own = Recipe(ratio=0.4, ratios={"0.mlp": 0.1}, compensation="none", scorer="magnitude", healing=5)
    assert preset("paper").applied(own) == Recipe(ratio=0.4, ratios={"0.mlp": 0.1})
    assert preset("healed").applied(own).healing == 128
    assert [name for name, each in PRESETS.items() if each.suggests] == ["best", "healed"]
    with pytest.raises(InputError, match="use paper, balanced, best, healed"):
        preset("worst")
    with pytest.raises(InputError, match="healing is -1"):
        Recipe(healing=-1)


def test_a_preset_from_the_command_line(model, tmp_path, capsys):
    model.save(tmp_path / "model")
    flags = ["--samples", "8", "--sequence-length", "32", "--ratio", "0.3", "--out", str(tmp_path / "out")]
    assert main(["prune", str(tmp_path / "model"), "--preset", "healed", "--healing", "2", *flags]) == 0
    made = load(tmp_path / "out", device="cpu").recipe
    assert (made.compensation, made.healing) == ("network", 2)
    assert made.ratios
    assert main(["prune", str(tmp_path / "model"), "--preset", "worst", *flags]) == 2
    assert "preset 'worst' is not known" in capsys.readouterr().err


def test_the_mean_over_parts_is_the_mean_over_the_whole(model, plan, stats, monkeypatch):
    results = []
    for logits in (2**26, 1):
        monkeypatch.setattr(healing, "TRAINED_LOGITS", logits)
        pruned = prune(model, plan, stats)
        heal(model, pruned, TWICE, steps=4)
        results.append(weights(pruned))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_more_text_than_the_calibration_saw(model, tmp_path):
    """What is trained on and held back are windows of the same text that do not overlap."""
    text = tmp_path / "text.txt"
    words = " ".join(f"the cat {'sat' if index % 3 else 'ran'} on mat {index}." for index in range(800))
    text.write_text(words)
    stats = calibrate(model, str(text), samples=4, sequence_length=64)
    rows = healing.rows_for(model, stats, steps=2)
    assert len(rows) == 2 * 16 + 4
    drawn = {tuple(row) for row in rows.tolist()}
    assert len(drawn) == len(rows)
    assert {tuple(row) for row in stats.rows.tolist()} <= drawn
    # There is text for so many and no more, and the calibration's own rows where there is none.
    assert len(healing.rows_for(model, stats, steps=400)) == len(model.tokenizer(words)["input_ids"]) // 64
    own = calibrate(model, ROWS, samples=8, sequence_length=32)
    assert healing.rows_for(model, own, steps=400) is own.rows


def test_pruning_heals_on_more_text(model, plan, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"the cat sat on mat {index % 7}." for index in range(800)))
    stats = calibrate(model, str(text), samples=4, sequence_length=64)
    notes = prune(model, with_recipe(plan, healing=3), stats).report.notes
    assert any("on 6 held-back sequences" in note for note in notes), notes
