"""The memory and the waiting lines of a simulated node, in virtual time."""

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from harness.ollama_wire import JSON, Model, RefusalError
from harness.sim_pace import TokenTimes
from harness.sim_runner import RunnerOptions, Turn
from harness.sim_scheduler import BUSY, Scheduler
from harness.sim_shape import NodeShape
from harness.sim_time import StuckError, run_virtually

SHAPE = NodeShape(load_rate=1.0, max_loaded=2)
A, B, C = (Model(name, size=4) for name in "abc")


class Used:
    """A scheduler in use: when each request had its runner, and whether it was loaded for it."""

    def __init__(self, shape: NodeShape = SHAPE) -> None:
        self.scheduler = Scheduler(shape)
        self.got: dict[str, tuple[float, bool]] = {}

    def use(self, name: str, model: Model, seconds: float = 0.0, **body: Any) -> Coroutine[Any, Any, None]:
        async def inside() -> None:
            async with self.scheduler.lease(model, body) as lease:
                self.got[name] = (now(), lease.loaded)
                await asyncio.sleep(seconds)

        return inside()

    @property
    def names(self) -> set[str]:
        return {runner.model.name for runner in self.scheduler.loaded.values()}

    def expires_at(self) -> datetime:
        (entry,) = self.scheduler.ps(gpu=True)["models"]
        return datetime.fromisoformat(entry["expires_at"])


def now() -> float:
    return asyncio.get_running_loop().time()


