"""Which beginnings of prompts a runner still holds, mirrored from what was sent to it.

A prompt is a chain of blocks (tools, then each message); a block's hash covers all before it, so one look
tells whether two prompts begin alike. A long message is several blocks: Open WebUI's prompts for titles and
tags, and for questions about documents, are one message each whose beginning never changes. Were that one
block, no hit would be expected, and what it saves would be taken for a faster GPU. What the model itself has
written is one block: it comes back whole or not at all. A runner keeps one prefix or several; how many is
learned from the prompt evaluation times that it reports.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from ollama_pack.routing.decide.view import KeptPrefix, PromptBlock

MAX_KEPT = 8  # prefixes remembered of one runner; more are not worth the looking
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


def prefix_hit(prefix: KeptPrefix, blocks: Sequence[PromptBlock]) -> int:
    """How many tokens of a prompt a kept prefix covers.

    The answer that followed the kept prompt is held as well: a prompt that goes on with it reuses it.
    """
    chains = prefix.chains
    if not blocks or blocks[0].chain not in chains:
        return 0
    low, high = 0, len(blocks) - 1  # equal beginnings stay equal up to some block: find it by halves
    if high and blocks[1].chain not in chains:
        high = 0  # most prompts share nothing but the system prompt
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if blocks[middle].chain in chains else (low, middle - 1)
    hit = blocks[low].upto
    if blocks[low].chain == prefix.last and low + 1 < len(blocks) and blocks[low + 1].answer:
        hit += min(prefix.output, blocks[low + 1].upto - hit)
    return hit


def continues(prefix: KeptPrefix, blocks: Sequence[PromptBlock]) -> bool:
    """Whether a prompt is the kept one, or the kept one with more after it: the same chat."""
    return prefix_hit(prefix, blocks) >= prefix.tokens


class PrefixMirror:
    """The prefixes of one runner, the last used first. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._kept: list[KeptPrefix] = []

    def kept(self, keeps: int) -> tuple[KeptPrefix, ...]:
        """What the runner holds if it keeps so many."""
        return tuple(self._kept[:keeps])

    def depth(self, blocks: Sequence[PromptBlock]) -> tuple[int, int]:
        """Where in the list the longest match lies, and its tokens; (-1, 0) without any."""
        hits = [prefix_hit(prefix, blocks) for prefix in self._kept]
        best = max(hits, default=0)
        return (hits.index(best), best) if best else (-1, 0)

    def state(self) -> tuple[KeptPrefix, ...]:
        """All that is remembered, to be given to `restore`."""
        return tuple(self._kept)

    def restore(self, state: Iterable[KeptPrefix]) -> None:
        """What was started since did not happen."""
        self._kept = list(state)

    def started(self, blocks: Sequence[PromptBlock], now: float) -> None:
        """A prompt went to the runner: it takes the place of the one that it continues, or of the oldest."""
        if not blocks:
            return
        own = next((prefix for prefix in self._kept if continues(prefix, blocks)), None)
        if own:
            self._kept.remove(own)
        chains = {block.chain: block.upto for block in blocks}
        self._kept.insert(0, KeptPrefix(chains, blocks[-1].chain, blocks[-1].upto, 0, now))
        del self._kept[MAX_KEPT:]

    def finished(self, blocks: Sequence[PromptBlock], output: int, now: float) -> None:
        """Its answer is held too, unless the prompt has been overwritten meanwhile."""
        for index, prefix in enumerate(self._kept):
            if blocks and prefix.last == blocks[-1].chain:
                self._kept[index] = KeptPrefix(prefix.chains, prefix.last, prefix.tokens, output, now)

    def clear(self) -> None:
        """The runner was loaded anew, or somebody else used it."""
        self._kept.clear()


class KeepsLearner:
    """How many prefixes a runner of one (node, weights) keeps: one, until a deeper one proves to be held."""

    def __init__(self) -> None:
        self.keeps = 1
        self._misses = 0

    def observe(self, depth: int, matched: int, hit: float) -> None:
        """Learn from one prompt.

        Args:
            depth: where in the mirror its longest match lay, 0 the last used; -1: nowhere.
            matched: the tokens of that match.
            hit: the tokens that were in fact reused, as the evaluation time tells.
        """
        if depth < 0 or matched < MIN_MATCH:
            return
        if hit > 0.6 * matched:
            self._misses = 0
            self.keeps = max(self.keeps, depth + 1)
        elif hit < 0.3 * matched and depth < self.keeps:
            self._misses += 1
            if self._misses >= MISSES_TO_FORGET:
                self.keeps, self._misses = max(1, depth), 0
