"""Tool calls from the pieces of a streamed answer, which engines cut up and number in ways of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ollama_pack.engines.body import object_at, text_or_empty


@dataclass(slots=True)
class PendingCall:
    """A tool call of which more may come."""

    index: object
    id: str = ""
    name: str = ""
    arguments: str = ""

    def take(self, fragment: Mapping[str, Any]) -> None:
        """Add what is new."""
        function = object_at(fragment, "function")
        self.id = self.id or text_or_empty(fragment.get("id"))
        self.name = self.name or text_or_empty(function.get("name"))
        self.arguments += text_or_empty(function.get("arguments"))


@dataclass(slots=True)
class PendingCalls:
    """The tool calls of one answer so far."""

    calls: list[PendingCall] = field(default_factory=list)

    def take(self, fragment: Mapping[str, Any]) -> None:
        """Add to the last call of the same index, or begin a new one.

        Some engines number all calls 0 and tell them apart by their ids, others leave the index out.
        """
        index, identity = fragment.get("index"), text_or_empty(fragment.get("id"))
        if index is None:
            named = identity or object_at(fragment, "function").get("name")
            known = None if named or not self.calls else self.calls[-1]
        else:
            known = next((call for call in reversed(self.calls) if call.index == index), None)
        if known is None or (identity and known.id and identity != known.id):
            known = PendingCall(index)
            self.calls.append(known)
        known.take(fragment)

    def whole(self, answer: str) -> list[dict[str, Any]]:
        """The calls as OpenAI has them, once nothing more comes; the answer's id is for calls without one."""
        return [
            {
                "index": number,
                "id": call.id or f"call_{answer}_{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for number, call in enumerate(self.calls)
        ]
