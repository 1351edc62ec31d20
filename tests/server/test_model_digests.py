"""Which weights a name stands for, asked of real listings."""

import asyncio
from dataclasses import dataclass

from harness.ollama_node import Model, OllamaNode
from ollama_pack.engines.ollama.installed import DigestTimes, ModelDigests, TagSite

PATIENT = DigestTimes(fresh=5, usable=60, wait=10)


@dataclass
class Clock:
    """Seconds that a test sets."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def asking(*sites: TagSite, clock: Clock) -> ModelDigests:
    async def tell() -> list[TagSite]:
        return list(sites)

    return ModelDigests(tell, PATIENT, clock)


def test_digests_of_all_nodes_count() -> None:
    """Would catch a model that is pulled anew on one of two nodes, unnoticed."""
    with (
        OllamaNode([Model("a:1b", digest="1" * 64)]) as one,
        OllamaNode([Model("a:1b", digest="2" * 64)]) as two,
    ):

        async def test() -> None:
            digests = asking(TagSite(one.url), TagSite(two.url), TagSite(one.url, prefix="x"), clock=Clock())
            assert await digests.digest_of("a:1b") == "1" * 64 + "+" + "2" * 64
            assert await digests.digest_of("x.a:1b") == "1" * 64
            assert await digests.digest_of("b:1b") is None

        asyncio.run(test())


def test_what_is_known_is_looked_at_again() -> None:
    """Would catch a digest that is believed for ever, or a question to the nodes with each chat."""
    with OllamaNode([Model("a:1b", digest="1" * 64)]) as node:

        async def test() -> None:
            clock = Clock()
            digests = asking(TagSite(node.url), clock=clock)
            assert await digests.digest_of("a:1b") == "1" * 64
            ((name, _),) = node.models.items()
            node.models[name] = Model("a:1b", digest="2" * 64)
            clock.now += PATIENT.fresh
            assert await digests.digest_of("a:1b") == "1" * 64
            clock.now += 1
            assert await digests.digest_of("a:1b") == "2" * 64

        asyncio.run(test())


def test_nodes_that_do_not_answer_are_believed_for_a_while() -> None:
    """Would catch a cache that is off whenever a node restarts, or answers of weights that nobody knows."""

    async def test(node: OllamaNode) -> None:
        clock = Clock()
        digests = asking(TagSite(node.url), clock=clock)
        known = await digests.digest_of("a:1b")
        assert known
        node.kill()
        clock.now += PATIENT.usable
        assert await digests.digest_of("a:1b") == known
        clock.now += 1
        assert await digests.digest_of("a:1b") is None

    with OllamaNode([Model("a:1b")]) as node:
        asyncio.run(test(node))
