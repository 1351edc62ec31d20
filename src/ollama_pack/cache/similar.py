"""The normalised tier: a second key, by the normal form of the last message, that leads to an answer.

Each answer that is kept is also entered under the key of its wording: the same request with the normal form
in the place of the last message. History, system prompt, files, tools, options, model and scope are in that
key as they are, so they match exactly. What is found there is sealed like an answer, has the same end, goes
with the same chat, and only leads to the slot of the answer: an answer that is gone is not given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import orjson

from ollama_pack.cache.canonical import StandIn, is_unicode
from ollama_pack.cache.errors import EntryUnreadableError
from ollama_pack.cache.key import AnswerBasis, Slot, slot_of
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.normal_form import NORMAL_VERSION, normal_form

POINTER_VERSION = 2
_PLAIN = {"role", "content", "id"}  # what a message has that is nothing but text


class Near(NamedTuple):
    """An answer that was given to the same question in other words.

    Attributes:
        slot: of the answer.
        asked: the question that it was given to.
        similarity: 1 where the normal forms are equal.
        tier: which one found it.
        place: of the pointer of its wording; empty where nobody needs it.
    """

    slot: Slot
    asked: str
    similarity: float = 1.0
    tier: Literal["normalised", "semantic", "promoted"] = "normalised"
    place: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """What is kept under the key of a wording.

    Attributes:
        slot: of the answer; in the same scope. Of a promoted wording, the place of the other one's pointer:
            it leads nowhere once that is gone, and holds none of its words.
        asked: the last message that was answered; of a promoted wording, nothing.
        similarity: of the two questions.
    """

    slot: Slot
    asked: str
    similarity: float = 1.0


def last_asked(body: Mapping[str, Any]) -> str:
    """The text of the last message, when it is a plain one of the user; else empty.

    A text with half a character, as browsers cut emojis, has its exact key alone: it can neither be sealed
    nor embedded.
    """
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "user" or not last.keys() <= _PLAIN:
        return ""
    content = last.get("content")
    return content if isinstance(content, str) and is_unicode(content) else ""


def wording_slot(basis: AnswerBasis, keyring: Keyring) -> Slot | None:
    """The slot of a request's wording; None where its last message has no normal form."""
    form = normal_form(last_asked(basis.body))
    return _slot_with(basis, f"normal form {NORMAL_VERSION}: {form}", keyring) if form else None


def text_slot(basis: AnswerBasis, keyring: Keyring) -> Slot | None:
    """The slot of a question that has no normal form, for its neighbours."""
    return _slot_with(basis, f"text: {last_asked(basis.body)}", keyring)


def promoted_slot(basis: AnswerBasis, keyring: Keyring) -> Slot | None:
    """The slot of a wording that a judge has accepted for another question's answer."""
    asked = last_asked(basis.body)
    words = f"form {NORMAL_VERSION}: {form}" if (form := normal_form(asked)) else f"text: {asked}"
    return _slot_with(basis, f"promoted {words}", keyring)


def with_last(basis: AnswerBasis, asked: str) -> AnswerBasis:
    """The same request with another last message."""
    *before, last = basis.body["messages"]
    return replace(basis, body={**basis.body, "messages": [*before, {**last, "content": asked}]})


def context_slot(basis: AnswerBasis, embedder: str, keyring: Keyring) -> Slot | None:
    """The slot of all questions that are asked in one exact context, for one model of vectors."""
    return _slot_with(basis, f"any question, as seen by {embedder}", keyring)


def _slot_with(basis: AnswerBasis, stands_in: str, keyring: Keyring) -> Slot | None:
    """The slot of a request with something else in the place of its last message's text."""
    *before, last = basis.body["messages"]
    stands = {**last, "content": StandIn(stands_in)}
    slot = slot_of(replace(basis, body={**basis.body, "messages": [*before, stands]}), keyring)
    return slot if isinstance(slot, Slot) else None


def seal_pointer(pointer: Pointer, scope: str, place: Slot, keyring: Keyring) -> bytes:
    """The pointer encrypted, for this scope and place alone."""
    plain = {
        "version": POINTER_VERSION,
        "leads_to": pointer.slot.name,
        "asked": pointer.asked,
        "similarity": pointer.similarity,
    }
    return keyring.seal_entry(scope, place.name, orjson.dumps(plain))


def open_pointer(sealed: bytes, scope: str, place: Slot, keyring: Keyring) -> Pointer:
    """The pointer again.

    Raises:
        EntryUnreadableError: it was changed, belongs elsewhere, or is of another version.
    """
    try:
        fields = orjson.loads(keyring.open_entry(scope, place.name, sealed))
    except orjson.JSONDecodeError as error:
        raise EntryUnreadableError("the pointer is not JSON") from error
    match fields:
        case {
            "version": int(version),
            "leads_to": str(name),
            "asked": str(asked),
            "similarity": float(similarity) | int(similarity),
        } if version == POINTER_VERSION:
            return Pointer(Slot(place.scope, name), asked, float(similarity))
    raise EntryUnreadableError("the pointer is of another version")
