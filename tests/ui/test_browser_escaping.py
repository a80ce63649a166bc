"""What a visitor writes is shown as it was written, on the page and in its report: it becomes no part of either."""

import pytest
from browsing import MARKS, expect, idle, open_tab, prune, toast

pytestmark = [*MARKS, pytest.mark.usefixtures("short_measures")]

HOSTILE = "<img src=np-none onerror='window.hacked=1'><script>window.hacked=1</script>"
BEGIN = "<img src=np-none"


def clean(page):
    """Neither an element nor a script of the hostile text is there."""
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src*='np-none']").count() == 0


def test_hostile_texts_stay_texts_on_the_page_and_in_the_report(tab, browser, tmp_path):
    open_tab(tab, "Compare")
    tab.get_by_label("Text to measure on").fill(HOSTILE + " Once upon a time there was a dog. " * 40)
    tab.get_by_label("Prompts, one a line").fill(HOSTILE)
    open_tab(tab, "Plan")
    tab.get_by_text("More", exact=True).click()
    tab.get_by_label("Name of the result").fill(HOSTILE[:40])
    prune(tab)
    expect(tab.locator("#np-result article").nth(1)).to_contain_text(BEGIN)
    clean(tab)
    open_tab(tab, "Compare")
    tab.get_by_role("button", name="Write side by side").click()
    expect(tab.locator("#np-columns article").first).to_contain_text(BEGIN)
    idle(tab)
    clean(tab)
    for view in ("Methods", "Speed", "Plan"):
        open_tab(tab, view)
        clean(tab)
    tab.click("#np-open-share")
    with tab.expect_download() as download:
        tab.click("#np-report")
    file = tmp_path / "report.html"
    download.value.save_as(file)
    context = browser.new_context(offline=True)
    report = context.new_page()
    report.goto(file.as_uri())
    expect(report.locator("body")).to_contain_text(BEGIN)
    clean(report)
    context.close()


def test_hostile_names_stay_texts_in_what_the_page_says_of_them(tab):
    tab.click("#np-open-model")
    name = tab.locator("#np-model").get_by_label("Model", exact=False).first
    name.fill(HOSTILE)
    name.press("Enter")
    tab.get_by_role("button", name="Open and score").click()
    toast(tab, BEGIN)
    clean(tab)
    recipe = {"version": 3, "model": HOSTILE, "fingerprint": "0" * 16}
    tab.evaluate(
        "recipe => document.dispatchEvent(new CustomEvent('np-edit', { detail: { kind: 'recipe', recipe } }))", recipe
    )
    toast(tab, "The recipe was made for")
    clean(tab)
    for edit in ({"kind": "cells", "cells": [["0.mlp", HOSTILE[:40]]]}, {"kind": "ratio", "ratio": HOSTILE}):
        tab.evaluate("detail => document.dispatchEvent(new CustomEvent('np-edit', { detail }))", edit)
        toast(tab, BEGIN)
        clean(tab)
