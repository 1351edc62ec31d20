"""The router over scripted nodes: who answers, what a failing node does, and what is left afterwards."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import aiohttp
import pytest

from harness.hostile_server import Handler, HostileServer, http_answer, json_answer
from harness.ollama_node import Answer, Fault, Model, OllamaNode
from harness.routing import HEAD, JSON, QUICK, Chat, router_over, routing, rows_of, run, until
from ollama_pack.engines.errors import NodeTimeoutError, RequestRefusedError
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.dispatch import attempt
from ollama_pack.routing.dispatch import router as router_module
from ollama_pack.routing.dispatch.report import dashboard_report, load_report
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.errors import (
    AnswerBrokenError,
    NoAnswerError,
    NodesDownError,
    NoNodeError,
    RequestFailsError,
    RoutingError,
    WaitedTooLongError,
)
from ollama_pack.routing.peers.share import FleetShare
from ollama_pack.routing.warm import parse_warm

LLAMA, MISTRAL = Model("llama3:8b"), Model("mistral:7b", num_ctx=8192)
FOREVER = Answer(["never"], delay=3600.0)
WORDS = Answer([f"word{number} " for number in range(500)], pause=0.02)


@pytest.fixture
def nodes() -> Iterator[list[OllamaNode]]:
    with OllamaNode([LLAMA]) as gpu0, OllamaNode([LLAMA, MISTRAL]) as gpu1:
        yield [gpu0, gpu1]


def chats(node: OllamaNode) -> int:
    """How many chats a node was asked for."""
    return sum(request.path == "/api/chat" for request in node.requests)


def test_models_of_all_nodes_without_duplicates(nodes: list[OllamaNode]) -> None:
    """Would catch a picker that lists a model once for every node, or misses one that a single node has."""

    async def scenario() -> dict[str, tuple[str, ...]]:
        async with routing(nodes) as router:
            return {name: model.nodes for name, model in router.catalogue().models.items()}

    assert run(scenario) == {"llama3:8b": ("gpu0", "gpu1"), "mistral:7b": ("gpu1",)}


def test_the_answer_says_who_gave_it_and_why(nodes: list[OllamaNode]) -> None:
    """Would catch an answer without `ollama_pack`, which the contract promises, or one in every chunk."""

    async def scenario() -> Chat:
        async with routing(nodes) as router:
            await Chat(router, models=("mistral:7b",)).run()
            return await Chat(router, models=("mistral:7b",)).run()

    chat = run(scenario)
    assert chat.routed["node"] == "gpu1"
    assert chat.routed["reason"].startswith("gpu1 has mistral:7b in memory · ")
    assert sum("ollama_pack" in chunk for chunk in chat.chunks) == 1
    (why, why_done), (line, line_done) = chat.told
    assert (why, why_done) == (chat.routed["reason"], False)
    assert re.fullmatch(r"llama3:8b → mistral:7b · on gpu1 · (in \d+\.\d s|at once)", line)
    assert line_done


async def home(router: Router, nodes: list[OllamaNode]) -> tuple[OllamaNode, OllamaNode]:
    """Chat once: the node that answered has the model in memory now, and is asked again; and the other."""
    chat = await Chat(router).run()
    return (nodes[0], nodes[1]) if chat.routed["node"] == "gpu0" else (nodes[1], nodes[0])


FAULTS = {
    "500": Answer(refusal=(500, "llama runner process has terminated")),
    "503": Answer(refusal=(503, "server busy, please try again")),
    "gone": Answer(refusal=(404, "model 'llama3:8b' not found")),
    "hangs-up": Answer(hangs_up=True),
    "error-line": Answer(failure="out of memory"),
    "hangs": FOREVER,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_failing_node_costs_no_request(nodes: list[OllamaNode], fault: Answer) -> None:
    """Would catch a user who sees an error though another node could answer."""

    async def scenario() -> tuple[Chat, int, int]:
        async with routing(nodes, replace(QUICK, first_token_seconds=0.5)) as router:
            first, second = await home(router, nodes)
            first.enqueue(fault)
            second.enqueue(Answer(["good"]))
            before = chats(first)
            chat = await Chat(router).run()
            return chat, chats(first) - before, sum(one.failovers for one in router.counts.models.values())

    chat, asked, failovers = run(scenario)
    assert asked == 1
    assert failovers == 1
    assert chat.answer == "good"


def test_a_node_that_dies_under_a_chat_costs_nothing(nodes: list[OllamaNode]) -> None:
    """Would catch requests that are lost with the node that was about to answer them."""

    async def scenario() -> list[Chat]:
        async with routing(nodes, row_settings="slots=4") as router:
            first, _ = await home(router, nodes)
            first.enqueue(*[Answer(["never"], delay=3600.0)] * 4)
            chats_running = [asyncio.create_task(Chat(router, f"chat {number}").run()) for number in range(4)]
            await until(lambda: chats(nodes[0]) + chats(nodes[1]) >= 5)
            await asyncio.to_thread(first.stop)
            return await asyncio.gather(*chats_running)

    assert [chat.answer for chat in run(scenario)] == [f"You said: chat {number}" for number in range(4)]


def test_a_node_that_hangs_is_found_out_by_looking_at_it(
    nodes: list[OllamaNode], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch users who wait two minutes at a silent node, and a log that blames the wrong limit."""

    async def scenario() -> Chat:
        async with routing(nodes) as router:
            first, _ = await home(router, nodes)
            first.enqueue(FOREVER)
            chat = asyncio.create_task(Chat(router).run())
            await until(lambda: chats(first) == 2)
            silent = router.nodes["gpu0" if first is nodes[0] else "gpu1"]

            async def no_answer() -> None:
                raise NodeTimeoutError(silent.client.name, "answer", 5.0)

            monkeypatch.setattr(silent.client, "tags", no_answer)  # a node cannot be frozen in a thread
            return await chat

    assert run(scenario).answer == "You said: hello"
    assert "has stopped answering" in caplog.text


