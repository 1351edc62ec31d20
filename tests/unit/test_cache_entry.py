"""Entries at rest: what was sealed opens again, for the same scope, slot and secret alone."""

from dataclasses import asdict, replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.cache.entry import Entry, open_entry, seal_entry
from ollama_pack.cache.errors import EntryUnreadableError
from ollama_pack.cache.key import Slot
from ollama_pack.cache.keyring import Keyring
from ollama_pack.errors import SettingError

KEYRING = Keyring("a secret of the tests, long enough")
SLOT = Slot("a" * 32, "01" + "1" * 64)
ENTRY = Entry(
    content="Hello 👋",
    reasoning="Hm.",
    model="llama3:8b",
    usage={"completion_tokens": 2, "response_token/s": 31.5},
    sources=[{"source": {"name": "a page"}}],
    created=1_700_000_000.5,
    seconds=2.5,
)

texts = st.text()
entries = st.builds(Entry, texts, texts, texts, st.none() | st.dictionaries(texts, st.integers(0, 9)))


@given(entries, texts)
def test_sealed_entry_opens_again(entry: Entry, scope: str) -> None:
    """Would catch a field or a character that is lost at rest."""
    assert open_entry(seal_entry(entry, scope, SLOT, KEYRING), scope, SLOT, KEYRING) == entry


def test_nothing_of_the_text_is_readable() -> None:
    """Would catch an entry that is only signed and not encrypted, and two seals that are alike."""
    sealed = seal_entry(ENTRY, "user:1", SLOT, KEYRING)
    assert b"Hello" not in sealed
    assert b"Hm." not in sealed
    assert sealed != seal_entry(ENTRY, "user:1", SLOT, KEYRING)


def test_every_flipped_bit_is_noticed() -> None:
    """Would catch a byte of the entry that nothing protects."""
    sealed = seal_entry(ENTRY, "user:1", SLOT, KEYRING)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1 << (place % 8)
        with pytest.raises(EntryUnreadableError):
            open_entry(bytes(changed), "user:1", SLOT, KEYRING)


@pytest.mark.parametrize("length", [0, 1, 5, 16, 17, 33, -1])
def test_cut_off_entry_is_noticed(length: int) -> None:
    """Would catch an error of another kind, or half an answer, from half an entry."""
    sealed = seal_entry(ENTRY, "user:1", SLOT, KEYRING)
    with pytest.raises(EntryUnreadableError):
        open_entry(sealed[:length], "user:1", SLOT, KEYRING)


def test_entry_opens_in_its_own_place_alone() -> None:
    """Would catch an answer that can be moved to another user, another request or another secret."""
    sealed = seal_entry(ENTRY, "user:1", SLOT, KEYRING)
    other = Keyring("another secret of the tests")
    for scope, slot, keyring in (
        ("user:2", SLOT, KEYRING),
        ("global", SLOT, KEYRING),
        ("user:1", SLOT._replace(name="01" + "2" * 64), KEYRING),
        ("user:1", SLOT, other),
    ):
        with pytest.raises(EntryUnreadableError):
            open_entry(sealed, scope, slot, keyring)


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"[]",
        b'{"version": 2}',
        b'{"version": 1, "content": "x"}',
        orjson.dumps({"version": 1, **asdict(ENTRY), "content": 7}),
    ],
)
def test_other_content_is_refused(plain: bytes) -> None:
    """Would catch an entry of another version of the pack that ends a chat with an error."""
    sealed = KEYRING.seal_entry("user:1", SLOT.name, plain)
    with pytest.raises(EntryUnreadableError):
        open_entry(sealed, "user:1", SLOT, KEYRING)


def test_records_of_a_stream_open_at_their_place_alone() -> None:
    """Would catch words of a live stream that can be moved, repeated or taken from another answer."""
    cipher = KEYRING.stream_cipher("user:1", SLOT.name, "token")
    sealed = cipher.seal_record(2, b"word")
    assert b"word" not in sealed
    assert KEYRING.stream_cipher("user:1", SLOT.name, "token").open_record(2, sealed) == b"word"
    others = [
        (cipher, 1),
        (KEYRING.stream_cipher("user:2", SLOT.name, "token"), 2),
        (KEYRING.stream_cipher("user:1", "other", "token"), 2),
        (KEYRING.stream_cipher("user:1", SLOT.name, "other"), 2),
    ]
    for other, place in others:
        with pytest.raises(EntryUnreadableError):
            other.open_record(place, sealed)


def test_short_secret_is_refused_without_being_told() -> None:
    """Would catch a guessable secret, or one that an error message shows."""
    with pytest.raises(SettingError, match="has 6 characters and needs 16") as refused:
        Keyring("hunter")
    assert "hunter" not in str(refused.value)


def test_tokens_saved_are_those_that_the_engine_told() -> None:
    """Would catch a wrong type in the figures that breaks a hit."""
    assert ENTRY.completion_tokens == 2
    for usage in (None, {}, {"completion_tokens": "2"}, {"completion_tokens": -1}):
        assert replace(ENTRY, usage=usage).completion_tokens == 0
