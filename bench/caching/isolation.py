"""Tries to get the answer of another history, user, system prompt or model by other words for a question."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from harness.cache_requests import different, random_body
from ollama_pack.cache.key import AnswerBasis, Slot
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.similar import context_slot, promoted_slot, text_slot, wording_slot

KEYRING = Keyring("a secret of the tests, long enough")
ASKED = {"role": "user", "content": "What is the capital of France?"}
AGAIN = {"role": "user", "content": "Hi, can you tell me what the capital of France is, please?"}

Slots = Callable[[AnswerBasis], tuple[Slot | None, ...]]


def slots_of(basis: AnswerBasis) -> tuple[Slot | None, ...]:
    """All places where an answer to a similar question is looked for."""
    return (
        wording_slot(basis, KEYRING),
        promoted_slot(basis, KEYRING),
        context_slot(basis, "an embedder", KEYRING),
        text_slot(basis, KEYRING),
    )


def tried(tries: int, slots: Slots = slots_of, seed: int = 19) -> Mapping[str, int]:
    """How often each kind of other request was tried, and how often it found a place of this one.

    Args:
        tries: of them.
        slots: gives the places of a request.
        seed: of what is drawn.
    """
    dice, found = Random(seed), Counter[str]({"served": 0})
    while found["tries"] < tries:
        body = random_body(dice)
        basis = AnswerBasis("user:1", _asking(body, ASKED), "sha256:1", {"system": "Be brief."})
        here = set(slots(basis)) - {None}
        if not here:
            continue  # it is not for the cache at all
        for kind, other in _others(basis, body, dice).items():
            found["tries"] += 1
            found[kind] += 1
            found["served"] += not here.isdisjoint(slots(other))
    return found


def _others(basis: AnswerBasis, body: dict[str, Any], dice: Random) -> dict[str, AnswerBasis]:
    number = dice.randrange(2, 10**9)
    again = replace(basis, body=_asking(body, AGAIN))
    return {
        "history": replace(basis, body=_asking(different(body, dice), AGAIN)),
        "user": replace(again, scope=dice.choice((f"user:{number}", "group:1", "global"))),
        "system prompt": replace(again, preset={"system": f"Be brief. {number}"}),
        "model": replace(again, digest=f"sha256:{number}"),
    }


def _asking(before: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    return {**before, "messages": [*before["messages"], last]}