def test_nothing_is_spliced_after_the_first_token(nodes: list[OllamaNode]) -> None:
    """Would catch the beginning of one node's answer with another node's words behind it."""

    async def scenario() -> tuple[Chat, int]:
        async with routing(nodes) as router:
            first, second = await home(router, nodes)
            first.enqueue(Answer(["Once ", "upon "], hangs_up=True))
            before, chat = chats(second), Chat(router)
            with pytest.raises(AnswerBrokenError, match="regenerate it and another node answers"):
                await chat.run()
            return chat, chats(second) - before

    chat, asked_elsewhere = run(scenario)
    assert chat.said == "Once upon "
    assert asked_elsewhere == 0


def test_an_answer_ends_when_its_node_is_not_there_any_more(
    nodes: list[OllamaNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch users who look at half an answer for five minutes after a node has lost its power."""
    monkeypatch.setattr(attempt, "SILENT_SECONDS", 0.3)

    async def scenario() -> Chat:
        async with routing(nodes) as router:
            first, _ = await home(router, nodes)
            first.command(Fault("stall", path="/api/chat", after=2))
            first.enqueue(Answer(["Once ", "upon ", "a ", "time"]))

            async def off(_chunk: JSON) -> None:
                first.command(Fault("refuse"))

            chat = Chat(router, on_chunk=off)
            with pytest.raises(AnswerBrokenError, match="has stopped answering"):
                await chat.run()
            return chat

    assert run(scenario).said == "Once upon "


def test_an_answer_that_pauses_is_waited_for_where_its_node_is_only_busy(
    nodes: list[OllamaNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an answer that is cut since its node is too busy to answer a look in time."""
    monkeypatch.setattr(attempt, "SILENT_SECONDS", 0.0)

    async def scenario() -> Chat:
        async with routing(nodes) as router:
            first, _ = await home(router, nodes)
            first.enqueue(Answer(["Once ", "upon "], pause=3.0))
            watch = router.nodes["gpu0" if first is nodes[0] else "gpu1"]

            async def no_answer() -> None:
                raise NodeTimeoutError(watch.client.name, "answer", 5.0)

            chat = Chat(router)
            answer = asyncio.create_task(chat.run())
            await until(lambda: bool(chat.said))
            monkeypatch.setattr(watch.client, "tags", no_answer)
            await until(lambda: watch.is_gone)
            return await answer

    assert run(scenario).said == "Once upon "


@pytest.mark.parametrize("engines", [1, 2])
def test_an_engine_that_is_busy_for_a_moment_is_waited_for(engines: int) -> None:
    """Would catch a chat that fails since the only engines that have its model are asked too often."""
    refusals = [Refusal(429, 0.6), Refusal(503, 0.6)]

    async def scenario(urls: list[str]) -> tuple[Chat, Router]:
        rows = (f"gpu{number} {url} kind=openai slots=1" for number, url in enumerate(urls))
        async with router_over(*rows) as router:
            return await Chat(router, models=("m",)).run(), router

    with ExitStack() as stack:
        servers = [stack.enter_context(HostileServer(rate_limited(refusals.copy()))) for _ in range(engines)]
        chat, router = run(lambda: scenario([server.url for server in servers]))
    assert chat.answer == "Hi"
    assert sum(counts.failures for counts in router.counts.models.values()) == 1 + engines


def test_an_engine_that_stays_busy_is_not_waited_for() -> None:
    """Would catch a chat that waits for ever, or is sent again to an engine that has asked for a pause."""

    async def scenario(url: str) -> None:
        async with router_over(f"gpu0 {url} kind=openai slots=1") as router:
            with pytest.raises(NoAnswerError, match="is busy"):
                await Chat(router, models=("m",)).run()
            (breaker,) = router.scheduler.cluster.nodes["gpu0"].retry_at()
            assert breaker - asyncio.get_running_loop().time() > 30

    with HostileServer(rate_limited([Refusal(429, 60)] * 9)) as server:
        run(lambda: scenario(server.url))
        assert sum("/chat/completions" in head for head in server.heads) == 1


@dataclass(frozen=True)
class Refusal:
    """What an engine answers that is asked too often, and when it wants to be asked again."""

    status: int
    seconds: float


def rate_limited(refusals: list[Refusal]) -> Handler:
    """An engine that refuses so many chats before it answers one."""

    def handle(_method: str, path: str) -> bytes:
        if path == "/v1/models":
            return json_answer({"object": "list", "data": [{"id": "m", "object": "model"}]})
        if not path.endswith("/chat/completions"):
            return json_answer({}, "404 Not Found")
        if refusals:
            refusal = refusals.pop(0)
            return http_answer(b"{}", f"{refusal.status} Busy", Retry_After=str(refusal.seconds))
        chunk = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
        events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        return http_answer(events, Content_Type="text/event-stream")

    return handle


def test_all_nodes_fail(nodes: list[OllamaNode]) -> None:
    """Would catch an endless round of tries, and an error that does not say what went wrong where."""

    async def scenario() -> int:
        async with routing(nodes) as router:
            for node in nodes:
                node.enqueue(*[FAULTS["500"]] * 3)
            with pytest.raises(NoAnswerError, match=r"(?s)gpu\d: .*terminated.*gpu\d: .*terminated"):
                await Chat(router).run()
            return chats(nodes[0]) + chats(nodes[1])

    assert run(scenario) == 2


def test_the_next_candidate_answers_when_the_first_cannot(nodes: list[OllamaNode]) -> None:
    """Would catch an alias that fails though the table names another model, which is there."""

    async def scenario() -> Chat:
        async with routing(nodes) as router:
            nodes[1].enqueue(FAULTS["500"])
            return await Chat(router, models=("mistral:7b", "llama3:8b")).run()

    assert run(scenario).answer == "You said: hello"
    assert {
        (request.body or {})["model"]
        for node in nodes
        for request in node.requests
        if request.path == "/api/chat"
    } == {
        "mistral:7b",
        "llama3:8b",
    }


def test_a_refused_request_is_not_tried_elsewhere(nodes: list[OllamaNode]) -> None:
    """Would catch one bad request that shuts node after node."""

    async def scenario() -> tuple[int, list[bool]]:
        async with routing(nodes) as router:
            for node in nodes:
                node.enqueue(Answer(refusal=(400, "llama3:8b does not support tools")))
            with pytest.raises(RequestRefusedError, match="does not support tools"):
                await Chat(router).run()
            asked = chats(nodes[0]) + chats(nodes[1])
            return asked, [router.is_healthy(name) for name in router.nodes]

    assert run(scenario) == (1, [True, True])


def test_closing_the_iterator_ends_the_generation(nodes: list[OllamaNode]) -> None:
    """Would catch a stop button that leaves the GPU busy, or a slot that is never free again."""

    async def scenario() -> None:
        async with routing(nodes[:1], row_settings="slots=1") as router:
            nodes[0].enqueue(WORDS)
            chunks = router.answer(
                {"messages": [{"role": "user", "content": "hi"}]}, ["llama3:8b"], HEAD, user="u"
            )
            await anext(chunks)
            assert router.in_flight("gpu0") == 1
            await chunks.aclose()
            assert router.in_flight("gpu0") == 0
            await until(nodes[0].requests[-1].left.is_set)
            assert (await Chat(router).run()).answer == "You said: hello"

    run(scenario)


def test_who_leaves_while_waiting_leaves_the_queue(nodes: list[OllamaNode]) -> None:
    """Would catch a place in the queue that is held for nobody, and a request sent for nobody."""

    async def scenario() -> tuple[list[tuple[str, bool]], int]:
        async with routing(nodes[:1], row_settings="slots=1") as router:
            nodes[0].enqueue(WORDS)
            first = asyncio.create_task(Chat(router).run())
            await until(lambda: chats(nodes[0]) == 1)
            waits = Chat(router)
            second = asyncio.create_task(waits.run())
            await until(lambda: bool(waits.told))
            assert router.queued("gpu0") == 1
            second.cancel()
            await asyncio.wait([second])
            assert router.scheduler.waiting == router.queued("gpu0") == 0
            first.cancel()
            await asyncio.wait([first])
            return waits.told, chats(nodes[0])

    told, asked = run(scenario)
    (first, first_done), (last, last_done) = told
    assert first.startswith("llama3:8b · waiting for a GPU · you are next · about ")
    assert not first_done
    assert last.startswith("llama3:8b · waited ")
    assert last_done
    assert asked == 1


def test_background_calls_tell_nothing(nodes: list[OllamaNode]) -> None:
    """Would catch a title's node that is shown above the answer."""

    async def scenario() -> Chat:
        async with routing(nodes) as router:
            return await Chat(router, background=True).run()

    assert not run(scenario).told


def test_a_model_that_no_node_has(nodes: list[OllamaNode]) -> None:
    """Would catch an error that does not say what to do."""

    async def scenario() -> None:
        async with routing(nodes) as router:
            with pytest.raises(
                NoNodeError, match=r"no node has 'mixtral:8x7b': pull it on one of gpu0, gpu1"
            ):
                await Chat(router, models=("mixtral:8x7b",)).run()

    run(scenario)


def test_all_nodes_are_down(nodes: list[OllamaNode], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a chat that waits for minutes before it says that nobody is there, or names an address."""
    monkeypatch.setattr(router_module, "DOWN_SECONDS", 0.5)

    async def scenario() -> str:
        async with routing(nodes) as router:
            await home(router, nodes)
            for node in nodes:
                await asyncio.to_thread(node.stop)
            await until(lambda: not any(map(router.is_healthy, router.nodes)))
            with pytest.raises(NodesDownError) as error:
                await Chat(router).run()
            return str(error.value)

    said = run(scenario)
    assert "no node that has 'llama3:8b' answers at the moment: gpu0 (cannot be reached" in said
    assert "127.0.0.1" not in said


def test_the_reason_is_there_for_whoever_comes_later(
    nodes: list[OllamaNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch an error without a cause, because the node answers probes and is given no request."""
    monkeypatch.setattr(router_module, "DOWN_SECONDS", 0.3)

    async def scenario() -> list[str]:
        said = []
        async with routing(nodes[:1]) as router:
            for _ in range(3):
                nodes[0].enqueue(Answer(refusal=(500, "out of memory")))
                with pytest.raises(RoutingError) as error:
                    await Chat(router).run()
                said.append(str(error.value))
        return said

    for sentence in run(scenario):
        assert "out of memory" in sentence


def test_a_node_that_comes_back_is_used_again(nodes: list[OllamaNode]) -> None:
    """Would catch a node that one failure shuts out for ever."""

    async def scenario() -> Chat:
        async with routing(nodes[:1]) as router:
            await Chat(router).run()
            await asyncio.to_thread(nodes[0].stop)
            await until(lambda: not router.is_healthy("gpu0"))
            assert list(router.catalogue().models) == ["llama3:8b"]  # it is only away
            nodes[0].start()
            return await Chat(router).run()

    assert run(scenario).answer == "You said: hello"


def test_waiting_has_an_end(nodes: list[OllamaNode]) -> None:
    """Would catch a chat that waits for ever behind one that never ends."""

    async def scenario() -> None:
        async with routing(nodes[:1], replace(QUICK, first_token_seconds=1.0), "slots=1") as router:
            nodes[0].enqueue(WORDS)
            first = asyncio.create_task(Chat(router).run())
            await until(lambda: chats(nodes[0]) == 1)
            with pytest.raises(WaitedTooLongError, match="all nodes were busy for 1 s and 1 requests wait"):
                await Chat(router).run()
            first.cancel()
            await asyncio.wait([first])

    run(scenario)


def test_a_model_that_is_deleted_is_not_waited_for(
    nodes: list[OllamaNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch chats that wait two minutes for a model that is gone, and read that all nodes were busy."""
    monkeypatch.setattr(router_module, "DOWN_SECONDS", 0.5)

    async def scenario() -> None:
        async with routing(nodes[:1], row_settings="slots=1") as router:
            nodes[0].enqueue(WORDS)
            first = asyncio.create_task(Chat(router).run())
            await until(lambda: chats(nodes[0]) == 1)
            second = asyncio.create_task(Chat(router).run())
            await until(lambda: router.scheduler.waiting == 1)
            nodes[0].models.clear()
            with pytest.raises(NoNodeError, match="no node has 'llama3:8b': pull it on one of gpu0"):
                await second
            first.cancel()
            await asyncio.wait([first])

    run(scenario)


SPELLINGS = ("llama3:8b", "LLAMA3:8B", "Llama3:8b")


def test_a_name_in_another_spelling_waits_like_any_other(
    nodes: list[OllamaNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch requests that are told after ten seconds that their nodes are down, which only are busy."""
    monkeypatch.setattr(router_module, "DOWN_SECONDS", 0.0)

    async def scenario() -> tuple[int, list[str]]:
        async with routing(nodes[:1], row_settings="slots=1") as router:
            nodes[0].enqueue(Answer([f"word{number} " for number in range(60)], pause=0.02))
            first = asyncio.create_task(Chat(router).run())
            await until(lambda: chats(nodes[0]) == 1)
            others = [Chat(router, models=(name,)) for name in SPELLINGS]
            waiting = [asyncio.create_task(chat.run()) for chat in others]
            await until(lambda: all(chat.told for chat in others))
            queued = router.queued("gpu0")
            await first
            await asyncio.gather(*waiting)
            return queued, [chat.answer for chat in others]

    assert run(scenario) == (3, ["You said: hello"] * 3)


def test_nodes_that_are_down_are_named_in_any_spelling(
    nodes: list[OllamaNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a chat that waits for minutes because its model's name is written in capitals."""
    monkeypatch.setattr(router_module, "DOWN_SECONDS", 0.0)

    async def scenario() -> None:
        async with routing(nodes[:1]) as router:
            await asyncio.to_thread(nodes[0].stop)
            await until(lambda: not router.is_healthy("gpu0"))
            with pytest.raises(NodesDownError, match=r"gpu0 \(cannot be reached"):
                await Chat(router, models=("LLAMA3:8B",)).run()

    run(scenario)


STRANGE: JSON = {
    "num_ctx": 256,
    "num_gpu": 0,
    "num_thread": 1,
    "num_batch": 64,
    "main_gpu": 1,
    "use_mmap": False,
}


@pytest.mark.parametrize("where", ["options", "params", "top"])
def test_nobody_s_options_reach_another_chat(nodes: list[OllamaNode], where: str) -> None:
    """Would catch one chat's `num_ctx` that is sent for everybody, and cuts their prompts to 256 tokens."""
    strange: JSON = STRANGE if where == "top" else {where: STRANGE}

    async def scenario() -> None:
        async with routing(nodes[1:]) as router:
            for body in ({}, strange, {}, {"options": {"num_ctx": 1024}}, {}):
                await Chat(router, user=f"user {body}", body=body).run()
                for watch in router.nodes.values():
                    watch.looked.clear()
                    watch.hurry.set()
                    await watch.looked.wait()

    run(scenario)
    chats = [request.body or {} for node in nodes for request in node.requests if request.path == "/api/chat"]
    assert [chat.get("options", {}) for chat in chats] == [{}, STRANGE, {}, {"num_ctx": 1024}, {}]


def test_a_reload_for_other_options_is_predicted(nodes: list[OllamaNode]) -> None:
    """Would catch a status line that says "in memory" while the node loads the model again."""

    async def scenario() -> list[bool]:
        async with routing(nodes[1:]) as router:
            for context in (2048, 2048, 1024, 8192):
                await Chat(router, body={"num_ctx": context}).run()
            await Chat(router).run()  # 4096, as its own recipe asks
            await Chat(router, body={"options": {"num_ctx": 4096}}).run()
            return [decision.loads for decision in router.decisions]

    assert run(scenario) == [True, False, True, True, True, False]
    assert [record.loaded for record in nodes[1].records] == [True, False, True, True, True, False]


def test_keep_alive_where_the_request_has_none(nodes: list[OllamaNode]) -> None:
    """Would catch the valve without effect, or one that overrides what a client asks for."""

    async def scenario() -> None:
        async with routing(nodes[:1], replace(QUICK, keep_alive="30m")) as router:
            await Chat(router).run()
            await Chat(router, body={"keep_alive": "1m"}).run()

    run(scenario)
    asked = [
        (request.body or {})["keep_alive"] for request in nodes[0].requests if request.path == "/api/chat"
    ]
    assert asked == ["30m", "1m"]


def loads_of(node: OllamaNode) -> list[JSON]:
    """What a node was asked to load, or to keep in memory."""
    return [request.body or {} for request in node.requests if request.path == "/api/generate"]


def test_a_model_that_is_kept_is_not_loaded_again_for_it(nodes: list[OllamaNode]) -> None:
    """Would catch a model that Ollama loads again, without its prompts, only to keep it in memory longer."""
    options = {"num_ctx": 2048, "num_thread": 1}

    async def scenario() -> None:
        async with routing(nodes[:1]) as router:
            await Chat(router, body={"options": options, "keep_alive": "1m"}).run()
            runner = router.scheduler.cluster.nodes["gpu0"].runners
            await until(lambda: bool([one for one in runner.values() if one.expires_at]))
            router.upkeep.keep(parse_warm("llama3:8b = 00:00-24:00"))
            await until(lambda: bool(loads_of(nodes[0])))
            await Chat(router, body={"options": options}).run()

    run(scenario)
    assert [body["options"] for body in loads_of(nodes[0])] == [options]
    assert [record.loaded for record in nodes[0].records] == [True, False, False]


def test_a_model_is_kept_as_its_chats_want_it(nodes: list[OllamaNode]) -> None:
    """Would catch a load before the first chat of the day that is for nothing, as chats have a `num_ctx`."""
    options = {"num_ctx": 2048}

    async def scenario() -> None:
        async with routing(nodes[:1]) as router:
            await Chat(router, body={"options": options, "keep_alive": "0.1s"}).run()
            runners = router.scheduler.cluster.nodes["gpu0"].runners
            await until(lambda: not runners)
            await Chat(router, background=True, body={"keep_alive": "0.1s"}).run()
            await until(lambda: not router.scheduler.cluster.nodes["gpu0"].runners)
            router.upkeep.keep(parse_warm("llama3:8b = 00:00-24:00"))
            await until(lambda: bool(loads_of(nodes[0])))

    run(scenario)
    assert [body["options"] for body in loads_of(nodes[0])] == [options]


def test_a_model_is_loaded_ahead_of_need(nodes: list[OllamaNode]) -> None:
    """Would catch a load that is never sent, or with other options than the chats have."""
    options = {"num_ctx": 2048}

    async def scenario() -> None:
        async with routing(nodes, replace(QUICK, keep_alive="30m"), "slots=4") as router:
            router.scheduler.cluster.drain("gpu0")
            await router.nodes["gpu1"].client.load("llama3:8b", seconds=5, options=options)  # not measured
            await until(lambda: bool(router.scheduler.cluster.nodes["gpu1"].runners))
            await Chat(router, body={"options": options}).run()
            router.scheduler.cluster.drain("gpu0", draining=False)
            await asyncio.gather(*(Chat(router, f"{n}", body={"options": options}).run() for n in range(3)))
            await until(lambda: bool(loads_of(nodes[0])))

    nodes[1].enqueue(Answer(["hello"]), *[Answer(["hello"], delay=0.5)] * 3)
    run(scenario)
    assert loads_of(nodes[0]) == [
        {"model": "llama3:8b", "stream": False, "keep_alive": "30m", "options": options}
    ]
    assert chats(nodes[0]) == 0


class SlowPeer:
    """Another worker, that is faster the first time, and then gone."""

    def __init__(self, decide: Callable[[], None]) -> None:
        self.claimed: list[str] = []
        self.router: Router | None = None
        self._decide = decide

    def start(self) -> None:
        pass

    fault = ""

    async def claim(self, binding: Assignment) -> bool:
        self.claimed.append(binding.node)
        if self.router and len(self.claimed) == 1:
            self.router.decisions.clear()  # as when a crowd has pushed it out of the list
            self.router.scheduler.give_back(binding.request.id)
            self.router.scheduler.cluster.nodes[binding.node].pause(asyncio.get_running_loop().time() + 3600)
            return False
        return True

    async def close(self) -> None:
        self._decide()


def test_a_request_that_lost_its_slot_is_decided_anew(nodes: list[OllamaNode]) -> None:
    """Would catch a chat that fails, waits for ever, or is shown twice, because another worker was faster."""
    peers: list[SlowPeer] = []

    def connect(_: FleetShare, decide: Callable[[], None]) -> SlowPeer:
        peers.append(SlowPeer(decide))
        return peers[0]

    async def scenario() -> tuple[list[str], list[str]]:
        router = Router(rows_of(nodes), aiohttp.ClientSession(), QUICK, Random(1), connect=connect)  # noqa: S311 - breaks ties
        peers[0].router = router
        chat = await Chat(router).run()
        shown = [decision.node for decision in router.decisions]
        await router.close()
        assert [chat.routed["node"]] == shown
        return peers[0].claimed, shown

    claimed, shown = run(scenario)
    assert len(claimed) == 2
    assert claimed[0] != claimed[1] == shown[0]


def test_decisions_are_explained(nodes: list[OllamaNode]) -> None:
    """Would catch a decision that nobody can account for: the nodes looked at, predicted and actual times."""

    async def scenario() -> tuple[JSON, JSON]:
        async with routing(nodes) as router:
            router.note = noted.append
            await Chat(router).run()
            return dashboard_report(router), load_report(router)

    noted: list[Mapping[str, Any]] = []
    dashboard, load = run(scenario)
    (chat,) = noted
    assert (chat["outcome"], chat["user"]) == ("answered", "user")  # by its id, not by the scheduler's hash
    assert {other["node"] for other in chat["considered"]} == {"gpu0", "gpu1"}
    assert chat["considered"][0]["node"] == chat["node"]
    assert chat["predicted"] > 0
    assert 0 < chat["first"] <= chat["took"]
    assert dashboard["running"] == []
    assert "hello" not in str((dashboard, chat))
    assert [(node["name"], node["healthy"], node["in_flight"], node["queued"]) for node in load["nodes"]] == [
        ("gpu0", True, 0, 0),
        ("gpu1", True, 0, 0),
    ]


POISON = Answer(refusal=(500, "invalid JSON schema in format"))


@pytest.mark.parametrize("count", [1, 2], ids=["one node", "two nodes"])
def test_a_poison_request_shuts_nothing(nodes: list[OllamaNode], count: int) -> None:
    """Would catch a model that nobody may ask any more, because one user sent what no node can answer."""

    async def scenario() -> None:
        async with routing(nodes[:count]) as router:
            for _ in range(15):
                for node in nodes[:count]:
                    node.enqueue(POISON)
                with pytest.raises(RequestFailsError if count > 1 else NoAnswerError, match="invalid JSON"):
                    await Chat(router, user="mallory").run()
            assert all(node["breakers"] == {} for node in load_report(router)["nodes"])
            chat = Chat(router, user="ann")
            await asyncio.wait_for(chat.run(), 2)
            assert chat.said == "You said: hello"

    run(scenario)


def test_no_node_is_asked_after_two_have_said_the_same() -> None:
    """Would catch a request that is tried everywhere though it can be answered nowhere."""

    async def scenario() -> None:
        with OllamaNode([LLAMA]) as one, OllamaNode([LLAMA]) as two, OllamaNode([LLAMA]) as three:
            three_nodes = [one, two, three]
            for node in three_nodes:
                node.enqueue(Answer(refusal=(500, f"bad grammar at {node.url[-5:]}")))
            async with routing(three_nodes) as router:
                with pytest.raises(RequestFailsError, match="failed in the same way"):
                    await Chat(router).run()
                assert sum(map(chats, three_nodes)) == 2

    run(scenario)


def test_what_another_node_answers_is_the_node_s_fault(nodes: list[OllamaNode]) -> None:
    """Would catch a node whose model is broken, and which fails every chat first."""

    async def scenario() -> None:
        async with routing(nodes) as router:
            broken, _ = await home(router, nodes)
            broken.command(Fault("error", path="/api/chat", message="tensor is corrupt"))
            for begin in range(0, 8, 2):  # two at a time: one node alone has no slot for both
                asked = [Chat(router, f"{number}", user=f"u{number}") for number in (begin, begin + 1)]
                await asyncio.gather(*(chat.run() for chat in asked))
                assert [chat.said for chat in asked] == [f"You said: {chat.text}" for chat in asked]
            shut = [node["breakers"] for node in load_report(router)["nodes"] if node["breakers"]]
            assert shut == [{"llama3:8b": "open"}]
            assert chats(broken) <= 4

    run(scenario)


def test_lack_of_memory_everywhere_is_not_the_request_s_fault(nodes: list[OllamaNode]) -> None:
    """Would catch a user who is told to change a request that a larger node would answer."""

    async def scenario() -> None:
        async with routing(nodes) as router:
            for node in nodes:
                node.enqueue(
                    Answer(refusal=(500, "model requires more system memory (9.0 GiB) than 4.0 GiB"))
                )
            with pytest.raises(NoAnswerError) as caught:
                await Chat(router).run()
            assert not isinstance(caught.value, RequestFailsError)

    run(scenario)


def test_answers_that_break_off_count_for_two_users_together(nodes: list[OllamaNode]) -> None:
    """Would catch one user's chats that shut a model for others, or a node that breaks everybody's."""

    async def scenario() -> list[JSON]:
        async with routing(nodes[:1]) as router:
            seen = []
            for user in ("mallory", "mallory", "mallory", "ann"):
                nodes[0].enqueue(Answer(["Once "], hangs_up=True))
                with pytest.raises(AnswerBrokenError):
                    await Chat(router, user=user).run()
                seen.append(load_report(router)["nodes"][0]["breakers"])
            return seen

    assert run(scenario) == [{}, {}, {}, {"llama3:8b": "open"}]


@pytest.mark.parametrize(
    ("answered", "believed"),
    [
        ("Llama3:8B", True),
        ("registry.ollama.ai/library/llama3:8b", True),
        ("copy:latest", True),  # made by `ollama cp` of it
        ("", True),
        ("llama3:70b", False),
        ("llama3", False),
        ("mistral:7b", False),
    ],
)
def test_another_model_s_answer_is_not_believed(answered: str, *, believed: bool) -> None:
    """Would catch the words of a model that nobody asked for, or a node left out for a name's spelling."""
    copied = Model("copy", blob=LLAMA.blob)

    async def scenario() -> Chat:
        with OllamaNode([LLAMA, copied]) as one, OllamaNode([LLAMA]) as two:
            async with routing([one, two]) as router:
                one.enqueue(Answer(["hm"], model=answered))
                two.enqueue(Answer(["hm"], model=answered))
                chat = Chat(router)
                if believed:
                    await chat.run()
                else:
                    with pytest.raises(
                        NoAnswerError, match=f"answers with '{answered}' though it was asked for"
                    ):
                        await chat.run()
                return chat

    assert run(scenario).said == ("hm" if believed else "")


def test_a_place_in_the_queue_never_goes_up(nodes: list[OllamaNode]) -> None:
    """Would catch a user who reads that one is ahead, and then that three are."""
    for node in nodes:
        node.enqueue(*[WORDS] * 4)

    async def scenario() -> list[str]:
        async with routing(nodes[:1], replace(QUICK, probe_seconds=0.5), "slots=1") as router:
            chats = [asyncio.create_task(Chat(router, user="long").run())]
            await until(lambda: router.in_flight("gpu0") == 1)
            waiting = Chat(router, user="long")  # comes after all those who have nothing in service
            chats.append(asyncio.create_task(waiting.run()))
            await until(lambda: router.scheduler.waiting == 1)
            others = [Chat(router, user=f"u{number}") for number in range(3)]
            chats += [asyncio.create_task(chat.run()) for chat in others]
            await asyncio.sleep(2.5)
            for chat in chats:
                chat.cancel()
            await asyncio.gather(*chats, return_exceptions=True)
            return [line for line, done in waiting.told if not done]

    lines = run(scenario)
    assert lines
    assert all("you are next" in line for line in lines)
