"""All that people see of the pack, in both languages, on a wide screen and on a phone."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from browser.conftest import close_news
from deploy.errors import ServerError
from harness.fixtures_cache import CachedWebUI, emptied
from harness.languages import english_in, latin_in
from local.webui import Account

SLOW = 20_000  # milliseconds; the page itself may take long on a busy machine
LANGUAGES = {"en": "en-US", "zh": "zh-CN"}
# What is seen or read out below an element. Code is the same in every language, and so are a valve's choices.
SEEN = """root => {
  const found = [];
  const look = node => {
    if (node.nodeType === Node.TEXT_NODE && node.data.trim()) found.push(node.data);
    if (node.nodeType !== Node.ELEMENT_NODE || node.matches("code, option, style, script")) return;
    if (!node.checkVisibility()) return;
    for (const name of ["alt", "aria-label", "placeholder", "title"])
      if (node.getAttribute(name)) found.push(node.getAttribute(name));
    node.childNodes.forEach(look);
  };
  look(root);
  return found.join("\\n");
}"""


@dataclass(frozen=True)
class Screen:
    """A window of somebody who reads a language.

    Attributes:
        browser: in which it opens.
        language: `en` or `zh`.
        width: in pixels.
    """

    browser: Browser
    language: str
    width: int

    def opened(self, site: CachedWebUI, account: Account | None, path: str) -> Page:
        """A page, for somebody who is signed in, or for nobody."""
        context = self.browser.new_context(
            viewport={"width": self.width, "height": 900}, locale=LANGUAGES[self.language]
        )
        script = f"localStorage.setItem('locale', '{LANGUAGES[self.language]}');"
        if account:
            context.add_cookies([{"name": "token", "value": account.token, "url": site.webui.url}])
            script += f"localStorage.setItem('token', '{account.token}');"
        context.add_init_script(script)
        page = context.new_page()
        page.set_default_timeout(SLOW)
        close_news(page)
        page.goto(site.webui.url + path)
        return page

    def check(self, shown: Locator, *names: str) -> str:
        """Its words, none of which is English for somebody who reads Chinese; nothing sticks out."""
        said: str = shown.evaluate(SEEN)
        if self.language == "zh":
            assert latin_in(said, *names) == [], said
            assert re.search("[一-鿿]", said), said
        box = shown.bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= self.width
        return said

    def check_own(self, page: Page, *names: str) -> str:
        """The same of a page that is the pack's own, which also keeps nobody out."""
        assert page.evaluate("document.documentElement.scrollWidth") == self.width
        wrong = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in wrong] == []
        return self.check(page.locator("body"), *names)


@pytest.fixture(params=list(product(LANGUAGES, (1440, 390))), ids=lambda one: f"{one[0]}-{one[1]}")
def screen(request: pytest.FixtureRequest, browser: Browser) -> Screen:
    return Screen(browser, *request.param)


@pytest.fixture(scope="module")
def site(cached_webui: CachedWebUI) -> Iterator[CachedWebUI]:
    """With something in every card: a node that is down, a small budget, a recording that was none."""
    cached = emptied(cached_webui, "sqlite")
    router = cached.admin.valves("functions", "gpu_router")
    nodes = f"{router['nodes']} memory=24GB\ngpu9 http://127.0.0.1:9"
    set_valves(cached, "gpu_router", router | {"nodes": nodes})
    set_valves(cached, "usage_budgets", {"budgets": "role=user 3 requests/day then=queue-last"})
    with suppress(ServerError):
        set_valves(cached, "model_alias_filter", {"aliases": "gpt-4 = gpt-4"})
    headers = {"Authorization": f"Bearer {cached.student.key}", "Content-Type": "audio/wav"}
    requests.post(f"{cached.webui.url}/api/voice/transcribe", data=b"none", headers=headers, timeout=60)
    yield cached
    set_valves(cached, "usage_budgets", {})
    set_valves(cached, "gpu_router", router)


def set_valves(site: CachedWebUI, function: str, valves: dict[str, Any]) -> None:
    site.admin.post(f"/api/v1/functions/id/{function}/valves/update", valves)


def test_a_chat(site: CachedWebUI, screen: Screen) -> None:
    """Would catch English above an answer or in the list of models, or a line that a phone cuts off."""
    page = screen.opened(site, site.account, "/?models=gpt-4")
    page.locator("#chat-input").click()
    page.keyboard.type(f"hello in {screen.language}")
    page.keyboard.press("Enter")
    expect(page.get_by_text(f"You said: hello in {screen.language}")).to_be_visible(timeout=SLOW)
    lines = page.locator(".status-description")
    expect(lines.last).to_be_visible(timeout=SLOW)
    lines.last.click()
    for line in lines.all():
        screen.check(line)
    if screen.width > 1000:  # a phone's list has the names alone
        page.get_by_role("button", name=re.compile("^(Selected model: |已选择：)gpt-4$")).click()
        expect(page.get_by_text("→ llama3:8b").first).to_be_attached(timeout=SLOW)
    page.context.close()


def test_the_dashboard(site: CachedWebUI, screen: Screen) -> None:
    """Would catch English on a card, or what sticks out of a phone, with all lines open."""
    page = screen.opened(site, site.webui.admin, "/ollama-pack")
    expect(page.get_by_role("rowheader", name="gpu9")).to_be_visible(timeout=SLOW)
    page.locator("[data-act=plan]").click()
    expect(page.locator("#plan h3").first).to_be_visible(timeout=SLOW)
    for button in page.locator("button.more").all():
        button.click()
    said = screen.check_own(page, "student user aliases", "NVIDIA NVML --gpus all")
    for section in page.locator("main > section").all():
        assert section.get_attribute("id") == "processes" or section.inner_text()
    assert "gpu9" in said
    group = {"en": "group readers", "zh": "用户组 readers"}
    assert page.evaluate("audience('group readers')") == group[screen.language]
    page.context.close()


def test_who_may_not_look(site: CachedWebUI, screen: Screen) -> None:
    """Would catch English for somebody who has to sign in first, or is no admin."""
    for account in (None, site.account):
        page = screen.opened(site, account, "/ollama-pack")
        expect(page.get_by_role("link")).to_be_visible(timeout=SLOW)
        screen.check_own(page)
        page.context.close()


def test_the_valves(site: CachedWebUI, screen: Screen) -> None:
    """Would catch English in a function's settings, or a dialog that does not open or sticks out."""
    page = screen.opened(site, site.webui.admin, "/admin/functions")
    buttons = page.get_by_role("button", name=re.compile("^(Valves|配置项)$"))
    expect(buttons.first).to_be_visible(timeout=SLOW)
    expect(buttons).to_have_count(len(site.admin.get("/api/v1/functions/")), timeout=SLOW)
    loaded = re.compile("Default|Custom|No valves|默认|自定义|没有配置项")
    for button in buttons.all():
        button.click()
        dialog = page.get_by_role("dialog")
        form = dialog.locator("form")
        expect(form).to_contain_text(loaded, timeout=SLOW)
        assert screen.language == "en" or english_in(dialog.inner_text()) == []
        box = form.bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= screen.width
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0, timeout=SLOW)
    page.context.close()
