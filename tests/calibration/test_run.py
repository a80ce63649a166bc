import json
import weakref
from contextlib import contextmanager

import pytest
import torch
from architectures import ARCHITECTURES, random_ids, tiny_model

from numprune import (
    CalibrationRecipe,
    Cancelled,
    InputError,
    NumericalError,
    calibrate,
    calibrate_by_recipe,
    perplexity,
)
from numprune.calibration.statistics import GramAccumulator


def direct(model, ids):
    """X in float64 of every module, (tokens, channels), from hooks of the test's own."""
    inputs = {}
    hooks = [
        block.last.register_forward_pre_hook(lambda m, args, key=block.key: inputs.update({key: args[0].double()}))
        for block in model.blocks
    ]
    with torch.no_grad():
        model.module(ids)
    for hook in hooks:
        hook.remove()
    return {key: x.reshape(-1, x.shape[-1]) for key, x in inputs.items()}


@contextmanager
def fed(model):
    """Collects the ids that are fed to the model."""
    seen = []
    hook = model.module.base_model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    yield seen
    hook.remove()


def assert_no_hooks(model):
    for module in model.module.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_statistics_are_those_of_the_activations(name):
    model = tiny_model(name)
    ids = random_ids(6, 20)
    stats = calibrate(model, ids, samples=6, sequence_length=20, batch_size=4)
    expected = direct(model, ids)
    assert stats.modules.keys() == expected.keys()
    for key, x in expected.items():
        module = stats.modules[key]
        assert module.gram.dtype == module.mean.dtype == torch.float64
        assert module.tokens == 120
        scale = float((x.T @ x).diagonal().max())
        torch.testing.assert_close(module.gram, x.T @ x, rtol=1e-5, atol=1e-6 * scale)
        torch.testing.assert_close(module.mean, x.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.rms, (x**2).mean(0).sqrt(), rtol=1e-4, atol=1e-5)
        assert torch.equal(module.gram, module.gram.T)


@pytest.mark.parametrize("batch_size", [1, 3, 16, "auto"])
def test_statistics_do_not_depend_on_the_batch_size(model, batch_size):
    ids = random_ids(16, 12)
    reference = calibrate(model, ids, samples=16, sequence_length=12, batch_size=5)
    stats = calibrate(model, ids, samples=16, sequence_length=12, batch_size=batch_size)
    for key, expected in reference.modules.items():
        torch.testing.assert_close(stats.modules[key].gram, expected.gram, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stats.modules[key].mean, expected.mean, rtol=1e-5, atol=1e-6)


def test_same_call_same_bits(model):
    first, second = (calibrate(model, random_ids(8, 32), samples=4, sequence_length=16, seed=3) for _ in range(2))
    for key in first.modules:
        assert torch.equal(first.modules[key].gram, second.modules[key].gram)


def test_statistics_say_what_was_used(model):
    stats = calibrate(model, random_ids(8, 32), samples=4, sequence_length=16, seed=3)
    assert (stats.data, stats.samples, stats.sequence_length, stats.tokens, stats.seed) == ("tokens", 4, 16, 64, 3)
    assert stats.fingerprint == model.fingerprint()
    assert stats.notes == []
    assert stats.seconds > 0


