"""The dashboard as an admin meets it: opened by its address, after signing in to Open WebUI."""

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from browser.conftest import close_news
from deploy.client import OpenWebUI
from harness.events_target import DASHBOARD, DETAILS, EVENTS, NODE, ROUTER, EventsTarget
from harness.ollama_node import OllamaNode
from harness.upload_target import MODELS, Target
from local.webui import Account, RunningWebUI, connections, open_webui
from ollama_pack.services.history import HISTORY_FILE, SqliteHistory

SLOW = 20_000  # milliseconds
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
DOWN: dict[str, Any] = {
    **NODE,
    "name": "gpu1",
    "url": "http://gpu1:11434",
    "healthy": False,
    "fault": "no connection (Connection refused)",
    "in_flight": 0,
    "queued": 0,
    "models": [],
    "gpus": [],
    "breaker": "open",
    "runners": [],
    "rates": {},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWebUI]:
    """An Open WebUI of its own: this page's tests take functions out of it."""
    with OllamaNode(models=MODELS) as node:
        folder = tmp_path_factory.mktemp("dashboard")
        with open_webui(folder, environment=connections(ollama=(node.url,))) as webui:
            yield webui


@pytest.fixture(scope="module")
def plain_user(server: RunningWebUI) -> Account:
    return server.add_user("plain", "plain-password")


@pytest.fixture
def events(server: RunningWebUI, tmp_path: Path) -> Iterator[EventsTarget]:
    api = server.as_admin()
    # The target's own node is of no use here: nothing is uploaded.
    events = EventsTarget(Target(server, None, api, tmp_path), tmp_path)  # type: ignore[arg-type] # see above
    yield events
    events.uninstall()
    api.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    yield context
    context.close()


def sign_in(context: BrowserContext, server: RunningWebUI, account: Account) -> None:
    """As Open WebUI's own sign-in form does: the browser then has its cookie."""
    form = {"email": account.email, "password": account.password}
    assert context.request.post(f"{server.url}/api/v1/auths/signin", data=form).ok


def open_dashboard(context: BrowserContext, server: RunningWebUI) -> Page:
    page = context.new_page()
    page.set_default_timeout(SLOW)
    page.goto(f"{server.url}/ollama-pack")
    return page


def test_admin_types_the_address(events: EventsTarget, context: BrowserContext, server: RunningWebUI) -> None:
    """Would catch a page that needs more than the sign-in, or that leaves out what it is there for."""
    nodes = [*DASHBOARD["nodes"], DOWN]
    events.install_router(
        table="gpt-4 = llama3:8b\ngpt-5 = mixtral:8x7b",
        models=["llama3:8b"],
        aliases=["gpt-4"],
        dashboard=DASHBOARD | {"nodes": nodes},
    )
    events.target.add_row("gpu_router.llama3:8b", access_grants=[])
    events.install()
    events.wait_for_look()
    sign_in(context, server, server.admin)
    page = open_dashboard(context, server)
    expect(page.get_by_text("gpu1 is down: no connection (Connection refused)")).to_be_visible()
    expect(page.get_by_text("1 of 2", exact=True)).to_be_visible()
    page.get_by_role("button", name="Details of gpu0").click()
    for text in ("gpu0", "http://secret-host:11434", "healthy", "37 %", "20.0 of 40.0 GiB", "1 / 2"):
        expect(page.locator("#nodes").get_by_text(text, exact=True).first).to_be_visible()
    page.get_by_role("button", name="Details of gpu1").click()
    for text in ("down", "no connection (Connection refused)"):
        expect(page.locator("#nodes").get_by_text(text, exact=True)).to_be_visible()
    expect(page.get_by_text("It failed several chats: it is given none for a while.")).to_be_visible()
    expect(page.get_by_text("gpt-5: no node has any of its models", exact=False)).to_be_visible()
    expect(page.get_by_text("an admin made a model with this id by hand", exact=False)).to_be_visible()
    row = page.locator("#chats tr", has=page.get_by_text("470 ms"))
    expect(row).to_contain_text("gpt-4 → llama3:8b")
    row.get_by_role("button").press("Enter")
    expect(page.get_by_text("gpu0 had llama3:8b in memory, and 800 of the 1,000 tokens")).to_be_visible()
    expect(page.get_by_text("after 470 ms; 420 ms at the node were predicted.")).to_be_visible()
    expect(page.get_by_text("6.50 s")).to_be_visible()  # what loading on the other node would have taken


