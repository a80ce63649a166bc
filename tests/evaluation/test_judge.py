import json

import pytest
import torch
from torch.nn import functional

from numprune import InputError, LoadError
from numprune.evaluation.images.comparison import image_metrics
from numprune.evaluation.images.features import METRICS
from numprune.evaluation.images.judge import SPATIAL, Judge, Panel, Verdicts, load_panel, panel_of
from numprune.evaluation.images.quality import evenly, image_quality
from numprune.evaluation.images.references import reference_from_images
from numprune.loading import load


def real_images(n=40, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def panel():
    torch.manual_seed(0)
    judge = Judge(channels=1, size=8, classes=3, width=6, data="noise").eval().requires_grad_(False)
    return Panel(judge, reference_from_images(real_images(), Panel(judge, None, 0.75, 40)), 0.75, 40)


def test_features_are_those_of_the_layers(panel):
    images = real_images(5, seed=1)
    judge = panel.judge
    x = images.mean(1, keepdim=True)
    for index, stride in ((0, 1), (2, 2), (4, 2)):
        layer = judge.convolutions[index]
        x = functional.conv2d(x, layer.weight, layer.bias, stride=stride, padding=1).clamp(min=0)
    hidden = (x.flatten(1) @ judge.hidden.weight.T + judge.hidden.bias).clamp(min=0)
    logits = hidden @ judge.output.weight.T + judge.output.bias
    found = panel(images)
    torch.testing.assert_close(found.pool, hidden)
    torch.testing.assert_close(found.spatial, x[:, :SPATIAL].flatten(1))
    torch.testing.assert_close(found.probabilities, logits.exp() / logits.exp().sum(1, keepdim=True))
    seen = panel.verdicts(images)
    assert torch.equal(seen.classes, logits.argmax(1))
    torch.testing.assert_close(seen.confidence, found.probabilities.amax(1))


def test_the_share_that_is_recognised_is_counted():
    verdicts = Verdicts(torch.tensor([2, 1, 0, 1]), torch.ones(4))
    assert verdicts.recognised(torch.tensor([2, 1, 1, 1])) == 0.75


def test_other_sizes_are_resized(panel):
    large = real_images(2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(panel(large).pool.shape, panel(real_images(2)).pool.shape)


def test_a_saved_panel_says_the_same(panel, tmp_path):
    panel.save(tmp_path)
    loaded = load_panel(tmp_path)
    assert (loaded.name, loaded.accuracy, loaded.n) == ("noise-judge", 0.75, 40)
    images = real_images(30, seed=2)
    expected = image_metrics(images, panel, panel.reference).values
    # Reference features are kept in half precision.
    assert image_metrics(images, loaded, loaded.reference).values == pytest.approx(expected, rel=2e-2, abs=2e-2)
    assert torch.equal(loaded.verdicts(images).classes, panel.verdicts(images).classes)


@pytest.mark.parametrize("damage", ["missing", "cut", "facts"])
def test_a_damaged_judge_is_refused(panel, tmp_path, damage):
    panel.save(tmp_path)
    if damage == "missing":
        (tmp_path / "judge.safetensors").unlink()
    elif damage == "cut":
        file = tmp_path / "judge.safetensors"
        file.write_bytes(file.read_bytes()[:100])
    else:
        facts = json.loads((tmp_path / "judge.json").read_text())
        facts["sizes"]["width"] = 7
        (tmp_path / "judge.json").write_text(json.dumps(facts))
    with pytest.raises(LoadError, match="cannot be read"):
        load_panel(tmp_path)


def test_classes_are_taken_alike():
    assert torch.bincount(evenly(3, 10)).tolist() == [4, 3, 3]
    assert evenly(1000, 4).tolist() == [0, 250, 500, 750]
    assert evenly(4, 4).tolist() == [0, 1, 2, 3]


def test_quality_is_that_of_the_images_it_drew(images_folder):
    model = load(images_folder, device="cpu")
    panel = panel_of(model)
    done = []
    settings = {"cfg_scale": 2.0, "top_k": 0}
    found = image_quality(
        model, 22, panel, panel.reference, seed=5, batch=8, progress=lambda *at: done.append(at[:2]), **settings
    )
    classes = torch.arange(22) % model.classes
    images = model.decode(model.generate(classes, seed=5, **settings))
    assert found.metrics.values == pytest.approx(image_metrics(images, panel, panel.reference).values, rel=1e-4)
    assert found.recognised == panel.verdicts(images).recognised(classes)
    assert found.recognised_error == pytest.approx((found.recognised * (1 - found.recognised) / 22) ** 0.5)
    assert found.n == 22
    # Three batches: the first warms up, the last is not full.
    assert len(found.batch_seconds) == 1
    median, low, high = found.images_per_second
    assert low == median == high == 8 / found.batch_seconds[0]
    assert done[-1] == (22 * 16, 22 * 16)
    assert [at for at, _ in done] == sorted(at for at, _ in done)


def test_quality_refuses_what_it_cannot_measure(images_folder):
    model = load(images_folder, device="cpu")
    panel = panel_of(model)
    for n, options, says in ((1, {}, "at least 2"), (4, {"batch": 0}, "batch is 0")):
        with pytest.raises(InputError, match=says):
            image_quality(model, n, panel, panel.reference, METRICS, **options)
    model.vq = None
    with pytest.raises(InputError, match="without an image tokenizer"):
        image_quality(model, 4, panel, panel.reference)


def test_a_pruned_model_takes_its_judge_along(images_folder, tmp_path):
    model = load(images_folder, device="cpu")
    model.save(tmp_path / "copy")
    copy = load(tmp_path / "copy", device="cpu")
    images = real_images(4)
    assert torch.equal(panel_of(copy)(images).pool, panel_of(model)(images).pool)
