import errno
import json
import os
import threading

import pytest
import torch
from architectures import random_ids, random_scores, tiny_model, with_recipe

from numprune import (
    CalibrationRecipe,
    Cancelled,
    InputError,
    ModuleKey,
    NumericalError,
    NumpruneError,
    Recipe,
    allocate,
    calibrate,
    generate,
    load,
    perplexity,
    prune,
    score,
)
from numprune.models import Model
from numprune.models.model import slice_module


@pytest.fixture
def plan(model, stats):
    return allocate(score(model, stats), Recipe(ratio=0.4))


def assert_untouched(model, dense_state):
    state = model.module.state_dict()
    assert state.keys() == dense_state.keys()
    assert all(torch.equal(state[name], dense_state[name]) for name in state)
    assert not any(module._forward_pre_hooks for module in model.module.modules())
    assert model.recipe is None
    assert model.report is None


def same_bits(left, right):
    a, b = left.module.state_dict(), right.module.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class StopAfter:
    """A cancel event that is set once it was asked `calls` times."""

    def __init__(self, calls):
        self.calls = calls

    def is_set(self):
        self.calls -= 1
        return self.calls < 0


@pytest.mark.parametrize("compensation", ["paper", "none"])
def test_the_dense_model_is_not_touched(model, stats, plan, dense_state, compensation):
    module = model.module
    pruned = prune(model, with_recipe(plan, compensation=compensation), stats)
    assert pruned.parameters < model.parameters
    assert model.module is module
    assert_untouched(model, dense_state)
    assert model.parameters == plan.parameters_before


def test_pruned_and_dense_model_share_no_memory(model, stats, plan):
    pruned = prune(model, plan, stats)
    storages = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    assert not storages & {p.untyped_storage().data_ptr() for p in pruned.module.parameters()}
    for parameter in pruned.module.parameters():
        parameter.zero_()
    assert all(float(p.abs().max()) > 0 for p in model.module.parameters())


def test_narrow_linears_own_no_more_memory_than_they_need(model, stats, plan):
    pruned = prune(model, plan, stats)
    for name, parameter in pruned.module.named_parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size(), name
        assert parameter.is_contiguous(), name


def test_linears_that_shrink_are_never_copied_whole(model, monkeypatch):
    copied = []
    original = torch.nn.Parameter.__deepcopy__

    def counting(self, memo):
        copied.append(id(self))
        return original(self, memo)

    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", counting)
    shrinking = {
        id(linear.weight) for block in model.blocks for linear in (block.last, *(linear for linear, _ in block.inputs))
    }
    slice_module(model.module, model.adapter, {block.key: (0, 1) for block in model.blocks})
    assert id(model.module.get_input_embeddings().weight) in copied
    assert not shrinking & set(copied)


def test_tied_embeddings_stay_tied(model, stats, plan):
    pruned = prune(model, plan, stats)
    assert pruned.module.lm_head.weight is pruned.module.model.embed_tokens.weight


def test_report_tells_what_happened(model, stats, plan):
    pruned = prune(model, with_recipe(plan, damping=0.02), stats)
    report = pruned.report
    assert report.parameters_before == model.parameters
    assert report.parameters_after == pruned.parameters == plan.parameters_after
    assert report.bytes_before - report.bytes_after == 4 * (model.parameters - pruned.parameters)
    assert report.ratio_reached == plan.ratio_reached
    assert (report.compensation, report.damping, report.device, report.dtype) == ("paper", 0.02, "cpu", "float32")
    assert [(m.layer, m.module) for m in report.modules] == [tuple(block.key) for block in model.blocks]
    for module in report.modules:
        key = ModuleKey(module.layer, module.module)
        assert (module.units, module.kept) == (plan.units[key], len(plan.keep[key]))
        if module.kept < module.units:
            assert 0 < module.error_after < module.error_before
    assert json.loads(report.to_json())["modules"][1]["module"] == "mlp"
    assert report.to_pandas()["kept"].sum() == sum(map(len, plan.keep.values()))