def test_page_follows_what_happens(
    events: EventsTarget, context: BrowserContext, server: RunningWebUI
) -> None:
    """Would catch a page that must be loaded anew, or that shows old figures as if they were new."""
    events.install_router()
    events.install()
    sign_in(context, server, server.admin)
    page = open_dashboard(context, server)
    expect(page.get_by_role("rowheader", name="gpu0")).to_be_visible()
    page.get_by_role("button", name="Details of this chat").click()
    events.router.tell(dashboard=DASHBOARD | {"nodes": [DOWN], "running": []})
    expect(page.get_by_role("rowheader", name="gpu1")).to_be_visible()
    expect(page.get_by_role("rowheader", name="gpu0")).to_be_hidden()
    expect(page.get_by_text("None yet.", exact=False)).to_be_visible()
    events.toggle(EVENTS)
    expect(page.get_by_text("is switched off, or being updated", exact=False)).to_be_visible()


def test_text_stays_text(events: EventsTarget, context: BrowserContext, server: RunningWebUI) -> None:
    """Would catch a name of a model or a node that runs as a script in an admin's browser."""
    node = {**DASHBOARD["nodes"][0], "name": HOSTILE, "url": HOSTILE, "fault": HOSTILE, "breaker": HOSTILE}
    chat = {**DASHBOARD["running"][0], "node": HOSTILE, "model": HOSTILE, "held": HOSTILE, "asked": HOSTILE}
    events.install_router(
        dashboard={"nodes": [node], "running": [chat | {"error_text": HOSTILE, "outcome": HOSTILE}]}
    )
    events.install()
    sign_in(context, server, server.admin)
    page = open_dashboard(context, server)
    expect(page.get_by_role("rowheader", name=HOSTILE)).to_be_visible()
    for button in page.locator("button.more").all():
        button.click()
    expect(page.get_by_text(f"It failed: {HOSTILE}")).to_be_visible()
    assert page.locator("main img, main b:has-text('bold')").count() == 0
    assert page.title() == "Ollama Pack"


def test_empty_states(events: EventsTarget, context: BrowserContext, server: RunningWebUI) -> None:
    """Would catch a blank page where an admin has to be told what to do."""
    events.install()
    sign_in(context, server, server.admin)
    page = open_dashboard(context, server)
    expect(page.get_by_text("gpu_router is not installed: install it", exact=False)).to_be_visible()
    events.install_router(dashboard={"nodes": [], "running": []})
    expect(page.get_by_text("The router has no nodes: write them", exact=False)).to_be_visible()
    events.toggle(ROUTER)
    expect(page.get_by_text("gpu_router is switched off: switch it on", exact=False)).to_be_visible()
    events.set_valves(EVENTS, publish_aliases=False)
    expect(page.get_by_text("publish_aliases is off", exact=False)).to_be_visible()


def test_others_see_nothing(
    events: EventsTarget, context: BrowserContext, server: RunningWebUI, plain_user: Account
) -> None:
    """Would catch a dashboard for plain users, or one that stays open after the admin has signed out."""
    events.install_router()
    events.install()
    page = open_dashboard(context, server)
    expect(
        page.get_by_text("The dashboard is for the admins of this Open WebUI.", exact=False)
    ).to_be_visible()
    assert context.request.get(f"{server.url}/ollama-pack").status == 401
    close_news(page)
    page.get_by_role("link", name="Sign in").click()
    page.get_by_label("Email").fill(server.admin.email)
    page.get_by_label("Password", exact=True).fill(server.admin.password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("rowheader", name="gpu0")).to_be_visible()  # and the form has led back
    context.clear_cookies()
    expect(page.get_by_text("Sign in to Open WebUI as an admin again.")).to_be_visible(timeout=SLOW)
    sign_in(context, server, plain_user)
    page.reload()
    expect(
        page.get_by_text("Only admins of this Open WebUI can see the dashboard.", exact=False)
    ).to_be_visible()
    assert context.request.get(f"{server.url}/ollama-pack").status == 403
    for path in ("data", "stream", "chats"):
        assert context.request.get(f"{server.url}/ollama-pack/{path}").status in {401, 403}
    assert OpenWebUI(server.url, plain_user.token).get("/api/system/load")["nodes"][0]["name"] == "gpu0"


def add_chats(server: RunningWebUI, *chats: dict[str, Any]) -> None:
    """Write chats into the history of a server."""
    history = SqliteHistory(server.log.parent / "data" / HISTORY_FILE)
    with ThreadPoolExecutor() as pool:  # an event loop runs in this thread
        pool.submit(asyncio.run, history.add(chats, {})).result()


def test_a_chat_of_another_day_shows_its_day(
    events: EventsTarget, context: BrowserContext, server: RunningWebUI
) -> None:
    """Would catch a chat of last week that looks as if it had ended a minute ago."""
    old = DASHBOARD["running"][0] | {"id": "old", "at": 1_750_000_000.5, "outcome": "answered"}
    new = old | {"id": "new", "at": time.time()}
    add_chats(server, old, new)
    events.install_router(dashboard=DASHBOARD | {"running": []})
    events.install()
    sign_in(context, server, server.admin)
    page = open_dashboard(context, server)
    ended = page.locator("#chats tbody tr td:nth-child(2)")
    expect(ended).to_have_text([re.compile(r"^\d\d:\d\d:\d\d$"), re.compile(r"^Jun 15 \d\d:\d\d:\d\d$")])


