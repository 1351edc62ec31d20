"""Prompts as a runner sees them, and which of them it still holds."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from harness.ollama_wire import JSON, dumps

CHARS_PER_TOKEN = 4
IMAGE_TOKENS = 768  # what Ollama counts for a picture when it fits a prompt into the context
_END = "<|im_start|>assistant\n"


def token_count(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


def rendered(messages: Sequence[JSON], tools: object, *, context: int, vision: bool) -> str:
    """Return the text of a prompt. When it is too long its oldest messages go, as in Ollama.

    Args:
        messages: of a chat.
        tools: the request's definitions.
        context: tokens that there is room for; system messages and the last message always stay.
        vision: pictures count.
    """
    head = dumps(tools) if tools else ""
    parts = [_rendered_message(message, vision=vision) for message in messages]
    room = context * CHARS_PER_TOKEN - len(head) - len(_END) - sum(map(len, parts))
    for index, message in enumerate(messages[:-1]):
        if room >= 0:
            break
        if message.get("role") != "system":
            room += len(parts[index])
            parts[index] = ""
    return (head + "".join(parts) + _END)[-context * CHARS_PER_TOKEN :]


def _rendered_message(message: JSON, *, vision: bool) -> str:
    images = message.get("images") or () if vision else ()
    pictures = "".join(_rendered_image(image) for image in images)
    calls = dumps(message["tool_calls"]) if message.get("tool_calls") else ""
    return f"<|im_start|>{message.get('role')}\n{pictures}{message.get('content') or ''}{calls}<|im_end|>\n"


def _rendered_image(image: str) -> str:
    digest = hashlib.sha256(image.encode()).hexdigest()
    return digest * (IMAGE_TOKENS * CHARS_PER_TOKEN // len(digest))


@dataclass(slots=True)
class Cell:
    """A place for one prompt with its answer. ``used`` orders cells by when they were last taken."""

    text: str = ""
    busy: bool = False
    used: int = 0


class PrefixCells:
    """The prompts that a runner holds. More cells than slots only where more than one prefix is kept."""

    def __init__(self, slots: int, prefixes: int) -> None:
        self._cells: list[Cell] = []
        self._room = max(slots, prefixes)
        self._keeps_more = prefixes > 1
        self._taken = 0

    def take(self, prompt: str) -> tuple[Cell, int]:
        """Return the cell that now holds this prompt, and how many of its tokens need no evaluation.

        One token is always evaluated: the answer's first follows from it.
        """
        if len(self._cells) < self._room and (self._keeps_more or all(cell.busy for cell in self._cells)):
            self._cells.append(Cell())
        common = {id(cell): _common_length(cell.text, prompt) for cell in self._cells}
        free = [cell for cell in self._cells if not cell.busy]
        best = max(free, key=lambda cell: common[id(cell)])
        longest = common[id(best)]
        if self._keeps_more and longest < len(best.text):
            best = min(free, key=lambda cell: cell.used)
            longest = max(common.values())  # copied from the cell that has it, even one at work
        self._taken += 1
        best.text, best.busy, best.used = prompt, True, self._taken
        return best, min(longest // CHARS_PER_TOKEN, token_count(prompt) - 1)


def _common_length(kept: str, prompt: str) -> int:
    """Return how many characters two texts have in common at their beginning, in few comparisons."""
    if prompt.startswith(kept):
        return len(kept)
    low, high = 0, min(len(kept), len(prompt))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kept[:middle] == prompt[:middle] else (low, middle - 1)
    return low
