"""The workspace in a real browser: opening, planning, pruning, comparing, sharing."""

import re

import pytest
from browsing import (
    MARKS,
    PATIENCE,
    PHONE,
    drag,
    edge,
    edit,
    expect,
    idle,
    insist,
    number,
    open_part,
    open_small,
    open_tab,
    plan,
    prune,
    says,
    scrolls,
    toast,
    until,
    write,
)

pytestmark = [*MARKS, pytest.mark.usefixtures("short_measures")]

HAND_TEXT = "Once upon a time there was a dog. " * 80


def method(page):
    return page.locator("#np-method input")


def choose_method(page, name):
    method(page).click()
    page.get_by_role("option", name=name, exact=True).click()


def cell(page, name):
    return page.locator(f"[data-cell='{name}']")


def write_ratio(page, name, text):
    cell(page, name).fill(text)
    cell(page, name).press("Enter")


def nothing_to(page, what):
    """Undo or redo where nothing is left."""
    button = page.get_by_role("button", name=what.capitalize())
    insist(button.click, page.get_by_test_id("toast-body").filter(has_text=f"nothing to {what}"))


# Opening.


def test_the_page_opens_on_the_plan_of_the_default_method(seen):
    expect(method(seen)).to_have_value("balanced")
    shown = plan(seen)
    assert (shown["method"], shown["ratio"], shown["locks"]) == ("balanced", 0.3, [])
    assert shown["loss"] > 0
    budget = seen.locator(".np-budget").inner_text()
    for part in ("predicted loss", "parameters", "KV, 1,000 tokens", "30 % asked"):
        assert part in budget
    assert number(seen.locator(".np-budget td").nth(0).inner_text()) == pytest.approx(shown["loss"], abs=6e-4)
    expect(seen.locator(".np-frontier .np-curve")).to_have_count(1)
    assert not seen.get_by_text("Opening the model").is_visible()


def test_the_whole_loop_needs_no_scrolling(tab):
    """At 1440 x 900: both maps, ratio, edge, budget, button, both texts and the speed-up."""
    prune(tab)
    assert scrolls(tab)[0] is False
    needed = ["#np-method", "#np-ratio", ".np-frontier", ".np-budget", "#np-prune", ".np-heads", ".np-channels"]
    for part in needed:
        box = tab.locator(part).first.bounding_box()
        assert 0 <= box["y"] <= box["y"] + box["height"] <= 900, part
    texts = tab.locator("#np-result article")
    expect(texts).to_have_count(2)
    for place in range(2):
        box = texts.nth(place).bounding_box()
        assert box["y"] + box["height"] <= 900
    expect(texts.nth(1)).to_contain_text("×")


# Planning.


def test_moving_the_ratio_and_editing_a_layer_change_the_plan(tab):
    box = tab.get_by_label("number input for Ratio")
    box.fill("0.5")
    box.press("Enter")
    until(tab, "p.ratio === 0.5")
    expect(tab.locator(".np-budget")).to_contain_text("50 % asked")
    open_part(tab, "Layers as table")
    write_ratio(tab, "2.attention", "12.5%")
    expect(tab.locator("[data-lock='2.attention']")).to_be_checked()
    expect(cell(tab, "2.attention")).to_have_value("0.125")
    expect(cell(tab, "3.attention")).to_be_focused()
    expect(method(tab)).to_have_value("by hand")
    write_ratio(tab, "2.attention", "1.5")
    toast(tab, "ratio is 1.5")
    expect(cell(tab, "2.attention")).to_have_value("0.125")
    tab.locator("[data-lock='2.attention']").uncheck()
    until(tab, "p.locks.length === 0")
    expect(method(tab)).to_have_value("balanced")


def test_the_ratio_s_slider_answers_to_keys_and_one_movement_is_one_step(tab):
    slider = tab.locator("#np-ratio input[type=range]")
    slider.focus()
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
    until(tab, "Math.abs(p.ratio - 0.35) < 1e-9")
    tab.get_by_role("button", name="Undo").click()
    until(tab, "p.ratio === 0.3")
    expect(slider).to_have_value("0.3")


