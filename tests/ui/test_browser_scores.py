"""The page on a file of scores, without the model, in a real browser."""

import json
import re
from dataclasses import replace

import pytest
from browsing import DESK, MARKS, PHONE, center, edit, expect, open_part, open_tab, plan, toast, until, visits
from servers import served

import numprune
from numprune.scoring.score_file import shipped_file
from numprune.ui.launch import of_file

pytestmark = MARKS


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Scores of a model that nobody here has."""
    held = [numprune.read_score_file(shipped_file("tiny-stories", scorer)) for scorer in ("fisher", "newton")]
    tables = [replace(each, model="far/away") for one in held for each in one.tables.values()]
    path = tmp_path_factory.mktemp("scores") / "scores.safetensors"
    numprune.write_scores(path, tables, held[0].calibration, replace(held[0].outline, name="far/away"))
    return path


@pytest.fixture(scope="module")
def scores_url(file):
    with served(of_file(str(file))) as address:
        yield address


@pytest.fixture
def scores_page(browser, scores_url, tmp_path, request):
    with visits(browser, scores_url, tmp_path, request.session) as opened:
        yield opened


def test_a_plan_is_tuned_and_its_recipe_saved_without_the_model(scores_page, tmp_path):
    page = scores_page()
    expect(page.locator("#np-chip")).to_contain_text("scores only")
    expect(page.locator("#np-elsewhere")).to_contain_text("without its weights")
    expect(page.locator("#np-prune")).to_be_disabled()
    assert plan(page)["curve"] is not None
    edit(page, kind="ratio", ratio=0.5)
    edit(page, kind="cells", cells=[["4.mlp", "0.75"]])
    shown = until(page, "p.locks.length === 1 && p.ratio === 0.5")
    dense = numprune.load("tiny-stories", device="cpu")
    page.click("#np-open-share")
    expect(page.locator("#np-command textarea")).to_have_value(re.compile("numprune prune far/away .*--set 4.mlp=0.75"))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save recipe").click()
    recipe = json.loads(download.value.path().read_text())
    # The very plan the model itself gives, exact to the parameter.
    made = numprune.Recipe.from_dict(recipe | {"model": None})
    scores = numprune.shipped_scores(dense, "fisher", numprune.CalibrationRecipe())
    known = numprune.allocate(scores, made)
    assert shown["after"]["parameters"] == numprune.sizes(dense, known).parameters
    assert shown["gone"]["mlp"] == [known.units[key] - len(known.keep[key]) for key in known.keep if key.kind == "mlp"]
    assert page.problems == []


def test_methods_of_the_file_are_there_and_others_say_why_not(scores_page):
    page = scores_page()
    edit(page, kind="method", method="paper")
    until(page, "p.method === 'paper' && p.curve === null")
    edit(page, kind="method", method="flap")
    toast(page, "without its weights")
    assert plan(page)["method"] == "paper"
    page.mouse.click(*center(page, "attention", 2, 5.5 / 8))
    expect(page.locator("#np-unit")).to_contain_text("Layer 2, head 5")
    expect(page.locator("#np-unit")).to_contain_text("score by newton")
    open_part(page, "Distribution")
    expect(page.locator("#np-dock .js-plotly-plot:visible")).to_have_count(2)
    for name, button in (("Compare", "Write side by side"), ("Speed", "Measure"), ("Export", "Export")):
        open_tab(page, name)
        page.get_by_role("button", name=button, exact=True).locator("visible=true").first.click()
        toast(page, "without its weights")
        page.get_by_test_id("toast-close").first.click()
    page.click("#np-open-share")
    with page.expect_download() as download:
        page.click("#np-report")
    assert "far/away" in download.value.path().read_text()
    assert page.problems == []


@pytest.mark.parametrize(("scheme", "size"), [("light", DESK), ("dark", PHONE)])
def test_the_sentence_fits_and_is_read(scores_page, scheme, size):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = scores_page(viewport=size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
    assert axe.Axe().run(page, options=rules).response["violations"] == []


def test_a_file_is_opened_on_a_page_with_a_model_and_a_broken_one_refused(visit, file, tmp_path):
    page = visit()
    page.click("#np-open-model")
    chooser = page.locator("#np-model input[type=file]").last
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[:-9])
    chooser.set_input_files(broken)
    toast(page, "The scores in broken.safetensors cannot be read")
    expect(page.locator("#np-chip")).to_contain_text("tiny-stories")
    chooser.set_input_files(file)
    expect(page.locator("#np-chip")).to_contain_text("far/away")
    expect(page.locator("#np-prune")).to_be_disabled()
    edit(page, kind="ratio", ratio=0.45)
    until(page, "p.ratio === 0.45")
    page.reload()
    expect(page.locator("#np-chip")).to_contain_text("far/away")
    until(page, "p.ratio === 0.45")
    page.click("#np-open-model")
    page.get_by_label("Model: an embedded name").fill("tiny-stories")
    page.keyboard.press("Enter")
    page.get_by_label("Samples").fill("8")
    page.get_by_label("Length").fill("64")
    page.get_by_role("button", name="Open and score").click()
    expect(page.locator("#np-chip")).to_contain_text("tiny-stories")
    expect(page.locator("#np-prune")).to_be_enabled()
    expect(page.locator("#np-elsewhere")).to_be_hidden()
