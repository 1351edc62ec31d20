"""Which beginnings of prompts a runner still holds, mirrored from what was sent to it.

A prompt is a chain of blocks (tools, then each message); a block's hash covers all before it, so one look
tells whether two prompts begin alike. A long message is several blocks: Open WebUI's prompts for titles and
tags, and for questions about documents, are one message each whose beginning never changes. Were that one
block, no hit would be expected, and what it saves would be taken for a faster GPU. What the model itself has
written is one block: it comes back whole or not at all. A runner keeps one prefix or hundreds; how many, and
how many tokens of them, is learned from exact counts where it reports them, else from evaluation times.
"""

import json
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, NamedTuple

from ollama_pack.routing.decide.view import NO_MATCH, KeptPrefix, PrefixMatch, PromptBlock

MAX_KEPT = 512  # prefixes that a runner is believed to hold at most, and
MAX_LOST = 256  # that it should have lost, and are remembered to learn from
MOST_HOPE = 0.5  # how likely it is that a runner holds more than was seen, and
LEAST_HOPE = 0.05  # from where on nothing is hoped for
MAX_BLOCKS = 512  # of one prompt; what is beyond counts as one block
MISSES_TO_FORGET = 3
MIN_MATCH = 64  # tokens; what evaluating fewer takes cannot be told from noise
WHOLE_BYTES = 600  # of a message; a longer one is several blocks
PIECE_BYTES = 400  # of each of its first blocks, and
PIECE_SHARE = 1 / 8  # of what is before it in the message, where that is more: a book is a hundred blocks
IMAGE_TOKENS = 768  # roughly what an image is to a model, however many bytes it has
_CHAIN_BYTES = 8


def prompt_blocks(
    messages: Iterable[Mapping[str, Any]],
    tools: Sequence[Any] = (),
    bytes_per_token: float = 4.0,
    key: bytes = b"",
) -> tuple[PromptBlock, ...]:
    """The blocks of an OpenAI chat body. Tools come first, as chat templates put them.

    Args:
        messages: the conversation; keys other than role, content, images and tool calls do not matter.
        tools: what the model may call.
        bytes_per_token: of UTF-8 text; what it is really is learned later.
        key: of up to 64 bytes, the same for all workers that share a fleet: without it nobody can tell
            from the hashes whether a guessed prompt was asked.
    """
    parts: list[_Part] = []
    if tools:
        parts += _pieces("tools", json.dumps(list(tools), sort_keys=True, default=str))
    for message in messages:
        text, images = _said(message)
        parts += _pieces(str(message.get("role", "")), text, images)
    if len(parts) > MAX_BLOCKS:
        rest = parts[MAX_BLOCKS - 1 :]
        written = b"\0".join(part.written for part in rest)
        parts[MAX_BLOCKS - 1 :] = [_Part(written, sum(part.images for part in rest))]
    return tuple(_chained(parts, bytes_per_token, key))


class _Part(NamedTuple):
    """What becomes a block: the bytes, how many images are in it, whether the model wrote it."""

    written: bytes
    images: int = 0
    answer: bool = False


def _pieces(role: str, text: str, images: int = 0) -> Iterator[_Part]:
    """A message in pieces. Where they end depends on nothing behind them, so equal beginnings stay equal."""
    written = f"{role}\0{text}".encode(errors="replace")
    if role == "assistant" or len(written) <= WHOLE_BYTES:
        yield _Part(written, images, role == "assistant")
        return
    begins = 0
    while len(written) - begins > WHOLE_BYTES:
        ends = begins + max(PIECE_BYTES, int(begins * PIECE_SHARE))
        yield _Part(written[begins:ends])
        begins = ends
    yield _Part(written[begins:], images)


def _said(message: Mapping[str, Any]) -> tuple[str, int]:
    """A message as text, with hashes in place of its images; and how many these are."""
    kept = {
        key: message[key] for key in ("content", "images", "tool_calls", "tool_call_id") if key in message
    }
    images = 0

    def hashed(value: Any) -> str:
        nonlocal images
        images += 1
        return blake2b(repr(value).encode(errors="replace"), digest_size=_CHAIN_BYTES).hexdigest()

    if isinstance(kept.get("images"), list):
        kept["images"] = list(map(hashed, kept["images"]))
    if isinstance(kept.get("content"), list):
        kept["content"] = [
            {**part, "image_url": hashed(part["image_url"])}
            if isinstance(part, dict) and "image_url" in part
            else part
            for part in kept["content"]
        ]
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, default=str), images


def _chained(parts: Iterable[_Part], bytes_per_token: float, key: bytes) -> Iterator[PromptBlock]:
    chain, tokens = b"", 0.0
    for part in parts:
        chain = blake2b(chain + part.written, digest_size=_CHAIN_BYTES, key=key).digest()
        tokens += len(part.written) / bytes_per_token + IMAGE_TOKENS * part.images
        yield PromptBlock(int.from_bytes(chain), round(tokens), part.answer)


