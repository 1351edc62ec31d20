"""What a chat has used, as the chunks of its answer tell."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from ollama_pack.budgets.store_sqlite import SqliteBudgetStore
from ollama_pack.budgets.table import BudgetTable, BudgetUser, parse_budgets
from ollama_pack.engines.refusals import Refusal
from ollama_pack.plugins.functions.usage_budgets import _is_browsers_own
from ollama_pack.services.budget_chats import ChatBudget
from ollama_pack.services.budgets import Budgets, BudgetUse, Reservation
from ollama_pack.webui.early_errors import OUTCOME_NOTE, HeldBack


def chat() -> ChatBudget:
    budgets = Budgets(BudgetTable(), None)  # type: ignore[arg-type] # no store is asked
    return ChatBudget(Reservation("t", BudgetUser("u"), ()), budgets, began=0.0)


def chunk(name: str, tokens: int | None = None) -> dict[str, Any]:
    usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
    return {"id": name, "choices": [{"delta": {"content": "a"}}], **usage}


def test_figures_that_come_with_each_chunk_count_once() -> None:
    """Would catch an engine's running totals that are added up."""
    one = chat()
    for second, tokens in enumerate((10, 11, 12), start=5):
        one.take(chunk("a", tokens), float(second))
    one.take(chunk("a"), 8.0)
    use = one.use(9.0)
    assert (use.tokens, use.seconds, use.requests) == (12, 7.0, 1)


def test_rounds_of_an_answer_are_added_up() -> None:
    one = chat()
    for name, second in (("a", 1.0), ("b", 5.0)):
        one.take(chunk(name), second)
        one.take(chunk(name, 10), second + 2)
    use = one.use(20.0)
    assert (use.tokens, use.seconds, use.requests) == (20, 4.0, 1)


@pytest.mark.parametrize(("left", "seconds"), [(False, 2.0), (True, 9.0)], ids=["ended", "left"])
def test_an_answer_without_figures_ends_with_its_last_word(left: bool, seconds: float) -> None:  # noqa: FBT001
    """Would catch the minute after a stream that is paid for, until Python collects its garbage."""
    one = chat()
    for second in (1.0, 3.0):
        one.take(chunk("a"), second)
    use = one.use(10.0, left=left)
    assert (use.seconds, use.tokens, use.requests) == (seconds, 2, 1)


def test_an_outlet_that_comes_late_costs_nothing() -> None:
    """Would catch the time that a title takes, which Open WebUI has made before it calls the outlet."""
    one = chat()
    for second in (1.0, 3.0):
        one.take(chunk("a"), second)
    one.take_whole({}, 10.0)
    assert one.use(11.0).seconds == 2.0


def test_tools_are_no_gpu_time() -> None:
    """Would catch a search of a minute that a user pays for, where the engine reports no figures."""
    one = chat()
    over = {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}
    for name, began in (("a", 1.0), ("b", 63.0)):
        one.take(chunk(name), began)
        one.take({"id": name, **over}, began + 2)
    use = one.use(90.0)
    assert (use.seconds, use.tokens, use.requests) == (4.0, 4, 1)


def test_several_choices_are_one_answer() -> None:
    """Would catch choices that are free once the first one is over, and figures that count twice."""
    one = chat()
    for second, reason in enumerate((None, "stop", None, "stop"), start=1):
        one.take({"id": "a", "choices": [{"delta": {}, "finish_reason": reason}]}, float(second))
    assert one.use(9.0).seconds == 3.0
    one.take({"id": "a", "choices": [], "usage": {"total_tokens": 7}}, 5.0)
    use = one.use(9.0)
    assert (use.seconds, use.tokens) == (4.0, 7)


def test_timings_of_llama_cpp_count_without_usage() -> None:
    """Would catch prompts for nothing: unless usage is asked for, its last chunk has timings alone."""
    one = chat()
    one.take(chunk("a"), 6.0)
    timings = {"cache_n": 10, "prompt_n": 900, "prompt_ms": 5000.0, "predicted_n": 90, "predicted_ms": 1000.0}
    one.take({"id": "a", "choices": [{"delta": {}, "finish_reason": "stop"}], "timings": timings}, 7.0)
    use = one.use(9.0)
    assert (use.seconds, use.tokens, use.requests) == (6.0, 1000, 1)


