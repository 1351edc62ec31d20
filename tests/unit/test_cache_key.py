"""Keys of cached answers: what makes two requests the same, and what cannot be told apart and is not kept."""

import base64
import copy
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cache_requests import alike, different, random_body
from ollama_pack.cache.canonical import DEEPEST, NotCoveredError, StandIn, canonical_bytes
from ollama_pack.cache.key import AnswerBasis, NotCacheable, Slot, slot_of
from ollama_pack.cache.keyring import Keyring, digest_of

KEYRING = Keyring("a secret of the tests, long enough")
PIXEL = base64.b64encode(b"\x89PNG one pixel").decode()

BODY: dict[str, Any] = {
    "model": "llama3:8b",
    "stream": True,
    "messages": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Hello?"},
    ],
    "options": {"temperature": 0.7, "num_ctx": 4096},
}


def basis(body: dict[str, Any] | None = None, **changed: Any) -> AnswerBasis:
    return AnswerBasis(**({"scope": "user:1", "body": body or BODY, "digest": "sha256:1"} | changed))


def slot(body: dict[str, Any] | None = None, **changed: Any) -> Slot:
    found = slot_of(basis(body, **changed), KEYRING)
    assert isinstance(found, Slot)
    return found


def with_messages(*messages: dict[str, Any]) -> dict[str, Any]:
    return BODY | {"messages": list(messages)}


def user(*parts: Any) -> dict[str, Any]:
    return with_messages({"role": "user", "content": list(parts)})


# Computed with this version of the format. A change of any of them needs another KEY_VERSION: without it, two
# versions of the pack on one Redis would read each other's entries for different requests.
GOLDEN = """
plain  ef7ebb178d0e256d041fc0f2b6303183 023e6de01830885b457e0cfb4e2f3119a36b41e5920bc372db45099e5317a7f153
scope  1007a7fbecbc16533d3e67947dbaeb98 023ab8d8bf8f8a217deab2c5476e81e02db3f5e5454929a185bb21c16933fd37fb
preset ef7ebb178d0e256d041fc0f2b6303183 026fa6dfae0bb20033272a4b1470f0e5507cd338300bd659624d9af6ca1e075279
image  ef7ebb178d0e256d041fc0f2b6303183 02c1c96461d1f40e9bdf944299babfe3505697073d30ecb174dad6ac570405f402
calls  ef7ebb178d0e256d041fc0f2b6303183 02d802d6ae791af0723f64bd2bc2cda35c0cec7b79bcc8b0da90d35fcdd1434cfb
"""
GOLDEN_CASES = {
    "plain": basis(),
    "scope": basis(scope="global"),
    "preset": basis(preset={"system": "é", "temperature": 1}, knowledge=("file:1",)),
    "image": basis(user({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}})),
    "calls": basis(
        with_messages(
            {"role": "assistant", "tool_calls": [{"id": "call_x", "function": {"name": "f"}}]},
            {"role": "tool", "tool_call_id": "call_x", "content": "1"},
        )
    ),
}


@pytest.mark.parametrize("line", GOLDEN.strip().splitlines())
def test_golden_vectors(line: str) -> None:
    """Would catch a change of the key format that forgets to change its version."""
    case, scope, name = line.split()
    assert slot_of(GOLDEN_CASES[case], KEYRING) == Slot(scope, name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def plain(value: Any) -> Any:
    """The value in a form in which Python compares as JSON means it: true is not 1.

    Floats without a fraction are the integers that they equal, as long as all of those are floats.
    """
    if isinstance(value, bool) or value is None:
        return ("constant", str(value))
    if isinstance(value, float) and abs(value) >= 2**53:
        return ("float", value)
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


@given(json_values, json_values)
def test_bytes_are_equal_exactly_when_values_are(one: Any, two: Any) -> None:
    """Would catch two values that share their bytes, such as a list and its text, or true and 1."""
    assert (canonical_bytes(one) == canonical_bytes(two)) == (plain(one) == plain(two))


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=6), st.randoms(use_true_random=False))
def test_order_and_spaces_of_json_mean_nothing(value: dict[str, Any], dice: Any) -> None:
    """Would catch a key that depends on how a client happens to write its JSON."""
    names = list(value)
    dice.shuffle(names)
    shuffled = {name: value[name] for name in names}
    spread = json.loads(json.dumps(shuffled, indent=3, separators=(" , ", " : ")))
    assert canonical_bytes(spread) == canonical_bytes(value)


