"""The map in a real browser: edges and bars that are dragged, keys, names, and nothing stale after a redraw."""

import json
import re
import threading

import pytest
from browsing import (
    DESK,
    MARKS,
    PATIENCE,
    center,
    drag,
    edge,
    edit,
    expect,
    idle,
    open_part,
    plan,
    scrolls,
    toast,
    until,
)
from servers import served

from numprune.evaluation.random_models import Shape
from numprune.ui.bench import synthetic
from numprune.ui.workbench import Workbench

pytestmark = MARKS


def slider(page, key):
    row, kind = key.split(".")
    return page.locator(f".np-bars[data-kind={kind}] [data-row='{row}']")


def test_a_dragged_edge_previews_and_its_release_is_one_step(tab):
    before = plan(tab)
    x, y = edge(tab, 3)
    drag(tab, (x, y), (x + 120, y), steps=12)
    after = until(tab, "p.locks.includes('3.mlp')")
    assert after["gone"]["mlp"][3] > before["gone"]["mlp"][3] + 50
    # A busy server is asked for fewer.
    assert tab.evaluate("window.previews.length") >= 1
    # The others gave way, so that as much goes as before, to one head.
    assert after["reached"] == pytest.approx(before["reached"], abs=0.006)
    assert sum(after["gone"]["mlp"]) - after["gone"]["mlp"][3] < sum(before["gone"]["mlp"]) - before["gone"]["mlp"][3]
    x, y = edge(tab, 5)
    drag(tab, (x, y), (x - 60, y))
    until(tab, "p.locks.length === 2")
    tab.get_by_role("button", name="Undo").click()
    assert until(tab, "p.locks.length === 1")["locks"] == ["3.mlp"]
    tab.get_by_role("button", name="Undo").click()
    assert until(tab, "p.locks.length === 0")["gone"] == before["gone"]


def test_escape_gives_a_drag_up(tab):
    before = plan(tab)
    x, y = edge(tab, 3)
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 100, y, steps=5)
    tab.locator(".np-channels").focus()
    tab.keyboard.press("Escape")
    tab.mouse.up()
    tab.wait_for_timeout(500)
    assert plan(tab)["gone"] == before["gone"]
    assert slider(tab, "3.mlp").get_attribute("aria-valuenow") == str(round(100 * before["gone"]["mlp"][3] / 512))


def test_shift_drags_a_range_of_layers(tab):
    start, end = center(tab, "mlp", 2, 0.5), center(tab, "mlp", 5, 0.25)
    drag(tab, start, end, keys=["Shift"])
    after = until(tab, "p.locks.length === 4")
    assert after["locks"] == [f"{layer}.mlp" for layer in (2, 3, 4, 5)]
    assert all(abs(after["gone"]["mlp"][layer] / 512 - 0.25) < 0.01 for layer in (2, 3, 4, 5))


def test_a_bar_is_dragged_too(tab):
    box = slider(tab, "4.attention").bounding_box()
    y = box["y"] + box["height"] / 2
    drag(tab, (box["x"] + 5, y), (box["x"] + box["width"] / 2, y))
    after = until(tab, "p.locks.includes('4.attention')")
    assert after["gone"]["attention"][4] == 4


def test_a_bar_is_a_slider_for_keys_and_screen_readers(tab):
    first, second = slider(tab, "0.mlp"), slider(tab, "1.mlp")
    assert first.get_attribute("aria-label") == "Layer 0, channels that go"
    # One Tab stop for all bars of a kind.
    expect(tab.locator(".np-bars2 [role=slider][tabindex='0']")).to_have_count(1)
    before = plan(tab)["gone"]["mlp"][0]
    first.focus()
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
    after = until(tab, f"p.locks.includes('0.mlp') && Math.abs(p.gone.mlp[0] - {before} - 26) < 4")
    expect(first).to_have_attribute(
        "aria-valuetext",
        f"{round(100 * after['gone']['mlp'][0] / 512)} %, {512 - after['gone']['mlp'][0]} of 512 stay, locked",
    )
    expect(tab.locator(".np-say")).to_contain_text("Layer 0, channels changed")
    tab.keyboard.press("ArrowDown")
    expect(second).to_be_focused()
    tab.keyboard.press("l")
    until(tab, "p.locks.includes('1.mlp')")
    tab.keyboard.press("Delete")
    until(tab, "!p.locks.includes('1.mlp')")
    tab.keyboard.press("Shift+ArrowRight")
    until(tab, "p.locks.includes('1.mlp')")
    for _ in range(3):
        tab.get_by_role("button", name="Undo").click()
    until(tab, "p.locks.length === 1")
    # Five presses of a key are one step, as one drag is.
    tab.get_by_role("button", name="Undo").click()
    until(tab, "p.locks.length === 0")