def test_a_column_can_be_pasted(tab):
    open_part(tab, "Layers as table")
    tab.evaluate("navigator.clipboard.writeText('0.25\\t0.5\\n0.5\\t0.25\\n')")
    cell(tab, "1.attention").click()
    tab.keyboard.press("Control+V")
    expect(tab.locator("[data-lock]:checked")).to_have_count(4)
    expect(cell(tab, "1.attention")).to_have_value("0.250")
    values = [cell(tab, f"{layer}.{kind}").input_value() for layer in (1, 2) for kind in ("attention", "mlp")]
    assert values == ["0.250", "0.500", "0.500", "0.250"]


def test_undo_redo_reset_and_allocations(tab):
    tab.get_by_text("More", exact=True).click()
    tab.get_by_label("Allocation").click()
    tab.get_by_role("option", name="attention only").click()
    until(tab, "p.locks.length === 8")
    tab.get_by_role("button", name="Undo").click()
    until(tab, "p.locks.length === 0")
    expect(tab.get_by_label("Allocation")).to_have_value("one threshold for all")
    tab.get_by_role("button", name="Redo").click()
    until(tab, "p.locks.length === 8")
    expect(tab.get_by_label("Allocation")).to_have_value("attention only")
    tab.get_by_role("button", name="Reset", exact=True).click()
    until(tab, "p.locks.length === 0")
    nothing_to(tab, "redo")


def test_suggested_ratios_are_locks_with_their_curves_and_can_be_undone(tab):
    open_small(tab)
    tab.get_by_text("More", exact=True).click()
    tab.get_by_role("button", name="Suggest ratios").click()
    until(tab, "p.locks.length === 15")
    open_part(tab, "Layers as table")
    expect(tab.get_by_text("What each module costs alone")).to_be_visible()
    tab.get_by_role("button", name="Undo").click()
    until(tab, "p.locks.length === 0")


def test_a_method_sets_everything_it_consists_of_and_the_map_shows_its_scores(tab):
    open_small(tab)
    tab.get_by_text("More", exact=True).click()
    expect(tab.get_by_label("Compensation")).to_have_value("all linears, against the dense network")
    choose_method(tab, "paper")
    until(tab, "p.method === 'paper'")
    expect(tab.locator(".np-high")).to_contain_text("newton")
    expect(tab.get_by_label("Compensation")).to_have_value("as in the paper")
    expect(tab.locator(".np-frontier")).to_contain_text("no loss is predicted")
    choose_method(tab, "best")
    until(tab, "p.method === 'best' && p.locks.length === 15")
    expect(tab.locator(".np-high")).to_contain_text("fisher")
    tab.get_by_role("button", name="Undo").click()
    until(tab, "p.method === 'paper'")
    expect(method(tab)).to_have_value("paper")
    expect(tab.locator(".np-high")).to_contain_text("newton")
    tab.get_by_role("button", name="Undo").click()
    until(tab, "p.method === 'balanced'")
    nothing_to(tab, "undo")


def test_another_scorer_is_compared_and_a_disputed_unit_is_chosen_from_the_list(tab):
    open_part(tab, "Other scorer")
    tab.get_by_role("button", name="Compare scores").click()
    part = tab.locator("#np-rivals")
    expect(part.locator(".np-heat")).to_have_count(2)
    expect(part.locator(".np-table tbody tr")).to_have_count(8)
    before = part.locator(".np-notes").inner_text()
    edit(tab, kind="cells", cells=[["0.mlp", "0.5"]])
    expect(part.locator(".np-notes")).not_to_have_text(before)
    heat = part.locator(".np-heat").first
    assert "attention" in heat.get_attribute("aria-label").lower()
    unit = part.locator(".np-grid [data-row='0'][data-col='2']").first
    layer, index = part.locator(".np-grid [data-row='0'][data-col='0']").first.inner_text(), unit.inner_text()
    unit.click()
    expect(tab.locator("#np-unit")).to_contain_text(
        re.compile(rf"Layer {layer.strip()}, (channel|head) {index.strip()}")
    )
    idle(tab)


# Pruning and comparing.


