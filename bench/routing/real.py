"""Two chats that alternate over two real Ollama processes: what evaluating their prompts takes."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench.routing.chats import Call, Way
from bench.routing.prompts import Message
from bench.routing.ways import OURS, RANDOM, way_of
from local import ollama
from ollama_pack.engines.ollama.stream import completion_of

MODEL = "smollm2:135m"
TURNS = 4
GOAL = 0.2  # of random's prompt evaluation
NANO = 1e-9


def measure_real(seeds: Sequence[int]) -> dict[str, Any]:
    """Seconds of prompt evaluation of all turns after the first, by policy and seed.

    Where no Ollama was built it is said instead.
    """
    folder = ollama.built()
    if folder is None:
        return {"skipped": f"no real Ollama: run scripts/local/real-ollama {ollama.cache_dir()}"}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(ollama.serving(folder)) for name in ("gpu0", "gpu1")}
        asyncio.run(_warm(urls))
        evaluated = {
            policy: [asyncio.run(_alternate(policy, urls, seed)) for seed in seeds]
            for policy in (RANDOM, OURS)
        }
    ratio = sum(evaluated[OURS]) / sum(evaluated[RANDOM])
    return {"model": MODEL, "turns": TURNS, "seconds": evaluated, "ratio": round(ratio, 3), "goal": GOAL}


async def _warm(urls: dict[str, str]) -> None:
    """Both have the model in memory: what is compared is prompts."""
    async with way_of("round robin", urls, 0) as way:
        for _ in urls:
            await _turn(way, "warm", [{"role": "user", "content": "Hello."}])


async def _alternate(policy: str, urls: dict[str, str], seed: int) -> float:
    async with way_of(policy, urls, seed) as way:
        chats = {
            f"{policy} {seed} {subject}": [{"role": "user", "content": _story(policy, seed, subject)}]
            for subject in ("heron", "tortoise")
        }
        seconds = [
            [await _turn(way, chat, messages) for chat, messages in chats.items()] for _ in range(TURNS)
        ]
    return round(sum(map(sum, seconds[1:])), 3)


def _story(policy: str, seed: int, subject: str) -> str:
    """Some 400 tokens that no other run has sent, so that no node holds them yet."""
    named = f"{subject} of {policy} {seed}"
    return f"The {named}: " + " ".join(
        f"{subject} number {number} walks along the river and counts." for number in range(36)
    )


async def _turn(way: Way, chat: str, messages: list[Message]) -> float:
    """Ask, and add the answer: the seconds of prompt evaluation."""
    options = {"num_predict": 8, "temperature": 0, "seed": 1}
    chunks = [chunk async for chunk in way.ask(Call(chat, chat, MODEL, messages, options=options))]
    messages.append(completion_of(chunks)["choices"][0]["message"])
    messages.append({"role": "user", "content": "And then?"})
    return float(chunks[-1]["usage"]["prompt_eval_duration"]) * NANO