def test_a_search_loses_no_chat_that_ends_meanwhile(
    events: EventsTarget, context: BrowserContext, server: RunningWebUI
) -> None:
    """Would catch a chat that came while the server looked, and that its answer took off the page."""

    def end(name: str, outcome: str) -> None:
        chat = DASHBOARD["running"][0] | {"id": name, "asked": name, "at": time.time(), "outcome": outcome}
        add_chats(server, chat)

    def answer_late(route: Route) -> None:
        found = route.fetch()
        end("late", "stopped")
        page.evaluate(
            "async () => { while (!chats.some(one => one.id === 'late')) await new Promise(setTimeout); }"
        )
        route.fulfill(response=found)

    end("early", "answered")
    events.install_router(dashboard=DASHBOARD | {"running": []})
    events.install()
    sign_in(context, server, server.admin)
    page = open_dashboard(context, server)
    expect(page.locator("#chats tbody")).to_contain_text("early")
    page.route("**/ollama-pack/chats?*", answer_late)
    page.get_by_label("Outcome", exact=True).select_option("stopped")
    expect(page.locator("#chats tbody")).not_to_contain_text("early")
    expect(page.locator("#chats tbody")).to_contain_text("late")


LONG = "ollama-7f9c6d5b8-x2x4z." + "a-name-that-kubernetes-has-made-for-a-pod." * 3 + "svc.cluster.local"
MANY = [NODE | DETAILS | {"name": f"gpu{number}", "in_flight": number % 3} for number in range(100)]


def test_nobody_is_kept_out(events: EventsTarget, browser: Browser, server: RunningWebUI) -> None:
    """Would catch what keeps people with a screen reader, a keyboard or a phone from a part of the page."""
    events.install_router(
        table="gpt-4 = llama3:8b\ngpt-5 = mixtral:8x7b",
        models=["llama3:8b"],
        aliases=["gpt-4"],
        dashboard=DASHBOARD | {"nodes": [*MANY[:5], DOWN, NODE | DETAILS | {"name": LONG}]},
    )
    events.install()
    events.wait_for_look()
    for width, scheme, language in ((1440, "light", "en"), (768, "light", "en"), (390, "dark", "zh-CN")):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            locale=language,
        )
        sign_in(context, server, server.admin)
        page = open_dashboard(context, server)
        expect(page.get_by_role("rowheader", name="gpu0")).to_be_visible()
        for button in page.locator("button.more").all():
            button.click()
        expect(page.locator("html")).to_have_attribute("lang", language)
        wrong = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in wrong] == []
        assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        tops = page.locator(".tiles > *").evaluate_all("all => all.map(one => one.getBoundingClientRect().y)")
        assert tops[0] == tops[1]  # what stands in one row begins at one height
        if language == "zh-CN":
            expect(page.get_by_role("heading", name="节点", exact=True)).to_be_visible()
            expect(page.get_by_text("gpu1 不可用", exact=False)).to_be_visible()
        context.close()
    anonymous = browser.new_context(locale="zh-CN")
    page = open_dashboard(anonymous, server)
    expect(page.get_by_role("link", name="登录")).to_be_visible()
    assert Axe().run(page).response["violations"] == []
    anonymous.close()


PULLS = [
    {"node": "gpu0", "model": "llama3:8b", "state": "pulling", "percent": 41.5, "fault": ""},
    {"node": "gpu1", "model": "llama3:8b", "state": "waiting", "percent": 0.0, "fault": ""},
]
PLAN: dict[str, Any] = {
    "nodes": [
        {"name": "gpu0", "room_bytes": 23_100_000_000, "room_from": "as its row says", "fault": ""}
    ],
    "fits": [
        {"model": "llama3:8b", "variant": "llama3:8b", "level": level, "node": "gpu0",
         "bytes": 5_400_000_000, "state": state, "installed": False, "planned": state == "fits beside"}
        for level, state in (("Q4_0", "fits beside"), ("Q8_0", "fits"), ("F16", "spills"), ("F32", "cannot"))
    ],
    "plan": [{"node": "gpu0", "model": "llama3:8b", "variant": "llama3:8b", "level": "Q4_0",
              "bytes": 5_400_000_000, "pull": True}],
    "unplaced": ["llama3:405b"],
    "demand": "120 chats of the router's record",
    "replays": [
        {"fleet": "as it is", "mean_seconds": 4.2, "p95_seconds": 19.5, "loads": 31, "refused": 0},
        {"fleet": "with the plan", "mean_seconds": 0.8, "p95_seconds": 2.1, "loads": 3, "refused": 0},
    ],
    "replayed": 120,
    "notes": [],
}  # fmt: skip


