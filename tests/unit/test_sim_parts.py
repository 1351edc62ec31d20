"""The parts of a simulated node that are values and pure functions."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ollama_wire import Model, keep_alive_of
from harness.sim_command import rows_of
from harness.sim_faults import BEFORE, WITHIN, Fault, FaultBook, fault_of
from harness.sim_prompt import CHARS_PER_TOKEN, PrefixCells, rendered, token_count
from harness.sim_records import NodeStats
from harness.sim_shape import INSTANT, NodeShape, node_row
from harness.sim_text import Draw, answer_to

USER = {"role": "user", "content": "x" * 400}
SYSTEM = {"role": "system", "content": "y" * 400}

# --- prefixes


def tokens(count: int, letter: str = "a") -> str:
    return letter * CHARS_PER_TOKEN * count


def hits(slots: int, prefixes: int, *prompts: str) -> list[int]:
    """Return what is held of each prompt, when none overlaps with another."""
    cells = PrefixCells(slots, prefixes)
    found = []
    for prompt in prompts:
        cell, hit = cells.take(prompt)
        cell.busy = False
        found.append(hit)
    return found


@given(st.lists(st.text("ab", max_size=40).filter(bool), min_size=1, max_size=6))
def test_a_hit_is_the_common_beginning(prompts: list[str]) -> None:
    """Would catch a search for the common beginning that ends too early or too late."""
    cells = PrefixCells(slots=1, prefixes=1)
    held = ""
    for prompt in prompts:
        cell, hit = cells.take(prompt)
        cell.busy = False
        common = next((n for n, (a, b) in enumerate(zip(held, prompt, strict=False)) if a != b), None)
        common = min(len(held), len(prompt)) if common is None else common
        assert hit == min(common // CHARS_PER_TOKEN, token_count(prompt) - 1)
        held = prompt


def test_one_token_is_always_evaluated() -> None:
    """Would catch a prompt that costs nothing, from which no engine could go on."""
    assert hits(1, 1, tokens(10), tokens(10)) == [0, 9]


def test_without_overlap_a_second_slot_holds_nothing() -> None:
    """Would catch a simulation kinder than Ollama, which takes the longest beginning, be it one token."""
    a, b = tokens(1) + tokens(9, "b"), tokens(1) + tokens(9, "c")
    assert hits(2, 1, a, b, a) == [0, 1, 1]


def test_with_overlap_each_slot_holds_its_own() -> None:
    """Would catch two requests at once on one prompt's memory."""
    cells = PrefixCells(slots=2, prefixes=1)
    first, _ = cells.take(tokens(10))
    second, hit = cells.take(tokens(10))
    assert (first is second, hit) == (False, 0)
    first.busy = second.busy = False
    assert cells.take(tokens(10))[1] == 9


def test_a_runner_may_remember_more() -> None:
    """Would catch newer engines simulated as old ones; the oldest prompt makes room."""
    a, b, c = (tokens(10, letter) for letter in "abc")
    assert hits(1, 2, a, b, a, b) == [0, 0, 9, 9]
    assert hits(1, 2, a, b, c, b, a) == [0, 0, 0, 9, 0]


def test_what_was_said_is_held_as_well() -> None:
    """Would catch a next turn whose last answer is evaluated anew."""
    cells = PrefixCells(1, 1)
    cell, _ = cells.take(tokens(10))
    cell.text += tokens(5, "b")
    cell.busy = False
    assert cells.take(tokens(10) + tokens(5, "b") + tokens(5, "c"))[1] == 15


# --- prompts


def test_old_messages_go_when_the_context_is_full() -> None:
    """Would catch a prompt longer than its context, or one without its instructions or its question."""
    messages = [SYSTEM, *({"role": "user", "content": f"{number} " * 100} for number in range(9))]
    whole = rendered(messages, None, context=4096, vision=False)
    short = rendered(messages, None, context=256, vision=False)
    assert token_count(whole) > 256 >= token_count(short)
    assert "yyyy" in short
    assert "8 8 8" in short
    assert "0 0 0" not in short


def test_a_message_that_does_not_fit_is_cut() -> None:
    """Would catch more tokens than there is context for."""
    assert token_count(rendered([USER], None, context=10, vision=False)) == 10


def test_pictures_and_tools_are_part_of_a_prompt() -> None:
    """Would catch a picture that costs nothing where it is seen, or something where it is ignored."""
    seen = USER | {"images": ["aGVsbG8="]}
    plain, ignored, looked = (
        token_count(rendered([message], None, context=4096, vision=vision))
        for message, vision in ((USER, True), (seen, False), (seen, True))
    )
    assert plain == ignored == looked - 768
    assert rendered([USER], [{"type": "function"}], context=4096, vision=False).startswith('[{"type"')


