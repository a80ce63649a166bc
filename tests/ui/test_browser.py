"""The dashboard in a real browser. Skipped where there is no playwright or no Chromium."""

import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from numprune import measure_speed

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
PATIENCE = 240_000
"""Milliseconds after which a page that does not do what it should has failed, on however busy a machine."""
SOON = 5_000
expect = playwright.expect
expect.set_options(timeout=PATIENCE)
HEAT = ".np-heat"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def visits(browser, url, folder, session):
    """A function that opens the page in a tab of its own; console errors and pictures of failures are kept."""
    contexts = []

    def opened(**options):
        permissions = ["clipboard-read", "clipboard-write"]
        options = {"viewport": {"width": 1280, "height": 900}, "permissions": permissions} | options
        dark = options.get("color_scheme") == "dark"
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(f"{url}/?__theme=dark" if dark else url)
        expect(page.locator(HEAT)).to_have_count(2)
        at_default(page)
        return page

    failed = session.testsfailed
    yield opened
    for number, context in enumerate(contexts):
        if session.testsfailed > failed:
            file = folder / f"failure-{number}.png"
            context.pages[0].screenshot(path=file, full_page=True)
            print(f"screenshot: {file}")
        context.close()


@pytest.fixture
def visit(browser, small_url, tmp_path, request):
    with visits(browser, small_url, tmp_path, request.session) as opened:
        yield opened


@pytest.fixture
def page(visit):
    opened = visit()
    yield opened
    assert opened.problems == []


@pytest.fixture(scope="module")
def open_page(browser, small_url, tmp_path_factory, request):
    with visits(browser, small_url, tmp_path_factory.mktemp("page"), request.session) as opened:
        yield opened()


@pytest.fixture
def seen(open_page):
    """One page for all tests that only look: they leave its plan alone and prune nothing."""
    yield open_page
    assert open_page.problems == []


def says(page, text):
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, timeout=PATIENCE)


def toast(page, text):
    """Wait for a toast and close it."""
    found = page.get_by_test_id("toast-body").filter(has_text=text)
    found.first.wait_for(timeout=PATIENCE)


