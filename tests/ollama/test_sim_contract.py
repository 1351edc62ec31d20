"""What routing relies on in time and memory, held against the simulated node and a real Ollama alike.

The running server is right: where a test fails for the simulated node alone, the node follows. Durations are
compared with each other, never with a clock.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from harness.node_contract import JSON, STEADY, Node, expires_in, wait_until
from harness.ollama_node import Model, NodeShape, OllamaNode
from local import ollama

BUSY = {"error": "server busy, please try again.  maximum pending requests exceeded"}
# A few seconds of work for the small model: a schema keeps it from ending. A simulated one counts the words.
MANY = {"type": "array", "items": {"type": "integer"}, "minItems": 300}
ENDLESS = "Write 3000 words"
MODELS = (Model("smollm2:135m", load_seconds=0.3), Model("small-2", load_seconds=0.3))


@contextmanager
def serving(kind: str, *, slots: int, loaded: int, queue: int) -> Iterator[Node]:
    """Run a simulated node or a real server, with settings of its own."""
    with requests.Session() as session:
        session.trust_env = False
        if kind != "real":
            shape = NodeShape(
                slots=slots,
                max_loaded=loaded,
                max_queue=queue,
                prompt_rate=250.0,
                decode_rate=200.0,
                lists_loads=kind == "simulated",
            )
            with OllamaNode(MODELS, shape=shape, gpu=False) as simulated:
                yield Node(simulated.url, MODELS[0].name, MODELS[1].name, session)
            return
        if not (folder := ollama.built()):
            pytest.skip(f"no built Ollama: run `scripts/local/real-ollama {ollama.cache_dir()}`")
        settings = {
            "OLLAMA_NUM_PARALLEL": str(slots),
            "OLLAMA_MAX_LOADED_MODELS": str(loaded),
            "OLLAMA_MAX_QUEUE": str(queue),
        }
        with ollama.serving(folder, settings=settings) as url:
            yield Node(url, MODELS[0].name, MODELS[1].name, session)


@pytest.fixture(scope="module", params=["simulated", "simulated, loads unlisted", "real"])
def narrow(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node that holds one model, works on one request at a time, and lets one more wait for a load."""
    with serving(request.param, slots=1, loaded=1, queue=1) as node:
        yield node


@pytest.fixture(scope="module", params=["simulated", "real"])
def wide(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node that holds two models and works on two requests of each at a time."""
    with serving(request.param, slots=2, loaded=2, queue=512) as node:
        yield node


def prompt(name: str) -> str:
    """Return about 100 tokens that share no beginning with another test's."""
    return f"{name}: " + " ".join(f"{name} {number}" for number in range(25))


def ask(node: Node, text: str, *, model: str = "", history: list[JSON] | None = None, **body: Any) -> JSON:
    """Return the answer in one piece to a text, after other messages."""
    messages = [*(history or []), {"role": "user", "content": text}]
    answer = node.chat(model=model or node.model, messages=messages, stream=False, **body)
    assert answer.ok, answer.text
    got: JSON = answer.json()
    return got


def waited(answer: JSON) -> int:
    """Return the nanoseconds that no part of an answer accounts for."""
    parts = ("load_duration", "prompt_eval_duration", "eval_duration")
    return int(answer["total_duration"] - sum(answer.get(part, 0) for part in parts))


def reused(answer: JSON, first: JSON) -> bool:
    """Tell whether a prompt was held, by what its first evaluation took: five times as long, or more."""
    return bool(answer["prompt_eval_duration"] < first["prompt_eval_duration"] / 2)


class LongAnswer:
    """An answer that is being given and does not end by itself."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    def read(self, count: int) -> None:
        """Wait for so many more tokens."""
        for _ in range(count):
            assert "message" in json.loads(next(self._lines))


@contextmanager
def long_answer(node: Node, text: str = ENDLESS, **body: Any) -> Iterator[LongAnswer]:
    """Have a node at work on an answer; at the end the connection is closed."""
    message = {"role": "user", "content": text}
    asked = {"model": node.model, "messages": [message], "format": MANY, "options": STEADY} | body
    with requests.Session() as session:
        session.trust_env = False
        with session.post(f"{node.url}/api/chat", json=asked, stream=True, timeout=60) as answer:
            reading = LongAnswer(answer.iter_lines())
            reading.read(1)
            yield reading


@contextmanager
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def post_beside(threads: ThreadPoolExecutor, node: Node, model: str) -> Future[requests.Response]:
    """Ask in another thread, with a connection of its own."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": False,
        "options": STEADY | {"num_predict": 2},
    }

    def post() -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.post(f"{node.url}/api/chat", json=body, timeout=60)

    return threads.submit(post)