# --- text


def draw(*request: object, median: int = 80, spread: float = 0.7) -> Draw:
    return Draw(median, spread, *request)


def test_an_answer_follows_from_its_request() -> None:
    """Would catch runs that cannot be compared, or chats that all get the same answer."""
    first, again, other = (answer_to("Why?", draw(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_lengths_are_spread_about_their_median() -> None:
    """Would catch answers that are all alike, or a median that means nothing."""
    lengths = sorted(len(answer_to("Why?", draw(seed))) for seed in range(500))
    assert 70 <= lengths[250] <= 90
    assert lengths[25] < 40
    assert lengths[475] > 150
    assert {len(answer_to("Why?", draw(seed, spread=0.0))) for seed in range(9)} == {80}


@pytest.mark.parametrize(("said", "length"), [("Write 300 words.", 300), ("in 7 tokens", 7), ("0 words", 1)])
def test_a_question_can_say_how_long(said: str, length: int) -> None:
    """Would catch a benchmark that cannot set the length of an answer through Open WebUI."""
    assert len(answer_to(said, draw(1))) == length


@pytest.mark.parametrize(
    ("form", "key", "several"),
    [
        ('JSON format: { "title": "your concise title here" }', "title", False),
        ('JSON format: { "tags": ["tag1", "tag2", "tag3"] }', "tags", True),
        ('Response must be a JSON object with a "follow_ups" key', "follow_ups", True),
        ('in the format: { "queries": ["query1", "query2"] }', "queries", True),
    ],
)
def test_background_calls_are_short_and_have_their_form(form: str, key: str, *, several: bool) -> None:
    """Would catch titles as long as answers, or chats that stay "New Chat" in the demo."""
    pieces = answer_to(f"### Task:\nDo it.\n{form}\n<chat>Write 500 words</chat>", draw(1))
    (said,) = json.loads("".join(pieces)).items()
    assert (said[0], isinstance(said[1], list), len(pieces) < 15) == (key, several, True)


def test_a_prompt_with_knowledge_is_no_background_call() -> None:
    """Would catch Open WebUI's template for knowledge, which begins alike, taken for a title's."""
    assert len(answer_to("### Task:\nRespond to the user query. Write 60 words", draw(1))) == 60


# --- shapes and rows


def test_the_speed_divides_all_durations() -> None:
    """Would catch a part of a node that does not run faster with the rest."""
    model = Model("a", size=1000)
    slow, fast = NodeShape(load_rate=100.0), NodeShape(load_rate=100.0, speed=10.0)
    for seconds in ("load_seconds", "prompt_seconds", "token_seconds"):
        arguments = [model] if seconds == "load_seconds" else [model, 10]
        assert getattr(slow, seconds)(*arguments) == pytest.approx(10 * getattr(fast, seconds)(*arguments))


def test_a_model_may_have_a_pace_of_its_own() -> None:
    """Would catch a large model that is as fast as a small one."""
    shape = NodeShape(load_rate=100.0, prompt_rate=700.0, decode_rate=50.0, contention=0.5)
    large = Model("a", size=1000, load_seconds=7.0, prompt_rate=70.0, decode_rate=5.0)
    small = Model("b", size=1000)
    assert (shape.load_seconds(large), shape.load_seconds(small)) == (7.0, 10.0)
    assert (shape.prompt_seconds(large, 70), shape.prompt_seconds(small, 70)) == (1.0, 0.1)
    assert (shape.token_seconds(large, 0), shape.token_seconds(small, 2)) == (0.2, 0.04)


def test_the_scripted_shape_takes_no_time_worth_speaking_of() -> None:
    """Would catch every other test made slow."""
    model = Model("a", size=10**12)
    assert INSTANT.load_seconds(model) == INSTANT.token_seconds(model, 5) == 0.0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"slots": 0}, "slots"),
        ({"speed": 0}, "speed"),
        ({"prompt_rate": math.nan}, "prompt_rate"),
        ({"memory": -1}, "memory"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, Any], field: str) -> None:
    """Would catch a division by zero in the middle of a benchmark."""
    with pytest.raises(ValueError, match=rf"^{field} must be .* not "):
        NodeShape(**change)


