"""Many chats at once through several routers on the same nodes, and what came of it."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import requests

from harness.events_target import eventually
from harness.ollama_node import Answer, OllamaNode
from harness.valkey import Valkey

MODEL = "llama3:8b"
CHATS = 12
TRIES = 4
BEATS = 3
PATIENCE_SECONDS = 60.0
EVENTS = "ollama_pack:{fleet}:1:events"

Ask = Callable[[], str]  # sends a chat through one of the routers; the answer's text


def crowd(nodes: Sequence[OllamaNode], asks: Sequence[Ask]) -> list[int]:
    """Many chats at once through all routers: all are answered. How many each node had at most at once."""
    before = [len(node.records) for node in nodes]
    for node in nodes:
        node.enqueue(*[Answer(["a ", "b"], pause=0.2)] * CHATS)
    with ThreadPoolExecutor(CHATS) as pool:
        answers = [pool.submit(ask) for ask in [*asks] * (CHATS // len(asks))]
        said = [answer.result() for answer in answers]
    for node in nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back
    assert said == ["a b"] * CHATS
    most = []
    for node, count in zip(nodes, before, strict=True):
        spans = [(record.came, record.ended or record.came) for record in node.records[count:]]
        most.append(max((sum(came <= at < end for came, end in spans) for at, _ in spans), default=0))
    return most


def use_slots_once(nodes: Sequence[OllamaNode], asks: Sequence[Ask], slots: int) -> bool:
    """Whether each slot is used once. On a busy machine Redis may be too slow, and chats go on without.

    Each node has the model in memory: a load that nobody has seen yet may well seem longer than the wait.
    """
    for node in nodes:
        load = requests.post(f"{node.url}/api/generate", json={"model": MODEL, "keep_alive": -1}, timeout=60)
        load.raise_for_status()
    return any(crowd(nodes, asks) == [slots] * len(nodes) for _ in range(TRIES))


def wait_until_met(valkey: Valkey, count: int) -> None:
    """Until so many workers have told something."""
    eventually(lambda: len(_told(valkey)) >= count, PATIENCE_SECONDS)


def all_who_tell(valkey: Valkey) -> set[str]:
    """The workers that tell something from now on: one has done so three times, and so each has by then."""
    with valkey.client() as client:
        client.flushall()
    eventually(lambda: max(_told(valkey).values(), default=0) >= BEATS, PATIENCE_SECONDS)
    return set(_told(valkey))


def _told(valkey: Valkey) -> Counter[str]:
    """How much each worker has told, while nobody asks for anything."""
    with valkey.client() as client:
        return Counter(json.loads(fields[b"m"])["w"] for _, fields in client.xrange(EVENTS))