def test_an_admin_plans_and_pulls(events: EventsTarget, browser: Browser, server: RunningWebUI) -> None:
    """Would catch a plan or a pull that cannot be asked for, followed or stopped, on a phone too."""
    upkeep = {"drained": [], "warm": [], "pulls": PULLS}
    events.install_router(dashboard=DASHBOARD | {"upkeep": upkeep}, plan=PLAN)
    events.install()
    for width, scheme, language in ((390, "dark", "zh-CN"), (1280, "light", "en")):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, locale=language
        )
        sign_in(context, server, server.admin)
        page = open_dashboard(context, server)
        chinese = language == "zh-CN"
        expect(page.get_by_role("img", name="已拉取 41.5 %" if chinese else "41.5 % pulled")).to_be_visible()
        page.get_by_role("button", name="制定规划" if chinese else "Make a plan").click()
        section = page.locator("#plan")
        expect(section.get_by_text("with the plan", exact=True)).to_be_visible()
        for text in ("23.1 GB", "llama3:405b", "19.5 s"):
            expect(section.get_by_text(text, exact=False).first).to_be_visible()
        assert Axe().run(page).response["violations"] == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        if not chinese:
            section.get_by_role("button", name="Pull llama3:8b at gpu0").click()
            expect(page.get_by_text("Not done: A pull is under way.")).to_be_visible()
            page.get_by_role("button", name="Stop the pull").click()
            expect(page.get_by_text("stopped", exact=True).first).to_be_visible()
            page.get_by_role("button", name="Details of gpu0").click()
            page.get_by_role("button", name="Pull a model here").click()
            expect(page.get_by_label("Model to pull")).to_be_focused()
            page.keyboard.type("qwen3:8b")
            page.get_by_role("button", name="Pull", exact=True).first.click()
            expect(page.locator("#nodes").get_by_text("qwen3:8b")).to_be_visible()
            page.get_by_label("tokens for each chat").fill("many")
            page.get_by_role("button", name="Make a plan").click()
            expect(page.get_by_text("Tokens must be a whole number", exact=False)).to_be_visible()
        context.close()


def test_updates_leave_alone_what_somebody_does(
    events: EventsTarget, context: BrowserContext, server: RunningWebUI
) -> None:
    """Would catch an update that takes the focus, the selection, the place or what was typed."""
    events.install_router(dashboard=DASHBOARD | {"nodes": MANY})
    events.install()
    sign_in(context, server, server.admin)
    page = open_dashboard(context, server)
    expect(page.get_by_role("rowheader", name="gpu99")).to_be_visible()
    page.get_by_role("button", name="Running").press("Enter")  # the busiest first
    expect(page.locator("#nodes tbody th").first).to_have_text("gpu2")
    row = page.locator("#nodes tr", has=page.get_by_role("rowheader", name="gpu77", exact=True))
    row.get_by_role("button").press("Enter")
    events.router.tell(dashboard=DASHBOARD | {"nodes": [*MANY[:77], MANY[77] | {"in_flight": 9}, *MANY[78:]]})
    expect(page.locator("#nodes tbody th").first).to_have_text("gpu77")  # it has moved to the top
    expect(row.get_by_role("button")).to_be_focused()
    expect(row.get_by_role("button")).to_have_attribute("aria-expanded", "true")
    events.router.tell(dashboard=DASHBOARD | {"nodes": [MANY[0] | {"in_flight": 4}, *MANY[1:77]]})
    expect(page.get_by_role("rowheader", name="gpu99")).to_be_hidden()
    field = page.get_by_label("Filter nodes", exact=False)
    field.fill("gpu7")
    expect(page.get_by_text("8 of 77")).to_be_visible()
    events.router.tell(dashboard=DASHBOARD | {"nodes": [*MANY[:77], DOWN | {"name": "gpu700"}]})
    expect(page.get_by_role("rowheader", name="gpu700")).to_be_visible()
    expect(field).to_have_value("gpu7")
    expect(field).to_be_focused()
    marked = page.get_by_role("rowheader", name="gpu71")
    marked.evaluate("element => getSelection().selectAllChildren(element)")
    page.evaluate("scrollTo(0, 333)")
    events.router.tell(dashboard=DASHBOARD | {"nodes": MANY[:77]})
    expect(page.get_by_role("rowheader", name="gpu700")).to_be_hidden()
    assert page.evaluate("[String(getSelection()), scrollY > 0]") == ["gpu71", True]
