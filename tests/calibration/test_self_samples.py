from pathlib import Path

import pytest
import torch
from architectures import tiny_model
from safetensors.torch import load_file, save_file

from numprune import calibrate
from numprune.calibration import self_samples as module
from numprune.calibration.self_samples import draw_samples, self_samples


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A folder where nothing was kept yet."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NUMPRUNE_CACHE", str(folder))
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """Counts how often samples are really drawn."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(args)
        return draw_samples(*args, **kwargs)

    monkeypatch.setattr(module, "draw_samples", counting)
    return calls


def test_samples_are_text_of_the_model(model):
    samples = self_samples(model, 6, 40, seed=0)
    assert samples.shape == (6, 40)
    assert samples.dtype == torch.long
    assert samples[:, 0].tolist() == [0] * 6
    assert len({tuple(row.tolist()) for row in samples}) == 6
    # Random weights spread the probability; a greedy or cut-off draw would not reach as many tokens.
    assert samples.unique().numel() > 40


def test_a_row_that_ends_begins_a_new_document(model):
    samples = draw_samples(model, 24, 48, seed=0)
    ends = (samples[:, :-1] == 1).nonzero().tolist()
    assert len(ends) > 0
    assert all(int(samples[row, column + 1]) == 0 for row, column in ends)


def test_same_seed_same_samples_other_seed_other_samples(model):
    assert torch.equal(draw_samples(model, 3, 20, seed=4), draw_samples(model, 3, 20, seed=4))
    assert not torch.equal(draw_samples(model, 3, 20, seed=4), draw_samples(model, 3, 20, seed=9))


def test_samples_do_not_depend_on_how_they_are_batched(model, monkeypatch):
    expected = draw_samples(model, 7, 20, seed=2)
    monkeypatch.setattr(module, "SAMPLED_SEQUENCES", 3)
    assert torch.equal(draw_samples(model, 7, 20, seed=2), expected)
    assert torch.equal(draw_samples(model, 2, 20, seed=2), expected[:2])


def test_a_second_calibration_reads_the_file(model, cache, drawn):
    first = calibrate(model, "self", samples=3, sequence_length=16)
    assert len(drawn) == 1
    assert len(list(cache.iterdir())) == 1
    second = calibrate(model, "self", samples=3, sequence_length=16)
    assert len(drawn) == 1
    assert first.data == "self"
    for key in first.modules:
        assert torch.equal(first.modules[key].gram, second.modules[key].gram)


@pytest.mark.parametrize(
    "change", [{"samples": 4}, {"sequence_length": 17}, {"seed": 1}], ids=["samples", "length", "seed"]
)
def test_other_settings_draw_other_samples(model, cache, drawn, change):
    calibrate(model, "self", samples=3, sequence_length=16)
    calibrate(model, "self", **{"samples": 3, "sequence_length": 16, **change})
    assert len(drawn) == 2
    assert len(list(cache.iterdir())) == 2


def test_another_model_draws_its_own(model, drawn):
    calibrate(model, "self", samples=2, sequence_length=8)
    calibrate(tiny_model("llama-gqa-tied", seed=1), "self", samples=2, sequence_length=8)
    assert len(drawn) == 2


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "other key", "folder"])
def test_a_damaged_file_is_drawn_again(model, cache, drawn, damage):
    expected = self_samples(model, 3, 16, seed=0)
    (file,) = cache.iterdir()
    if damage == "other key":
        save_file({"ids": torch.zeros(3, 16, dtype=torch.int32)}, file)
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"empty": b"", "garbage": b"garbage" * 9, "cut": file.read_bytes()[:-20]}[damage])
    assert torch.equal(self_samples(model, 3, 16, seed=0), expected)
    assert len(drawn) == 2
    if damage != "folder":
        assert torch.equal(load_file(file)["tokens"].long(), expected)


@pytest.mark.parametrize("tokens", [torch.zeros(2, 16, dtype=torch.int32), torch.zeros(48, dtype=torch.int32)])
def test_a_file_with_samples_of_another_shape_is_drawn_again(model, cache, tokens):
    expected = self_samples(model, 3, 16, seed=0)
    (file,) = cache.iterdir()
    save_file({"tokens": tokens}, file)
    assert torch.equal(self_samples(model, 3, 16, seed=0), expected)


def test_a_cache_that_cannot_be_written_does_not_matter(model, cache, monkeypatch):
    blocked = cache / "file"
    blocked.write_text("")
    monkeypatch.setenv("NUMPRUNE_CACHE", str(blocked / "below"))
    assert calibrate(model, "self", samples=2, sequence_length=8).tokens == 16
    assert list(cache.iterdir()) == [blocked]


def test_samples_that_ship_with_a_model_are_used(model, tmp_path, cache, drawn, monkeypatch):
    name = f"self-{model.fingerprint()}-2x8-0.safetensors"
    shipped = torch.arange(16, dtype=torch.int32).reshape(2, 8)
    save_file({"tokens": shipped}, tmp_path / name)
    monkeypatch.setattr(module, "embedded_model", lambda name: tmp_path)
    assert torch.equal(self_samples(model, 2, 8, seed=0), shipped.long())
    assert drawn == []
    self_samples(model, 2, 9, seed=0)
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert len(list(cache.iterdir())) == 1


def test_drawing_reports_progress(model):
    calls = []
    draw_samples(model, 3, 5, seed=0, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(3, 12), (6, 12), (9, 12), (12, 12)]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NUMPRUNE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"NUMPRUNE_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/numprune"),
        ({"NUMPRUNE_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/numprune"),
    ],
)
def test_cache_folder_follows_the_environment(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert module.cache_folder() == Path(expected)


def test_images_are_those_the_model_draws_of_uniform_classes(monkeypatch):
    model = tiny_model("llamagen")
    drawn = draw_samples(model, 200, 65, seed=5)
    classes, codes = drawn[:, 0] - model.config.codes, drawn[:, 1:]
    assert drawn.shape == (200, 65)
    assert sorted(classes.unique().tolist()) == list(range(model.classes))
    assert torch.equal(codes[:3], model.generate(classes[:3], **model.sampling_settings, seed=5))
    monkeypatch.setattr("numprune.llamagen.model.SAMPLED_SEQUENCES", 30)
    assert torch.equal(draw_samples(model, 70, 65, seed=5)[:65], draw_samples(model, 200, 65, seed=5)[:65])


def test_images_are_drawn_once_for_each_model_and_setting(drawn, cache, monkeypatch):
    model = tiny_model("llamagen")
    first = self_samples(model, 3, 65, seed=0)
    assert torch.equal(self_samples(model, 3, 65, seed=0), first)
    assert len(drawn) == 1
    assert len(list(cache.iterdir())) == 1
    self_samples(tiny_model("llamagen", seed=1), 3, 65, seed=0)
    settings = model.sampling_settings | {"cfg_scale": 1.5}
    monkeypatch.setattr(type(model), "sampling_settings", property(lambda self: settings))
    assert not torch.equal(self_samples(model, 3, 65, seed=0), first)
    assert len(drawn) == 3


def test_drawing_images_reports_its_progress():
    steps = []
    draw_samples(tiny_model("llamagen"), 40, 65, seed=0, progress=lambda *step: steps.append(step))
    assert steps[0] == (32, 40 * 64, "sampling images")
    assert steps[-1][:2] == (40 * 64, 40 * 64)
    assert [step[0] for step in steps] == sorted(step[0] for step in steps)


def test_calibration_on_images_caps_their_length_without_a_word(recwarn):
    stats = calibrate(tiny_model("llamagen"), "self", samples=4)
    assert (stats.samples, stats.sequence_length, stats.data) == (4, 65, "self")
    assert stats.notes == []
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]