# --- prefixes


def test_a_prompt_again_is_hardly_evaluated(narrow: Node) -> None:
    """Would catch a router that does not see a hit: the count stays the same, the duration does not."""
    first, again = (ask(narrow, prompt("again")) for _ in range(2))
    assert again["prompt_eval_count"] == first["prompt_eval_count"] > 60
    assert reused(again, first)


def test_the_next_turn_continues_the_prompt(narrow: Node) -> None:
    """Would catch a history that is evaluated anew at each turn."""
    text = prompt("turn")
    first = ask(narrow, text)
    history = [{"role": "user", "content": text}, first["message"]]
    second = ask(narrow, "Go on", history=history)
    assert second["prompt_eval_count"] > first["prompt_eval_count"]
    assert reused(second, first)


def test_another_chat_takes_the_prefix_away(narrow: Node) -> None:
    """Would catch a belief that a runner remembers every chat."""
    first = ask(narrow, prompt("mine"))
    ask(narrow, prompt("theirs"))
    assert not reused(ask(narrow, prompt("mine")), first)


def test_chats_one_after_another_share_a_slot(wide: Node) -> None:
    """Would catch a belief in one prefix a slot: without overlap the second slot holds nothing."""
    first = ask(wide, prompt("mine"))
    ask(wide, prompt("theirs"))
    assert not reused(ask(wide, prompt("mine")), first)


def test_chats_that_overlap_keep_their_prefixes(wide: Node) -> None:
    """Would catch a belief that two slots never hold two prefixes."""
    with long_answer(wide, f"{prompt('left')} {ENDLESS}"):
        right = ask(wide, prompt("right"))
    again = ask(wide, prompt("right"))
    left = ask(wide, f"{prompt('left')} {ENDLESS}")
    assert reused(again, right)
    assert reused(left, right)


# --- what reloads


@pytest.mark.parametrize("options", [{"num_ctx": 2048}, {"use_mmap": False}, {"num_batch": 256}])
def test_a_runner_option_reloads_and_loses_the_prefix(narrow: Node, options: JSON) -> None:
    """Would catch an option sent along that costs a load and the prompt."""
    text = prompt("reload")
    first, warm = (ask(narrow, text) for _ in range(2))
    other = ask(narrow, text, options=STEADY | {"num_predict": 3} | options)
    assert other["load_duration"] > 2 * warm["load_duration"]
    assert not reused(other, first)


def test_other_options_do_not_reload(narrow: Node) -> None:
    """Would catch a router that takes a change of temperature, or the model's own num_ctx, for a reload."""
    text = prompt("options")
    first = ask(narrow, text)
    own = narrow.loaded()[narrow.model]["context_length"]
    options = {"temperature": 0.5, "seed": 7, "num_predict": 2, "top_k": 5, "num_ctx": own}
    again = ask(narrow, text, options=options)
    assert reused(again, first)


def test_more_context_than_the_model_was_trained_for_is_not_given(narrow: Node) -> None:
    """Would catch a context that is believed because it was asked for."""
    ask(narrow, "Hello", options=STEADY | {"num_predict": 1, "num_ctx": 100_000})
    assert narrow.loaded()[narrow.model]["context_length"] == 8192


# --- how long a model stays


def test_expires_at_stands_still_while_a_request_runs(narrow: Node) -> None:
    """Would catch a router that takes its own running request for somebody else's."""
    ask(narrow, "Hello")
    before = narrow.loaded()[narrow.model]["expires_at"]
    with long_answer(narrow) as answer:
        settled = narrow.loaded()[narrow.model]["expires_at"]
        answer.read(30)
        assert narrow.loaded()[narrow.model]["expires_at"] == settled
    wait_until(lambda: narrow.loaded()[narrow.model]["expires_at"] not in (before, settled))


def test_a_busy_model_stays_past_its_time_and_goes_after_it(narrow: Node) -> None:
    """Would catch a model taken for gone because its time is past, or one that outstays an end."""
    ask(narrow, "Hello", keep_alive="600ms")
    with long_answer(narrow) as answer:
        wait_until(lambda: expires_in(narrow) < 0)
        answer.read(1)
        assert narrow.model in narrow.loaded()
    wait_until(lambda: narrow.model not in narrow.loaded())


def test_a_request_without_keep_alive_leaves_it(narrow: Node) -> None:
    """Would catch a belief that each request sets the default again."""
    ask(narrow, "Hello", keep_alive=60)
    ask(narrow, "Hello")
    wait_until(lambda: 50 < expires_in(narrow) <= 60)


