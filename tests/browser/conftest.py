"""A real browser on the real Open WebUI: Debian's Chromium, driven by Playwright."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from harness.fixtures_routing import RoutedWebUI
from local.webui import Account, RunningWebUI

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# A scratch browser looks at one local page: nothing else is to leave the machine.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

Open = Callable[[Account, str], Page]


@pytest.fixture(
    scope="module"
)  # while it is open an event loop runs in this thread: no other tier could run one
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no browser: install chromium (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, webui: RunningWebUI) -> Iterator[Open]:
    """Open a page of the session's Open WebUI as a signed-in user; its window is closed after the test."""
    with pages_of(browser, webui.url) as open_as:
        yield open_as


@pytest.fixture
def open_routed(browser: Browser, routed: RoutedWebUI) -> Iterator[Open]:
    """The same on the Open WebUI that has the router."""
    with pages_of(browser, routed.webui.url) as open_as:
        yield open_as


@contextmanager
def pages_of(browser: Browser, url: str) -> Iterator[Open]:
    contexts = []

    def open_as(account: Account, path: str) -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        context.add_init_script(f"localStorage.setItem('token', '{account.token}')")
        page = context.new_page()
        close_news(page)
        page.goto(url + path)
        return page

    try:
        yield open_as
    finally:
        for context in contexts:
            context.close()


def close_news(page: Page) -> None:
    """Close the list of novelties that greets an admin, whenever it comes."""
    button = page.get_by_role("button", name=re.compile("^(Okay, Let's Go!|确认，开始使用！)$"))
    page.add_locator_handler(button, button.click)


def ask(page: Page, text: str) -> None:
    page.locator("#chat-input").click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")
