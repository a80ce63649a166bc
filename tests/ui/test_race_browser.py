"""The replay in a real browser, as it stands in a report. Skipped where there is no playwright or no Chromium."""

import shutil

import pytest

from numprune.evaluation.speed import Run, Speed
from numprune.evaluation.speed_comparison import SpeedComparison, Timed
from numprune.ui import race
from numprune.ui.report import Section, report_html

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]
expect = playwright.expect


def timed(name, step, gain):
    seconds = tuple(step * (1 + each) for each in range(5))
    speed = Speed(*[(1.0, 1.0, 1.0)] * 3, None, 8, 4, 1, 3, "cpu", "float32")
    return Timed(
        name, speed, gain, (1.0, 1.0, 1.0), 10, 10, 10, Run((0,) * 5, seconds), tuple(f" {n}<&" for n in "abcde")
    )


@pytest.fixture
def page(tmp_path):
    both = SpeedComparison([timed("Dense", 0.2, (1.0, 1.0, 1.0)), timed("Half", 0.1, (2.0, 1.9, 2.1))], 1)
    file = tmp_path / "report.html"
    file.write_text(report_html([Section("Speed", [race.replay(both, "Once")])], title="t", facts={}), encoding="utf8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page()
        problems = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        # Time stands still until a test moves it.
        opened.clock.install(time=0)
        opened.goto(file.as_uri())
        opened.clock.pause_at(1000)
        yield opened
        browser.close()
    assert problems == []


def counts(page):
    return [int(track.get_attribute("aria-valuenow")) for track in page.get_by_role("progressbar").all()]


def texts(page):
    return [lane.locator("[data-written]").text_content() for lane in page.locator(".np-lane").all()]


def test_a_race_shows_every_token_at_its_time(page):
    assert counts(page) == [5, 5]
    page.get_by_label("Pace of the replay").select_option("0.5")
    page.get_by_role("button", name="Race").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.clock.run_for(900)
    # Half as fast: 0.45 s have passed.
    assert counts(page) == [2, 4]
    assert texts(page) == [" a<& b<&", " a<& b<& c<& d<&"]
    assert page.get_by_role("status").text_content() == ""
    page.clock.run_for(3000)
    assert counts(page) == [5, 5]
    assert "Half decodes 2.00x as fast as Dense" in page.get_by_role("status").text_content()
    expect(page.get_by_role("button", name="Race")).to_have_attribute("aria-pressed", "false")


def test_one_after_the_other_the_second_waits_for_the_first(page):
    page.get_by_label("Pace of the replay").select_option("1")
    page.get_by_role("button", name="One after the other").click()
    page.clock.run_for(700)
    assert counts(page) == [3, 0]
    page.clock.run_for(600)
    assert counts(page)[0] == 5
    assert 1 <= counts(page)[1] < 5


def test_stop_shows_the_end_and_another_button_starts_anew(page):
    page.get_by_label("Pace of the replay").select_option("1")
    page.get_by_role("button", name="Race").click()
    page.clock.run_for(250)
    page.get_by_role("button", name="One after the other").click()
    page.clock.run_for(250)
    assert counts(page) == [1, 0]
    page.get_by_role("button", name="Stop").click()
    assert counts(page) == [5, 5]
    assert page.get_by_role("button", name="Stop").count() == 0
    page.clock.run_for(500)
    assert counts(page) == [5, 5]


def test_a_new_result_ends_the_replay_of_the_old_one(page):
    """The page patches new results into the same nodes."""
    page.get_by_label("Pace of the replay").select_option("1")
    page.get_by_role("button", name="Race").click()
    page.clock.run_for(250)
    page.evaluate(
        """() => {
          const race = document.querySelector(".np-race");
          race.dataset.race = race.dataset.race.replace('" a<&"', '" new"');
        }"""
    )
    page.clock.run_for(100)
    assert counts(page) == [5, 5]
    assert texts(page)[0].startswith(" new")


def test_it_can_be_played_by_keys(page):
    page.get_by_label("Pace of the replay").select_option("1")
    page.get_by_role("button", name="Race").focus()
    page.keyboard.press("Enter")
    page.clock.run_for(250)
    assert counts(page) == [1, 2]
    page.keyboard.press("Space")
    assert counts(page) == [5, 5]