def test_reported_errors_are_those_of_the_real_outputs(model):
    ids = random_ids(4, 24, seed=2)
    stats = calibrate(model, ids, samples=4, sequence_length=24)
    plan = allocate(score(model, stats), Recipe(ratio=0.4, allocation="uniform"))
    pruned = prune(model, plan, stats)
    inputs = {}
    hooks = [
        block.last.register_forward_pre_hook(lambda m, args, key=block.key: inputs.update({key: args[0].double()}))
        for block in model.blocks
    ]
    model.module(ids)
    for hook in hooks:
        hook.remove()
    for block, smaller, entry in zip(model.blocks, pruned.blocks, pruned.report.modules, strict=True):
        x = inputs[block.key].reshape(-1, block.last.in_features)
        kept = block.channels(plan.keep[block.key])
        full = x @ block.last.weight.double().T
        for weight, error in (
            (block.last.weight[:, kept], entry.error_before),
            (smaller.last.weight, entry.error_after),
        ):
            lost = torch.linalg.norm(full - x[:, kept] @ weight.double().T) / torch.linalg.norm(full)
            assert error == pytest.approx(float(lost), rel=1e-4)


def test_compensation_recovers_quality(model, stats):
    plan = allocate(score(model, stats), Recipe(ratio=0.3))
    ids = random_ids(8, 32, seed=1)
    expected = model.module(ids).logits

    def distance(compensation):
        return float(
            (prune(model, with_recipe(plan, compensation=compensation), stats).module(ids).logits - expected).norm()
        )

    assert distance("paper") < distance("none")


def test_modules_kept_whole_have_their_old_weights(model, stats):
    plan = allocate(random_scores(model), Recipe(ratio=0.0, prune={"0.mlp": (1, 2)}))
    before = model.module.model.layers
    after = prune(model, plan, stats).module.model.layers
    assert torch.equal(after[1].mlp.down_proj.weight, before[1].mlp.down_proj.weight)
    assert torch.equal(after[0].self_attn.o_proj.weight, before[0].self_attn.o_proj.weight)
    assert after[0].mlp.down_proj.weight.shape == (32, 22)


def test_recipe_of_a_pruned_model_repeats_it_to_the_bit(model, stats, plan):
    pruned = prune(model, with_recipe(plan, compensation="paper", damping=0.03), stats)
    recipe = Recipe.from_json(pruned.recipe.to_json())
    assert recipe.fingerprint == model.fingerprint()
    assert recipe.model == model.name
    assert recipe.damping == 0.03
    stats_again = calibrate(model, random_ids(8, 32, seed=1), samples=8, sequence_length=32)
    plan_again = allocate(score(model, stats_again, scorer=recipe.scorer), recipe)
    again = prune(model, with_recipe(plan_again, compensation=recipe.compensation, damping=recipe.damping), stats_again)
    assert plan_again.keep == plan.keep
    assert same_bits(pruned, again)
    assert not same_bits(pruned, prune(model, with_recipe(plan, damping=0.3), stats))


def test_saved_folder_holds_recipe_report_and_tokenizer(model, stats, plan, tmp_path):
    pruned = prune(model, plan, stats)
    pruned.save(tmp_path / "out")
    assert Recipe.read(tmp_path / "out/recipe.json") == pruned.recipe
    assert json.loads((tmp_path / "out/report.json").read_text())["parameters_after"] == pruned.parameters
    reopened = load(tmp_path / "out")
    assert (reopened.recipe, reopened.report) == (pruned.recipe, pruned.report)
    marker = json.loads((tmp_path / "out/numprune.json").read_text())
    assert marker["base"] == model.name
    assert marker["units"] == {str(key): len(kept) for key, kept in plan.keep.items()}
    loaded = load(tmp_path / "out", device="cpu")
    assert same_bits(loaded, pruned)
    text = "the cat and the dog"
    assert loaded.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    assert generate(loaded, text, max_new_tokens=8) == generate(pruned, text, max_new_tokens=8)


def test_saving_leaves_the_model_usable_and_the_folder_clean(model, tmp_path, dense_state):
    model.save(tmp_path / "out")
    assert_untouched(model, dense_state)
    assert names(tmp_path) == ["out"]
    assert not (tmp_path / "out/recipe.json").exists()