def test_prune_and_compare_writes_and_measures_by_the_method_of_the_rail(tab):
    open_tab(tab, "Compare")
    tab.get_by_label("Text to measure on").fill(HAND_TEXT)
    open_tab(tab, "Plan")
    prune(tab)
    prompt = "Once upon a time, a little rabbit found a red box in the garden."
    articles = tab.locator("#np-result article")
    dense, pruned = articles.nth(0).inner_text(), articles.nth(1).inner_text()
    for text in (dense, pruned):
        assert prompt in text
        assert len(text) > len(prompt) + 50
    assert "30% balanced" in pruned
    assert re.search(r"PPL [\d.]+ \([+-][\d.]+ nats, \+[\d.]+ predicted\) · [\d.]+ tokens/s · [\d.]+×", pruned)
    assert tab.locator("#np-result mark").count() > 0
    expect(tab.locator(".np-frontier .np-point")).to_have_count(1)
    open_tab(tab, "Compare")
    figures = tab.locator("#np-columns dl").nth(1).inner_text()
    assert re.search(r"Perplexity\s+[\d.]+ ± [\d.]+ · [\d.]+x", figures)
    assert "Time to first token" in figures


def test_several_pruned_models_are_kept_named_and_compared(tab):
    tab.get_by_text("More", exact=True).click()
    tab.get_by_label("Name of the result").fill("first")
    prune(tab)
    edit(tab, kind="settings", name="compensation", value="none")
    tab.get_by_label("Name of the result").fill("second")
    tab.click("#np-prune")
    expect(tab.locator("#np-result article").nth(1)).to_contain_text("second")
    idle(tab)
    open_tab(tab, "Compare")
    expect(tab.locator("[aria-pressed=true]")).to_have_count(2)
    tab.get_by_label("Prompts, one a line").fill("Once upon a time\nThe cat")
    tab.get_by_role("button", name="Write side by side").click()
    expect(tab.locator("#np-columns article")).to_have_count(6)
    idle(tab)
    tab.get_by_role("button", name="Compare next-token distributions").click()
    says(tab, "Same likeliest token")
    idle(tab)
    tab.get_by_role("button", name="first", exact=True).click()
    expect(tab.locator("#np-columns article")).to_have_count(4)
    tab.get_by_label("Remove second").click()
    expect(tab.get_by_label("Remove second")).to_have_count(0)
    # A point of the frontier brings its recipe back.
    open_tab(tab, "Plan")
    expect(tab.locator(".np-frontier .np-point")).to_have_count(1)
    edit(tab, kind="ratio", ratio=0.6)
    until(tab, "p.ratio === 0.6")
    tab.locator(".np-frontier .np-point").click(force=True)
    until(tab, "p.ratio === 0.3")


def test_methods_are_compared_and_their_cells_opened_again(tab, tmp_path):
    open_small(tab)
    open_tab(tab, "Compare")
    tab.get_by_label("Text to measure on").fill("Once upon a time there was a dog. " * 20)
    open_tab(tab, "Methods")
    panel = (
        tab.locator("#np-views")
        .get_by_role("tabpanel")
        .filter(has=tab.get_by_role("button", name="Compare", exact=True))
    )
    for name in ("paper", "balanced", "flap"):
        panel.get_by_label(name, exact=True).uncheck()
    panel.get_by_label("magnitude", exact=True).check()
    panel.get_by_role("button", name="Compare", exact=True).click()
    expect(panel.locator("tbody tr")).to_have_count(2)
    idle(tab)
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Cells as CSV").click()
    file = tmp_path / "cells.csv"
    download.value.save_as(file)
    lines = file.read_text().splitlines()
    places = [line.split(",")[2:4] for line in lines[1:]]
    assert places == [["dense", "0.0"], ["magnitude", "0.2"], ["magnitude", "0.4"]]
    file.write_text("\n".join(lines[:3]) + "\n")
    tab.get_by_test_id("Open cells-upload-button").set_input_files(file)
    expect(panel.locator("tbody tr")).to_have_count(1)


def test_writing_before_pruning_says_what_to_do(seen):
    open_tab(seen, "Compare")
    says(seen, "Press Prune and compare first")
    seen.get_by_role("button", name="Write side by side").click()
    toast(seen, "press Prune and compare")
    open_tab(seen, "Plan")


# Long work, several tabs, phones.


def test_a_name_that_cannot_be_loaded_is_a_toast_and_the_old_model_still_works(tab):
    tab.click("#np-open-model")
    name = tab.locator("#np-model").get_by_label("Model", exact=False).first
    name.fill("nobody/no-such-model")
    name.press("Enter")
    tab.get_by_role("button", name="Open and score").click()
    toast(tab, "nobody/no-such-model")
    prune(tab)


