"""An answer as it is kept."""

from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from ollama_pack.cache.errors import EntryUnreadableError
from ollama_pack.cache.key import Slot
from ollama_pack.cache.keyring import Keyring

ENTRY_VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete answer: its finish reason is `stop`, and it is not empty. Tool calls are never kept.

    Attributes:
        content: the text.
        reasoning: what the model thought before it; may be empty.
        model: the name that the engine gave itself.
        usage: tokens, rates and durations as the engine told them; None where it told nothing.
        sources: citations, in Open WebUI's form.
        created: Unix time in seconds, on the clock of who generated it.
        seconds: how long the generation took.
    """

    content: str
    reasoning: str = ""
    model: str = ""
    usage: dict[str, Any] | None = None
    sources: list[Any] = field(default_factory=list)
    created: float = 0.0
    seconds: float = 0.0

    @property
    def completion_tokens(self) -> int:
        """How many tokens the model need not generate again."""
        tokens = (self.usage or {}).get("completion_tokens")
        return tokens if isinstance(tokens, int) and tokens > 0 else 0


_TYPES: dict[str, type | tuple[type, ...]] = {
    "content": str,
    "reasoning": str,
    "model": str,
    "usage": (dict, type(None)),
    "sources": list,
    "created": (float, int),
    "seconds": (float, int),
}


def seal_entry(entry: Entry, scope: str, slot: Slot, keyring: Keyring) -> bytes:
    """The entry encrypted, for this scope and slot alone."""
    plain = orjson.dumps({"version": ENTRY_VERSION, **asdict(entry)})
    return keyring.seal_entry(scope, slot.name, plain)


def open_entry(sealed: bytes, scope: str, slot: Slot, keyring: Keyring) -> Entry:
    """The entry again.

    Raises:
        EntryUnreadableError: it was changed, belongs elsewhere, or is of another version.
    """
    try:
        fields = orjson.loads(keyring.open_entry(scope, slot.name, sealed))
    except orjson.JSONDecodeError as error:
        raise EntryUnreadableError("the entry is not JSON") from error
    if not isinstance(fields, dict) or fields.pop("version", None) != ENTRY_VERSION:
        raise EntryUnreadableError("the entry is of another version")
    if fields.keys() != _TYPES.keys() or not all(map(isinstance, map(fields.get, _TYPES), _TYPES.values())):
        raise EntryUnreadableError("the entry has other fields than it should")
    return Entry(**fields)
