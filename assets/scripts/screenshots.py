"""Pictures of the running dashboard, for the README: of a language or of an image model, whichever it shows.

    python assets/scripts/screenshots.py [--url http://127.0.0.1:7860] [--out assets/screenshots]

The whole screen at 1440 x 900 and at 390 px, light and dark, after *Prune and compare*; of a language model also a
short animated one: an edge is dragged, the model pruned, the tokens of both raced. Needs playwright and a Chromium (pip
install playwright; apt-get install chromium). Start the dashboard first.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 300_000
FRAME = {"width": 720, "height": 450}
"""Size of the animated picture."""
COLOURS = 96
"""Of the animated picture, so that it stays small."""


def opened(browser: Browser, url: str, scheme: str, size: dict[str, int]) -> Page:
    """The page with its plan."""
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(f"{url}/?__theme={scheme}")
    page.wait_for_selector(".np-bars i", state="attached", timeout=PATIENCE)
    page.wait_for_selector(".np-budget td", state="attached", timeout=PATIENCE)
    page.wait_for_timeout(1000)
    return page


def pruned(page: Page) -> None:
    """Prune and compare, and wait for the figures."""
    page.click("#np-prune")
    page.wait_for_selector("#np-result .np-headline", timeout=PATIENCE)
    page.wait_for_selector("#np-stop[disabled]", timeout=PATIENCE)
    page.mouse.move(5, 895)
    page.wait_for_timeout(1500)


def shoot(page: Page, path: Path) -> None:
    """A picture of what the window shows."""
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, optimize=True)
    print(path, path.stat().st_size)


def animate(page: Page, path: Path) -> None:
    """The loop: an edge is dragged, budget and frontier follow, the model is pruned and writes, both race."""
    frames: list[tuple[bytes, int]] = []

    def keep(milliseconds: int) -> None:
        frames.append((page.screenshot(), milliseconds))

    keep(900)
    box = page.locator(".np-channels").bounding_box()
    rows = page.locator(".np-bars2 > div").count()
    share = float(page.locator(".np-bars2 [data-row='3']").evaluate("bar => bar.style.getPropertyValue('--r')"))
    x, y = box["x"] + share * box["width"], box["y"] + 3.5 / rows * box["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(x + 22 * step, y)
        page.wait_for_timeout(150)
        keep(140)
    page.mouse.up()
    page.wait_for_timeout(600)
    keep(900)
    page.click("#np-prune")
    page.wait_for_selector("#np-result article", timeout=PATIENCE)
    for _ in range(12):
        keep(220)
        page.wait_for_timeout(350)
    page.wait_for_selector("#np-result .np-headline", timeout=PATIENCE)
    page.wait_for_timeout(800)
    keep(2200)
    page.get_by_role("tab", name="Speed", exact=True).click()
    page.click("#np-speed-measure")
    page.wait_for_selector("#np-speed-figures table", timeout=PATIENCE)
    page.wait_for_selector("#np-stop[disabled]", timeout=PATIENCE)
    page.locator(".np-race select").select_option("0.1")
    page.locator("[data-play=race]").click()
    for _ in range(12):
        keep(220)
        page.wait_for_timeout(250)
    page.wait_for_selector("[data-play=race][aria-pressed=false]", timeout=PATIENCE)
    keep(2500)
    pictures = [
        Image.open(io.BytesIO(data)).convert("RGB").resize((FRAME["width"], FRAME["height"]), Image.Resampling.LANCZOS)
        for data, _ in frames
    ]
    # Of the first and the last together, so that the map's yellow and the runners' orange are both among them.
    both = Image.new("RGB", (FRAME["width"], 2 * FRAME["height"]))
    both.paste(pictures[0], (0, 0))
    both.paste(pictures[-1], (0, FRAME["height"]))
    palette = both.quantize(COLOURS, dither=Image.Dither.NONE)
    first, *others = (each.quantize(palette=palette, dither=Image.Dither.NONE) for each in pictures)
    first.save(path, save_all=True, append_images=others, duration=[time for _, time in frames], loop=0, optimize=True)
    print(path, path.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--out", type=Path, default=Path("assets/screenshots"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for scheme in ("light", "dark"):
            page = opened(browser, args.url, scheme, DESK)
            images = "image" in page.locator("#np-chip").inner_text().split("·")[0]
            pruned(page)
            shoot(page, args.out / f"{'images' if images else 'plan'}-{scheme}.png")
            page.close()
            if images:
                continue
            page = opened(browser, args.url, scheme, PHONE)
            shoot(page, args.out / f"phone-{scheme}.png")
            page.close()
        if not images:
            page = opened(browser, args.url, "light", DESK)
            animate(page, args.out / "loop.gif")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