def at(seconds: float, work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    async def later() -> None:
        await asyncio.sleep(seconds)
        await work

    return later()


def play(used: Used, *work: Coroutine[Any, Any, None]) -> Used:
    """Do these things beside each other, and look at what is left when all are done."""

    async def all_of_it() -> None:
        await asyncio.gather(*work)
        await used.scheduler.close()

    run_virtually(all_of_it())
    return used


# --- loading


def test_a_load_takes_its_time_and_only_once() -> None:
    """Would catch a load that costs nothing, or one for each request."""
    used = Used()
    play(used, used.use("first", A), at(1, used.use("meanwhile", A)), at(9, used.use("after", A)))
    assert used.got == {"first": (4.0, True), "meanwhile": (4.0, False), "after": (9.0, False)}
    assert used.scheduler.loads == 1


def test_one_load_blocks_the_others() -> None:
    """Would catch loads side by side, which no Ollama does."""
    used = Used()
    play(used, used.use("a", A), used.use("b", B), at(5, used.use("a again", A)))
    assert used.got == {"a": (4.0, True), "b": (8.0, True), "a again": (5.0, False)}


def test_names_on_the_same_weights_are_one_model() -> None:
    """Would catch a copy that is loaded beside its original."""
    used = Used()
    play(used, used.use("a", A), at(5, used.use("copy", replace(A, name="copy"))))
    assert used.got["copy"] == (5.0, False)
    assert used.names == {"a"}


@pytest.mark.parametrize(
    ("before", "after", "reloads"),
    [
        ({}, {"num_ctx": 4096}, False),
        ({}, {"num_ctx": 2048}, True),
        ({"num_ctx": 8192}, {}, True),
        ({}, {"num_thread": 2}, True),
        ({"num_gpu": 10}, {}, False),
        ({"num_gpu": 10}, {"num_gpu": 11}, True),
        ({"temperature": 0}, {"temperature": 1, "seed": 5, "num_predict": 1}, False),
    ],
)
def test_runner_options_reload(before: JSON, after: JSON, *, reloads: bool) -> None:
    """Would catch an option that reloads where Ollama does not, or the other way round."""
    assert RunnerOptions.asked(A, {"options": after}).served_by(
        RunnerOptions.asked(A, {"options": before})
    ) == (not reloads)
    used = Used()
    play(used, used.use("before", A, options=before), at(5, used.use("after", A, options=after)))
    assert used.got["after"] == ((9.0, True) if reloads else (5.0, False))


def test_a_reload_waits_until_the_runner_is_idle() -> None:
    """Would catch an answer that is cut off by somebody's num_ctx."""
    used = Used()
    play(used, used.use("long", A, 10), at(5, used.use("other", A, options={"num_ctx": 2048})))
    assert used.got["other"] == (18.0, True)


# --- making room


def test_the_idle_model_with_the_shortest_keep_alive_goes() -> None:
    """Would catch the least recently used one going instead."""
    used = Used()
    play(
        used,
        used.use("a", A, keep_alive="10m"),
        at(5, used.use("b", B, keep_alive="5m")),
        at(10, used.use("a again", A)),
        at(11, used.use("b again", B)),
        at(20, used.use("c", C)),
    )
    assert used.got["c"] == (24.0, True)
    assert used.names == {"a", "c"}


def test_an_idle_model_goes_before_a_busy_one() -> None:
    """Would catch a wait for a busy model while an idle one is there."""
    used = Used()
    play(
        used,
        used.use("a", A, 60, keep_alive="1m"),
        at(1, used.use("b", B, keep_alive="1h")),
        at(10, used.use("c", C)),
    )
    assert used.got["c"] == (14.0, True)
    assert used.names == {"a", "c"}


def test_among_busy_models_the_one_with_the_shortest_keep_alive_is_waited_for() -> None:
    """Would catch a load that waits for whichever is idle first, as Ollama does not."""
    used = Used()
    play(
        used,
        used.use("a", A, 50, keep_alive="1m"),
        used.use("b", B, 10, keep_alive="1h"),
        at(10, used.use("c", C)),
    )
    assert used.got["c"] == (58.0, True)
    assert used.names == {"b", "c"}


def test_memory_bounds_what_is_loaded() -> None:
    """Would catch models that do not fit together, or one that is too large and never loaded."""
    big, small = Model("big", size=9_000_000_000), Model("small", size=100_000_000)
    fits = NodeShape(load_rate=math.inf, memory=4_000_000_000)
    used = Used(fits)
    play(used, used.use("big", big), at(1, used.use("small", small)), at(2, used.use("copy", C)))
    assert used.got["big"] == (0.0, True)
    assert used.names == {"small", "c"}


def test_context_takes_memory_for_each_slot() -> None:
    """Would catch a context that costs nothing."""
    loads = []
    for slots in (1, 8):
        used = Used(NodeShape(slots=slots, load_rate=math.inf, memory=500_000_000))
        play(used, used.use("a", A), at(1, used.use("b", B)))
        loads.append(used.names)
    assert loads == [{"a", "b"}, {"b"}]


def test_the_line_has_a_bound_that_loaded_models_do_not_see() -> None:
    """Would catch a 503 for a chat whose model is there, or a line without end."""
    used = Used(replace(SHAPE, max_loaded=1, max_queue=2))

    async def refused() -> None:
        with pytest.raises(RefusalError) as caught:
            await used.use("no", B)
        assert (caught.value.status, caught.value.message) == (503, BUSY)

    waiting = [at(5, used.use(f"b{number}", B)) for number in range(3)]  # one is being served, two wait
    more = [at(6, used.use(f"a{number}", A)) for number in range(9)]
    play(used, used.use("a", A, 20), *waiting, at(6, refused()), *more)
    assert len(used.got) == 1 + 3 + 9


# --- who leaves


def test_a_client_that_leaves_ends_its_load() -> None:
    """Would catch a load that goes on for nobody; those who waited with it load for themselves."""
    used = Used()

    async def leaves() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(used.use("left", A), 1)

    play(used, leaves(), at(0.5, used.use("stays", A)), at(0.75, used.use("other", B)))
    assert used.got == {"other": (5.0, True), "stays": (9.0, True)}


def test_a_client_that_leaves_the_line_loads_nothing() -> None:
    """Would catch an eviction for somebody who is gone."""
    used = Used(replace(SHAPE, max_loaded=1))

    async def leaves() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(used.use("left", B), 1)

    play(used, used.use("a", A), at(1, leaves()), at(8, used.use("a again", A)))
    assert used.got["a again"] == (8.0, False)
    assert used.scheduler.loads == 1


# --- how long a model stays


@pytest.mark.parametrize(
    ("keep_alive", "speed", "seconds"),
    [
        (None, 1.0, 300.0),
        ("90s", 1.0, 90.0),
        (20, 1.0, 20.0),
        (-1, 1.0, math.inf),
        (0, 1.0, 0.0),
        ("90s", 10, 9),
    ],
)
def test_an_idle_model_goes_when_its_time_is_up(keep_alive: object, speed: float, seconds: float) -> None:
    """Would catch memory that is never freed, or freed under a pinned model."""
    used = Used(replace(SHAPE, speed=speed))
    body: JSON = {} if keep_alive is None else {"keep_alive": keep_alive}
    loaded: list[bool] = []

    async def look() -> None:
        await used.use("a", A, **body)
        end = now() + (10**7 if math.isinf(seconds) else seconds)
        for moment in (end - 0.001, end + 0.001):
            await asyncio.sleep(max(0.0, moment - now()))
            loaded.append(bool(used.names))

    play(used, look())
    assert loaded == [seconds > 0, math.isinf(seconds)]


def test_expires_at_moves_when_the_last_request_ends() -> None:
    """Would catch a date that moves while a request runs, or that does not move at the end of one."""
    used = Used(replace(SHAPE, slots=2))
    seen: dict[str, datetime] = {}

    async def look(name: str) -> None:
        seen[name] = used.expires_at()

    play(
        used,
        used.use("first", A, 1, keep_alive=10),
        at(6, used.use("long", A, 30)),
        at(7, used.use("short", A, 5)),
        *(at(when, look(f"at {when}")) for when in (5.5, 8, 20, 37)),
    )
    assert seen["at 5.5"] == seen["at 8"] == seen["at 20"]
    assert (seen["at 37"] - seen["at 20"]).total_seconds() == pytest.approx(36 - 5)


def test_unloading_on_request_waits_for_those_who_use_it() -> None:
    """Would catch an answer that is cut off by `ollama stop`."""
    used = Used()
    names: list[set[str]] = []

    async def look() -> None:
        names.append(used.names)

    play(used, used.use("a", A, 10), at(5, used.scheduler.expire(A)), at(13, look()), at(15, look()))
    assert names == [{"a"}, set()]


# --- slots


def run_turns(shape: NodeShape, model: Model, *turns: tuple[float, str, float]) -> list[tuple[float, Turn]]:
    """Return when each (time, prompt, seconds) had its slot, and what it found."""
    begun: list[tuple[float, Turn]] = []

    async def one(prompt: str, seconds: float) -> None:
        async with scheduler.lease(model, {}) as lease, lease.runner.slot(prompt) as turn:
            begun.append((now(), turn))
            await asyncio.sleep(seconds)

    async def all_of_them() -> None:
        await asyncio.gather(*(at(when, one(prompt, seconds)) for when, prompt, seconds in turns))
        await scheduler.close()

    scheduler = Scheduler(replace(shape, load_rate=math.inf))
    run_virtually(all_of_them())
    return begun


def test_slots_are_given_in_the_order_of_asking() -> None:
    """Would catch a chat that is overtaken for ever."""
    turns = [(0.0, "aaaa", 5.0), (1.0, "bbbb", 5.0), (2.0, "cccc", 5.0), (3.0, "dddd", 5.0)]
    assert [when for when, _ in run_turns(NodeShape(slots=2), A, *turns)] == [0.0, 1.0, 5.0, 6.0]


def test_an_embedding_model_has_one_slot() -> None:
    """Would catch two texts at once where Ollama works on one."""
    model = Model("embed", capabilities=("embedding",))
    turns = [(0.0, "aaaa", 5.0), (1.0, "bbbb", 5.0)]
    assert [when for when, _ in run_turns(NodeShape(slots=2), model, *turns)] == [0.0, 5.0]


# --- the pace of tokens, and the time itself


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (0.0, [(0.0, 1), (1.0, 2), (2.0, 3), (3.0, 4), (4.0, 5)]),
        (2.5, [(0.0, 1), (2.5, 3), (4.0, 5)]),
        (math.inf, [(0.0, 1), (4.0, 5)]),
    ],
)
def test_tokens_come_at_their_rate_however_they_are_gathered(
    least: float, expected: list[tuple[float, int]]
) -> None:
    """Would catch gathering that makes a node slower: the last token and the end come at the same time."""
    seen: list[tuple[float, int]] = []

    async def watch() -> float:
        async for due in TokenTimes(5, 1.0, least):
            seen.append((now(), due))  # noqa: PERF401 - the time matters
        return now()

    assert run_virtually(watch()) == 5.0
    assert seen == expected


def test_tokens_without_a_pause_come_together() -> None:
    """Would catch a division by a pause of zero."""

    async def watch() -> list[int]:
        return [due async for due in TokenTimes(5, 0.0, 0.0)]

    assert run_virtually(watch()) == [5]


def test_virtual_time_does_not_wait_for_nothing() -> None:
    """Would catch a test that hangs where it should fail."""
    with pytest.raises(StuckError):
        run_virtually(asyncio.Event().wait())
