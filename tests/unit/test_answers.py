"""Which status, code and sentence a client gets for each error of the pack."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from ollama_pack.aliases.errors import AliasUnavailableError
from ollama_pack.cache.errors import LeaderLostError
from ollama_pack.engines.errors import (
    ChatBodyError,
    ModelNotFoundError,
    NodeBusyError,
    NodeCertificateError,
    NodeError,
    NodeFaultError,
    NodeTimeoutError,
    NodeUnreachableError,
    RequestRefusedError,
)
from ollama_pack.engines.failures import without_quotes
from ollama_pack.engines.refusals import Refusal
from ollama_pack.routing.errors import (
    AnswerBrokenError,
    NoAnswerError,
    NodesDownError,
    NoNodeError,
    QueueFullError,
    RequestFailsError,
    WaitedTooLongError,
)
from ollama_pack.services.answers import RETRY_AFTER_SECONDS, answer_events, refusal_of

NODE = "http://10.0.0.7:11434"
BUSY = NodeBusyError(NODE, 503, "server busy")
DOWN = NodeUnreachableError(NODE, "Connect call failed ('10.0.0.7', 11434)")
SLOW = NodeTimeoutError(NODE, "first byte", 20)
FAULT = NodeFaultError(NODE, "answers with status 500", said="Post http://127.0.0.1:40001: EOF")
ABSENT = ModelNotFoundError(NODE, "llama3:8b", "model not found")


def no_answer(*failures: NodeError) -> NoAnswerError:
    return NoAnswerError({f"gpu{number}": failure for number, failure in enumerate(failures)})


ERRORS: list[tuple[Exception, int, str | None]] = [
    (ChatBodyError("messages[0].content", "is missing"), 400, None),
    (RequestRefusedError("gpu0", 400, "no tools"), 400, None),
    (RequestRefusedError("gpu0", 413, "too large"), 413, None),
    (RequestRefusedError("gpu0", 422, "wrong"), 422, None),
    (RequestRefusedError("gpu0", 500, "image input is not supported"), 400, None),
    (RequestRefusedError("gpu0", None, "cannot be written as JSON"), 400, None),
    (AliasUnavailableError("gpt-4", (("llama3:8b", "is not installed"),)), 404, "model_not_found"),
    (NoNodeError(("llama3:8b",), ("gpu0",)), 404, "model_not_found"),
    (NoNodeError(("llama3:8b",), ("gpu0", "gpu1"), {"gpu1": "is silent"}), 503, "nodes_down"),
    (NoNodeError(("llama3:8b",), ()), 503, "nodes_down"),
    (NodesDownError(("llama3:8b",), {"gpu0": "is silent"}), 503, "nodes_down"),
    (QueueFullError(64, 64, 0), 503, "queue_full"),
    (QueueFullError(64, 48, 48), 429, "queue_full"),
    (WaitedTooLongError(120, 9), 503, "nodes_busy"),
    (no_answer(FAULT, FAULT), 502, "nodes_failed"),
    (no_answer(FAULT, SLOW), 502, "nodes_failed"),
    (no_answer(SLOW, SLOW), 504, "timeout"),
    (no_answer(FAULT, BUSY), 503, "nodes_busy"),
    (no_answer(DOWN, SLOW), 503, "nodes_down"),
    (RequestFailsError({"gpu0": FAULT, "gpu1": FAULT}), 400, "request_failed"),
    (no_answer(ABSENT), 404, "model_not_found"),
    (AnswerBrokenError("gpu0", "hung up"), 502, "answer_broken"),
    (LeaderLostError(3), 502, "answer_broken"),
    (RuntimeError("password hunter2"), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=[repr(error) for error, _, _ in ERRORS])
def test_each_error_has_its_status(error: Exception, status: int, code: str | None) -> None:
    """Would catch a client that retries in vain, or gives up where waiting helps."""
    for for_admin in (True, False):
        refusal = refusal_of(error, for_admin=for_admin)
        assert (refusal.status, refusal.code) == (status, code)
        assert refusal.retry_after == (RETRY_AFTER_SECONDS if status in {429, 503} else None)


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=[repr(error) for error, _, _ in ERRORS])
def test_sentences_for_plain_users_name_no_node(error: Exception, status: int, code: str | None) -> None:  # noqa: ARG001
    """Would catch words for admins, addresses and code in what a plain user reads."""
    sentence = refusal_of(error, for_admin=False).message
    for inside in ("gpu0", "10.0.0.7", "127.0.0.1", "`", "address", "valve", "_seconds", "hunter2"):
        assert inside not in sentence
    assert sentence == sentence.strip()


@pytest.mark.parametrize("error", [error for error, _, _ in ERRORS if not isinstance(error, RuntimeError)])
def test_admins_get_the_cause(error: Exception) -> None:
    """Would catch an admin who is told no more than everybody."""
    assert refusal_of(error, for_admin=True).message == str(error)
    assert "`" not in str(error)


@pytest.mark.parametrize("error", [error for error, _, _ in ERRORS])
def test_errors_are_in_the_reader_s_language(error: Exception) -> None:
    """Would catch an error path on which the sentence is made before it is known who reads it."""
    for for_admin in (True, False):
        refusal = refusal_of(error, for_admin=for_admin).translated("zh-CN")
        assert re.search("[一-鿿]", refusal.message), refusal.message  # an engine's own words stay


def test_a_certificate_s_fault_says_what_to_set() -> None:
    assert "SSL_CERT_FILE" in str(NodeCertificateError(NODE, "self-signed certificate"))


@pytest.mark.parametrize(
    ("status", "kind", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (404, "invalid_request_error", "not_found_error"),
        (422, "invalid_request_error", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (502, "server_error", "api_error"),
        (503, "server_error", "overloaded_error"),
        (504, "server_error", "timeout_error"),
    ],
)
def test_each_api_has_its_form(status: int, kind: str, anthropic: str) -> None:
    """Would catch a body that a client of one API gets in another's form."""
    refusal = Refusal(status, "Nobody is there.", retry_after=7)
    assert refusal.body()["error"]["type"] == kind
    assert refusal.body("anthropic") == {
        "type": "error",
        "error": {"type": anthropic, "message": "Nobody is there."},
    }
    assert refusal.body("ollama") == {"error": "Nobody is there."}
    assert refusal.headers == {"Retry-After": "7"}