def test_unloading_waits_for_the_answer(narrow: Node) -> None:
    """Would catch an operator's unload that is believed to cut off what runs."""
    with long_answer(narrow) as answer:
        told = narrow.post("/api/generate", {"model": narrow.model, "keep_alive": 0}).json()
        assert told["done_reason"] == "unload"
        answer.read(30)
        assert narrow.model in narrow.loaded()
    wait_until(lambda: narrow.model not in narrow.loaded())


# --- waiting


def test_waiting_for_a_slot_is_in_the_total_alone(narrow: Node) -> None:
    """Would catch a wait that is learned as a slow prompt or a slow load."""
    ask(narrow, "Hello")
    with beside() as threads:
        with long_answer(narrow) as answer:
            second = post_beside(threads, narrow, narrow.model)
            answer.read(80)
            assert not second.done()
        got = second.result().json()
    assert waited(got) > got["load_duration"] + got["prompt_eval_duration"] + got["eval_duration"]


def test_waiting_to_load_is_in_the_load(narrow: Node) -> None:
    """Would catch a load rate learned from a load that first waited for a busy model to go."""
    cold = ask(narrow, "Hello", model=narrow.other)
    ask(narrow, "Hello")
    with beside() as threads:
        with long_answer(narrow) as answer:
            other = post_beside(threads, narrow, narrow.other)
            answer.read(120)
            assert not other.done()
        got = other.result().json()
    assert got["load_duration"] > 1.3 * cold["load_duration"]
    assert waited(got) < got["load_duration"] / 3


def test_slots_work_side_by_side(wide: Node) -> None:
    """Would catch a queue where a node has a slot left."""
    with long_answer(wide) as answer:
        assert ask(wide, "Hello")["done_reason"] == "length"
        answer.read(1)


def test_a_closed_connection_frees_the_slot(narrow: Node) -> None:
    """Would catch a stopped chat whose slot stays taken: the whole answer would have to be waited for."""
    with long_answer(narrow) as answer:
        answer.read(10)
    assert ask(narrow, "Hello")["total_duration"] < 5e9


# --- memory


def test_a_second_model_takes_the_place_of_the_first(narrow: Node) -> None:
    """Would catch a router that believes in a model that made room."""
    ask(narrow, "Hello")
    ask(narrow, "Hello", model=narrow.other)
    assert set(narrow.loaded()) == {f"{narrow.other}:latest"}


def test_two_models_fit_where_two_may(wide: Node) -> None:
    """Would catch a router that sees an eviction where there is none."""
    ask(wide, "Hello")
    ask(wide, "Hello", model=wide.other)
    assert set(wide.loaded()) == {wide.model, f"{wide.other}:latest"}


def test_names_on_the_same_weights_share_a_runner(narrow: Node) -> None:
    """Would catch a copy that is taken for another model: it costs no load, and its prefix is the same."""
    name = "contract-copy"
    assert narrow.post("/api/copy", {"source": narrow.model, "destination": name}).ok
    try:
        narrow.unload()
        first = ask(narrow, prompt("copy"), model=name)
        again = ask(narrow, prompt("copy"))
        assert reused(again, first)
        assert list(narrow.loaded()) == [f"{name}:latest"]
    finally:
        gone = narrow.http.delete(f"{narrow.url}/api/delete", data=json.dumps({"model": name}), timeout=30)
    assert gone.ok
    assert narrow.post("/api/show", {"model": name}).status_code == 404


def test_the_queue_bounds_only_requests_that_must_load(narrow: Node) -> None:
    """Would catch a 503 that is feared by chats of a loaded model, or read in other words."""
    ask(narrow, "Hello")
    refused = threading.Event()

    def note(done: Future[requests.Response]) -> None:
        if done.result().status_code == 503:
            refused.set()

    with beside() as threads:
        with long_answer(narrow) as answer:
            others = [post_beside(threads, narrow, narrow.other) for _ in range(3)]
            for one in others:
                one.add_done_callback(note)
            assert refused.wait(30)
            loaded = [post_beside(threads, narrow, narrow.model) for _ in range(3)]
            answer.read(20)
            assert not any(one.done() for one in loaded)
        answers = [one.result() for one in others]
        assert [one.result().status_code for one in loaded] == [200] * 3
    assert sorted(one.status_code for one in answers) == [200, 200, 503]
    (busy,) = [one.json() for one in answers if one.status_code == 503]
    assert busy == BUSY


# --- text


def test_the_same_request_with_a_seed_is_answered_alike(narrow: Node) -> None:
    """Would catch a simulation whose runs cannot be compared."""
    texts = [ask(narrow, "Tell me a story", options=STEADY | {"num_predict": 8}) for _ in range(2)]
    assert texts[0]["message"] == texts[1]["message"]
    assert texts[0]["message"]["content"]
