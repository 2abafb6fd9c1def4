"""Reports in a real browser: headless Chromium, driven by Selenium, without a network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from rlhf_cli.cli import main
from rlhf_cli.report.html.html_page import write_report
from tests.e2e.processes import TINY, Started
from tests.unit.report.synthetic_runs import ppo_run
from tests.unit.report.test_html_page import hostile_runs

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.xdist_group("report"),  # tests share a browser and runs
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver (Debian packages)"),
]
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1400,1000"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--force-prefers-reduced-motion",
    ),
)
ONCE_MORE = 3  # times that a page is loaded to see how fast it can be
LONGEST_S, LARGEST = 3.0, 5_000_000


class Page:
    """One browser that looks at one page after the other."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, file: Path) -> float:
        """Open a page; return the seconds until it can be used."""
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        start = time.monotonic()
        self.driver.get(file.resolve().as_uri())
        self.wait("return document.documentElement.dataset.ready === 'yes'")
        return time.monotonic() - start

    def script(self, text: str, *args: Any) -> Any:
        return self.driver.execute_script(text, *args)

    def wait(self, condition: str, *args: Any) -> None:
        deadline = time.monotonic() + 30
        while not self.script(condition, *args):
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)

    def find(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def draw_all(self) -> list[str]:
        """Bring every plot into view; return their titles."""
        figures = self.driver.find_elements(By.CSS_SELECTOR, "figure")
        for figure in figures:
            self.script("arguments[0].scrollIntoView()", figure)
            self.wait("return arguments[0].dataset.drawn === 'yes'", figure)
        empty = (
            "return [...document.querySelectorAll('figure')].filter(f => !f.querySelector("
            "'.scatterlayer .trace path, .barlayer .trace path')).map(f => f.querySelector('h3').textContent)"
        )
        assert self.script(empty) == []
        return [figure.find_element(By.TAG_NAME, "h3").text for figure in figures]

    def rows(self, css: str) -> list[str]:
        return self.script(
            f"return [...document.querySelectorAll('{css} tbody tr')].filter(r => !r.hidden).map(r => r.textContent)"
        )

    def assert_clean(self, file: Path) -> None:
        """No error on the console, and nothing asked for but the file itself."""
        assert [entry for entry in self.driver.get_log("browser") if entry["level"] != "INFO"] == []
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        assert {url for url in urls if not url.startswith(("data:", "blob:"))} == {file.resolve().as_uri()}


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield Page(driver)
    driver.quit()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs: a reward model, PPO with evaluations, and PPO that Ctrl-C has stopped."""
    folder = tmp_path_factory.mktemp("reports")
    both = [Started(folder, "train-rm", "conf=tiny"), Started(folder, *TINY, "eval.every_steps=4", "run.name=ppo")]
    for one in both:
        assert one.end(150) == 0, one.text
    stopped = Started(folder, *TINY, "ppo.num_steps=500", "run.name=stopped")
    stopped.wait_for("\nstep 3/")
    os.kill(stopped.parent.pid, signal.SIGINT)
    assert stopped.end(60) == 75, stopped.text
    assert "report: outputs/ppo/report.html" in both[1].text
    return folder / "outputs"


def test_a_ppo_run(page: Page, outputs: Path) -> None:
    file = outputs / "ppo/report.html"
    page.open(file)
    titles = page.draw_all()
    assert {"Score", "KL to the reference", "Score against KL, step by step", "Time by phase", "Clipped tokens"} <= set(
        titles
    )
    assert "finished" in page.find(".facts").text
    page.script("document.querySelector('.responses').scrollIntoView()")
    page.wait("return document.querySelectorAll('.responses td [title$=nats]').length > 4")
    page.assert_clean(file)


def test_a_reward_model_run(page: Page, outputs: Path) -> None:
    file = outputs / "tiny_rm/report.html"
    page.open(file)
    titles = page.draw_all()
    assert {"Loss", "Accuracy and its baseline", "Margins", "Accuracy by length gap"} <= set(titles)
    assert len(page.rows("#where-it-is-wrong")) > 3
    page.assert_clean(file)


def test_a_run_that_was_stopped_has_a_report_too(page: Page, outputs: Path) -> None:
    file = outputs / "stopped/report.html"
    page.open(file)
    assert "stopped" in page.find(".facts").text
    assert "Score" in page.draw_all()
    page.assert_clean(file)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    return write_report(ppo_run(tmp_path / "long", 5000, every=500))


def test_five_thousand_steps_load_fast_and_are_small(page: Page, long: Path) -> None:
    assert long.stat().st_size < LARGEST
    assert min(page.open(long) for _ in range(ONCE_MORE)) < LONGEST_S
    page.draw_all()
    assert page.script("return document.querySelector('figure .canvas').data[0].x.length") == 5000
    page.assert_clean(long)


def test_tables_are_searched_and_sorted(page: Page, tmp_path: Path) -> None:
    page.open(write_report(ppo_run(tmp_path / "a", 12)))
    page.script("document.querySelector('.responses').scrollIntoView()")
    page.wait("return document.querySelectorAll('.responses td [title$=nats]').length === 8 * 4")
    assert len(page.rows(".responses")) == 8
    field = page.find(".responses input[type=search]")
    field.send_keys("PARCEL 3")
    assert len(page.rows(".responses")) == 2
    assert page.find(".responses .search [role=status]").text == "2 of 8 rows"
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE)
    page.find(".responses option[value=greedy]").click()
    assert len(page.rows(".responses")) == 4
    head = page.find(".responses th:nth-child(6)")
    for order, first in (("ascending", "0"), ("descending", "3")):
        head.find_element(By.TAG_NAME, "button").click()
        assert head.get_attribute("aria-sort") == order
        assert page.rows(".responses")[0].split("parcel ")[1][0] == first
    heat = page.script(
        "return [...document.querySelectorAll('.responses tbody tr:not([hidden]) [data-response]')][0].innerHTML"
    )
    assert heat.count("<span") == 4
    assert 'title="+3.00 nats"' in heat


def test_the_kl_of_a_token_is_read_by_click(page: Page, tmp_path: Path) -> None:
    page.open(write_report(ppo_run(tmp_path / "a", 12)))
    page.script("document.querySelector('.responses').scrollIntoView()")
    page.wait("return document.querySelectorAll('.responses [data-response] span').length === 8 * 4")
    response = page.find(".responses [data-response]")
    page.script("arguments[0].querySelectorAll('span')[2].click()", response)
    assert page.find(".responses .token").text == 'token 3 of 4, " here": +3.00 nats'


def test_plots_zoom_smooth_and_change_their_scale(page: Page, tmp_path: Path) -> None:
    page.open(write_report(ppo_run(tmp_path / "a", 60)))
    page.draw_all()
    first = "document.querySelector('figure .canvas')"
    raw = page.script(f"return {first}.data[0].y")
    slider = page.find("#smoothing")
    page.script(
        "arguments[0].value = 0.9; for (const e of ['input', 'change']) arguments[0].dispatchEvent(new Event(e))",
        slider,
    )
    page.wait(f"return {first}.data.length === 2")
    smooth = page.script(f"return {first}.data[0].y")
    assert smooth[0] == pytest.approx(raw[0])
    assert smooth[1] == pytest.approx((0.9 * raw[0] + raw[1]) / 1.9)  # the weights 0.09 and 0.1, over their sum
    figure = page.find("figure")
    page.script("arguments[0].scrollIntoView()", figure)
    figure.find_element(By.CSS_SELECTOR, ".log").click()
    page.wait(f"return {first}._fullLayout.yaxis.type === 'log'")
    whole = page.script(f"return {first}._fullLayout.xaxis.range")
    for button, condition in (("Zoom in", f"< {whole[1]} - 5"), ("Autoscale", f"> {whole[1]} - 1")):
        page.script(f"{first}.querySelector('[data-title={json.dumps(button)}]').click()")
        page.wait(f"return {first}._fullLayout.xaxis.range[1] {condition}")
    assert not page.driver.find_elements(By.CSS_SELECTOR, "[data-title*=Share], [data-title*=loud]")


def test_a_plot_can_be_read_without_eyes_or_mouse(page: Page, tmp_path: Path) -> None:
    page.open(write_report(ppo_run(tmp_path / "a", 12, every=4)))
    page.draw_all()
    assert page.find("figure .summary").get_attribute("textContent").startswith("score: ")
    page.find("figure details summary").send_keys(Keys.ENTER)
    page.wait("return document.querySelector('figure details table') !== null")
    assert len(page.rows("figure details")) == 12 + 3 + 3
    named = "e.textContent.trim() || e.labels?.length || e.ariaLabel"
    unnamed = f"return [...document.querySelectorAll('button, input, select')].filter(e => !({named})).length"
    assert page.script(unnamed) == 0


def test_light_and_dark_and_on_a_phone(page: Page, tmp_path: Path) -> None:
    file = write_report(ppo_run(tmp_path / "a", 12))
    colour = "return getComputedStyle(document.body).backgroundColor"
    driver = page.driver
    try:
        found = []
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            page.open(file)
            found.append(page.script(colour))
        page.find("#theme").click()
        assert page.script(colour) == found[0] != found[1]
        size = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        page.open(file)
        page.draw_all()
        assert page.script("return document.documentElement.scrollWidth") <= 390
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page.assert_clean(file)


def test_hostile_text_does_nothing_in_the_browser(page: Page, tmp_path: Path) -> None:
    for folder in hostile_runs(tmp_path):
        file = write_report(folder)
        page.open(file)
        page.script("window.alert = () => { window.attacked = true; }")
        page.draw_all()
        assert page.script("return document.querySelectorAll('main script, main img, iframe').length") == 0
        assert page.script("return window.attacked === undefined")
        assert "<script>alert(1)</script>" in page.script("return document.body.innerText")
        page.assert_clean(file)


def test_runs_side_by_side(page: Page, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(outputs / "ppo"), str(outputs / "stopped")]) == 0
    file = tmp_path / "compare.html"
    page.open(file)
    assert "score" in page.draw_all()
    assert any("ppo.num_steps8500" in row for row in page.rows("#what-differs"))
    page.assert_clean(file)
