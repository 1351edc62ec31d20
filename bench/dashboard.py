"""The dashboard in a real browser with 100 nodes and 10,000 chats: how soon it shows, how long updates take.

    .venv/bin/python bench/dashboard.py

Needs chromium. Figures go to bench/results/dashboard.json. They depend on the machine and what else it does,
except `update_script_processor_ms`: the processor's time for scripts, for each update that changes all nodes.
"""

import asyncio
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import CDPSession, Page, sync_playwright

from harness.events_target import DASHBOARD, DETAILS, NODE, RUNNING, EventsTarget
from harness.upload_target import Target
from local.webui import connections, open_webui
from ollama_pack.services.activity import minutes_of
from ollama_pack.services.history import HISTORY_FILE, SqliteHistory

ROOT = Path(__file__).resolve().parent.parent
NODES, CHATS, UPDATES = 100, 10_000, 20
RESULT = ROOT / "bench" / "results" / "dashboard.json"


def main() -> None:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.exit("no browser: install chromium (Debian: apt install chromium)")
    with TemporaryDirectory() as name, open_webui(Path(name), environment=connections()) as webui:
        folder = Path(name)
        chats = [chat(number) for number in range(CHATS)]
        asyncio.run(SqliteHistory(folder / "data" / HISTORY_FILE).add(chats, minutes_of(chats)))
        api = webui.as_admin()
        events = EventsTarget(Target(webui, None, api, folder), folder)  # type: ignore[arg-type] # no node
        events.install_router(dashboard=DASHBOARD | {"nodes": nodes(0)})
        events.install()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=program, args=["--no-sandbox", "--disable-gpu"]
            )
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            cookie: Any = {"name": "token", "value": webui.admin.token, "url": webui.url}
            context.add_cookies([cookie])
            openings = [opening(context.new_page(), webui.url) for _ in range(5)]
            page = context.new_page()
            page.goto(f"{webui.url}/ollama-pack")
            page.get_by_role("rowheader", name="gpu99", exact=True).wait_for()
            page.evaluate("performance.clearMeasures()")
            processor = context.new_cdp_session(page)
            processor.send("Performance.enable", {"timeDomain": "threadTicks"})
            before = script_seconds(processor)
            for number in range(1, UPDATES + 1):
                events.router.tell(dashboard=DASHBOARD | {"nodes": nodes(number), "running": [RUNNING] * 8})
                page.wait_for_timeout(1100)
            draws = page.evaluate("performance.getEntriesByName('draw').map(one => one.duration)")
            worked = script_seconds(processor) - before
            browser.close()
        api.close()
    told = {
        "nodes": NODES,
        "chats": CHATS,
        "first_paint_ms": statistics.median(one["paint"] for one in openings),
        "nodes_shown_ms": statistics.median(one["shown"] for one in openings),
        "update_script_ms": {
            "median": round(statistics.median(draws), 1),
            "p95": round(sorted(draws)[int(0.95 * (len(draws) - 1))], 1),
            "worst": round(max(draws), 1),
            "updates": len(draws),
        },
        "update_script_processor_ms": round(1000 * worked / UPDATES, 1),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=2))


def script_seconds(processor: CDPSession) -> float:
    """Seconds that a processor has worked on the page's scripts, without those that it was busy elsewhere."""
    metrics = processor.send("Performance.getMetrics")["metrics"]
    return next(float(one["value"]) for one in metrics if one["name"] == "ScriptDuration")


def chat(number: int) -> dict[str, Any]:
    """A chat of the last day."""
    at = time.time() - (CHATS - number) * 8.6
    chat = {"id": f"c{number}", "at": at, "user": f"u{number % 50}", "asked": "gpt-4", "model": "llama3:8b"}
    chat |= {"node": f"gpu{number % NODES}", "outcome": "answered", "waited": 0.1, "first": 0.2 + number % 7}
    return chat | {"took": 4.0, "predicted": 0.3, "considered": RUNNING["considered"]}


def nodes(number: int) -> list[dict[str, Any]]:
    """The nodes at an update: all their figures differ from those before."""
    return [
        NODE | DETAILS | {"name": f"gpu{node}", "in_flight": (node + number) % 4, "queued": number}
        for node in range(NODES)
    ]


def opening(page: Page, url: str) -> dict[str, float]:
    """Milliseconds from the request for the page to the first paint, and to all nodes shown."""
    page.goto(f"{url}/ollama-pack")
    page.get_by_role("rowheader", name="gpu99", exact=True).wait_for()
    shown: float = page.evaluate("performance.now()")
    paint: float = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.close()
    return {"paint": round(paint), "shown": round(shown)}


if __name__ == "__main__":
    main()
