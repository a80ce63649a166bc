"""The dashboard in a real browser. Skipped where there is no playwright or no Chromium."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

ROOT = Path(__file__).parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
PATIENCE = 120_000


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NUMPRUNE_CACHE": str(log.parent)}
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        if server.poll() is not None:
            pytest.fail(f"the server ended:\n{log.read_text()}")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            break
        except OSError:
            time.sleep(0.5)
    yield address
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, url, tmp_path, request):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    problems = []
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    failed = request.session.testsfailed
    opened.goto(url)
    opened.wait_for_selector(".heatmaplayer", timeout=PATIENCE)
    opened.problems = problems
    yield opened
    if request.session.testsfailed > failed:
        opened.screenshot(path=tmp_path / "failure.png", full_page=True)
        print(f"screenshot: {tmp_path / 'failure.png'}")
    context.close()


def says(page, text):
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, timeout=PATIENCE)


def edit(page, cell, text):
    """Type over a cell of a table. A redraw that arrives meanwhile closes the editor, so wait until it is open."""
    page.wait_for_timeout(500)
    cell.dblclick()
    editor = cell.locator("textarea, input")
    editor.wait_for(timeout=PATIENCE)
    editor.fill(text)
    editor.press("Enter")


def test_the_first_visit_shows_both_heatmaps_and_the_plan_without_a_click(page):
    playwright.expect(page.locator(".js-plotly-plot .heatmaplayer")).to_have_count(2)
    says(page, "of the prunable parameters go (30% asked for)")
    assert page.problems == []


def test_the_example_prunes_writes_and_measures(page):
    page.click("#np-example")
    page.wait_for_selector("#np-compare .np-table", timeout=PATIENCE)
    dense = page.get_by_label("Dense", exact=True).input_value()
    pruned = page.get_by_label("Pruned", exact=True).input_value()
    prompt = page.get_by_label("Prompt").input_value()
    assert dense.startswith(prompt)
    assert len(dense) > len(prompt) + 50
    assert pruned.startswith(prompt)
    assert pruned != dense
    table = page.locator("#np-compare .np-table").inner_text()
    assert re.search(r"Perplexity\s+[\d.]+ ± [\d.]+\s+[\d.]+ ± [\d.]+", table)
    assert page.problems == []


def test_moving_the_ratio_and_editing_a_layer_change_the_plan(page):
    box = page.get_by_label("number input for Ratio")
    box.fill("0.5")
    box.press("Enter")
    says(page, "(50% asked for)")
    page.get_by_text("Ratios per layer").first.click()
    cell = page.get_by_test_id("cell-2-1")
    edit(page, cell, "0.125")
    playwright.expect(page.get_by_test_id("cell-2-3")).to_contain_text("7 of 8", timeout=PATIENCE)
    playwright.expect(page.get_by_test_id("cell-2-5")).to_contain_text("attention", timeout=PATIENCE)
    edit(page, cell, "1.5")
    says(page, "ratio is 1.5")
    playwright.expect(cell).to_contain_text("0.125", timeout=PATIENCE)


def test_writing_before_pruning_says_what_to_do(page):
    page.get_by_role("button", name="Write side by side").click()
    says(page, "press Prune in step 4")


def test_a_name_that_cannot_be_loaded_is_a_toast_and_the_old_model_still_works(page):
    page.get_by_text("Another model or other calibration text").click()
    name = page.get_by_label("Model", exact=True)
    name.fill("nobody/no-such-model")
    name.press("Enter")
    page.get_by_role("button", name="Load and score").click()
    says(page, "nobody/no-such-model")
    page.click("#np-prune")
    says(page, "parameters, counted")


def test_a_running_job_can_be_stopped(page):
    page.get_by_text("Another model or other calibration text").click()
    samples = page.get_by_label("Samples", exact=True)
    samples.fill("5000")
    page.get_by_role("button", name="Load and score").click()
    says(page, "Sampling calibration text")
    page.get_by_role("button", name="Stop").click()
    says(page, "Stopped on request")
    page.click("#np-prune")
    says(page, "parameters, counted")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_sideways(browser, url, width):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme="dark")
    page = context.new_page()
    page.goto(f"{url}/?__theme=dark")
    page.wait_for_selector(".heatmaplayer", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in re.findall(r"\d+", background)[:3]) < 200
    context.close()
