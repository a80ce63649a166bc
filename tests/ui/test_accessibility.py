"""WCAG 2.2, levels A and AA, as far as axe-core can judge: every part of the page, light and dark, wide and narrow."""

import pytest
from browsing import DESK, MARKS, PATIENCE, PHONE, center, expect, idle, open_part, open_tab, prune

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = [*MARKS, pytest.mark.usefixtures("short_measures")]
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}


def violations(page):
    """What breaks a rule: the rule, and the element."""
    found = axe.Axe().run(page, options=RULES).response["violations"]
    return [
        f"{each['id']}: {' '.join(node['target'][0].split())} {node['html'][:160]} {node['failureSummary'][:200]}"
        for each in found
        for node in each["nodes"]
    ]


@pytest.mark.parametrize(("scheme", "size"), [("light", DESK), ("dark", DESK), ("light", PHONE)])
def test_no_part_of_the_page_breaks_a_rule(visit, scheme, size):
    page = visit(viewport=size, color_scheme=scheme)
    broken = {"opened": violations(page)}
    prune(page)
    broken["pruned"] = violations(page)
    page.mouse.click(*center(page, "attention", 2, 5.5 / 8))
    expect(page.locator("#np-unit")).to_contain_text("Layer 2, head 5")
    # A chart that is still to come is a place of gradio's own with a name it may not have.
    page.wait_for_selector("#np-dock .js-plotly-plot", timeout=PATIENCE)
    idle(page)
    broken["Unit"] = violations(page)
    for name in ("Layers as table", "Distribution", "Other scorer") if size is DESK else ("Layers as table",):
        open_part(page, name)
        page.wait_for_timeout(500)
        if name == "Distribution":
            expect(page.locator("#np-dock .js-plotly-plot:visible")).to_have_count(2)
        broken[name] = violations(page)
    for name in ("Compare", "Speed", "Methods", "Export") if size is DESK else ("Compare",):
        open_tab(page, name)
        page.wait_for_timeout(500)
        broken[name] = violations(page)
    for panel in ("np-open-model", "np-open-share"):
        page.click(f"#{panel}")
        page.wait_for_timeout(500)
        broken[panel] = violations(page)
        page.click(f"#{panel}")
    # On a phone it is at the very end, above the bar at the bottom.
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.get_by_text("More", exact=True).click()
    page.wait_for_timeout(500)
    broken["More"] = violations(page)
    assert {part: found for part, found in broken.items() if found} == {}


FOCUSED = """() => {
  const at = document.activeElement, look = getComputedStyle(at);
  if (!at || at === document.body) return null;
  const says = (at.getAttribute("aria-label") || at.textContent).slice(0, 40);
  const shown = [look.outlineStyle, look.boxShadow, look.borderStyle].some((each) => each !== "none");
  return [`${at.id || at.className || at.tagName} ${says}`, shown];
}"""


def test_everything_is_reached_by_tab_and_shows_where_the_focus_is(tab):
    """From the top of the page: header, rail, tabs, both grids, both rows of bars, the parts below."""
    tab.locator("#np-open-model").focus()
    seen, bare = [], []
    for _ in range(60):
        found = tab.evaluate(FOCUSED)
        if found is None:
            break
        seen.append(found[0])
        bare += [] if found[1] else [found[0]]
        tab.keyboard.press("Tab")
    everything = " | ".join(seen)
    for part in ("Share", "Undo", "Redo", "Reset", "Prune and compare", "Plan", "Heads:", "Channels:", "Result"):
        assert part in everything, part
    for part in ("Layer 0, heads that go", "Layer 0, channels that go", "Colour of the map"):
        assert part in everything, part
    assert bare == []