def as_floats(value: Any) -> Any:
    """The same value with every whole number that a float can be as a float."""
    if isinstance(value, dict):
        return {name: as_floats(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_floats(inner) for inner in value]
    return float(value) if type(value) is int and abs(value) < 2**53 else value


@given(json_values)
def test_numbers_are_the_same_however_they_are_written(value: Any) -> None:
    """Would catch two ways through the code that write one value differently."""
    assert canonical_bytes(as_floats(value)) == canonical_bytes(value)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (0.7, 0.70, True),
        (1, 1.0, True),
        (0, -0.0, True),
        (1e2, 100, True),
        (-1.0, -1, True),
        (1.0, "1.0", False),
        ("null", None, False),
        (2.0**53 - 1, 2**53 - 1, True),
        (2**64, 2**64 + 1, False),
        (-(2**63), -(2**63) - 1, False),
        (2**64, "i10000000000000000", False),
        (2**53, 2**53 + 1, False),
        (10**400, 10**400 + 1, False),
        (0.1, 0.1 + 1e-18, True),  # the same double
        (1, True, False),
        (0, False, False),
        (None, False, False),
        ("1", 1, False),
        ("", None, False),
        ("é", "e\u0301", False),
        ("a", "a ", False),
        (["a", "b"], ["b", "a"], False),
        (["ab"], ["a", "b"], False),
        ([["a"], "b"], [["a", "b"]], False),
        ({"a": {"b": 1}}, {"a": {}, "b": 1}, False),
        ({"a": None}, {}, False),
        (StandIn("call 0"), "call 0", False),
        (StandIn("call 0"), 'x"call 0"', False),
        (StandIn("call 0"), {"text": "call 0"}, False),
        ("\ud83d", "seda0bd", False),
        ("\ud83d", "\ud83e", False),
    ],
)
def test_what_counts_as_the_same_value(one: Any, two: Any, *, same: bool) -> None:
    """Would catch a decision of the table in `canonical.py` that is not kept."""
    assert (canonical_bytes(one) == canonical_bytes(two)) is same


def deep(levels: int) -> Any:
    value: Any = "core"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), b"bytes", {1, 2}, {1: "a"}, {"a": 1, 2: "b"}, {"\ud83d": 1}, deep(300)],
)
def test_what_is_not_json_is_refused(value: Any) -> None:
    """Would catch a value that is left out or guessed, so that two requests look the same."""
    with pytest.raises(NotCoveredError):
        canonical_bytes(value)
    assert isinstance(slot_of(basis(BODY | {"x": value}), KEYRING), NotCacheable)


@pytest.mark.parametrize("count", [1, 32, 33, 1000])
def test_many_names_are_covered_as_few_are(count: int) -> None:
    """Would catch a long object, such as a tool's schema, whose order counts or whose names do not."""
    value = {f"name{number}": number for number in range(count)}
    assert canonical_bytes(dict(reversed(value.items()))) == canonical_bytes(value)
    assert canonical_bytes({**value, "name0": None}) != canonical_bytes(value)
    assert canonical_bytes({"other": 0, **value}) != canonical_bytes(value)


def test_deepest_value_is_covered() -> None:
    """Would catch a limit that is one off, or a recursion that ends in an error."""
    assert canonical_bytes(deep(DEEPEST))


