"""The dashboard in a real browser: how tests open it, wait for it and use it."""

import re
import shutil
from contextlib import contextmanager, suppress

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
MARKS = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
PATIENCE = 180_000
"""Milliseconds after which a page that does not do what it should has failed, on however busy a machine."""
SOON = 5_000
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
expect = playwright.expect
expect.set_options(timeout=PATIENCE)

LISTEN = """document.addEventListener("np-plan", (event) => {
  window.plan = event.detail;
  (window.plans ??= []).push(event.detail);
});
document.addEventListener("np-preview", (event) => (window.previews ??= []).push(event.detail));"""


@contextmanager
def visits(browser, url, folder, session):
    """A function that opens the page in a tab of its own; console errors and pictures of failures are kept."""
    contexts = []

    def opened(query="", **options):
        permissions = ["clipboard-read", "clipboard-write"]
        options = {"viewport": DESK, "permissions": permissions} | options
        context = browser.new_context(**options)
        contexts.append(context)
        context.add_init_script(LISTEN)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        dark = "__theme=dark" if options.get("color_scheme") == "dark" else ""
        page.goto(f"{url}/?{'&'.join(filter(None, [query, dark]))}")
        drawn(page)
        return page

    failed = session.testsfailed
    yield opened
    for number, context in enumerate(contexts):
        if session.testsfailed > failed:
            file = folder / f"failure-{number}.png"
            with suppress(playwright.Error):
                context.pages[0].screenshot(path=file, full_page=True)
                print(f"screenshot: {file}")
        context.close()


def drawn(page):
    """Wait until map and budget show a plan."""
    page.wait_for_selector(".np-bars i", timeout=PATIENCE, state="attached")
    page.wait_for_selector(".np-budget td", timeout=PATIENCE, state="attached")


def plan(page):
    """The plan the page shows."""
    return page.evaluate("window.plan")


def until(page, condition):
    """Wait for a plan `p` that fulfils a condition in JavaScript."""
    page.wait_for_function(f"() => {{ const p = window.plan; return p && ({condition}); }}", timeout=PATIENCE)
    return plan(page)


def edit(page, **detail):
    """What a control of the page does."""
    page.evaluate("detail => document.dispatchEvent(new CustomEvent('np-edit', { detail }))", detail)


def says(page, text):
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, timeout=PATIENCE)


def toast(page, text):
    """Wait for a toast."""
    page.get_by_test_id("toast-body").filter(has_text=text).first.wait_for(timeout=PATIENCE)


def insist(act, found):
    """Act until something is on the page; what is done while it takes an answer in may be lost."""
    for _ in range(PATIENCE // SOON):
        act()
        with suppress(playwright.TimeoutError):
            return found.first.wait_for(timeout=SOON)
    return pytest.fail("the page does not answer")


def open_tab(page, name):
    page.locator("#np-views").get_by_role("tab", name=name, exact=True).first.click()


def open_part(page, name):
    page.locator("#np-dock").get_by_role("tab", name=name, exact=True).click()


def prune(page):
    """Prune, write and measure; waits for the figures."""
    page.click("#np-prune")
    page.wait_for_selector("#np-result .np-headline", timeout=PATIENCE)
    idle(page)


def idle(page):
    """Wait until nothing runs in the tab."""
    expect(page.locator("#np-stop")).to_be_disabled()


def write(page, label, value):
    """Fill a field; one that appears just now, or is shown anew, may still take a value from the page."""
    field = page.get_by_label(label, exact=True)
    for _ in range(20):
        field.fill(value)
        page.wait_for_timeout(200)
        if field.input_value() == value:
            break
    return field


def open_small(page):
    """The model of the page, calibrated on next to nothing."""
    page.click("#np-open-model")
    write(page, "Samples, 0 auto", "4")
    write(page, "Length, 0 auto", "32")
    page.get_by_role("button", name="Open and score").click()
    says(page, "4 × 32")
    idle(page)


def center(page, kind, row, place):
    """Where a place of a layer is on the screen."""
    area = page.locator(".np-channels" if kind == "mlp" else ".np-heads")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    layers = page.evaluate("window.plan.gone.mlp.length")
    return box["x"] + place * box["width"], box["y"] + (row + 0.5) / layers * box["height"]


def edge(page, row):
    """Where the edge of a layer's channels is on the screen."""
    now = plan(page)
    return center(page, "mlp", row, now["gone"]["mlp"][row] / now["units"]["mlp"][row])


def drag(page, start, end, steps=8, keys=()):
    page.mouse.move(*start)
    for key in keys:
        page.keyboard.down(key)
    page.mouse.down()
    page.mouse.move(*end, steps=steps)
    page.mouse.up()
    for key in keys:
        page.keyboard.up(key)


def scrolls(page):
    """(horizontally, vertically) the page is larger than the window."""
    return page.evaluate(
        "[document.documentElement.scrollWidth > innerWidth, document.documentElement.scrollHeight > innerHeight]"
    )


def number(text):
    return float(re.search(r"-?[\d.]+", text.replace(",", "")).group())
