"""Screenshots of the running dashboard, for the README.

    python assets/scripts/screenshots.py [--url http://127.0.0.1:7860] [--out assets/screenshots]

Needs playwright and a Chromium (pip install playwright; apt-get install chromium). Start the dashboard first.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


def shoot(browser: Browser, url: str, scheme: str, file: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page.goto(f"{url}/?__theme={scheme}")
    page.wait_for_selector(".heatmaplayer", timeout=120_000)
    page.click("#np-example")
    page.wait_for_selector("#np-compare .np-table", timeout=300_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=file, full_page=True)
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
            shoot(browser, args.url, scheme, args.out / f"dashboard-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
