"""The response cache: a question asked again, and one asked by many at the same time."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai.types.chat import ChatCompletion

from deploy.shown import message
from local.simulation import SimulatedNodes
from local.webui import Account, RunningWebUI
from walk.steps import DemoError, Walk, openai_client

ASKERS = 6
MODEL = "gpt-4o-mini"


def show_cache(walk: Walk, webui: RunningWebUI, student: Account, nodes: SimulatedNodes) -> None:
    """The same user's question is generated once; another user's is their own."""
    question = "Why is the sea salt?"
    walk.step(
        message("{model} is asked the same again", model=MODEL), lambda: _again(webui, student, question)
    )
    walk.step(message("and by another user"), lambda: _by_another(webui, webui.admin, question))
    walk.step(message("{count} ask the same at once", count=ASKERS), lambda: _at_once(webui, student, nodes))


def _again(webui: RunningWebUI, account: Account, question: str) -> str:
    first, first_seconds = _timed(webui, account, question)
    second, second_seconds = _timed(webui, account, question)
    if _told(second).get("cache") != "hit" or _text(second) != _text(first):
        raise DemoError(message("the second answer is not the first one, kept"))
    return message(
        "{first_seconds:.2f} s, and then {second_seconds:.2f} s from the cache",
        first_seconds=first_seconds,
        second_seconds=second_seconds,
    )


def _by_another(webui: RunningWebUI, account: Account, question: str) -> str:
    answer, seconds = _timed(webui, account, question)
    if "cache" in _told(answer):
        raise DemoError(message("was given what belongs to another user"))
    return message("generated for them, in {seconds:.2f} s: nobody sees what is another's", seconds=seconds)


def _at_once(webui: RunningWebUI, account: Account, nodes: SimulatedNodes) -> str:
    before = _generated(nodes)
    with ThreadPoolExecutor(ASKERS) as pool:
        asked = [pool.submit(_timed, webui, account, "Why is snow white?") for _ in range(ASKERS)]
        texts = {_text(answer.result()[0]) for answer in asked}
    generated = _generated(nodes) - before
    if generated != 1 or len(texts) != 1:
        raise DemoError(
            message("{generated} generations gave {texts} answers", generated=generated, texts=len(texts))
        )
    return message("one generation answers all of them")


def _generated(nodes: SimulatedNodes) -> int:
    """Chats that the nodes have worked on so far."""
    return sum(nodes.stats(name)["totals"]["requests"] for name in nodes.urls)


def _timed(webui: RunningWebUI, account: Account, question: str) -> tuple[ChatCompletion, float]:
    """The answer to a question, and the seconds that it took."""
    started = time.monotonic()
    with openai_client(webui, account) as client:
        answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
    return answer, time.monotonic() - started


def _told(answer: ChatCompletion) -> dict[str, Any]:
    return (answer.model_extra or {}).get("ollama_pack") or {}


def _text(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""