def test_a_running_job_says_how_far_it_is_and_can_be_stopped(tab):
    tab.click("#np-open-model")
    write(tab, "Samples, 0 auto", "5000")
    tab.get_by_role("button", name="Open and score").click()
    expect(tab.locator(".np-running")).to_contain_text(re.compile(r"\d+/\d+"))
    tab.get_by_role("button", name="Stop").click()
    toast(tab, "Whatever ran or waited in this tab ends")
    idle(tab)
    assert "8 × 64" in tab.locator("#np-chip").inner_text()
    edit(tab, kind="ratio", ratio=0.4)
    until(tab, "p.ratio === 0.4")


def test_a_waiting_job_can_be_stopped_while_another_tab_goes_on(visit):
    busy, waiting = visit(), visit()
    busy.click("#np-prune")
    expect(busy.locator(".np-running")).not_to_be_empty()
    waiting.click("#np-prune")
    expect(waiting.locator(".np-running")).to_have_text("Waiting")
    # It waits in the server's queue, where nothing of it runs yet; only time tells that the page does not give up.
    waiting.wait_for_timeout(5000)
    expect(busy.locator("#np-stop")).to_be_enabled()
    expect(waiting.locator(".np-running")).to_have_text("Waiting")
    expect(waiting.locator("#np-stop")).to_be_enabled()
    waiting.get_by_role("button", name="Stop").click()
    toast(waiting, "Whatever ran or waited in this tab ends")
    busy.wait_for_selector("#np-result .np-headline", timeout=PATIENCE)
    assert waiting.locator("#np-result article").count() == 0
    prune(waiting)


def test_two_tabs_do_not_mix(visit):
    first, second = visit(), visit()
    edit(first, kind="cells", cells=[["5.mlp", "0.9"]])
    until(first, "p.locks.length === 1")
    open_small(second)
    prune(second)
    assert plan(second)["locks"] == []
    assert "8 × 64" in first.locator("#np-chip").inner_text()
    assert first.locator("#np-result article").count() == 0
    assert first.problems == second.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_the_same_loop_without_scrolling_sideways(visit, scheme):
    page = visit(viewport=PHONE, color_scheme=scheme, has_touch=True)
    assert scrolls(page)[0] is False
    for part in ("#np-ratio", "#np-prune"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= PHONE["height"] + 1
    expect(page.locator(".np-brief")).to_contain_text("predicted loss")
    prune(page)
    for name in ("Unit", "Layers as table"):
        open_part(page, name)
        assert scrolls(page)[0] is False
    ink, ground = (
        sum(
            map(
                int,
                re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}"))[:3],
            )
        )
        for where, what in ((".np-budget td", "color"), ("body", "backgroundColor"))
    )
    assert (ground < ink) == (scheme == "dark")
    assert page.problems == []


def test_an_image_model_is_pruned_and_compared_picture_by_picture(browser, images_url):
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.add_init_script("document.addEventListener('np-plan', (event) => { window.plan = event.detail; });")
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(images_url)
    page.wait_for_function("window.plan", timeout=PATIENCE)
    page.click("#np-prune")
    frames = page.locator("#np-result section")
    expect(frames).to_have_count(2)
    expect(frames.first.locator("img")).to_have_count(6)
    expect(frames.last.locator(".np-headline")).to_contain_text("recognised")
    idle(page)
    frames.last.locator("button").nth(4).click()
    expect(page.locator("#np-close-up")).to_contain_text("cow, seed 4")
    expect(page.locator("#np-slider img")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator("#np-close-up")).to_be_hidden()
    open_tab(page, "Compare")
    for text_only in ("Prompts", "Text to measure on"):
        expect(page.get_by_label(text_only)).to_be_hidden()
    expect(page.locator("#np-columns")).to_contain_text("Fréchet distance")
    page.get_by_role("button", name="Draw side by side").click()
    expect(page.locator("#np-columns section")).to_have_count(2)
    assert scrolls(page)[0] is False
    assert problems == []
    page.close()


def test_an_edge_is_dragged_while_a_model_is_pruned(tab):
    """Long work holds no edit up."""
    tab.click("#np-prune")
    expect(tab.locator(".np-running")).not_to_be_empty()
    x, y = edge(tab, 3)
    drag(tab, (x, y), (x + 80, y))
    until(tab, "p.locks.includes('3.mlp')")
    tab.wait_for_selector("#np-result .np-headline", timeout=PATIENCE)
    assert plan(tab)["locks"] == ["3.mlp"]