def test_what_is_pressed_while_an_answer_is_on_its_way_starts_from_what_was_pressed_before(tab):
    first, second = slider(tab, "0.mlp"), slider(tab, "1.mlp")
    before, held, free = plan(tab)["gone"]["mlp"][0], [], threading.Semaphore(1)

    def hold(route):
        """The first message goes through, the others wait."""
        if free.acquire(blocking=False):
            route.continue_()
        else:
            held.append(route)

    tab.route("**/queue/join*", hold)
    first.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    until(tab, "p.locks.includes('0.mlp')")
    # The answer to the first press has come; the second, which it does not hold, stays on the page.
    expect(first).to_have_attribute("aria-valuenow", str(round(100 * (before + 10) / 512)))
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    second.focus()
    for key in ("l", "l", "l"):
        tab.keyboard.press(key)
    expect(second).to_have_class(re.compile("np-locked"))
    label = tab.locator(".np-lab button[data-row='2']").first
    label.focus()
    for _ in range(2):
        tab.keyboard.press("d")
    expect(label).to_have_attribute("data-whole", "attention")
    free.release(1000)
    for route in held:
        route.continue_()
    after = until(tab, "p.ahead === 0 && p.dropped.length === 1")
    assert after["dropped"] == ["2.attention"]
    assert {"0.mlp", "1.mlp"} <= set(after["locks"])
    assert abs(after["gone"]["mlp"][0] - before - 26) < 4


def test_a_clicked_head_is_explained_and_goes_from_its_score_to_kept_to_pruned_and_back(tab):
    tab.mouse.click(*center(tab, "attention", 2, 5.5 / 8))
    unit = tab.locator("#np-unit")
    expect(unit).to_contain_text("Layer 2, head 5")
    expect(tab.locator("#np-unit-name input, #np-unit-name textarea")).to_have_value("2.attention.5")
    tab.wait_for_selector(".js-plotly-plot", timeout=PATIENCE)
    idle(tab)
    before = "pruned" if "pruned by the plan" in unit.inner_text() else "kept"
    for says in ("kept forced to stay", "pruned forced to go", f"{before} by the plan"):
        tab.mouse.click(*center(tab, "attention", 2, 5.5 / 8))
        expect(unit).to_contain_text(says)
    tab.get_by_label("prune it", exact=True).check()
    expect(unit).to_contain_text("pruned forced to go")
    tab.get_by_role("button", name="Undo").click()
    expect(unit).to_contain_text(f"{before} by the plan")


def test_arrow_keys_walk_the_heads_and_letters_force_them(tab):
    tab.locator(".np-heads").focus()
    tab.keyboard.press("ArrowRight")
    expect(tab.locator("#np-unit")).to_contain_text("Layer 0, head 0")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    expect(tab.locator("#np-unit")).to_contain_text("Layer 1, head 1")
    assert tab.evaluate("document.activeElement.classList.contains('np-heads')")
    tab.keyboard.press("k")
    until(tab, "p.forced['1.attention.1'] === 'keep'")
    tab.keyboard.press("p")
    until(tab, "p.forced['1.attention.1'] === 'prune'")
    tab.keyboard.press("a")
    until(tab, "!p.forced['1.attention.1']")


