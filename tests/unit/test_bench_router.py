"""The pure parts of `bench/router.py`: its clock, its prompts, how chats are played, and its figures."""

import asyncio
from collections.abc import AsyncGenerator
from random import Random
from typing import Any

import pytest

from bench.routing.chats import Asked, Call, Driver, Played
from bench.routing.clock import run_fast
from bench.routing.comparison import Run
from bench.routing.figures import medians_beside_flood, percentile, policy_figures, ratios, reused
from bench.routing.nodes import Shape
from bench.routing.prompts import SYSTEM_TOKENS, Message, question, system_message, title_request
from harness.sim_prompt import PrefixCells, rendered, token_count
from harness.sim_shape import node_row
from harness.sim_text import Draw, answer_to
from harness.sim_time import run_virtually
from harness.virtual_chats import Chat, Turn
from ollama_pack.errors import PackError


def dice() -> Random:
    return Random(1)  # noqa: S311 - seeded on purpose


def tokens(*messages: Message) -> int:
    """How many the simulated node counts, without those that ask for the answer."""
    asking = token_count(rendered([], None, context=8192, vision=False))
    return token_count(rendered(messages, None, context=8192, vision=False)) - asking


@pytest.mark.timeout(60)
def test_a_fast_loop_passes_minutes_in_milliseconds() -> None:
    """Would catch a loop that tells another time than it waits: it would sleep for two hours here."""

    async def nap() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(7200)
        return loop.time() - began

    assert run_fast(nap(), 1e6) >= 7200


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_clock_that_stands_still_is_refused(speed: float) -> None:
    """Would catch a run that never ends."""
    nap = asyncio.sleep(0)
    with pytest.raises(ValueError, match="speed must be above 0"):
        run_fast(nap, speed)
    nap.close()


@pytest.mark.parametrize("wanted", [40, 80, 150, 1650])
def test_a_question_has_the_tokens_that_the_workload_wants(wanted: int) -> None:
    """Would catch a workload other than the one that the virtual benchmark measures."""
    assert tokens(question(dice(), wanted, 83)) == pytest.approx(wanted, abs=1)


def test_a_short_question_is_no_longer_than_asking_takes() -> None:
    """Would catch padding where there is no room for it."""
    assert question(dice(), 8, 12)["content"] == "Answer in 12 words."


def test_the_node_answers_in_as_many_tokens_as_the_question_asks_for() -> None:
    """Would catch answers of a length that the node draws by itself."""
    asked = question(dice(), 200, 83)["content"]
    assert len(answer_to(asked, Draw(80, 0.7, 1))) == 83


def test_chats_with_a_model_begin_alike_and_others_do_not() -> None:
    """Would catch prefixes shared between models, or none within one."""
    assert tokens(system_message("m0")) == pytest.approx(SYSTEM_TOKENS, abs=1)
    assert system_message("m0") == system_message("m0") != system_message("m1")


def test_a_title_call_is_one_that_the_node_knows_and_holds_the_chat() -> None:
    """Would catch title calls that get a long answer, or that cost nothing to evaluate."""
    said = [system_message("m0"), question(dice(), 100, 20), {"role": "assistant", "content": "So it is."}]
    (asked,) = title_request(said)
    assert answer_to(asked["content"], Draw(80, 0.7, 1))[0].startswith('{"title":')
    assert said[1]["content"] in asked["content"]
    assert "So it is." in asked["content"]
    assert said[0]["content"] not in asked["content"]


def test_the_rows_describe_the_nodes_of_the_table() -> None:
    """Would catch nodes that differ from those that the figures are compared with."""
    row = node_row(Shape().rows()[3])
    assert row.name == "gpu3"
    assert [model.load_seconds for model in row.models] == [4.0] * 3
    assert (row.shape.slots, row.shape.max_loaded, row.shape.speed) == (2, 1, 1.0)
    assert (row.shape.prompt_rate, row.shape.decode_rate) == (700.0, 50.0)


