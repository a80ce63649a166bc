"""Screenshots of the running dashboard, for the README: of a language or of an image model, whichever it shows.

    python assets/scripts/screenshots.py [--url http://127.0.0.1:7860] [--out assets/screenshots]

Needs playwright and a Chromium (pip install playwright; apt-get install chromium). Start the dashboard first.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


def shoot(browser: Browser, url: str, scheme: str, folder: Path) -> None:
    """From the top of the page to the end of step 3, and step 5; of an image model step 5 alone."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page.goto(f"{url}/?__theme={scheme}")
    page.wait_for_selector(".np-heat", timeout=120_000)
    expect(page.get_by_label("Method", exact=True)).to_have_value(re.compile("balanced:"), timeout=120_000)
    heads = page.locator(".np-heat-plot").first
    heads.click(position={"x": 100, "y": 60})
    page.wait_for_selector(".js-plotly-plot", timeout=60_000)
    images = page.locator("#np-images").is_visible()
    page.click("#np-example")
    page.wait_for_selector(f"{'#np-quality' if images else '#np-figures'} .np-table", timeout=300_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(2000)
    if images:
        page.locator("#np-compare").screenshot(path=folder / f"images-{scheme}.png")
        page.close()
        return
    table = page.locator("#np-ratios").bounding_box()
    end = table["y"] + table["height"] + page.evaluate("window.scrollY") + 16
    page.screenshot(
        path=folder / f"plan-{scheme}.png",
        full_page=True,
        clip={"x": 0, "y": 0, "width": 1280, "height": end},
    )
    page.locator("#np-compare").screenshot(path=folder / f"compare-{scheme}.png")
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--out", type=Path, default=Path("assets/screenshots"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for scheme in ("light", "dark"):
            shoot(browser, args.url, scheme, args.out)
        browser.close()


if __name__ == "__main__":
    main()
