"""Take the pictures of docs/images from the reports of two runs, with headless Chromium and chromedriver."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from rlhf_cli.report.html.html_page import write_report

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH, HEIGHT = 1280, 1000
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
SHOTS = {  # section at the top of the picture -> name of the picture
    "train-ppo": {"overview": "report_ppo", "over-optimisation": "report_leash", "responses": "report_answers"},
    "train-rm": {"held-out-pairs": "report_reward_model"},
}


def browser() -> webdriver.Chrome:
    """Start a browser of a fixed size."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, "--force-prefers-reduced-motion", "--hide-scrollbars"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return driver


def take(driver: webdriver.Chrome, page: Path, shots: dict[str, str]) -> None:
    """Save a picture of each section of a page."""
    driver.get(page.resolve().as_uri())
    wait(driver, "return document.documentElement.dataset.ready === 'yes'")
    for section, name in shots.items():
        selector = ".responses" if section == "responses" else f"#{section}"
        top = "window.scrollTo(0, 0)" if section == "overview" else ""
        driver.execute_script(top or f"document.querySelector('{selector}').scrollIntoView()")
        seen = (
            "return [...document.querySelectorAll('figure')].every(f => f.getBoundingClientRect().top > innerHeight"
            " || f.getBoundingClientRect().bottom < 0 || f.dataset.drawn === 'yes')"
        )
        time.sleep(0.5)  # visible plots begin to draw
        wait(driver, seen)
        driver.save_screenshot(str(IMAGES / f"{name}.png"))
        print(IMAGES / f"{name}.png")


def draw_screen(screen: str) -> None:
    """Draw a terminal's screen as an SVG."""
    console = Console(record=True, width=120, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen))
    console.save_svg(str(IMAGES / "live.svg"), title="rlhf train-ppo")
    print(IMAGES / "live.svg")


def wait(driver: webdriver.Chrome, condition: str) -> None:
    """Wait until a condition of the page holds."""
    deadline = time.monotonic() + 30
    while not driver.execute_script(condition):
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rm", type=Path, help="run folder of a reward model")
    parser.add_argument("ppo", type=Path, help="run folder of PPO")
    parser.add_argument("--live", type=Path, help="a terminal's screen with colours, from `tmux capture-pane -e -p`")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    if options.live is not None:
        draw_screen(options.live.read_text("utf-8"))
    driver = browser()
    try:
        for command, run in (("train-rm", options.rm), ("train-ppo", options.ppo)):
            take(driver, write_report(run), SHOTS[command])
    finally:
        driver.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