def _held(chains: Container[int], blocks: Sequence[PromptBlock]) -> int:
    """How many of the first blocks are held: equal beginnings stay equal up to some block."""
    low, high = 0, len(blocks)
    if high > 1 and blocks[1].chain not in chains:
        return int(blocks[0].chain in chains)  # most prompts share nothing but the system prompt
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if blocks[middle].chain in chains else (low, middle)
    return low


def _covered(prefix: KeptPrefix, blocks: Sequence[PromptBlock], held: int) -> int:
    """The tokens of a prompt of which so many blocks are held in a prefix, its answer included."""
    hit = blocks[held - 1].upto
    if blocks[held - 1].chain == prefix.last and held < len(blocks) and blocks[held].answer:
        hit += min(prefix.output, blocks[held].upto - hit)
    return hit


@dataclass(frozen=True, slots=True)
class Retention:
    """How much a runner still holds: so many prompts, and so many tokens of them."""

    prompts: int = 1
    tokens: float = math.inf
    hope: float = 0.5  # how likely it is that it holds more than that


@dataclass(frozen=True, slots=True)
class MatchDepth:
    """Where in a mirror the longest match of a prompt lies.

    Attributes:
        depth: how many prompts were used since; -1: there is none.
        tokens: of the match.
        between: tokens of the prompts that were used since.
        held: it should still be there.
    """

    depth: int = -1
    tokens: int = 0
    between: int = 0
    held: bool = True


class PrefixMirror:
    """The prefixes of one runner, the last used last. Times are seconds on the caller's clock.

    Those that it should have lost are remembered as well, to learn from.
    """

    __slots__ = ("_chains", "_kept", "_lost", "_lost_chains", "_tokens", "retention")

    def __init__(self, kept: Iterable[KeptPrefix] = (), retention: Retention | None = None) -> None:
        self.retention = retention or Retention()
        self.restore(tuple(kept))

    def __len__(self) -> int:
        return len(self._kept)

    def oldest(self) -> KeptPrefix | None:
        """What the next new prompt takes the place of; None: there is room."""
        if len(self._kept) < self.retention.prompts and self._tokens < self.retention.tokens:
            return None
        return next(iter(self._kept.values()), None)

    def match(self, blocks: Sequence[PromptBlock], newest: int | None = None) -> PrefixMatch:
        """What it holds of a prompt.

        Args:
            blocks: the prompt.
            newest: count on so many of the last used only; None: on all.
        """
        held = _held(self._chains, blocks)
        if not held and not self._lost:
            return NO_MATCH
        hit, own = 0, False
        if held:
            prefix = self._chains[blocks[held - 1].chain]
            if newest is None or self._depth(prefix) < newest:
                hit = _covered(prefix, blocks, held)
                own = hit >= prefix.tokens or 2 * (hit - prefix.shared) >= prefix.tokens - prefix.shared > 0
        if self._lost and self.retention.hope > LEAST_HOPE and newest is None and len(blocks) > held:
            further = _held(self._lost_chains, blocks)
            if further > held:
                return PrefixMatch(hit, own, round(self.retention.hope * (blocks[further - 1].upto - hit)))
        return PrefixMatch(hit, own)

    def _depth(self, prefix: KeptPrefix) -> int:
        return next((depth for depth, one in enumerate(reversed(self._kept.values())) if one is prefix), -1)

    def depth(self, blocks: Sequence[PromptBlock]) -> MatchDepth:
        """Where the longest match lies, the last used first, and whether it should still be held."""
        held, lost = _held(self._chains, blocks), _held(self._lost_chains, blocks)
        if not held and not lost:
            return MatchDepth()
        chains = self._chains if held >= lost else self._lost_chains
        longest = max(held, lost)
        best = chains[blocks[longest - 1].chain]
        between = 0
        for depth, prefix in enumerate((*reversed(self._kept.values()), *reversed(self._lost.values()))):
            if prefix is best:
                return MatchDepth(depth, _covered(best, blocks, longest), between, held >= lost)
            between += prefix.weight
        return MatchDepth()

    def state(self) -> tuple[KeptPrefix, ...]:
        """All that is remembered, to be given to `restore`."""
        return (*self._lost.values(), *self._kept.values())

    def restore(self, state: Iterable[KeptPrefix]) -> None:
        """What was started since did not happen."""
        self._kept: dict[int, KeptPrefix] = {}
        self._lost: dict[int, KeptPrefix] = {}
        self._chains: dict[int, KeptPrefix] = {}
        self._lost_chains: dict[int, KeptPrefix] = {}
        self._tokens = 0
        for prefix in state:
            self._add(prefix)

    def retain(self, retention: Retention) -> None:
        """It is known better how much the runner holds."""
        self.retention = retention
        back: list[KeptPrefix] = []  # the last used first
        for prefix in reversed(self._lost.values()):
            tokens = self._tokens + prefix.weight
            if len(self._kept) + len(back) >= retention.prompts or tokens > retention.tokens:
                break
            self._tokens = tokens
            back.append(prefix)
        for prefix in back:
            self._remove(prefix, self._lost, self._lost_chains)
            for chain in prefix.chains:
                self._chains.setdefault(chain, prefix)
        if back:
            self._kept = {prefix.last: prefix for prefix in reversed(back)} | self._kept
        self._forget_more()

    def started(self, blocks: Sequence[PromptBlock], now: float, *, shared: int = 0, kind: int = 0) -> None:
        """A prompt went to the runner: it takes the place of the one that it continues, or of the oldest.

        Args:
            blocks: the prompt.
            now: the moment.
            shared: tokens that prompts of others begin with as well.
            kind: as in `KeptPrefix`.
        """
        if not blocks:
            return
        if held := _held(self._chains, blocks):
            before = self._chains[blocks[held - 1].chain]
            if 2 * blocks[held - 1].upto >= before.tokens or before.last == blocks[held - 1].chain:
                self._remove(before, self._kept, self._chains)
                self._tokens -= before.weight
        if lost := self._lost.get(blocks[-1].chain):
            self._remove(lost, self._lost, self._lost_chains)
        chains = {block.chain: block.upto for block in blocks}
        self._add(KeptPrefix(chains, blocks[-1].chain, blocks[-1].upto, 0, now, shared, kind))

    def _add(self, prefix: KeptPrefix) -> None:
        if (known := self._kept.get(prefix.last)) is not None:
            self._remove(known, self._kept, self._chains)
            self._tokens -= known.weight
        self._kept[prefix.last] = prefix
        self._chains.update(dict.fromkeys(prefix.chains, prefix))
        self._tokens += prefix.weight
        self._forget_more()

    def _forget_more(self) -> None:
        retention = self.retention
        while len(self._kept) > 1 and (
            len(self._kept) > retention.prompts or self._tokens > retention.tokens
        ):
            oldest = next(iter(self._kept.values()))
            self._remove(oldest, self._kept, self._chains)
            self._tokens -= oldest.weight
            self._lost.pop(oldest.last, None)
            self._lost[oldest.last] = oldest
            self._lost_chains.update(dict.fromkeys(oldest.chains, oldest))
        while len(self._lost) > MAX_LOST:
            self._remove(next(iter(self._lost.values())), self._lost, self._lost_chains)

    @staticmethod
    def _remove(prefix: KeptPrefix, kept: dict[int, KeptPrefix], index: dict[int, KeptPrefix]) -> None:
        del kept[prefix.last]
        for chain in prefix.chains:
            if index.get(chain) is prefix:
                del index[chain]

    def finished(self, blocks: Sequence[PromptBlock], output: int, now: float) -> None:
        """Its answer is held too, unless the prompt has been overwritten meanwhile."""
        if blocks and (prefix := self._kept.get(blocks[-1].chain)):
            self._tokens -= prefix.weight
            self._remove(prefix, self._kept, self._chains)
            self._add(replace(prefix, output=output, used_at=now))

    def clear(self) -> None:
        """The runner was loaded anew, or somebody else used it."""
        self.restore(())


