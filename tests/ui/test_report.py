import re
import shutil

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import numprune
from numprune.ui import html
from numprune.ui.figures import error_bars
from numprune.ui.heatmap import Rows, Scale, score_heatmap
from numprune.ui.report import Section, environment, report_html
from numprune.ui.score_figures import layer_row
from numprune.ui.texts import side_by_side

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


def sections():
    scores = np.random.default_rng(0).normal(0.9, 0.1, 64)
    rows = Rows([scores], [scores < 0.8], "Channel")
    errors = {"layer": [0], "module": ["mlp"], "units": [64], "kept": [60], "error_before": [0.5], "error_after": [0.2]}
    return [
        Section("Model & size", [html.cards([("3.9 M", "parameters")])]),
        Section("Scores", [score_heatmap(rows, Scale.of([rows], "raw", 0.8), order="index", title="MLP")]),
        Section("Charts", [layer_row(scores, scores < 0.8, 3, "Channel"), error_bars(pd.DataFrame(errors))]),
        Section("Texts", [side_by_side(["Once"], [("Dense", ["Once upon"]), ("30%", ["Once more"])])]),
        Section("Numbers", [pd.DataFrame({"module": ["0.mlp", "<b>"], "error": [0.123456, np.nan], "kept": [3, 4]})]),
    ]


@pytest.fixture(scope="module")
def page():
    return report_html(sections(), title="numprune: <tiny>", facts={"Model <i>": "tiny & small", "Made": "today"})


def test_every_section_is_there_and_in_the_contents(page):
    titles = re.findall(r"<section id='(section-\d)'><h2>(.*?)</h2>", page)
    links = re.findall(r"<a href='#(section-\d)'>(.*?)</a>", page)
    assert titles == links
    assert [title for _, title in titles] == ["Model &amp; size", "Scores", "Charts", "Texts", "Numbers"]


def test_title_facts_and_cells_are_escaped(page):
    body = page[page.index("<body>") :]
    assert "<h1>numprune: &lt;tiny&gt;</h1>" in body
    assert "<dt>Model &lt;i&gt;</dt><dd>tiny &amp; small</dd>" in body
    assert "<title>numprune: &lt;tiny&gt;</title>" in page
    assert "<th scope='row'>&lt;b&gt;</th><td></td><td>4</td>" in body
    assert "<td>0.1235</td>" in body


def test_nothing_is_asked_from_elsewhere(page):
    # The chart library holds addresses in its own strings; what a browser would load is in the markup.
    markup = re.sub(r"<script.*?</script>", "<script></script>", page, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)\s*=\s*['\"]?\s*(?:https?:)?//", markup)
    assert "@import" not in markup
    assert not re.search(r"url\(\s*['\"]?(?!data:)", markup)
    assert not re.search(r"<script[^>]+src=", page)


def test_the_chart_library_comes_once_and_only_for_charts(page):
    assert page.count("plotly.js v") == 1
    assert page.count("class='np-chart'") == 2
    without = report_html(sections()[:1], title="Small", facts={})
    assert "plotly.js v" not in without
    assert len(without) < 30_000


def test_every_variable_of_the_styles_is_defined(page):
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    # How many columns there are, and whose colour a lane has, is said where they are.
    assert used <= {"--n", "--lane", *re.findall(r"(--[\w-]+):", style)}
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_a_report_without_sections_is_a_page():
    page = report_html([], title="Nothing", facts={})
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")


def test_environment_names_versions_and_machine():
    facts = environment()
    assert facts["numprune"] == numprune.__version__
    assert facts["PyTorch"] == torch.__version__
    assert facts["Threads"] == str(torch.get_num_threads())
    assert ("GPU" in facts) == torch.cuda.is_available()
    assert all(isinstance(value, str) and value for value in facts.values())


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_it_without_errors_or_requests(page, tmp_path, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf8")
    problems, requests = [], []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(file.as_uri())
        opened.wait_for_function("document.querySelectorAll('.np-chart .main-svg .trace, .np-chart .point').length > 3")
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        # The heatmap answers to the keyboard as it does in the dashboard.
        opened.focus(".np-heat")
        opened.keyboard.press("ArrowRight")
        assert "Layer 0" in opened.inner_text(".np-heat-tip")
        browser.close()
    assert not problems
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [file.as_uri()]
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_chart_keeps_its_height():
    page = report_html([Section("One", [go.Figure(layout={"height": 321})])], title="One", facts={})
    assert "height:321px" in page.replace(" ", "")
