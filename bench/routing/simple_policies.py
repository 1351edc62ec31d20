"""Policies that pick a node at once and for good, over simulated nodes in virtual time.

Each sees what a router in front of the nodes would see: what it has sent, and what has come back.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from harness.virtual_chats import Call, Done
from ollama_pack.routing.decide.view import PromptBlock
from ollama_pack.routing.plan.virtual_fleet import Job, SimNode, Timeline

SIMPLE = ("random", "round robin", "least busy", "sticky")
BLOCKS_PER_PREFIX = 40  # blocks that a router remembers of a node, for each prefix that the node keeps
MATCH_SHARE = 0.5  # of a prompt's blocks: from there on cache-aware goes by the match, as SGLang's does
MOST_AHEAD = 8  # requests that a node may have more than the idlest, and
MOST_TIMES = 1.5  # as a multiple, before cache-aware thinks of the load alone


@dataclass(slots=True)
class Known:
    """What a router knows of a node: the blocks of prompts that it sent there, and what is still to do.

    Attributes:
        remembers: the blocks that it remembers, at most.
        seen: the blocks, the last used last.
        prefill: prompt tokens that the node has still to evaluate, as far as the router knows.
    """

    node: SimNode
    remembers: int
    seen: dict[int, None] = field(default_factory=dict)
    prefill: int = 0

    def matched(self, blocks: Sequence[PromptBlock]) -> int:
        """How many of the first blocks it has seen."""
        return sum(1 for _ in itertools.takewhile(lambda block: block.chain in self.seen, blocks))

    def remember(self, blocks: Sequence[PromptBlock]) -> None:
        """A prompt is sent to it."""
        for block in blocks:
            self.seen.pop(block.chain, None)
            self.seen[block.chain] = None
        while len(self.seen) > self.remembers:
            del self.seen[next(iter(self.seen))]


class Picking:
    """A policy that picks the node at once and for good."""

    def __init__(self, name: str, nodes: Sequence[SimNode], clock: Timeline, seed: int) -> None:
        self._dice = Random(seed)
        self._nodes = nodes
        self._turn = itertools.cycle(nodes)
        self._homes: dict[str, SimNode] = {}
        self._known = [Known(node, BLOCKS_PER_PREFIX * node.shape.prefixes) for node in nodes]
        self._clock = clock
        self._pick: Callable[[Call], SimNode] = {
            "random": lambda _: self._dice.choice(nodes),
            "round robin": lambda _: next(self._turn),
            "least busy": lambda _: self._idlest(),
            "sticky": lambda call: self._homes.setdefault(call.chat, self._dice.choice(nodes)),
            "cache-aware": self._cache_aware,
            "LMetric": self._lmetric,
        }[name]
        self._remembers = name in {"cache-aware", "LMetric"}

    def send(self, call: Call, first_token: Callable[[], None], done: Done) -> None:
        """Send a call to the node that the policy picks."""
        node = self._pick(call)
        began = first_token
        if self._remembers:
            known = next(one for one in self._known if one.node is node)
            new = _new_tokens(known, call)
            known.prefill += new
            known.remember(call.work.blocks)

            def began() -> None:
                known.prefill -= new
                first_token()

        node.submit(Job(call.work, self._clock.now, began, done))

    def _idlest(self) -> SimNode:
        return min(self._nodes, key=lambda node: (node.outstanding, self._dice.random()))

    def _cache_aware(self, call: Call) -> SimNode:
        """The node with the longest match, if that is more than half of the prompt; else the idlest."""
        loads = [node.outstanding for node in self._nodes]
        blocks = call.work.blocks
        matches = [known.matched(blocks) for known in self._known]
        best = max(range(len(matches)), key=lambda place: (matches[place], -loads[place]))
        ahead = loads[best] - min(loads)
        crowded = ahead > MOST_AHEAD and loads[best] > MOST_TIMES * min(loads)
        if matches[best] > MATCH_SHARE * len(blocks) and not crowded:
            return self._nodes[best]
        return self._idlest()

    def _lmetric(self, call: Call) -> SimNode:
        """The least of (new prefill tokens + those that wait at the node) x (requests at the node + 1)."""

        def cost(known: Known) -> tuple[float, float]:
            prefill = _new_tokens(known, call) + known.prefill
            return prefill * (known.node.outstanding + 1), self._dice.random()

        return min(self._known, key=cost).node


def _new_tokens(known: Known, call: Call) -> int:
    matched = known.matched(call.work.blocks)
    return call.work.tokens - (call.work.blocks[matched - 1].upto if matched else 0)