def test_a_row_names_a_node() -> None:
    """Would catch a key of a command line that is read wrongly."""
    row = node_row(
        "gpu0 models=llama3:8b;size=4.7GB;tools,ns/small;decode_rate=9 "
        "slots=2 speed=10 memory=24GB port=7 gpu=no"
    )
    llama, small = row.models
    assert (row.name, row.port, row.gpu) == ("gpu0", 7, False)
    assert (row.shape.slots, row.shape.speed, row.shape.memory) == (2, 10.0, 24_000_000_000)
    assert (llama.name, llama.size, llama.capabilities) == (
        "llama3:8b",
        4_700_000_000,
        ("completion", "tools"),
    )
    assert (small.name, small.decode_rate, small.capabilities) == ("ns/small", 9.0, ("completion",))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "at least one row"),
        ([""], "expected NAME models="),
        (["models=a"], "expected NAME models="),
        (["gpu0"], "expected NAME models="),
        (["gpu0 models=a slot=2"], "unknown: slot"),
        (["gpu0 models=a;colour=red"], "unknown: colour"),
        (["gpu0 models=a slots=2 slots=3"], "each key=value once"),
        (["gpu0 models=a slots"], "each key=value once"),
        (["gpu0 models=a slots=two"], "slots"),
        (["gpu0 models=a slots=0"], "slots must be at least 1"),
        (["gpu0 models=a memory=2XB"], "2XB"),
        (["gpu0 models=a:b:c"], "not a model name"),
        (["gpu0 models=a", "gpu0 models=a"], "same name"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused(rows: list[str], said: str) -> None:
    """Would catch a benchmark on other nodes than were meant."""
    with pytest.raises(ValueError, match=said):
        rows_of(rows)


# --- faults


def test_the_first_fault_that_concerns_a_request_hits_it() -> None:
    """Would catch a fault at another path or model, or one that goes on after its number of times."""
    book = FaultBook()
    crash, error = Fault("crash", times=2, path="/api/chat", model="llama3"), Fault("error", times=1)
    book.add([crash, error])
    assert book.take("/api/chat", "LLAMA3:latest") is crash
    assert book.take("/api/chat", "mistral") is error
    assert book.take("/api/generate", "llama3") is None
    assert book.take("/api/tags", None) is None
    assert book.active == [crash]
    assert [book.take("/api/chat", "library/llama3") for _ in range(2)] == [crash, None]
    assert book.hits == 3


def test_a_fault_without_a_number_stays_until_it_is_cleared() -> None:
    """Would catch an outage that ends by itself."""
    book = FaultBook()
    hang = Fault("hang")
    book.add([hang])
    assert [book.take("/", None) for _ in range(9)] == [hang] * 9
    book.clear()
    assert book.take("/", None) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "explode"}, "explode"),
        ({"kind": "hang", "often": 3}, "often"),
        ({"kind": "hang", "times": 0}, "times must be at least 1"),
        ({"kind": "slow", "seconds": -1}, "must not be negative"),
        ({"kind": "refuse", "times": 1}, 'use "reset"'),
        ({"kind": "refuse", "path": "/api/chat"}, 'use "reset"'),
        ({}, "kind"),
        ("hang", "dictionary"),
    ],
)
def test_a_fault_that_cannot_be_is_refused(given: object, said: str) -> None:
    """Would catch a mistyped command after which all goes well, as it should not."""
    with pytest.raises(ValueError, match=said):
        fault_of(given)


def test_every_kind_of_fault_has_its_place() -> None:
    """Would catch a new kind that nothing does."""
    assert {"refuse", "hang", "slow", "error", "reset", "html"} == BEFORE
    assert {"crash", "stall", "garbage", "truncated", "no_done"} == WITHIN


# --- records


def test_totals_are_sums_over_the_records() -> None:
    """Would catch a benchmark that counts a hit as work, or loses a request."""
    stats = NodeStats()
    for number in range(3):
        record = stats.begin("/api/chat", "a", float(number))
        record.prompt_tokens, record.hit_tokens, record.output_tokens = 100, 30 * number, 7
        record.loaded = number == 0
    record.outcome = "done"
    totals = stats.totals()
    assert (totals["requests"], totals["running"], totals["done"], totals["cold_loads"]) == (3, 2, 1, 1)
    assert (totals["prompt_tokens_evaluated"], totals["prompt_tokens_reused"]) == (210, 90)
    assert totals["output_tokens"] == 21
    assert [one["number"] for one in stats.last(2)] == [2, 3]
    assert [len(stats.last(count)) for count in (0, 5)] == [0, 3]
    stats.clear()
    assert stats.totals()["requests"] == 0


def test_zero_seconds_are_not_the_default() -> None:
    """Would catch "unload now" read as "five minutes"."""
    assert keep_alive_of("0").total_seconds() == 0.0
    assert keep_alive_of(None).total_seconds() == 300.0