def insist(act, found):
    """Act until something is on the page; what is done while it takes an answer in may be lost."""
    for _ in range(PATIENCE // SOON):
        act()
        with suppress(playwright.TimeoutError):
            return found.first.wait_for(timeout=SOON)
    return pytest.fail("the page does not answer")


def nothing_to(page, what):
    """Undo or redo where nothing is left."""
    button = page.get_by_role("button", name=what.capitalize())
    insist(button.click, page.get_by_test_id("toast-body").filter(has_text=f"nothing to {what}"))


def at_default(page):
    """Wait until the plan goes by the default method."""
    expect(page.get_by_label("Method", exact=True)).to_have_value(re.compile("balanced:"))


def heads(page):
    return page.locator(HEAT).nth(0)


def cell(page, name):
    return page.locator(f"[data-cell='{name}']")


def write_ratio(page, name, text):
    cell(page, name).fill(text)
    cell(page, name).press("Enter")


def prune(page):
    page.click("#np-prune")
    says(page, "Parameters, counted")


def write(page, label, value):
    """Fill a field; one that appears just now, or is shown anew, may still take a value from the page."""
    field = page.get_by_label(label, exact=True)
    for _ in range(20):
        field.fill(value)
        page.wait_for_timeout(200)
        if field.input_value() == value:
            break
    return field


def load_small(page):
    """The model of the page, calibrated on next to nothing."""
    page.get_by_text("Another model or other calibration text").click()
    write(page, "Samples", "4")
    write(page, "Length", "32")
    page.get_by_role("button", name="Load and score").click()
    says(page, "4 x 32")
    at_default(page)


def click_head(page, row, column, layers=8, heads_=8):
    box = heads(page).locator(".np-heat-plot").bounding_box()
    page.mouse.click(box["x"] + (column + 0.5) / heads_ * box["width"], box["y"] + (row + 0.5) / layers * box["height"])


def test_the_first_visit_shows_both_heatmaps_and_the_plan_without_a_click(seen):
    says(seen, "of the prunable parameters go (30% asked for)")
    says(seen, "KV cache per 1,000 tokens")
    expect(seen.locator("[data-cell]")).to_have_count(16)


def test_the_example_prunes_writes_and_measures(page, monkeypatch):
    # On the server, which runs in this process.
    monkeypatch.setattr("numprune.ui.steps.compare.measure_speed", partial(measure_speed, repetitions=1))
    page.get_by_label("Text to measure on").fill("Once upon a time there was a dog. " * 80)
    page.click("#np-example")
    page.wait_for_selector("#np-figures .np-table", timeout=PATIENCE)
    prompt = page.get_by_label("Prompts").input_value()
    articles = page.locator("#np-texts article")
    expect(articles).to_have_count(2)
    dense, pruned = articles.nth(0).inner_text(), articles.nth(1).inner_text()
    for text in (dense, pruned):
        assert prompt in text
        assert len(text) > len(prompt) + 50
    assert page.locator("#np-texts mark").count() > 0
    table = page.locator("#np-figures .np-table").inner_text()
    assert re.search(r"Perplexity\s+[\d.]+ ± [\d.]+\s+[\d.]+ ± [\d.]+", table)
    assert "Time to first token" in table


def test_a_clicked_head_is_explained_and_can_be_forced(page):
    click_head(page, 2, 5)
    says(page, "Layer 2, head 5")
    page.wait_for_selector(".js-plotly-plot", timeout=PATIENCE)
    unit = page.locator("#np-unit")
    before = "pruned" if "pruned by the plan" in unit.inner_text() else "kept"
    wanted, shown = ("keep it", "kept forced to stay") if before == "pruned" else ("prune it", "pruned forced to go")
    page.get_by_label(wanted, exact=True).check()
    expect(unit).to_contain_text(shown)
    page.get_by_role("button", name="Undo").click()
    expect(unit).to_contain_text(f"{before} by the plan")


def test_arrow_keys_walk_the_heads(seen):
    click_head(seen, 0, 0)
    says(seen, "Layer 0, head 0")
    seen.keyboard.press("ArrowRight")
    seen.keyboard.press("ArrowDown")
    says(seen, "Layer 1, head 1")
    for field in ("Layer", "Unit"):
        expect(seen.get_by_label(field, exact=True)).to_have_value("1")
    assert seen.evaluate("document.activeElement.classList.contains('np-heat')")


def test_a_unit_can_be_named_by_numbers(seen):
    def name(unit):
        seen.get_by_label("MLP", exact=True).click()
        write(seen, "Layer", "3")
        write(seen, "Unit", unit).press("Enter")

    insist(lambda: name("17"), seen.get_by_text("Layer 3, channel 17"))
    insist(lambda: name("9999"), seen.get_by_test_id("toast-body").filter(has_text="units 0 to 511"))


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures_can_be_kept(seen, kind):
    with seen.expect_download() as download:
        heads(seen).locator(f"[data-save={kind}]").click()
    assert download.value.suggested_filename == f"attention-layer-x-head-newton.{kind}"
    start = download.value.path().read_bytes()[:8]
    assert start.startswith(b"\x89PNG" if kind == "png" else b"<svg ")


def test_the_numbers_behind_the_pictures_can_be_kept(seen):
    seen.get_by_label("Table").click()
    seen.get_by_role("option", name="Every layer").click()
    says(seen, "score_50%")
    with seen.expect_download() as download:
        seen.get_by_role("button", name="Download as CSV").click()
    assert download.value.suggested_filename == "tiny-stories-Every-layer.csv"
    lines = download.value.path().read_text().splitlines()
    assert len(lines) == 17
    assert "score_mean" in lines[0]


def test_moving_the_ratio_and_editing_a_layer_change_the_plan(page):
    box = page.get_by_label("number input for Ratio")
    box.fill("0.5")
    box.press("Enter")
    says(page, "(50% asked for)")
    write_ratio(page, "2.attention", "12.5%")
    expect(page.locator("[data-lock='2.attention']")).to_be_checked()
    expect(cell(page, "2.attention")).to_have_value("0.125")
    expect(cell(page, "3.attention")).to_be_focused()
    write_ratio(page, "2.attention", "1.5")
    toast(page, "ratio is 1.5")
    expect(cell(page, "2.attention")).to_have_value("0.125")
    page.locator("[data-lock='2.attention']").uncheck()
    says(page, "(50% asked for)")
    expect(page.locator("[data-lock]:checked")).to_have_count(0)


def test_a_column_can_be_pasted(page):
    page.evaluate("navigator.clipboard.writeText('0.25\\t0.5\\n0.5\\t0.25\\n')")
    cell(page, "1.attention").click()
    page.keyboard.press("Control+V")
    expect(page.locator("[data-lock]:checked")).to_have_count(4)
    assert [cell(page, f"{layer}.{kind}").input_value() for layer in (1, 2) for kind in ("attention", "mlp")] == [
        "0.250",
        "0.500",
        "0.500",
        "0.250",
    ]


def test_undo_redo_reset_and_presets(page):
    page.get_by_label("attention only").check()
    expect(page.locator("[data-lock]:checked")).to_have_count(8)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("[data-lock]:checked")).to_have_count(0)
    expect(page.get_by_label("one threshold for all")).to_be_checked()
    page.get_by_role("button", name="Redo").click()
    expect(page.get_by_label("attention only")).to_be_checked()
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(page.get_by_label("one threshold for all")).to_be_checked()
    nothing_to(page, "redo")