def test_lone_surrogate_is_a_text_of_its_own() -> None:
    """Would catch an emoji cut in half, as browsers send it, that breaks the key or equals another."""
    assert canonical_bytes("\ud83d") != canonical_bytes("?")


IDS = {
    "stream": False,
    "stream_options": {"include_usage": True},
    "keep_alive": "5m",
    "metadata": {"chat_id": "c", "tools": object()},
    "user": "me",
    "id": "m1",
    "chat_id": "c1",
    "session_id": "s1",
    "message_id": "m2",
}


@pytest.mark.parametrize("name", IDS)
def test_ids_are_not_part_of_the_key(name: str) -> None:
    """Would catch a cache that never hits because each request has another id."""
    assert slot(BODY | {name: IDS[name]}) == slot()


def test_ids_of_messages_and_keep_alive_of_options_are_not_part_of_the_key() -> None:
    """Would catch the same inside of the body."""
    body = copy.deepcopy(BODY)
    body["messages"][0]["id"] = "m7"
    body["options"]["keep_alive"] = 60
    assert slot(body) == slot()


MATTERS: dict[str, Any] = {
    "model": "llama3:70b",
    "messages": [{"role": "user", "content": "Hello!"}],
    "options": {"temperature": 0.8, "num_ctx": 4096},
    "temperature": 0.7,
    "seed": 1,
    "stop": ["x"],
    "max_tokens": 5,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_object"},
    "format": "json",
    "think": True,
    "n": 1,
    "a field of next year": 1,
}


@pytest.mark.parametrize("name", MATTERS)
def test_everything_else_is_part_of_the_key(name: str) -> None:
    """Would catch a field that changes the answer and not the key, known or unknown."""
    assert slot(BODY | {name: MATTERS[name]}).name != slot().name


@pytest.mark.parametrize(
    "changed",
    [
        {"scope": "user:2"},
        {"scope": "group:1"},
        {"digest": "sha256:2"},
        {"digest": ""},
        {"preset": {"temperature": 1}},
        {"knowledge": ("file:1",)},
    ],
)
def test_what_is_around_the_body_is_part_of_the_key(changed: dict[str, Any]) -> None:
    """Would catch a re-pulled model, a changed preset or another user that finds the old answer."""
    assert slot(**changed).name != slot().name
    assert (slot(**changed).scope == slot().scope) == ("scope" not in changed)


def test_another_secret_has_other_names() -> None:
    """Would catch names from which somebody without the secret can tell what was asked."""
    other = slot_of(basis(), Keyring("another secret of the tests"))
    assert isinstance(other, Slot)
    assert other.scope != slot().scope
    assert other.name != slot().name