def test_a_loaded_pruned_model_can_be_pruned_measured_and_saved_again(model, stats, plan, tmp_path):
    prune(model, plan, stats).save(tmp_path / "once")
    once = load(tmp_path / "once", device="cpu")
    with pytest.raises(InputError, match="The statistics belong to another model"):
        score(once, stats)
    new_stats = calibrate(once, random_ids(8, 32, seed=1), samples=8, sequence_length=32)
    new_plan = allocate(score(once, new_stats), Recipe(ratio=0.3))
    twice = prune(once, new_plan, new_stats)
    assert twice.parameters == new_plan.parameters_after < once.parameters
    # Onto the folder its weights were read from.
    twice.save(tmp_path / "once")
    again = load(tmp_path / "once", device="cpu")
    assert same_bits(again, twice)
    assert perplexity(again, random_ids(4, 16)) == perplexity(twice, random_ids(4, 16))


@pytest.mark.parametrize("when", ["weights", "tokenizer", "marker"])
def test_a_full_disk_while_saving_leaves_nothing(model, tmp_path, monkeypatch, when):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if when == "weights":
        original = type(model.module).save_pretrained

        def save_half(self, folder, **kwargs):
            original(self, folder, **kwargs)
            full()

        monkeypatch.setattr(type(model.module), "save_pretrained", save_half)
    elif when == "tokenizer":
        monkeypatch.setattr(type(model.tokenizer), "save_pretrained", full)
    else:
        monkeypatch.setattr("numprune.models.model.to_json", full)
    with pytest.raises(
        NumpruneError, match=r"Writing .*out failed: No space left on device; nothing was left"
    ) as caught:
        model.save(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_full_disk_reported_by_safetensors_leaves_nothing(model, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(model.module), "save_pretrained", full)
    with pytest.raises(NumpruneError, match=r"Writing .*out failed: .*No space left on device.*nothing was left there"):
        model.save(tmp_path / "out")
    assert names(tmp_path) == []


def test_a_failed_save_keeps_the_earlier_one(model, tmp_path, monkeypatch):
    model.save(tmp_path / "out")
    before = names(tmp_path / "out")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(model.module), "save_pretrained", full)
    with pytest.raises(NumpruneError, match="No space left"):
        model.save(tmp_path / "out")
    monkeypatch.undo()
    assert names(tmp_path / "out") == before
    assert same_bits(load(tmp_path / "out", device="cpu"), model)