def test_suggested_ratios_fill_the_table_and_can_be_undone(page):
    load_small(page)
    page.get_by_role("button", name="Suggest ratios").click()
    expect(page.locator("[data-lock]:checked")).to_have_count(15)
    expect(page.get_by_text("What each module costs alone")).to_be_visible()
    says(page, "(30% asked for)")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("[data-lock]:checked")).to_have_count(0)


def test_a_method_sets_everything_it_consists_of_in_one_step(page):
    load_small(page)
    method = page.get_by_label("Method", exact=True)

    def choose(name):
        method.click()
        page.get_by_role("option", name=name).click()

    expect(page.get_by_label("all linears, against the dense network")).to_be_checked()
    choose("paper:")
    expect(page.get_by_label("as in the paper")).to_be_checked()
    expect(page.locator("[data-lock]:checked")).to_have_count(0)
    choose("best:")
    expect(page.locator("[data-lock]:checked")).to_have_count(15)
    expect(method).to_have_value(re.compile("best:"))
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("[data-lock]:checked")).to_have_count(0)
    expect(method).to_have_value(re.compile("paper:"))
    page.get_by_role("button", name="Undo").click()
    at_default(page)
    nothing_to(page, "undo")


def test_the_scores_of_the_load_or_of_the_method_are_shown_with_the_method_s_plan(page):
    crosses = heads(page).locator(".np-over").first.get_attribute("d")
    assert crosses
    expect(heads(page)).to_contain_text("newton")
    assert "the plan cuts at" not in heads(page).inner_text()
    page.get_by_label("of the method").check()
    expect(heads(page)).to_contain_text("fisher")
    expect(heads(page)).to_contain_text("the plan cuts at")
    assert heads(page).locator(".np-over").first.get_attribute("d") == crosses


def test_a_recipe_is_saved_and_opened_again(page, tmp_path):
    write_ratio(page, "4.mlp", "0.75")
    expect(page.locator("[data-lock='4.mlp']")).to_be_checked()
    page.get_by_text("Recipe, rounding and command line").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save recipe").click()
    file = tmp_path / "recipe.json"
    download.value.save_as(file)
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(page.locator("[data-lock]:checked")).to_have_count(0)
    page.get_by_test_id("Open recipe-upload-button").set_input_files(file)
    expect(page.locator("[data-lock='4.mlp']")).to_be_checked()
    says(page, "--set 4.mlp=0.75")