def test_history_matches_exactly() -> None:
    """Would catch a cache that looks at the last message alone."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    last = {"role": "user", "content": "And now?"}
    told = {"role": "assistant", "content": "Hello!"}
    names = {
        slot(with_messages(*messages)).name for messages in ([last], [*turns, last], [turns[0], told, last])
    }
    assert len(names) == 3


def calls(*names: str) -> dict[str, Any]:
    asked = [{"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in names]
    results = [
        {"role": "tool", "tool_call_id": name, "content": str(place)} for place, name in enumerate(names)
    ]
    return with_messages({"role": "assistant", "tool_calls": asked}, *results)


def test_ids_of_tool_calls_are_their_numbers() -> None:
    """Would catch random ids that keep a tool loop out of the cache, or results that change places."""
    assert slot(calls("a", "b")) == slot(calls("x", "y"))
    crossed = calls("a", "b")
    crossed["messages"][1]["tool_call_id"], crossed["messages"][2]["tool_call_id"] = "b", "a"
    assert slot(crossed).name != slot(calls("a", "b")).name


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


def test_images_are_known_by_their_content() -> None:
    """Would catch the same picture that is not recognized, or two that are taken for one."""
    inline = slot(user(image({"url": f"data:image/png;base64,{PIXEL}"})))
    assert slot(user(image(f"data:image/png;base64,{PIXEL}"))) == inline
    assert slot(user(image({"url": f"DATA:image/png;name=x;BASE64,{PIXEL[:8]}\n{PIXEL[8:]}"}))) == inline
    contents = {"/api/v1/files/7/content": digest_of(b"\x89PNG one pixel")}
    assert slot(user(image({"url": "/api/v1/files/7/content"})), contents=contents) == inline
    other = base64.b64encode(b"another").decode()
    assert slot(user(image({"url": f"data:image/png;base64,{other}"}))).name != inline.name
    assert slot(user(image({"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}))).name != inline.name


def test_images_in_ollamas_form() -> None:
    """Would catch pictures of Ollama's own API that are left out of the key."""
    message = {"role": "user", "content": "What?"}
    one = slot(with_messages(message | {"images": [PIXEL]}))
    two = slot(with_messages(message | {"images": [base64.b64encode(b"another").decode()]}))
    assert len({one.name, two.name, slot(with_messages(message)).name}) == 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (user(image({"url": "https://example.org/cat.png"})), "only referred to"),
        (user(image({"url": "/api/v1/files/7/content"})), "only referred to"),
        (user(image({})), "only referred to"),
        (user({"type": "file", "file": {"file_id": "f"}}), "only referred to"),
        (user({"type": "video_url", "video_url": {"url": "https://example.org/v"}}), "only referred to"),
        (user(image({"url": "data:image/png;base64,a"})), "cannot be read"),
        (user(image({"url": "data:image/png"})), "cannot be read"),
        (user(image({"url": "data:image/png;base64,AAAA=BBB"})), "cannot be read"),
        (with_messages({"role": "user", "images": ["https://example.org/cat.png"]}), "only referred to"),
        (with_messages({"role": "user", "images": [7]}), "cannot be read"),
        (BODY | {"messages": ["text"]}, "not an object"),
        (BODY | {"messages": []}, "no messages"),
        (BODY | {"model": ""}, "no model"),
        (BODY | {"n": 2}, "several choices"),
        (BODY | {"logprobs": True}, "log probabilities"),
        (BODY | {"modalities": ["text", "audio"]}, "not text"),
        (BODY | {"previous_response_id": "r"}, "kept by the engine"),
        (BODY | {"web_search_options": {}}, "search"),
        (BODY | {"tools": [{"type": "web_search"}]}, "search"),
    ],
)
def test_what_cannot_be_covered_is_not_kept(body: dict[str, Any], reason: str) -> None:
    """Would catch an answer that depends on what nobody looked at."""
    found = slot_of(basis(body), KEYRING)
    assert isinstance(found, NotCacheable)
    assert reason in found.reason


@pytest.mark.parametrize("changed", [{"digest": None}, {"scope": ""}])
def test_unknown_model_and_unknown_user_are_not_kept(changed: dict[str, Any]) -> None:
    """Would catch answers of a model that may have been pulled anew, or that belong to nobody."""
    assert isinstance(slot_of(basis(**changed), KEYRING), NotCacheable)


@given(st.text(min_size=8), st.text(min_size=8))
def test_name_tells_nothing_of_the_text(text: str, scope: str) -> None:
    """Would catch a prompt or a user's id in a key of the store."""
    found = slot(with_messages({"role": "user", "content": text}), scope=f"user:{scope}")
    assert len(found.name) == 2 + 64
    assert len(found.scope) == 32
    assert set(found.name + found.scope) <= set("0123456789abcdef")


@pytest.mark.parametrize("seed", range(200))
def test_generated_requests_share_a_key_exactly_when_they_are_the_same(seed: int) -> None:
    """Would catch what nobody thought of: bench/cache.py does the same a million times."""
    dice = Random(seed)  # noqa: S311 - a workload, no secret
    body = random_body(dice)
    own = slot_of(basis(body), KEYRING)
    assert own == slot_of(basis(alike(body, dice)), KEYRING)
    assert own != slot_of(basis(different(body, dice)), KEYRING)
