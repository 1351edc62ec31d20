"""Budgets on a real Open WebUI: who is refused, what counts, and what a user sees of it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import requests

from deploy.client import OpenWebUI
from harness.fixtures_cache import DIRECT, CachedWebUI, emptied

Json = dict[str, Any]

BUDGETS, DATABASE = "usage_budgets", "ollama_pack_budgets.sqlite3"


@pytest.fixture
def budgeted(cached_webui: CachedWebUI) -> Iterator[CachedWebUI]:
    """The server with an empty cache and nothing counted; afterwards without budgets again."""
    forget_use(cached_webui)
    yield emptied(cached_webui, "sqlite")
    set_budgets(cached_webui)


def forget_use(cached: CachedWebUI) -> None:
    """Begin with empty counters."""
    with closing(sqlite3.connect(cached.webui.log.parent / "data" / DATABASE)) as link, link:
        for table in ("counters", "reservations"):
            if link.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
                link.execute(f"DELETE FROM {table}")  # noqa: S608 - a literal


def set_budgets(cached: CachedWebUI, *rows: str, **valves: Any) -> None:
    cached.admin.post(f"/api/v1/functions/id/{BUDGETS}/valves/update", {"budgets": "\n".join(rows), **valves})


def post(api: OpenWebUI, path: str, body: Json) -> requests.Response:
    return requests.post(
        f"{api.url}{path}", json=body, headers={"Authorization": f"Bearer {api.key}"}, timeout=30
    )


def ask(api: OpenWebUI, text: str, model: str = "gpt-4", **more: Any) -> requests.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return post(api, "/api/chat/completions", body)


@pytest.mark.parametrize("model", ["gpt-4", DIRECT], ids=["router", "connection"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_requests_over_the_budget_get_429(budgeted: CachedWebUI, model: str, stream: bool) -> None:  # noqa: FBT001
    """Would catch a budget that is not counted, is refused with another status, or holds for an admin."""
    set_budgets(budgeted, "role=user 2 requests/day")
    for text in ("one", "two"):
        answer = ask(budgeted.student, f"{text} {model} {stream}", model, stream=stream)
        assert answer.status_code == 200, answer.text
    refused = ask(budgeted.student, "three", model, stream=stream)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 25 * 3600
    assert "You have used up your" in refused.json()["error"]["message"]
    assert ask(budgeted.admin, "four", model, stream=stream).status_code == 200
    assert ask(budgeted.other, "five", model, stream=stream).status_code == 200