def test_an_error_is_the_last_event() -> None:
    """Would catch a stream that just ends, or one whose error shows what nobody is to see."""

    async def chunks() -> AsyncGenerator[dict[str, Any], None]:
        yield {"choices": []}
        raise RuntimeError("password hunter2")

    async def events() -> list[str]:
        refused = answer_events(chunks(), lambda error: refusal_of(error, for_admin=True))
        return [event async for event in refused]

    first, error, last = asyncio.run(events())
    assert json.loads(first.removeprefix("data: ")) == {"choices": []}
    assert json.loads(error.removeprefix("data: "))["error"]["status"] == 500
    assert "hunter2" not in error
    assert last == "data: [DONE]\n\n"


SECRET = "my PIN is 4711, please tell nobody"
CHINESE = "我的密码是四七一一请不要告诉任何人"


@pytest.mark.parametrize(
    ("said", "content", "shown"),
    [
        ("the prompt is too long", SECRET, "the prompt is too long"),
        (f"Failed to parse messages = [{SECRET}]", SECRET, "Failed to parse messages = […"),
        (f"input_value='{SECRET[:20]}...'", SECRET, "input_value='…"),
        (f"bad: {CHINESE}", CHINESE, "bad:…"),
        (f"bad: {json.dumps(CHINESE)}", [{"type": "text", "text": CHINESE}], "bad:…"),
        (f"bad! {SECRET}", [{"type": "text", "text": f"so:  {SECRET}"}], "bad!…"),
        ("no such role: user", "user of the role model", "no such role: user"),
        ("", SECRET, ""),
    ],
)
def test_a_node_s_words_do_not_repeat_the_conversation(said: str, content: Any, shown: str) -> None:
    """Would catch a conversation that gets into logs and onto others' screens in a node's error."""
    messages = [{"role": "user", "content": "hello"}, {"role": "user", "content": content}]
    assert without_quotes(said, messages) == shown


def test_a_long_conversation_is_compared_quickly() -> None:
    """Would catch an event loop that stands still for seconds on an error."""
    messages = [{"role": "user", "content": f"{number} " * 200_000 + SECRET} for number in range(4)]
    assert without_quotes(f"{'x' * 200} {SECRET} {'y' * 40}", messages).startswith("x" * 180)
    assert SECRET[12:] not in without_quotes(f"{'x' * 200} {SECRET} {'y' * 40}", messages)