class RetentionLearner:
    """How much a runner of one (node, weights) holds: one prompt, until more prove to be held.

    An engine keeps a number of prompts (slots) or a number of tokens (a cache of blocks). Which of the two
    ended a prompt's stay follows from what was seen to be held at least as deep.
    """

    def __init__(self) -> None:
        self.retention = Retention()
        self._proved = 1
        self._misses = 0

    def observe(self, where: MatchDepth, hit: float) -> None:
        """Learn from one prompt.

        Args:
            where: its longest match in the mirror.
            hit: the tokens that were in fact reused, as the node reports or its evaluation time shows.
        """
        known = self.retention
        if where.depth < 0 or where.tokens < MIN_MATCH:
            return
        if hit > 0.6 * where.tokens:
            self._misses = 0
            self._proved = max(self._proved, where.depth + 1)
            self.retention = Retention(
                max(known.prompts, min(MAX_KEPT, where.depth + 1)),
                max(known.tokens, where.between),
                known.hope if where.held else MOST_HOPE,
            )
        elif hit < 0.3 * where.tokens and where.held:
            self._misses += 1
            if self._misses >= MISSES_TO_FORGET:
                self._misses = 0
                if where.depth < self._proved // 2:  # more prompts than that were seen to be held
                    self.retention = replace(known, tokens=float(max(MIN_MATCH, where.between)))
                else:
                    self._proved = max(1, where.depth)
                    self.retention = replace(known, prompts=max(1, where.depth))
        elif hit < 0.3 * where.tokens:
            self.retention = replace(known, hope=known.hope / 2)
