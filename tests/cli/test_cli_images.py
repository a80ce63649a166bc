import json
import re

import numpy as np
import pytest
from PIL import Image

import numprune
from numprune.evaluation.images.judge import panel_of
from numprune.evaluation.images.quality import image_quality
from numprune.generation.images import GAP
from numprune.llamagen import build

SIDE = 8


@pytest.fixture(scope="module")
def folder(images_folder):
    return images_folder


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image).astype(float) / 255


def test_images_of_classes_become_a_grid(run, folder, tmp_path):
    out = tmp_path / "new" / "grid.png"
    code, printed, _ = run("generate", folder, "--classes", "cow,0,1", "--seed", 3, "--guidance", 2, "--out", out)
    assert code == 0
    assert printed.startswith(f"{out}: 3 images in ")
    model = numprune.load(folder)
    images = model.decode(model.generate([2, 0, 1], seed=3, cfg_scale=2.0))
    found, step = pixels(out), SIDE + GAP
    assert found.shape == (2 * SIDE + GAP, 2 * SIDE + GAP, 3)
    for index, image in enumerate(images):
        top, left = index // 2 * step, index % 2 * step
        tile = found[top : top + SIDE, left : left + SIDE]
        np.testing.assert_allclose(tile, image.permute(1, 2, 0), atol=0.5 / 255 + 1e-6)
    assert (found[step:, step:] == 1).all()
    assert images.std() > 0.01


def test_several_images_of_a_class_share_a_row(run, folder, tmp_path):
    out = tmp_path / "grid.png"
    flags = ("--count", 3, "--temperature", 0.9, "--top-k", 9, "--top-p", 0.8, "--json")
    code, printed, _ = run("generate", folder, "--classes", "1, 2", *flags, "--out", out)
    assert code == 0
    value = json.loads(printed)
    assert value["classes"] == [1, 1, 1, 2, 2, 2]
    assert value["settings"] == {"temperature": 0.9, "top_k": 9, "top_p": 0.8}
    assert value["out"] == str(out)
    assert pixels(out).shape == (2 * SIDE + GAP, 3 * SIDE + 2 * GAP, 3)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--classes", "7", "--out", "x.png"), "Class ids run from 7 to 7"),
        (("--classes", "horse", "--out", "x.png"), "'horse' is no class of .* such as ant, bee, cow"),
        (("--classes", ",", "--out", "x.png"), "at least one class id"),
        (("--classes", "1"), "needs --out"),
        (("--classes", "1", "--out", "x.jpg"), "needs --out"),
        (("--classes", "1", "--out", "x.png", "--count", "0"), "--count is 0"),
        (("--classes", "1", "--out", "x.png", "--guidance", "-2"), "cfg_scale is -2"),
        (("--classes", "1", "--out", "x.png", "--max-new-tokens", "2"), "--max-new-tokens means nothing"),
        (("--prompt", "a", "--out", "x.png"), "--out means nothing"),
        (("--prompt", "a"), "draws images; give --classes"),
    ],
)
def test_flags_that_do_not_fit_are_refused(run, folder, tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("generate", folder, *flags)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(says, err)
    assert not list(tmp_path.iterdir())


def test_a_language_model_draws_no_images(run, tmp_path):
    code, _, err = run("generate", "tiny-stories", "--classes", "1", "--out", tmp_path / "x.png")
    assert code == 2
    assert "writes text; give --prompt" in err


def test_an_image_model_without_a_tokenizer_says_so(run, tmp_path):
    build(classes=3, vocab=20, grid=2, hidden=16, layers=1, heads=2, channels=8).save(tmp_path / "model")
    code, _, err = run("generate", tmp_path / "model", "--classes", "1", "--out", tmp_path / "x.png")
    assert code == 2
    assert "came without an image tokenizer" in err


def test_an_image_model_is_pruned_from_the_command_line(run, folder, tmp_path):
    small, out = tmp_path / "small", tmp_path / "x.png"
    assert run("prune", folder, "--ratio", "0.4", "--samples", "8", "--out", small)[0] == 0
    assert numprune.load(small).parameters < numprune.load(folder).parameters
    assert run("generate", small, "--classes", "bee", "--out", out)[0] == 0
    assert pixels(out).shape == (SIDE, SIDE, 3)


def test_images_are_measured_with_the_judge_that_came_with_the_model(run, folder, tmp_path):
    small = tmp_path / "small"
    assert run("prune", folder, "--ratio", "0.4", "--samples", "8", "--out", small)[0] == 0
    flags = (
        "--images",
        12,
        "--metrics",
        "fid,precision",
        "--guidance",
        2,
        "--top-k",
        0,
        "--seed",
        3,
        "--batch-size",
        5,
    )
    code, printed, _ = run("eval", folder, small, *flags, "--json")
    assert code == 0
    for value, path in zip(json.loads(printed), (folder, small), strict=True):
        model = numprune.load(path)
        panel = panel_of(model)
        settings = {"cfg_scale": 2.0, "top_k": 0, "seed": 3}
        found = image_quality(model, 12, panel, panel.reference, ("fid", "precision"), **settings)
        assert value["extractor"] == "noise-judge"
        assert value["values"] == pytest.approx(found.metrics.values, rel=1e-5)
        assert value["recognised"] == found.recognised
        assert len(value["batch_seconds"]) == 1
        assert value["n"] == 12
    code, printed, _ = run("eval", folder, "--images", 4)
    assert code == 0
    assert "noise-judge on 4 images" in printed


@pytest.mark.parametrize(
    ("model", "flags", "says"),
    [
        (None, ("--images", "1"), "at least 2"),
        (None, ("--images", "4", "--metrics", "fid,beauty"), "'beauty' was asked for"),
        (None, ("--images", "4", "--speed"), "leave out --data, --max-tokens, --speed and --tasks"),
        (None, ("--images", "4", "--max-tokens", "9"), "leave out --data, --max-tokens"),
        (None, ("--images", "4", "--guidance", "-1"), "cfg_scale is -1"),
        (None, ("--metrics", "fid"), "--metrics needs --images"),
        (None, (), "draws images; give --images N"),
        ("tiny-stories", ("--images", "4"), "writes text"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(run, folder, model, flags, says):
    code, out, err = run("eval", model or folder, *flags)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert says in err