def test_saving_refuses_a_folder_of_somebody_else(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and was not written by numprune; choose another output folder"):
        model.save(tmp_path)
    assert names(tmp_path) == ["notes.txt"]


def test_saving_replaces_its_own_folder(model, stats, plan, tmp_path):
    prune(model, plan, stats).save(tmp_path / "out")
    model.save(tmp_path / "out")
    assert same_bits(load(tmp_path / "out", device="cpu"), model)
    assert not (tmp_path / "out/report.json").exists()


def test_a_model_without_tokenizer_saves_what_it_has(tmp_path):
    model = tiny_model("llama")
    model.save(tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()
    assert not (tmp_path / "out/tokenizer.json").exists()


@pytest.mark.parametrize("calls", [0, 2])
def test_a_cancelled_step_leaves_the_model_as_it_was(model, stats, plan, dense_state, calls):
    steps = (
        lambda cancel: calibrate(model, random_ids(8, 32), samples=8, sequence_length=32, batch_size=1, cancel=cancel),
        lambda cancel: calibrate(model, "self", samples=2, sequence_length=16, cancel=cancel),
        lambda cancel: score(model, stats, cancel=cancel),
        lambda cancel: prune(model, plan, stats, cancel=cancel),
        lambda cancel: perplexity(model, random_ids(8, 32), batch_size=1, cancel=cancel),
        lambda cancel: generate(model, "the", cancel=cancel),
    )
    for step in steps:
        with pytest.raises(Cancelled, match="Stopped on request"):
            step(StopAfter(calls))
        assert_untouched(model, dense_state)


def test_an_event_that_is_not_set_changes_nothing(model, stats, plan):
    assert same_bits(prune(model, plan, stats, cancel=threading.Event()), prune(model, plan, stats))


def test_progress_counts_to_the_end(model, stats, plan):
    calls = []
    prune(model, plan, stats, progress=lambda done, total, what: calls.append((done, total, what)))
    assert [call[:2] for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert calls[1][2] == "pruning 0.mlp"


def test_plans_and_statistics_of_another_model_are_refused(model, stats, plan):
    other = tiny_model("llama-gqa-tied", seed=1)
    other_stats = calibrate(other, random_ids(2, 8), samples=2, sequence_length=8)
    other_plan = allocate(score(other, other_stats), Recipe(ratio=0.3))
    with pytest.raises(InputError, match="The plan belong"):
        prune(model, other_plan, stats)
    with pytest.raises(InputError, match="The statistics belong"):
        prune(model, plan, other_stats)


def test_unknown_compensation_is_refused(model, stats, plan):
    with pytest.raises(InputError, match="compensation 'full' is not known; use paper, residual, network, bias, none"):
        prune(model, with_recipe(plan, compensation="full"), stats)


def test_a_compensation_that_cannot_be_solved_names_the_module(model, stats, plan, dense_state):
    key = next(key for key in plan.keep if len(plan.keep[key]) < plan.units[key])
    stats.modules[key].gram.zero_()
    with pytest.raises(NumericalError, match=f"Compensating {key}: .*higher damping"):
        prune(model, with_recipe(plan, damping=0.0), stats)
    assert_untouched(model, dense_state)


def test_notes_reach_the_report(model, stats):
    with pytest.warns(UserWarning, match="capped at 64"):
        capped = calibrate(model, random_ids(1, 200), samples=2, sequence_length=100)
    plan = allocate(score(model, capped), Recipe(ratio=0.99))
    report = prune(model, plan, capped).report
    assert len(report.notes) == 2
    assert "capped at 64" in report.notes[0]
    assert "asked for can go" in report.notes[1]


def test_pruned_model_keeps_dtype_and_device(model, stats):
    half = Model(model.module.to(torch.bfloat16), model.tokenizer, model.adapter, model.name)
    half_stats = calibrate(half, random_ids(8, 32, seed=1), samples=8, sequence_length=32)
    plan = allocate(score(half, half_stats), Recipe(ratio=0.4))
    pruned = prune(half, plan, half_stats)
    assert {p.dtype for p in pruned.module.parameters()} == {torch.bfloat16}
    assert pruned.report.dtype == "bfloat16"
    assert pruned.bytes == 2 * pruned.parameters


@pytest.mark.parametrize("compensation", ["none", "bias", "paper", "residual", "network"])
def test_what_the_recipe_records_is_what_was_done(model, stats, compensation):
    """Whatever the plan's recipe said of calibration, model and fingerprint; and the record alone repeats it."""
    said = Recipe(
        ratio=0.4,
        compensation=compensation,
        damping=0.03,
        healing=2,
        swaps=1,
        calibration=CalibrationRecipe("elsewhere.txt", samples=3, sequence_length=7, seed=9),
    )
    pruned = prune(model, allocate(random_scores(model), said), stats)
    assert pruned.recipe == said.replace(
        model=model.name,
        fingerprint=model.fingerprint(),
        calibration=CalibrationRecipe(None, samples=8, sequence_length=32, seed=0),
    )
    report = pruned.report
    assert (report.compensation, report.damping) == (compensation, 0.03)
    assert any("steps of training" in note for note in report.notes)
    assert any(note.startswith("Swaps exchanged") for note in report.notes)
    again = prune(model, allocate(random_scores(model), Recipe.from_json(pruned.recipe.to_json())), stats)
    assert same_bits(pruned, again)
    others = [each for each in ("none", "bias", "paper", "residual", "network") if each != compensation]
    for other in others:
        different = prune(model, allocate(random_scores(model), said.replace(compensation=other)), stats)
        assert not same_bits(pruned, different)
