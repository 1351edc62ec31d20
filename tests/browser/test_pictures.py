"""The pictures of docs/, of a real Open WebUI: `pytest tests/browser/test_pictures.py --pictures` takes them.

Its nodes are simulated, with GPU figures that are made up, and the day before is written into the history.
"""

import asyncio
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from browser.conftest import close_news
from harness.ollama_node import Answer, Model, OllamaNode
from harness.sim_process import simulated_nodes
from local.webui import Account, RunningWebUI, connections, open_webui
from ollama_pack.services.activity import minutes_of
from ollama_pack.services.history import HISTORY_FILE, SqliteHistory

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
SLOW = 40_000  # milliseconds
MODELS = "llama3:8b;size=5GB,llama3:70b;size=42GB,qwen2.5:32b;size=20GB"
SHAPE = f"models={MODELS} slots=2 load_rate=20000000000 prompt_rate=900 decode_rate=60"
LANGUAGES = {"en": "en-US", "zh": "zh-CN"}
WIDTHS = (1440, 390)
QUIET = {"DEFAULT_MODELS": "gpt-4"} | dict.fromkeys(
    ("ENABLE_TITLE_GENERATION", "ENABLE_TAGS_GENERATION", "ENABLE_FOLLOW_UP_GENERATION"), "false"
)
ANSWERS = {
    "en": "A rainbow is sunlight that raindrops have bent, split into colours and sent back to your eyes.",
    "zh": "彩虹是阳光在雨滴中折射、分色并反射回你眼中的结果。",
}
QUESTIONS = {"en": "What is a rainbow, in one sentence?", "zh": "用一句话说明什么是彩虹。"}
GIB = 2**30


@dataclass
class Site:
    """The Open WebUI of the pictures, and who uses it."""

    webui: RunningWebUI
    users: list[Account]
    speaker: OllamaNode