class ScriptedWay:
    """Answers after a second, or fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[Call] = []
        self._failing = failing

    async def ask(self, call: Call) -> AsyncGenerator[dict[str, Any], None]:
        self.calls.append(call)
        await asyncio.sleep(1)
        if call.chat == self._failing:
            raise PackError("gone")
        for said in ("answer ", str(len(self.calls))):
            yield {"choices": [{"index": 0, "delta": {"content": said}}]}
        yield {"choices": [], "usage": {}}


def played(way: ScriptedWay, *chats: Chat, titles: bool = True) -> Played:
    """What comes of playing chats, in virtual time."""

    async def nothing() -> None:
        pass

    async def play() -> Played:
        return await Driver(way, titles=titles).play(chats, nothing)

    return run_virtually(play())


TWO_TURNS = (Turn(60, 10, 20.0), Turn(60, 10, 0.0))


def test_a_later_turn_holds_the_answer_that_really_came() -> None:
    """Would catch histories that no node holds: nothing could ever be reused."""
    way = ScriptedWay()
    played(way, Chat(7, 3.0, "m0", TWO_TURNS, "u1"), titles=False)
    first, second = way.calls
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[len(first.messages)] == {"role": "assistant", "content": "answer 1"}
    cells = PrefixCells(2, 1)
    texts = [rendered(call.messages, None, context=8192, vision=False) for call in way.calls]
    cell, _ = cells.take(texts[0])
    cell.busy, cell.text = False, cell.text + "answer 1"
    assert cells.take(texts[1])[1] >= tokens(*first.messages)


def test_a_title_is_asked_for_once_beside_the_chat() -> None:
    """Would catch title calls that hold the person up, come at every turn, or count as people's."""
    way = ScriptedWay()
    told = played(way, Chat(7, 3.0, "m0", TWO_TURNS, "u1"))
    assert [(call.background, len(call.messages)) for call in way.calls] == [
        (False, 2),
        (True, 1),
        (False, 4),
    ]
    assert [(one.background, round(one.came)) for one in told.asked] == [(False, 3), (True, 4), (False, 24)]
    assert [one.waited for one in told.asked] == pytest.approx([1.0, 1.0, 1.0])


def test_a_failed_chat_ends_and_the_others_go_on() -> None:
    """Would catch a failure that is not counted, or that ends the whole run."""
    way = ScriptedWay(failing="1")
    told = played(way, Chat(1, 0.0, "m0", TWO_TURNS, "a"), Chat(2, 0.0, "m0", TWO_TURNS, "b"), titles=False)
    assert [(one.user, one.error, one.waited is None) for one in told.asked] == [
        ("a", "PackError", True),
        ("b", "", False),
        ("b", "", False),
    ]


def test_percentiles_are_values_that_were_measured() -> None:
    """Would catch an index beyond the end, and figures of nothing."""
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 2.0, 3.0, 3.0]
    assert percentile([], 0.5) == 0.0


TOTALS = {"requests": 4, "cold_loads": 1, "prompt_tokens_reused": 300, "prompt_tokens_evaluated": 700}


def test_figures_tell_people_and_titles_apart_and_count_failures() -> None:
    """Would catch title calls in people's figures, and failures that are taken for fast answers."""
    asked = [
        Asked("a", background=False, came=0.0, waited=1.0),
        Asked("a", background=False, came=1.0, waited=3.0),
        Asked("a", background=True, came=2.0, waited=9.0),
        Asked("b", background=False, came=3.0, error="NodeFaultError"),
    ]
    told = policy_figures([Run(Played(asked, [0.1]), TOTALS, [(2_000_000, 3)], (0.1, 0.2))])
    assert (told["ttft_mean"], told["ttft_p95"], told["title_mean"]) == (2.0, 3.0, 9.0)
    assert (told["reused"], told["loads_per_1000"]) == (0.3, 250.0)
    assert told["failures"] == {
        "requests": 4,
        "before_first_token": 1,
        "after_first_token": 0,
        "errors": {"NodeFaultError": 1},
    }
    assert (told["decision_p99_ms"], told["waiting_most"]) == (2.0, 3)


def test_nothing_evaluated_is_nothing_reused() -> None:
    """Would catch a division by zero where no request reached a node."""
    assert reused({"prompt_tokens_reused": 0, "prompt_tokens_evaluated": 0}) == 0.0


def test_ratios_are_ours_to_random_where_both_ran() -> None:
    """Would catch ratios turned round, and a crash where one policy was left out."""
    ours = {"ttft_mean": 1.0, "ttft_p95": 2.0, "loads_per_1000": 10.0}
    theirs = {"ttft_mean": 4.0, "ttft_p95": 20.0, "loads_per_1000": 0.0}
    assert ratios({"ours": ours, "random": theirs}) == {"ttft_mean": 0.25, "ttft_p95": 0.1}
    assert ratios({"ours": ours}) == {}


def test_only_what_came_during_the_flood_counts() -> None:
    """Would catch calm minutes that hide what the flood does to others."""
    flood = [Asked("f", background=False, came=10.0, waited=wait) for wait in (1.0, 30.0)]
    others = [
        Asked(user, background=False, came=came, waited=waited)
        for user, came, waited in (
            ("a", 1.0, 99.0),
            ("a", 12.0, 2.0),
            ("b", 15.0, 6.0),
            ("c", 39.0, 3.0),
            ("c", 41.0, 99.0),
        )
    ]
    told = medians_beside_flood(Played([*flood, *others]), "f", 10.0)
    assert told["medians"] == {"a": 2.0, "b": 6.0, "c": 3.0}
    assert (told["worst_to_others"], told["worst_to_best"], told["others_median"]) == (2.4, 3.0, 3.0)
    assert (told["flooder_median"], told["served_in"]) == (15.5, 30.0)