@pytest.mark.parametrize(("is_routed", "seconds"), [(False, 9.0), (True, 0.0)], ids=["own", "router"])
def test_who_leaves_before_an_answer_pays_the_time_but_no_wait(is_routed: bool, seconds: float) -> None:  # noqa: FBT001
    """Would catch a wait at the router that a user pays for, and a connection's answer for nothing."""
    one = chat()
    one.is_routed = is_routed
    use = one.use(9.0, left=True)
    assert (use.seconds, use.requests) == (seconds, int(seconds > 0))


ANSWER = {"choices": [{"message": {"content": "", "tool_calls": [{}]}}], "usage": {"total_tokens": 7}}


@pytest.mark.parametrize(
    ("status", "body", "noted"),
    [
        (200, ANSWER, {"usage": {"total_tokens": 7}}),
        (
            200,
            {"type": "message", "content": [], "usage": {"output_tokens": 7}},
            {"usage": {"output_tokens": 7}},
        ),
        (200, {"output": [{}], "timings": {"predicted_ms": 9}}, {"usage": {"predicted_ms": 9}}),
        (200, {"status": True, "task_ids": ["a page's chat"]}, {}),
        (200, {"error": {"message": "no"}}, {}),
        (500, ANSWER, {}),
    ],
)
def test_only_whole_answers_are_noted(status: int, body: dict[str, Any], noted: dict[str, Any]) -> None:
    """Would catch an answer that is free, and an error or a page's start of a chat that is not."""
    outcome: dict[str, Any] = {}
    sent: list[Any] = []

    async def send(part: Any) -> None:
        sent.append(part)

    async def answer() -> None:
        held = HeldBack({"path": "/api/chat/completions", "state": {OUTCOME_NOTE: outcome}}, send)
        await held.send({"type": "http.response.start", "status": status})
        await held.send({"type": "http.response.body", "body": orjson.dumps(body)})

    asyncio.run(answer())
    assert outcome == noted
    assert len(sent) == 2


def test_a_background_call_under_way_takes_no_request(tmp_path: Path) -> None:
    """Would catch a user whose last chat is refused while the title of the one before is made."""
    user = BudgetUser("u")

    async def begin() -> list[object]:
        store = SqliteBudgetStore(tmp_path / "budgets.sqlite3")
        budgets = Budgets(parse_budgets("everyone 1 requests/day"), store)
        await budgets.reserve(user, always=True)
        return [await budgets.reserve(user) for _ in range(2)]

    assert [type(found) for found in asyncio.run(begin())] == [Reservation, Refusal]


def test_who_has_used_up_a_day_is_not_told_to_wait_for_a_chat(tmp_path: Path) -> None:
    """Would catch a client that tries again every 15 s until midnight, as a chat holds the month's rest."""
    user = BudgetUser("u")

    async def begin() -> object:
        store = SqliteBudgetStore(tmp_path / "budgets.sqlite3")
        table = parse_budgets("everyone 1 requests/day\neveryone 900 tokens/month")
        budgets = Budgets(table, store, clock=lambda: 1_780_000_000)  # in the middle of a month
        first = await budgets.reserve(user)
        assert isinstance(first, Reservation)
        await budgets.settle(first, BudgetUse(tokens=600))
        await budgets.reserve(user, always=True)
        return await budgets.reserve(user)

    refused = asyncio.run(begin())
    assert isinstance(refused, Refusal)
    assert refused.code == "budget_used_up"


def test_only_the_browsers_own_model_is_the_browsers() -> None:
    """Would catch a client that says so of a model of the server's, to count on no budget."""
    metadata = {"direct": True, "model": {"id": "mine"}}
    assert _is_browsers_own({"model": "mine"}, metadata)
    assert not _is_browsers_own({"model": "llama3:8b"}, metadata)
    assert not _is_browsers_own({"model": "mine"}, {"model": {"id": "mine"}})