def test_what_a_tooltip_says_of_a_unit_is_never_older_than_the_plan(tab):
    place = center(tab, "attention", 3, 2.5 / 8)
    tab.mouse.move(*place)
    expect(tab.locator(".np-tip")).to_contain_text("Layer 3, head 2")
    expect(tab.locator(".np-tip")).to_contain_text("stays")
    edit(tab, kind="force", key="3.attention", unit=2, how="prune")
    until(tab, "p.forced['3.attention.2'] === 'prune'")
    tab.mouse.move(place[0] + 2, place[1])
    expect(tab.locator(".np-tip")).to_contain_text("goes by hand")


def test_a_lock_is_not_ticked_any_more_after_undo(tab):
    open_part(tab, "Layers as table")
    box = tab.locator("[data-lock='3.mlp']")
    box.check()
    until(tab, "p.locks.includes('3.mlp')")
    tab.get_by_role("button", name="Undo").click()
    until(tab, "p.locks.length === 0")
    expect(box).not_to_be_checked()
    tab.get_by_role("button", name="Redo").click()
    expect(box).to_be_checked()


def test_two_locks_in_quick_succession_both_hold(tab):
    edit(tab, kind="lock", key="2.mlp", on=True)
    tab.wait_for_timeout(60)
    edit(tab, kind="lock", key="5.attention", on=True)
    assert until(tab, "p.locks.length === 2")["locks"] == ["2.mlp", "5.attention"]


def test_sixty_edits_in_a_second_all_arrive_in_order(tab):
    """Edges, locks and undo among them, as fast as no hand is; the last state wins and none is lost."""
    tab.evaluate(
        """() => {
          const edit = (index) => (index % 10 === 9 ? { kind: "undo" }
            : { kind: "cells", cells: [[`${index % 8}.mlp`, (index / 100).toFixed(2)]] });
          const send = (index) => document.dispatchEvent(new CustomEvent("np-edit", { detail: edit(index) }));
          for (let index = 0; index < 60; index++) setTimeout(() => send(index), index * 16);
        }"""
    )
    shown = until(tab, "p.seen === 60")
    expected = {}
    past = []
    for index in range(60):
        if index % 10 == 9:
            expected = past.pop()
        else:
            past.append(dict(expected))
            expected = {**expected, f"{index % 8}.mlp": index / 100}
    assert shown["locks"] == sorted(expected)
    for key, ratio in expected.items():
        assert shown["gone"]["mlp"][int(key[0])] == pytest.approx(512 * ratio, abs=1)


def test_colour_and_order_are_chosen_and_the_channels_are_marked(tab):
    tab.get_by_label("Order of the channels").select_option("index")
    until(tab, "p.strips")
    expect(tab.locator(".np-h2")).to_contain_text("by index")
    tab.mouse.move(*center(tab, "mlp", 0, 0.5))
    expect(tab.locator(".np-tip")).to_contain_text("channel 256")
    tab.get_by_label("Colour of the map").select_option("rank")
    expect(tab.locator(".np-low")).to_have_text("lowest")


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_map_is_kept_as_a_picture(tab, kind):
    tab.get_by_label("Download the map or its numbers").click()
    with tab.expect_download() as download:
        tab.locator(f"[data-save={kind}]").click()
    assert download.value.suggested_filename == f"map-fisher.{kind}"
    start = download.value.path().read_bytes()[:8]
    assert start.startswith(b"\x89PNG" if kind == "png" else b"<svg ")


def test_the_numbers_behind_the_map_are_kept(tab):
    tab.get_by_label("Download the map or its numbers").click()
    with tab.expect_download() as download:
        tab.locator("#np-map [data-table=layers]").click()
    assert download.value.suggested_filename == "tiny-stories-layers.csv"
    lines = download.value.path().read_text().splitlines()
    assert len(lines) == 17
    assert "score_mean" in lines[0]


def test_a_unit_is_named_in_one_box(tab):
    open_part(tab, "Unit")
    box = tab.locator("#np-unit-name input, #np-unit-name textarea")
    box.fill("3.mlp.17")
    box.press("Enter")
    expect(tab.locator("#np-unit")).to_contain_text("Layer 3, channel 17")
    idle(tab)
    box.fill("3.mlp.9999")
    box.press("Enter")
    toast(tab, "units 0 to 511")