def test_several_pruned_models_are_kept_named_and_compared(page):
    page.get_by_label("Name").fill("first")
    prune(page)
    says(page, "first")
    page.get_by_label("none", exact=True).check()
    page.get_by_label("Name").fill("second")
    page.click("#np-prune")
    expect(page.get_by_role("checkbox", name="second")).to_be_checked()
    page.get_by_label("Prompts").fill("Once upon a time\nThe cat")
    page.get_by_role("button", name="Write side by side").click()
    expect(page.locator("#np-texts article")).to_have_count(6)
    page.get_by_role("button", name="Compare next-token distributions").click()
    says(page, "Same likeliest token")
    page.get_by_role("button", name="Remove this pruned model").click()
    expect(page.get_by_role("checkbox", name="second")).to_have_count(0)


def test_another_scorer_is_compared_and_a_disputed_unit_is_chosen_from_the_list(page):
    part = page.locator("#np-rivals")
    part.get_by_text("Compare with another scorer").click()
    page.get_by_role("button", name="Compare scores").click()
    expect(part.locator(HEAT)).to_have_count(2)
    expect(part.locator(".np-table tbody tr")).to_have_count(8)
    unit = part.locator(".np-grid [data-row='0'][data-col='2']").first
    layer, index = part.locator(".np-grid [data-row='0'][data-col='0']").first.inner_text(), unit.inner_text()
    unit.click()
    says(page, f"Layer {layer.strip()}, channel {index.strip()}")
    before = part.locator(".np-notes").inner_text()
    write_ratio(page, "0.mlp", "0.5")
    expect(part.locator(".np-notes")).not_to_have_text(before)