def test_a_million_tokens_lose_no_precision():
    generator = torch.Generator().manual_seed(0)
    accumulator = GramAccumulator(6, torch.device("cpu"))
    gram, total = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    naive = torch.zeros(6, 6)
    for _ in range(256):
        x = 50 + torch.randn(4096, 6, generator=generator)
        assert accumulator.add(x)
        gram += x.double().T @ x.double()
        total += x.double().sum(0)
        naive += x.T @ x
    stats = accumulator.finish()
    assert stats.tokens == 2**20
    assert float(((stats.gram - gram) / gram).abs().max()) < 1e-6
    torch.testing.assert_close(stats.mean, total / 2**20, rtol=1e-6, atol=0)
    # The offset is 50 times the signal, which one float32 sum over everything would blur.
    covariance = stats.gram / stats.tokens - torch.outer(stats.mean, stats.mean)
    torch.testing.assert_close(covariance, torch.eye(6, dtype=torch.float64), rtol=0, atol=0.02)
    assert float((stats.gram - gram).abs().max()) < float((naive.double() - gram).abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_are_multiplied_exactly(dtype):
    x = torch.randn(500, 1030, generator=torch.Generator().manual_seed(1)).to(dtype)
    accumulator = GramAccumulator(1030, torch.device("cpu"))
    accumulator.add(x)
    expected = x.double().T @ x.double()
    torch.testing.assert_close(accumulator.finish().gram, expected, rtol=1e-5, atol=1e-3)


def test_no_activation_outlives_its_batch(model):
    alive = []

    def watch(module, args):
        assert not any(reference() is not None for reference in alive)
        alive.append(weakref.ref(args[0]))

    hook = model.blocks[-1].last.register_forward_pre_hook(watch)
    stats = calibrate(model, random_ids(6, 16), samples=6, sequence_length=16, batch_size=2)
    hook.remove()
    assert len(alive) == 3
    assert not any(reference() is not None for reference in alive)
    for module, block in zip(stats.modules.values(), model.blocks, strict=True):
        assert module.gram.untyped_storage().nbytes() == 8 * block.last.in_features**2


def test_logits_are_never_computed(model):
    calls = []
    hook = model.module.lm_head.register_forward_hook(lambda *args: calls.append(1))
    calibrate(model, random_ids(2, 16), samples=2, sequence_length=16)
    hook.remove()
    assert calls == []


def test_windows_do_not_overlap_while_the_text_lasts(model):
    text = torch.arange(100) % 110
    with fed(model) as seen:
        calibrate(model, text, samples=9, sequence_length=11, batch_size=2)
    windows = torch.cat(seen)
    assert windows.shape == (9, 11)
    assert [len(batch) for batch in seen] == [2, 2, 2, 2, 1]
    assert windows.flatten().unique().numel() == 99
    assert all(torch.equal(window, torch.arange(int(window[0]), int(window[0]) + 11)) for window in windows)


def test_windows_are_drawn_from_all_of_the_text(model):
    firsts = set()
    for seed in range(6):
        with fed(model) as seen:
            calibrate(model, torch.arange(100) % 110, samples=2, sequence_length=10, seed=seed)
        assert len(set(torch.cat(seen)[:, 0].tolist())) == 2
        firsts |= set(torch.cat(seen)[:, 0].tolist())
    assert len(firsts) > 5


def test_windows_overlap_when_the_text_is_short(model):
    with fed(model) as seen:
        stats = calibrate(model, torch.arange(20), samples=6, sequence_length=8)
    windows = torch.cat(seen)
    assert len({tuple(window.tolist()) for window in windows}) == 6
    assert stats.notes == []


def test_fewer_windows_than_asked_for_are_noted(model):
    stats = calibrate(model, torch.arange(10), samples=100, sequence_length=8)
    assert stats.samples == 3
    assert stats.tokens == 24
    assert stats.notes == ["The text gave 3 of the 100 samples asked for."]


def test_rows_of_a_token_matrix_are_used_whole(model):
    ids = random_ids(5, 16)
    with fed(model) as seen:
        calibrate(model, ids, samples=5, sequence_length=16)
    assert sorted(torch.cat(seen).tolist()) == sorted(ids.tolist())


def test_texts_are_laid_end_to_end(model):
    texts = ["the cat", "and a dog", "sat."]
    ids = [token for text in texts for token in model.tokenizer(text)["input_ids"]]
    with fed(model) as seen:
        stats = calibrate(model, texts, samples=1, sequence_length=len(ids))
    assert seen[0].tolist() == [ids]
    assert stats.data == "texts"


def test_a_length_beyond_the_model_is_capped_with_a_warning_and_a_note(model):
    with pytest.warns(UserWarning, match="Sequence length 65 was capped at 64, the most this model supports"):
        stats = calibrate(model, random_ids(4, 64), samples=2, sequence_length=65)
    assert stats.sequence_length == 64
    assert len(stats.notes) == 1
    assert "capped at 64" in stats.notes[0]


@pytest.mark.parametrize(("layer", "kind"), [(0, "attention"), (0, "mlp"), (1, "attention"), (1, "mlp")])
@pytest.mark.parametrize("value", [1e30])  # weights that are not finite are refused before
def test_non_finite_activations_name_the_layer(model, layer, kind, value):
    block = next(block for block in model.blocks if block.key == (layer, kind))
    block.inputs[-1][0].weight[:] = value
    with pytest.raises(NumericalError, match=f"Layer {layer} feeds non-finite values into its {kind} output"):
        calibrate(model, random_ids(2, 16), samples=2, sequence_length=16)
    assert_no_hooks(model)


def test_hooks_are_removed(model):
    calibrate(model, random_ids(2, 16), samples=2, sequence_length=16)
    assert_no_hooks(model)


def test_hooks_are_removed_after_an_error_of_the_model(model, monkeypatch):
    monkeypatch.setattr(model.module.model.layers[1].mlp, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        calibrate(model, random_ids(2, 16), samples=2, sequence_length=16)
    assert_no_hooks(model)


def test_cancelled_between_batches(model):
    class Event:
        def is_set(self):
            return len(seen) == 2

    with fed(model) as seen, pytest.raises(Cancelled):
        calibrate(model, random_ids(8, 16), samples=8, sequence_length=16, batch_size=1, cancel=Event())
    assert len(seen) == 2
    assert_no_hooks(model)


def test_progress_counts_sequences(model):
    calls = []
    calibrate(
        model, random_ids(5, 16), samples=5, sequence_length=16, batch_size=2, progress=lambda *c: calls.append(c)
    )
    assert calls == [(2, 5, "calibrating"), (4, 5, "calibrating"), (5, 5, "calibrating")]


@pytest.mark.parametrize("name", ["samples", "sequence_length", "batch_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_out_of_range_are_refused(model, name, value):
    least = 2 if name == "sequence_length" else 1
    with pytest.raises(InputError, match=f"{name} is {value}; give at least {least}"):
        calibrate(model, random_ids(4, 16), **{"samples": 2, "sequence_length": 8, name: value})


@pytest.mark.parametrize("bad", [-1, 112, 10**9])
def test_token_ids_outside_the_vocabulary_are_refused(model, bad):
    ids = random_ids(2, 16)
    ids[1, 3] = bad
    with pytest.raises(InputError, match=f"Token ids run from .*{bad}.*; this model knows 0 to 111"):
        calibrate(model, ids, samples=2, sequence_length=16)


def test_text_shorter_than_one_sequence_is_refused(model):
    with pytest.raises(InputError, match="has 3 tokens, one sequence needs 32; give more text or a smaller"):
        calibrate(model, ["cat"], samples=2, sequence_length=32)


def test_sequences_of_one_token_are_refused(model):
    """They predict nothing; the Fisher information of none once ended in advice about float32."""
    with pytest.raises(InputError, match="sequence_length is 1; give at least 2"):
        calibrate(model, random_ids(4, 16), samples=2, sequence_length=1)


def test_other_work_on_the_model_is_not_counted(model):
    """As when a page measures perplexity while the model is calibrated again."""
    ids = random_ids(6, 16)
    alone = calibrate(model, ids, samples=6, sequence_length=16, batch_size=2)
    others = []

    def work(*_):
        others.append(float(perplexity(model, random_ids(2, 16, seed=9), sequence_length=16)))

    beside = calibrate(model, ids, samples=6, sequence_length=16, batch_size=2, progress=work)
    assert len(others) == 3
    for key, module in alone.modules.items():
        assert beside.modules[key].tokens == module.tokens == 96
        assert torch.equal(beside.modules[key].gram, module.gram)


def test_a_recipe_is_calibrated_on_as_it_says(tmp_path, framing_tokenizer):
    model = tiny_model("llama", tokenizer=framing_tokenizer)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": "no " * 40, "other": "the cat sat on a mat " * 9}) for _ in range(9)))
    source = CalibrationRecipe(str(file), 5, 16, seed=3, bos=False, text_column="other")
    stats = calibrate_by_recipe(model, source)
    assert stats.source == source
    options = {"samples": 5, "sequence_length": 16, "seed": 3, "bos": False, "text_column": "other"}
    assert torch.equal(stats.rows, calibrate(model, file, **options).rows)
    with pytest.raises(InputError, match="on text it does not name; give a file, a dataset or the model's own samples"):
        calibrate_by_recipe(model, CalibrationRecipe(None))