@pytest.fixture(scope="module")
def seventy_billion():
    """A page whose model has 80 layers of 28,672 channels and no weights."""
    loaded = synthetic(Shape(hidden=64, channels=28672, layers=80, heads=64, vocabulary=100))
    bench = Workbench(loaded.model, budget=1 << 40)
    bench.put(loaded, "fixture")
    with served(bench) as address:
        yield address


def test_eighty_layers_fit_the_screen_and_can_be_dragged(browser, seventy_billion):
    page = browser.new_page(viewport=DESK)
    page.add_init_script("document.addEventListener('np-plan', (event) => { window.plan = event.detail; });")
    page.goto(seventy_billion)
    page.wait_for_function("window.plan", timeout=PATIENCE)
    expect(page.locator(".np-bars2 [role=slider]")).to_have_count(80)
    assert scrolls(page) == [False, False]
    assert page.locator(".np-bars2 > div").first.bounding_box()["height"] >= 5
    # So low that a cross would be a blot, heads that go are filled.
    assert page.locator(".np-heads .np-fill").get_attribute("d")
    assert not page.locator(".np-heads .np-cross").first.get_attribute("d")
    x, y = edge(page, 40)
    drag(page, (x, y), (x + 90, y))
    after = until(page, "p.locks.includes('40.mlp')")
    assert len(json.dumps(after)) <= 20_000
    page.close()


def label(page, row):
    return page.locator(f".np-lab1 [data-row='{row}']")


def test_a_click_on_a_layers_number_drops_it_then_one_module_then_nothing(tab):
    before = plan(tab)
    label(tab, 2).click()
    after = until(tab, "p.dropped.length === 2")
    assert after["dropped"] == ["2.attention", "2.mlp"]
    assert after["reached"] == pytest.approx(before["reached"], abs=0.006)
    expect(label(tab, 2)).to_have_attribute("aria-label", re.compile(r"Layer 2 is dropped, block influence 0\.04"))
    expect(slider(tab, "2.mlp")).to_have_attribute("aria-valuetext", "dropped as a whole, all 512 go")
    expect(slider(tab, "2.mlp").locator("b")).to_have_text("dropped")
    label(tab, 2).click()
    assert until(tab, "p.dropped.length === 1")["dropped"] == ["2.attention"]
    label(tab, 2).click()
    until(tab, "p.dropped.length === 1 && p.dropped[0] === '2.mlp'")
    label(tab, 2).click()
    assert until(tab, "p.dropped.length === 0")["gone"] == before["gone"]
    tab.get_by_role("button", name="Undo").click()
    until(tab, "p.dropped.length === 1")


def test_the_d_key_drops_and_a_dragged_bar_brings_back(tab):
    label(tab, 0).focus()
    tab.keyboard.press("ArrowDown")
    expect(label(tab, 1)).to_be_focused()
    tab.keyboard.press("d")
    until(tab, "p.dropped.length === 2")
    bar = slider(tab, "1.mlp")
    bar.focus()
    tab.keyboard.press("ArrowLeft")
    back = until(tab, "p.dropped.length === 1")
    assert back["dropped"] == ["1.attention"]
    assert back["locks"] == ["1.mlp"]


def test_what_goes_as_a_whole_by_its_own_score_is_chosen_for_the_ratio(tab):
    edit(tab, kind="method", method="drop")
    first = until(tab, "p.method === 'drop' && p.dropped.length > 0")
    assert all(gone in (0, count) for gone, count in zip(first["gone"]["mlp"], first["units"]["mlp"], strict=True))
    edit(tab, kind="ratio", ratio=0.6)
    second = until(tab, f"p.ratio === 0.6 && p.dropped.length > {len(first['dropped'])}")
    assert second["reached"] == pytest.approx(0.6, abs=0.1)
    edit(tab, kind="method", method="balanced")
    until(tab, "p.method === 'balanced' && p.dropped.length === 0")
