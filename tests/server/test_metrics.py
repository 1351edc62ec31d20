"""`GET /ollama-pack/metrics` on the real Open WebUI: who may read it, and whether its figures are true."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from deploy.client import OpenWebUI
from deploy.errors import ServerError
from harness.events_target import EVENTS, eventually
from harness.fixtures_cache import CachedWebUI
from harness.ollama_node import Answer

PATH = "/ollama-pack/metrics"
TOKEN = "metrics-token-of-this-test"
MODEL = "llama3:8b"
BUCKET = "time_to_first_token_seconds_bucket"

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def token(cached_file: CachedWebUI) -> Iterator[str]:
    """The valve is set."""
    valves = cached_file.admin.valves("functions", EVENTS)
    path = f"/api/v1/functions/id/{EVENTS}/valves/update"
    cached_file.admin.post(path, {**valves, "metrics_token": TOKEN})
    eventually(lambda: status(cached_file, TOKEN) == 200)
    yield TOKEN
    cached_file.admin.post(path, valves)


def status(cached: CachedWebUI, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(cached.webui.url + PATH, headers=headers, timeout=60).status_code


def scraped(cached: CachedWebUI) -> Series:
    """What Prometheus reads now."""
    answer = requests.get(cached.webui.url + PATH, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name.removeprefix("ollama_pack_"), frozenset(sample.labels.items())): sample.value
        for one in text_string_to_metric_families(answer.text)
        for sample in one.samples
    }


def test_who_may_read_it(cached_file: CachedWebUI, token: str) -> None:
    """Would catch metrics for everybody, or a token that opens more than this."""
    assert status(cached_file, token) == 200
    assert status(cached_file, cached_file.admin.key) == 200
    assert status(cached_file, cached_file.student.key) == 401
    assert status(cached_file, "") == 401
    assert status(cached_file, token[:-1]) == 401
    data = requests.get(
        cached_file.webui.url + "/ollama-pack/data", headers={"Authorization": f"Bearer {token}"}, timeout=60
    )
    assert data.status_code == 401


def test_it_agrees_with_the_chats(cached_file: CachedWebUI, token: str) -> None:
    """Would catch a figure that counts something else than what its name says."""
    assert token
    first = scraped(cached_file)
    text = uuid4().hex
    for question in (text, text, text + "?"):  # the second is answered by the cache
        ask(cached_file.admin, question)
    cached_file.node.enqueue(Answer(refusal=(500, "llama runner process has terminated")))
    with pytest.raises(ServerError):
        ask(cached_file.student, text + "!")
    eventually(lambda: more(cached_file, first, "requests_total") == 3)
    assert more(cached_file, first, "cache_requests_total", outcome="hit") == 1
    assert more(cached_file, first, "cache_requests_total", outcome="miss") == 3
    for name in ("time_to_first_token_seconds_count", "predicted_time_to_first_token_seconds_count"):
        assert more(cached_file, first, name, model=MODEL) == 2
    assert more(cached_file, first, "node_failures_total", model=MODEL) == 1
    assert more(cached_file, first, "failovers_total") == 0
    assert more(cached_file, first, "chat_errors_total") == 1
    assert more(cached_file, first, "prompt_tokens_total") > 0
    now = scraped(cached_file)
    assert text not in str(now)
    assert cached_file.account.email not in str(now)
    assert now["queue_length", frozenset()] == 0
    assert now["plugin_up", frozenset({("plugin", "gpu_router")})] == 1
    assert now["plugin_up", frozenset({("plugin", "response_cache_filter")})] == 1


def test_it_agrees_with_what_clients_measure(cached_file: CachedWebUI, token: str) -> None:
    """Would catch times or counts that are not those of a run as whoever asks sees it, as a bench does."""
    assert token
    first = scraped(cached_file)
    delays = [0.1 * (number % 4 + 1) for number in range(24)]
    cached_file.node.enqueue(*(Answer(["a ", "b"], delay=delay) for delay in delays))

    def first_word(number: int) -> float:
        """Seconds to it, as the client measures them."""
        body = {"model": "gpt-4", "messages": [{"role": "user", "content": f"{uuid4().hex} {number}"}]}
        began = time.monotonic()
        stream = cached_file.stream(
            (cached_file.admin, cached_file.student, cached_file.other)[number % 3], body
        )
        waited = next(time.monotonic() - began for chunk in stream if says(chunk, "a "))
        list(stream)
        return waited

    with ThreadPoolExecutor(6) as pool:
        measured = list(pool.map(first_word, range(len(delays))))
    eventually(lambda: more(cached_file, first, "prompt_tokens_total") > 0)
    now = scraped(cached_file)
    for name in ("requests_total", "time_to_first_token_seconds_count", "queue_wait_seconds_count"):
        assert growth(first, now, name) == len(delays)
    at_nodes = growth(first, now, "time_to_first_token_seconds_sum")
    waiting = growth(first, now, "queue_wait_seconds_sum")
    assert sum(delays) <= at_nodes <= at_nodes + waiting <= sum(measured)
    bounds = {dict(has)["le"] for name, has in now if name == BUCKET}
    assert len(bounds) > 1
    for bound in bounds:  # a node took no less than its delay, and no longer than the client waited
        there, limit = growth(first, now, BUCKET, le=bound), float(bound)
        assert sum(one <= limit for one in measured) <= there <= sum(one <= limit for one in delays)


def says(chunk: Mapping[str, Any], text: str) -> bool:
    """Whether a chunk of a streamed answer has this text."""
    return any(choice["delta"].get("content") == text for choice in chunk.get("choices") or ())


def ask(api: OpenWebUI, text: str) -> None:
    api.post("/api/chat/completions", {"model": "gpt-4", "messages": [{"role": "user", "content": text}]})


def more(cached: CachedWebUI, first: Series, name: str, **labels: str) -> float:
    """By how much a family has grown by now."""
    return growth(first, scraped(cached), name, **labels)


def growth(first: Series, now: Series, name: str, **labels: str) -> float:
    """By how much it has grown between two looks, added up over its series that have these labels."""

    def total(series: Series) -> float:
        return sum(
            value
            for (one, has), value in series.items()
            if one == name and labels.items() <= dict(has).items()
        )

    return total(now) - total(first)