def test_methods_are_compared_and_their_cells_opened_again(page, tmp_path):
    load_small(page)
    page.get_by_label("Text to measure on").fill("Once upon a time there was a dog. " * 20)
    part = page.locator("#np-methods")
    part.get_by_text("Methods side by side").first.click()
    for name in ("paper", "balanced", "flap"):
        part.get_by_label(name, exact=True).uncheck()
    part.get_by_label("magnitude", exact=True).check()
    page.get_by_role("button", name="Compare methods").click()
    expect(part.locator("tbody tr")).to_have_count(2)
    expect(part.locator(".js-plotly-plot")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the cells").click()
    file = tmp_path / "cells.csv"
    download.value.save_as(file)
    lines = file.read_text().splitlines()
    places = [line.split(",")[2:4] for line in lines[1:]]
    assert places == [["dense", "0.0"], ["magnitude", "0.2"], ["magnitude", "0.4"]]
    file.write_text("\n".join(lines[:3]) + "\n")
    page.get_by_test_id("Open cells-upload-button").set_input_files(file)
    expect(part.locator("tbody tr")).to_have_count(1)


def test_a_pruned_model_is_exported_and_loads_from_the_snippet(page, tmp_path):
    prune(page)
    part = page.locator("#np-export")
    part.get_by_label("stock:").check()
    page.click("#np-save-export")
    toast(page, "'stock' cannot carry it")
    part.get_by_label("transformers:").check()
    with page.expect_download(timeout=PATIENCE) as download:
        page.click("#np-save-export")
    assert download.value.suggested_filename == "tiny-stories-30-balanced.zip"
    expect(page.locator("#np-exported")).to_contain_text("on disk")
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    assert "tiny-stories-30-balanced/" in archive.namelist()[0]
    code = part.locator(".cm-content").inner_text() + "\nprint(model.num_parameters())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    says(page, f"{int(done.stdout.split()[-1]):,}")


def test_a_token_is_cleared_at_the_click(seen):
    part = seen.locator("#np-hub")
    part.get_by_text("Push to the Hugging Face Hub").click()
    part.get_by_label("Repository").fill("no/such/name")
    token = part.get_by_label("Token")
    expect(token).to_have_attribute("type", "password")
    token.fill("hf_secret")
    seen.get_by_role("button", name="Push to the Hub").click()
    # It reached the server, or this would be about a missing token.
    toast(seen, "no name for a repository")
    expect(token).to_have_value("")
    seen.get_by_role("button", name="Push to the Hub").click()
    toast(seen, "There is no token")


def test_the_report_is_one_page_with_what_was_found(page, browser, tmp_path):
    prune(page)
    with page.expect_download(timeout=PATIENCE) as download:
        page.click("#np-report")
    context = browser.new_context(offline=True)
    report = context.new_page()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    report.goto((tmp_path / "numprune-tiny-stories.html").as_uri())
    # Of the Newton scores and of those the plan goes by.
    expect(report.locator(HEAT)).to_have_count(4)
    says(report, "Parameters, counted")
    context.close()


def test_writing_before_pruning_says_what_to_do(seen):
    seen.get_by_role("button", name="Write side by side").click()
    toast(seen, "press Prune in step 4")


def test_a_name_that_cannot_be_loaded_is_a_toast_and_the_old_model_still_works(page):
    page.get_by_text("Another model or other calibration text").click()
    name = page.get_by_label("Model", exact=True)
    name.fill("nobody/no-such-model")
    name.press("Enter")
    page.get_by_role("button", name="Load and score").click()
    toast(page, "nobody/no-such-model")
    prune(page)


def test_a_running_job_can_be_stopped(page):
    page.get_by_text("Another model or other calibration text").click()
    write(page, "Samples", "5000")
    page.get_by_role("button", name="Load and score").click()
    says(page, "Sampling calibration text")
    page.get_by_role("button", name="Stop").click()
    toast(page, "Whatever ran or waited in this tab ends")
    prune(page)
    assert "8 x 64" in page.locator("body").inner_text()


def test_a_waiting_job_can_be_stopped_while_another_tab_goes_on(visit):
    busy, waiting = visit(), visit()
    busy.get_by_role("textbox", name="Ratios The open recipe").fill("0 0.5")
    busy.get_by_role("button", name="Speed and memory by ratio").click()
    says(busy, "Ratio 0")
    waiting.click("#np-prune")
    says(waiting, "queue: 1/1")
    waiting.get_by_role("button", name="Stop").click()
    toast(waiting, "Whatever ran or waited in this tab ends")
    says(busy, "50%")
    expect(busy.locator("#np-sweep tbody tr")).to_have_count(2)
    assert "Parameters, counted" not in waiting.locator("body").inner_text()
    prune(waiting)


def test_two_tabs_do_not_mix(visit):
    first, second = visit(), visit()
    write_ratio(first, "5.mlp", "0.9")
    expect(first.locator("[data-lock='5.mlp']")).to_be_checked()
    load_small(second)
    second.get_by_label("Name").fill("only here")
    prune(second)
    expect(second.locator("[data-lock]:checked")).to_have_count(0)
    assert "8 x 64" in first.locator("body").inner_text()
    prune(first)
    assert "only here" not in first.locator("body").inner_text()
    assert first.problems == second.problems == []


@pytest.mark.parametrize("width", [390, 1280])
def test_dark_and_narrow_pages_are_readable(visit, width):
    page = visit(viewport={"width": width, "height": 844}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('.np-card b')).color")
    background, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (background, ink))
    assert background < 200 < 400 < ink
    assert page.problems == []


def test_an_image_model_is_pruned_and_compared_picture_by_picture(browser, images_url):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(images_url)
    expect(page.locator(HEAT)).to_have_count(2)
    for text_only in ("Prompts", "Sentence"):
        expect(page.get_by_label(text_only)).to_be_hidden()
    page.get_by_role("button", name="Run example").click()
    frames = page.locator("#np-pictures section")
    expect(frames).to_have_count(2)
    expect(frames.first.locator("img")).to_have_count(6)
    expect(frames.last.locator("figcaption").first).to_contain_text("ant, seed 0")
    expect(page.locator("#np-quality table")).to_contain_text("Fréchet distance")
    slider = page.locator("#np-slider img")
    expect(slider).to_have_count(2)
    before = slider.first.get_attribute("src")
    which = page.locator("#np-which input")
    which.scroll_into_view_if_needed()
    which.fill("cow, seed 4")
    which.press("Enter")
    expect(slider.first).not_to_have_attribute("src", before)
    page.get_by_role("button", name="Measure images").click()
    expect(page.locator("#np-quality table")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert problems == []
    page.close()
