"""The router over two real Ollama processes."""

import asyncio
from collections.abc import Iterator
from random import Random

import aiohttp
import pytest

from harness.fixtures_ollama import RealServer
from harness.routing import HEAD, JSON, run, until
from local import ollama
from ollama_pack.engines.ollama.stream import completion_of
from ollama_pack.routing.dispatch.pending_chat import RouterSettings
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.nodes import parse_nodes

TURNS = 3


@pytest.fixture
def second_server(real_server: RealServer) -> Iterator[str]:
    """Another Ollama process, on the same models."""
    folder = ollama.built()
    if folder is None or not real_server.ours:
        pytest.skip("no built Ollama to run twice: see `scripts/local/real-ollama`")
    with ollama.serving(folder) as url:
        yield url


def story(subject: str) -> str:
    """A prompt long enough for its evaluation to be seen: some 400 tokens."""
    return " ".join(
        f"The {subject} number {number} walks along the river and counts." for number in range(40)
    )


async def turn(router: Router, model: str, messages: list[JSON]) -> tuple[str, float]:
    """Ask, and add the answer: the node that gave it, and the seconds of prompt evaluation."""
    body = {"messages": messages, "options": {"num_predict": 8, "temperature": 0, "seed": 1}}
    chunks = [chunk async for chunk in router.answer(body, [model], HEAD, user="user")]
    messages.append(completion_of(chunks)["choices"][0]["message"])
    messages.append({"role": "user", "content": "And then?"})
    return chunks[-1]["ollama_pack"]["node"], chunks[-1]["usage"]["prompt_eval_duration"] / 1e9


def test_two_chats_that_alternate_keep_their_prefixes(real_server: RealServer, second_server: str) -> None:
    """Would catch chats that are sent to and fro: each would evaluate its whole prompt at every turn.

    Both nodes have the model in memory: whether a load pays depends on how fast the machine is.
    """
    rows = parse_nodes(f"gpu0 {real_server.url}\ngpu1 {second_server}")

    async def scenario() -> tuple[list[list[str]], list[list[float]]]:
        router = Router(rows, aiohttp.ClientSession(), RouterSettings(probe_seconds=0.5), Random(1))  # noqa: S311 - breaks ties
        await router.ready()
        for watch in router.nodes.values():
            await watch.client.load(real_server.model, seconds=60)
        chats = [[{"role": "user", "content": story(subject)}] for subject in ("heron", "tortoise")]
        nodes: list[list[str]] = [[], []]
        seconds: list[list[float]] = [[], []]
        for _ in range(TURNS):
            for number, messages in enumerate(chats):
                node, spent = await turn(router, real_server.model, messages)
                nodes[number].append(node)
                seconds[number].append(spent)
        await router.close()
        return nodes, seconds

    nodes, seconds = run(scenario)
    assert [len(set(visited)) for visited in nodes] == [1, 1]
    assert nodes[0][0] != nodes[1][0]
    for first, *later in seconds:
        assert max(later) < first / 2  # a whole prompt takes ten to a hundred times as long as a turn


def test_a_client_that_leaves_frees_a_real_node(real_server: RealServer) -> None:
    """Would catch generation that goes on at a real node after the stop button."""

    async def scenario() -> None:
        rows = parse_nodes(f"gpu0 {real_server.url} slots=1")
        router = Router(rows, aiohttp.ClientSession(), RouterSettings(probe_seconds=0.5), Random(1))  # noqa: S311 - breaks ties
        body = {
            "messages": [{"role": "user", "content": "Count to a thousand."}],
            "options": {"num_predict": 4096},
        }
        chunks = router.answer(body, [real_server.model], HEAD, user="user")
        await anext(chunks)
        await chunks.aclose()
        short = {"messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 2}}
        async with asyncio.timeout(20):  # the abandoned answer would take minutes
            answer = [chunk async for chunk in router.answer(short, [real_server.model], HEAD, user="user")]
        assert answer[-1]["usage"]["total_duration"] / 1e9 < 20
        await until(lambda: router.in_flight("gpu0") == 0)
        await router.close()

    run(scenario)
