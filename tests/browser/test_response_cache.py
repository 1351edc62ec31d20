"""The response cache as people meet it in the browser."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from browser.conftest import Open, ask, pages_of
from harness.fixtures_cache import CachedWebUI
from harness.ollama_node import Answer

SLOW = 20_000  # milliseconds; the page itself may take long on a busy machine
CACHED = re.compile(r"^cached · \d+ (s|min) ago · regenerate for a new answer$")


@pytest.fixture
def open_cached(browser: Browser, cached_file: CachedWebUI) -> Iterator[Open]:
    with pages_of(browser, cached_file.webui.url) as open_as:
        yield open_as


def regenerate(page: Page) -> None:
    page.get_by_role("button", name="Regenerate").first.click()
    page.get_by_text("Try Again").click()


def test_cached_answer_and_a_new_one_on_regenerate(open_cached: Open, cached_file: CachedWebUI) -> None:
    """Would catch an answer that looks new and is not, and a button that does not give another."""
    page = open_cached(cached_file.account, "/?models=gpt-4")
    ask(page, "hello from a browser")
    expect(page.get_by_text("You said: hello from a browser")).to_be_visible(timeout=SLOW)
    expect(page.get_by_role("button", name="Regenerate").first).to_be_visible(timeout=SLOW)
    again = open_cached(cached_file.account, "/?models=gpt-4")
    ask(again, "hello from a browser")
    expect(again.get_by_text(CACHED)).to_be_visible(timeout=SLOW)
    expect(again.get_by_text("You said: hello from a browser")).to_be_visible()
    assert len(cached_file.generations()) == 1
    cached_file.node.enqueue(Answer(["Something new"]))
    regenerate(again)
    expect(again.get_by_text("Something new")).to_be_visible(timeout=SLOW)
    expect(again.get_by_text(CACHED)).to_have_count(0)
    assert len(cached_file.generations()) == 2


def test_stop_button_of_one_leaves_the_other_reading(open_cached: Open, cached_file: CachedWebUI) -> None:
    """Would catch a stop button that ends the answer of somebody who asked the same."""
    cached_file.node.enqueue(Answer([f"word{number:03} " for number in range(120)], pause=0.1))
    pages = [open_cached(cached_file.account, "/?models=gpt-4") for _ in range(2)]
    for page in pages:
        ask(page, "tell a story")
        expect(page.get_by_text("word002")).to_be_visible(timeout=SLOW)
    pages[0].get_by_role("button", name="Stop").click()
    expect(pages[1].get_by_text("word119")).to_be_visible(timeout=SLOW)
    stopped = pages[0].locator("#messages-container")  # a notice tells of the other chat's answer elsewhere
    expect(stopped).to_contain_text("word002")
    expect(stopped).not_to_contain_text("word119")
    assert len(cached_file.generations()) == 1


def test_admin_sees_figures_and_flushes(open_cached: Open, cached_file: CachedWebUI) -> None:
    """Would catch a dashboard that shows nothing of the cache, or a button without effect."""
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "hello"}]}
    for _ in range(2):
        cached_file.student.post("/api/chat/completions", body)
    page = open_cached(cached_file.webui.admin, "/")
    cookie = {"name": "token", "value": cached_file.admin.key, "url": cached_file.webui.url}
    page.context.add_cookies([cookie])
    page.goto(f"{cached_file.webui.url}/ollama-pack")
    expect(page.get_by_text("given from the cache")).to_be_visible(timeout=SLOW)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Flush").click()
    expect(page.get_by_text(re.compile(r"^Flushed at"))).to_be_visible(timeout=SLOW)
    cached_file.student.post("/api/chat/completions", body)
    assert len(cached_file.generations()) == 2