class GpuFigures(BaseHTTPRequestHandler):
    """Stands in for gpu_agent.py: one A100 whose load goes by the node's number."""

    shares: ClassVar[dict[str, tuple[float, int]]] = {
        "0": (91.0, 63),
        "1": (64.0, 44),
        "2": (18.0, 22),
        "3": (0.0, 6),
    }

    def do_GET(self) -> None:
        busy, used = self.shares.get(self.path.split("/")[1], (0.0, 1))
        gpu = {"index": 0, "name": "NVIDIA A100 80GB", "utilization": busy}
        gpu |= {"memory_used": used * GIB, "memory_total": 80 * GIB}
        told = json.dumps({"nodes": [{"name": "node", "healthy": True, "gpus": [gpu]}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not request.config.getoption("--pictures"):
        pytest.skip("pictures are taken with --pictures")
    folder = tmp_path_factory.mktemp("pictures")
    agents = ThreadingHTTPServer(("127.0.0.1", 0), GpuFigures)
    Thread(target=agents.serve_forever, daemon=True).start()
    with (
        simulated_nodes(*(f"gpu{number} {SHAPE}" for number in range(4))) as nodes,
        open_webui(folder, environment=connections() | QUIET) as webui,
        OllamaNode([Model("llama3.3:70b")]) as speaker,
    ):
        users = [webui.add_user(name, "a-password") for name in ("Mia Chen", "Jonas Weber", "Li Wei")]
        config = folder / "pack.yaml"
        agent = f"http://127.0.0.1:{agents.server_port}"
        config.write_text(pack_yaml(nodes.urls | {"gpu4": speaker.url}, agent), encoding="utf-8")
        env = os.environ | {"OPEN_WEBUI_URL": webui.url, "OPEN_WEBUI_TOKEN": webui.admin.token}
        subprocess.run([sys.executable, ROOT / "scripts" / "upload.py", config], env=env, check=True)
        yesterday([user.id for user in users], folder / "data" / HISTORY_FILE)
        yield Site(webui, users, speaker)
    agents.shutdown()
    agents.server_close()


def pack_yaml(urls: dict[str, str], agent: str) -> str:
    rows = [
        f'    - {{name: {name}, url: "{url}", slots: 2, agent: "{agent}/{name[-1]}"}}'
        for name, url in urls.items()
    ]
    rows.append('    - {name: gpu5, url: "http://127.0.0.1:9"}')
    return "\n".join(
        [
            "model_provider:",
            "  endpoints:",
            *rows,
            "models:",
            '  - {name: gpt-3.5-turbo, local_name: "llama3:8b"}',
            '  - {name: gpt-4, local_name: ["mixtral:8x7b", "llama3.3:70b"]}',
            '  - {name: gpt-4-turbo, local_name: "llama3:70b"}',
            '  - {name: gpt-4o, local_name: "qwen2.5:32b"}',
            "router: {probe_seconds: 1}",
        ]
    )


def yesterday(users: list[str], path: Path) -> None:
    """A day's chats, more in its second half, written into the history."""
    dice, now = random.Random(7), time.time()  # noqa: S311 - made-up figures
    chats: list[dict[str, Any]] = []
    for minute in range(24 * 60, 0, -1):
        at = now - 60 * minute
        for _ in range(dice.randrange(2 + 4 * (minute < 600))):
            first, outcome = dice.lognormvariate(-1.0, 0.7), dice.choices(*OUTCOMES)[0]
            chat = {"id": str(len(chats)), "at": at, "outcome": outcome, "user": dice.choice(users)}
            chat |= {"asked": "gpt-4", "model": "llama3:70b"}
            if outcome == "cached":
                chat |= {"saved": 6 * first, "age": 600}
            else:
                chat |= {"first": first, "took": 5 * first, "waited": max(0.0, first - 1.2)}
                chat |= {"predicted": 0.8 * first, "node": f"gpu{dice.randrange(4)}"}
            chats.append(chat)
    with ThreadPoolExecutor(1) as thread:  # Playwright's event loop is in this one
        thread.submit(lambda: asyncio.run(SqliteHistory(path).add(chats, minutes_of(chats)))).result()


OUTCOMES = (("answered", "cached", "stopped", "failed"), (80, 16, 3, 1))


def ask_much(site: Site) -> None:
    """A few people at once, as the dashboard is looked at."""
    models = ["gpt-3.5-turbo", "gpt-4-turbo", "gpt-4o"] * 2

    def ask(number: int) -> None:
        user = site.users[number % len(site.users)]
        text = f"Question {number % 9}: " + "why is the sky blue? " * (5 * (number % 4) + 3)
        body = {"model": models[number % 6], "stream": True, "messages": [{"role": "user", "content": text}]}
        headers = {"Authorization": f"Bearer {user.token}"}
        requests.post(f"{site.webui.url}/api/chat/completions", json=body, headers=headers, timeout=120)

    with ThreadPoolExecutor(8) as people:
        list(people.map(ask, range(32)))


def opened(browser: Browser, site: Site, account: Account, language: str, width: int) -> Page:
    """A window of somebody who is signed in and has set their language."""
    context = browser.new_context(viewport={"width": width, "height": 844}, locale=LANGUAGES[language])
    context.add_cookies([{"name": "token", "value": account.token, "url": site.webui.url}])
    context.add_init_script(
        f"localStorage.setItem('token', '{account.token}'); localStorage.setItem('theme', 'light');"
        f"localStorage.setItem('locale', '{LANGUAGES[language]}')"
    )
    page = context.new_page()
    page.set_default_timeout(SLOW)
    close_news(page)
    return page


def keep(page: Page, name: str, height: int | None = None) -> None:
    """Write a picture, as small as it can be."""
    from PIL import Image  # noqa: PLC0415 - it comes with Open WebUI, and is used here only

    width = (page.viewport_size or {"width": 0})["width"]
    clip: Any = {"x": 0, "y": 0, "width": width, "height": height} if height else None
    image = Image.open(io.BytesIO(page.screenshot(full_page=bool(height), clip=clip)))
    PICTURES.mkdir(exist_ok=True)
    image.save(PICTURES / f"{name}.webp", quality=82, method=6)


@pytest.mark.parametrize("language", LANGUAGES)
def test_pictures(browser: Browser, site: Site, language: str) -> None:
    for width in WIDTHS:
        page = opened(browser, site, site.users[0], language, width)
        if width == WIDTHS[0]:  # later the cache has it
            site.speaker.enqueue(Answer([ANSWERS[language]]))
        page.goto(f"{site.webui.url}/?models=gpt-4")
        page.locator("#chat-input").click()
        page.keyboard.type(QUESTIONS[language])
        page.keyboard.press("Enter")
        expect(page.get_by_text(ANSWERS[language])).to_be_visible(timeout=SLOW)
        page.wait_for_timeout(1500)  # the page fades in
        keep(page, f"chat-{width}.{language}")
        page.context.close()
    with ThreadPoolExecutor(1) as people:
        asked = people.submit(ask_much, site)
        for width, height in ((WIDTHS[0], 1560), (WIDTHS[1], 1500)):
            page = opened(browser, site, site.webui.admin, language, width)
            page.goto(f"{site.webui.url}/ollama-pack")
            expect(page.get_by_role("rowheader", name="gpu0")).to_be_visible()
            page.wait_for_function("document.querySelectorAll('#chats tr').length > 5")
            page.wait_for_timeout(3000)  # chats at work
            if width == WIDTHS[0]:
                page.locator('#chats tr[data-key^="chat "] button.more').nth(2).click()
            page.wait_for_timeout(500)
            keep(page, f"dashboard-{width}.{language}", height)
            page.context.close()
        asked.result()
