"""Exporting and sharing in a real browser: files, links, reloads, a restarted program."""

import re
import subprocess
import sys
import zipfile

import pytest
from browsing import MARKS, PATIENCE, drawn, edit, expect, open_tab, plan, prune, says, toast, until
from servers import program

pytestmark = [*MARKS, pytest.mark.usefixtures("short_measures")]


def test_a_pruned_model_is_exported_and_loads_from_the_snippet(tab, tmp_path):
    prune(tab)
    open_tab(tab, "Export")
    tab.get_by_label("stock:").check()
    tab.click("#np-save-export")
    toast(tab, "'stock' cannot carry it")
    tab.get_by_label("transformers:").check()
    with tab.expect_download(timeout=PATIENCE) as download:
        tab.click("#np-save-export")
    assert download.value.suggested_filename == "tiny-stories-30-balanced.zip"
    expect(tab.locator("#np-exported")).to_contain_text("on disk")
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    assert "tiny-stories-30-balanced/" in archive.namelist()[0]
    code = tab.locator("#np-snippet textarea").input_value() + "\nprint(model.num_parameters())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) == plan(tab)["after"]["parameters"]


def test_a_token_is_cleared_at_the_click(seen):
    open_tab(seen, "Export")
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
    open_tab(seen, "Plan")


def test_a_recipe_is_saved_and_opened_again(tab, tmp_path):
    edit(tab, kind="cells", cells=[["4.mlp", "0.75"]])
    until(tab, "p.locks.length === 1")
    tab.click("#np-open-share")
    expect(tab.locator("#np-command textarea")).to_have_value(re.compile("--set 4.mlp=0.75"))
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save recipe").click()
    file = tmp_path / "recipe.json"
    download.value.save_as(file)
    tab.get_by_role("button", name="Reset", exact=True).click()
    until(tab, "p.locks.length === 0")
    tab.get_by_test_id("Open recipe-upload-button").set_input_files(file)
    until(tab, "p.locks.includes('4.mlp')")
    expect(tab.locator("#np-command textarea")).to_have_value(re.compile("--set 4.mlp=0.75"))


def test_a_link_opens_the_plan_and_the_tab_it_was_made_in(tab, visit):
    edit(tab, kind="cells", cells=[["4.mlp", "0.75"]])
    edit(tab, kind="ratio", ratio=0.5)
    until(tab, "p.locks.length === 1 && p.ratio === 0.5")
    open_tab(tab, "Export")
    tab.click("#np-open-share")
    link = tab.locator("#np-link :is(input, textarea)")
    expect(link).to_have_value(re.compile(r"^http://.*\?recipe=.*&view=export$"))
    other = visit(query=link.input_value().split("?")[1])
    shown = until(other, "p.ratio === 0.5")
    assert shown["locks"] == ["4.mlp"]
    assert shown["gone"] == plan(tab)["gone"]
    expect(other.get_by_role("tab", name="Export", exact=True)).to_have_attribute("aria-selected", "true")
    broken = visit(query="recipe=nonsense")
    toast(broken, "The link holds no recipe")
    assert plan(broken)["ratio"] == 0.3


def test_a_reload_brings_the_recipe_back(tab):
    edit(tab, kind="cells", cells=[["4.mlp", "0.75"]])
    until(tab, "p.locks.length === 1")
    tab.wait_for_timeout(500)
    tab.reload()
    drawn(tab)
    assert until(tab, "p.locks.length === 1")["locks"] == ["4.mlp"]


def test_a_reloaded_tab_has_its_own_recipe_and_a_new_one_the_last(tab, small_url):
    other = tab.context.new_page()
    other.goto(small_url)
    drawn(other)
    edit(tab, kind="ratio", ratio=0.4)
    until(tab, "p.ratio === 0.4")
    tab.wait_for_timeout(500)
    edit(other, kind="ratio", ratio=0.6)
    until(other, "p.ratio === 0.6")
    other.wait_for_timeout(500)
    tab.reload()
    drawn(tab)
    assert plan(tab)["ratio"] == 0.4
    third = tab.context.new_page()
    third.goto(small_url)
    drawn(third)
    assert until(third, "p")["ratio"] in (0.4, 0.6)


def test_a_restarted_program_says_that_it_forgot_and_brings_the_recipe_back(browser, tmp_path):
    page = browser.new_context().new_page()
    page.add_init_script("document.addEventListener('np-plan', (event) => { window.plan = event.detail; });")
    with program(tmp_path) as address:
        page.goto(address)
        page.wait_for_function("window.plan", timeout=PATIENCE)
        edit(page, kind="ratio", ratio=0.45)
        until(page, "p.ratio === 0.45")
        page.wait_for_timeout(500)
    port = address.rsplit(":", 1)[1]
    with program(tmp_path, port=int(port)) as again:
        assert again == address
        page.reload()
        page.wait_for_function("window.plan", timeout=PATIENCE)
        assert plan(page)["ratio"] == 0.45
    page.context.close()


def test_the_report_is_one_page_with_what_was_found(tab, browser, tmp_path):
    prune(tab)
    tab.click("#np-open-share")
    with tab.expect_download(timeout=PATIENCE) as download:
        tab.click("#np-report")
    context = browser.new_context(offline=True)
    report = context.new_page()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    report.goto((tmp_path / "numprune-tiny-stories.html").as_uri())
    expect(report.locator(".np-heat")).to_have_count(2)
    says(report, "Parameters, counted")
    context.close()
