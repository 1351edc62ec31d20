"""Bursts on engines that batch: many requests at once, twice, through ours and straight to the engines.

An engine such as vLLM serves a hundred requests at once. A router that does not know this, or learns it
slowly, makes them wait for nothing. The engines are simulated ones that speak OpenAI's protocol, with and
without `/metrics`, and llama.cpp's own server where its package is installed. All times are real seconds.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

from bench.routing.chats import Call, Way
from bench.routing.prompts import question
from bench.routing.ways import OURS, way_of
from harness.sim_process import simulated_nodes
from local import engine
from ollama_pack.routing.dispatch.pending_chat import RouterSettings

REQUESTS, ENGINES, ENGINE_SLOTS = 120, 2, 128
REAL_REQUESTS, REAL_SLOTS = 16, 8
PROMPT_TOKENS, ANSWER_TOKENS, REAL_ANSWER_TOKENS = 60, 100, 20
REST = 2.0  # seconds between the two bursts
STRAIGHT = "round robin"
USERS = 30

Figures = dict[str, Any]


def measure_bursts(seed: int) -> dict[str, dict[str, Figures]]:
    """Play two bursts on each kind of engine; returns figures by engine and policy."""
    told: dict[str, dict[str, Figures]] = {}
    for name, words in (("with /metrics", "vllm"), ("without /metrics", "vllm-without-metrics")):
        told[f"simulated, {name}"] = {
            policy: _on_simulated(policy, words, seed) for policy in (STRAIGHT, OURS)
        }
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with engine.engine(Path(scratch), REAL_SLOTS) as url:
                told["llama.cpp, 8 slots"] = {
                    policy: asyncio.run(
                        _bursts(
                            policy, {"engine": url}, engine.MODEL, REAL_REQUESTS, REAL_ANSWER_TOKENS, seed
                        )
                    )
                    for policy in (STRAIGHT, OURS)
                }
        except engine.EngineMissingError as error:
            print(f"llama.cpp is left out: {error}")
    return told


def _on_simulated(policy: str, words: str, seed: int) -> Figures:
    pace = f"slots={ENGINE_SLOTS} prompt_rate=8000 decode_rate=40 prefixes=64"
    rows = [f"engine{number} models=m0 engine={words} {pace}" for number in range(ENGINES)]
    with simulated_nodes(*rows) as nodes:
        return asyncio.run(_bursts(policy, nodes.urls, "m0", REQUESTS, ANSWER_TOKENS, seed))


async def _bursts(  # noqa: PLR0913, PLR0917 - each is a fact of its own
    policy: str, urls: Mapping[str, str], model: str, requests: int, words: int, seed: int
) -> Figures:
    settings = RouterSettings(max_queue=4 * requests)
    async with way_of(policy, urls, seed, settings, kind="openai") as way:
        async for _ in way.ask(_call(Random(seed), model, words, 0)):  # connections are there
            pass
        bursts = []
        for number in range(2):
            dice = Random(f"{seed} {number}")
            calls = [_call(dice, model, words, user) for user in range(requests)]
            bursts.append(await asyncio.gather(*(first_token(way, call) for call in calls)))
            await asyncio.sleep(REST)
    return {"first": _summary(bursts[0]), "second": _summary(bursts[1])}


def _call(dice: Random, model: str, words: int, user: int) -> Call:
    messages = (question(dice, PROMPT_TOKENS, words),)
    return Call(f"user {user % USERS}", "", model, messages, options={"num_predict": words})


async def first_token(way: Way, call: Call) -> float:
    """Seconds until the first token; the answer is read to its end."""
    loop = asyncio.get_running_loop()
    began, waited = loop.time(), None
    async with aclosing(way.ask(call)) as chunks:
        async for chunk in chunks:
            if waited is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                waited = loop.time() - began
    return loop.time() - began if waited is None else waited


def _summary(waits: Sequence[float]) -> Figures:
    return {"mean": round(statistics.mean(waits), 3), "worst": round(max(waits), 3)}
