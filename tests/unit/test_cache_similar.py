"""The key of a wording: the same but for the words of the last message, and nothing else."""

import os
from random import Random
from typing import Any

import pytest

from harness.cache_requests import different, random_body
from ollama_pack.cache.errors import EntryUnreadableError
from ollama_pack.cache.key import AnswerBasis, Slot, slot_of
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.similar import Pointer, last_asked, open_pointer, seal_pointer, wording_slot

KEYRING = Keyring("a secret of the tests, long enough")
TRIES = int(os.environ.get("OLLAMA_PACK_TEST_TRIES", "1000"))
ASKED = {"role": "user", "content": "What is the capital of France?"}
AGAIN = {"role": "user", "content": "Hi, can you tell me what the capital of France is, please?"}


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
    """Would catch an answer that crosses conversations, users or system prompts.

    `OLLAMA_PACK_TEST_TRIES=100000` tries as often as is promised.
    """
    dice = Random(19)  # noqa: S311 - drawn the same each time
    for number in range(TRIES):
        body = random_body(dice)
        here = wording_slot(basis(asking(body, ASKED)), KEYRING)
        assert here == wording_slot(basis(asking(body, AGAIN)), KEYRING)
        if here is None:
            continue  # it is not for the cache at all
        other = different(body, dice)
        assert wording_slot(basis(asking(other, AGAIN)), KEYRING) != here
        elsewhere: dict[str, Any] = dice.choice(
            ({"scope": f"user:{number + 2}"}, {"digest": "sha256:2"}, {"preset": {"system": f"{number}"}})
        )
        assert wording_slot(basis(asking(body, AGAIN), **elsewhere), KEYRING) != here


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": "What is the capital of France?"},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
        {"role": "user", "content": "What is the capital of France?", "images": ["aGk="]},
        {"role": "user", "content": "What is the capital of France?", "name": "Bob"},
        {"role": "user", "content": ""},
    ],
    ids=["assistant", "parts", "images", "name", "empty"],
)
def test_only_a_plain_last_message_of_the_user_has_a_wording(last: dict[str, Any]) -> None:
    """Would catch a picture or a name that is left out of the key."""
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
