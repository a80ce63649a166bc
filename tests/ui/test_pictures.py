import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from numprune.calibration import calibrate
from numprune.errors import Cancelled, InputError
from numprune.evaluation.attention import attention_patterns
from numprune.evaluation.images.judge import Verdicts, panel_of
from numprune.evaluation.images.quality import image_quality
from numprune.loading import load
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui.dock.unit import unit_picture
from numprune.ui.image_columns import exhibition, quality_columns, quality_line, quality_table
from numprune.ui.jobs import Jobs
from numprune.ui.pictures import SLIDER, Drawn, Exhibition
from numprune.ui.session import LoadRequest, Unit
from numprune.ui.session_report import session_report
from numprune.ui.shared import View
from numprune.ui.workbench import Workbench

SETTINGS = {"cfg_scale": 2.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@pytest.fixture
def bench(images_folder):
    """A workbench with the tiny image model, pruned once for the tab "tests"."""
    opened = Workbench(load(images_folder, device="cpu"))
    request = LoadRequest(str(images_folder), "cpu", calibration=CalibrationRecipe("self", 6, 2048))
    session = opened.fresh(opened.load(request, "tests"))
    opened.prune(session, "tests", name="small")
    return opened, session


def both(bench):
    workbench, session = bench
    return {"Dense": workbench.dense(session).model, **workbench.variants("tests")}


def drawn(image, verdicts=None):
    return Drawn.of(image, 0.5, verdicts)


def test_every_model_draws_what_it_draws_alone(bench):
    models = both(bench)
    *_, shown = exhibition(models, [2, 0], 3, 7, SETTINGS, None, None)
    assert shown.classes == [2, 2, 2, 0, 0, 0]
    assert shown.seeds == [7, 8, 9, 10, 11, 12]
    assert shown.titles[3] == "ant, seed 10"
    for name, model in models.items():
        images = model.decode(model.generate([2, 2, 2, 0, 0, 0], seed=7, **SETTINGS))
        assert torch.equal(shown.drawn[name].images, (images * 255).round().to(torch.uint8))
        seen = panel_of(model).verdicts(images)
        assert torch.equal(shown.drawn[name].verdicts.classes, seen.classes)
    table = shown.table()
    assert len(table) == 12
    assert set(table["model"]) == {"Dense", "small"}


def test_the_page_shows_the_pixels_and_the_verdicts():
    image = torch.zeros(2, 3, 4, 4)
    image[0, 0] = 1.0
    seen = Verdicts(torch.tensor([1, 1]), torch.tensor([0.9, 0.6]))
    shown = Exhibition(["a<b", "c"], [0, 1], [3, 4], {"Dense": drawn(image, seen), "<small>": drawn(image)})
    page = shown.html()
    assert "a&lt;b, seed 3" in page
    assert "&lt;small&gt;" in page
    assert "<small>" not in page
    assert "class='np-wrong' title='What the judge sees'>✗ c 90%" in page
    assert "✓ c 60%" in page
    assert page.count("What the judge sees") == 2
    assert "2 images in 0.50 s: 4.0 images/s" in page
    first = re.search(r"data:image/png;base64,([^']+)", page)[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))))
    assert (pixels == [255, 0, 0]).all()


def test_a_pair_is_large_enough_to_look_at():
    left, right = torch.zeros(1, 3, 28, 28), torch.ones(1, 3, 28, 28)
    pair = Exhibition(["a"], [0], [0], {"Dense": drawn(left), "small": drawn(right)}).pair("small", 0)
    assert [image.width >= SLIDER for image in pair] == [True, True]
    assert [np.asarray(image).mean() for image in pair] == [0, 255]


@pytest.mark.parametrize(("classes", "count", "says"), [([], 1, "No class"), ([0, 1, 2] * 4, 8, "at most 64")])
def test_too_few_and_too_many_are_refused(bench, classes, count, says):
    with pytest.raises(InputError, match=says):
        next(exhibition(both(bench), classes, count, 0, SETTINGS, None, None))


def test_drawing_can_be_stopped(bench):
    class Set:
        def is_set(self):
            return True

    with pytest.raises(Cancelled):
        next(exhibition(both(bench), [0], 1, 0, SETTINGS, None, Set()))


def test_the_figures_of_images_say_how_it_was_measured(bench):
    models = both(bench)
    panel = panel_of(models["Dense"])
    measured = {name: image_quality(model, 12, panel, panel.reference, batch=6) for name, model in models.items()}
    parameters = {name: model.parameters for name, model in models.items()}
    columns = quality_columns(list(models), measured, parameters)
    table = quality_table(measured, parameters)
    assert f"{measured['small'].metrics.values['fid']:.3f}" in columns
    speed = measured["small"].images_per_second[0] / measured["Dense"].images_per_second[0]
    line = quality_line(measured["small"], measured["Dense"].images_per_second[0], dense=False)
    assert f"<b>{speed:.2f}×</b>" in line
    assert f"{measured['small'].recognised:.1%} recognised" in line
    assert f"{measured['small'].metrics.values['fid']:.3f}" in table
    assert "12 images of every model" in table
    assert "noise-judge" in table
    assert "not Inception" in table
    assert "1 batches of 6, on cpu in float32" in table


def test_images_of_a_tab_are_kept_until_it_closes(bench):
    workbench, _ = bench
    with pytest.raises(InputError, match="no images yet"):
        workbench.exhibition("tests")
    *_, shown = exhibition(both(bench), [1], 1, 0, SETTINGS, None, None)
    workbench.exhibit("tests", shown)
    assert workbench.exhibition("tests") is shown
    workbench.release("tests")
    with pytest.raises(InputError):
        workbench.exhibition("tests")


def test_the_report_holds_the_images(bench):
    workbench, session = bench
    *_, shown = exhibition(both(bench), [1], 2, 0, SETTINGS, None, None)
    workbench.find("tests", "Images", shown.table(), shown.html())
    page = session_report(
        workbench.dense(session), workbench.plan(session), workbench.variants("tests"), workbench.findings("tests")
    )
    for name in ("Dense", "small"):
        assert page.count(f"alt='{name}: bee, seed ") == 2
    assert ".np-pictures" in page


def test_calibration_of_the_page_is_that_of_the_package(bench, images_folder):
    workbench, session = bench
    stats = calibrate(load(images_folder, device="cpu"), "self", samples=6)
    for key, module in workbench.dense(session).stats.modules.items():
        assert torch.equal(module.gram, stats.modules[key].gram)


def test_a_head_is_shown_on_an_image_it_was_calibrated_on(bench):
    workbench, session = bench
    loaded = workbench.dense(session)
    shared, job = SimpleNamespace(workbench=workbench), Jobs().begin("tests")
    view = View(workbench, "tests", session)
    _, label, table = unit_picture(shared, view, Unit(ModuleKey(1, "attention"), 0), "", job)
    expected = attention_patterns(loaded.model, loaded.stats.rows[0], 1)
    assert label.startswith("Attention of layer 1, head 0")
    assert table["token"].tolist() == expected.tokens
    assert table["token"][1:].tolist() == [f"{row},{column}" for row in range(4) for column in range(4)]
    np.testing.assert_allclose(table.iloc[:, 2:].to_numpy(dtype=float), expected.weights[0].numpy(), atol=1e-6)
