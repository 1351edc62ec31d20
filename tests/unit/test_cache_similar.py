"""The key of a wording: the same but for the words of the last message, and nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from bench.caching.isolation import AGAIN, ASKED, slots_of, tried
from ollama_pack.cache.errors import EntryUnreadableError
from ollama_pack.cache.key import AnswerBasis, Slot, slot_of
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.similar import Pointer, last_asked, open_pointer, seal_pointer, wording_slot

KEYRING = Keyring("a secret of the tests, long enough")


def basis(body: dict[str, Any], **changed: Any) -> AnswerBasis:
    return AnswerBasis(**({"scope": "user:1", "body": body, "digest": "sha256:1"} | changed))


def asking(before: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    return {**before, "messages": [*before["messages"], last]}


def test_other_words_share_a_key_that_no_exact_key_is() -> None:
    """Would catch a tier that never serves, and a wording that reads another request's answer."""
    body = {"model": "llama3:8b", "messages": [{"role": "system", "content": "You are brief."}]}
    one, two = (wording_slot(basis(asking(body, last)), KEYRING) for last in (ASKED, AGAIN))
    assert one is not None
    assert one == two
    assert one != slot_of(basis(asking(body, ASKED)), KEYRING)
    assert one != slot_of(basis(asking(body, {"role": "user", "content": "en § capital of france"})), KEYRING)


def test_another_history_scope_or_model_is_never_served() -> None:
    """Would catch an answer that crosses conversations, users, system prompts or models, by any tier.

    `bench/similar.py --isolation 100000` tries as often as is promised.
    """
    assert tried(1000)["served"] == 0
    unscoped = tried(40, lambda basis: slots_of(replace(basis, scope="user:1")))
    assert unscoped["served"] >= unscoped["user"] > 0  # what is tried finds a key that has a part missing


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": "What is the capital of France?"},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
        {"role": "user", "content": "What is the capital of France?", "images": ["aGk="]},
        {"role": "user", "content": "What is the capital of France?", "name": "Bob"},
        {"role": "user", "content": ""},
        {"role": "user", "content": "What is the capital of France? \ud83d"},
    ],
    ids=["assistant", "parts", "images", "name", "empty", "half a character"],
)
def test_only_a_plain_last_message_of_the_user_has_a_wording(last: dict[str, Any]) -> None:
    """Would catch a picture or a name that is left out of the key, and half an emoji that ends the lookup."""
    assert last_asked({"messages": [last]}) == ""
    assert wording_slot(basis({"model": "llama3:8b", "messages": [last]}), KEYRING) is None


def test_pointer_opens_in_its_own_place_alone() -> None:
    """Would catch a pointer that was moved to another wording, scope or secret."""
    place, leads_to = Slot("a" * 32, "02" + "1" * 64), Slot("a" * 32, "02" + "2" * 64)
    pointer = Pointer(leads_to, "What is it?")
    sealed = seal_pointer(pointer, "user:1", place, KEYRING)
    assert open_pointer(sealed, "user:1", place, KEYRING) == pointer
    for scope, there, keyring in (
        ("user:2", place, KEYRING),
        ("user:1", leads_to, KEYRING),
        ("user:1", place, Keyring("another secret of the tests")),
    ):
        with pytest.raises(EntryUnreadableError):
            open_pointer(sealed, scope, there, keyring)
    entry = KEYRING.seal_entry("user:1", place.name, b'{"version": 1, "content": "Hello"}')
    with pytest.raises(EntryUnreadableError):
        open_pointer(entry, "user:1", place, KEYRING)
