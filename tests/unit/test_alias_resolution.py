"""Which model answers for a name: by example, by property, and against a plain reference."""

from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_pack.aliases.errors import NOT_INSTALLED, NOT_PERMITTED, AliasTableError, AliasUnavailableError
from ollama_pack.aliases.facts import RequestFacts
from ollama_pack.aliases.resolve import Resolution, candidates, resolve
from ollama_pack.aliases.table import AliasRow, AliasTable, parse_table
from ollama_pack.engines.ollama.names import find_model, split_tag
from ollama_pack.errors import PackError
from unit.reference_aliases import NoneLeftError, reference_candidates, reference_resolve

MODELS = {
    "llama3:8b": "Q4_0",
    "llama3:8b-instruct-q8_0": "Q8_0",
    "llama3:70b": "Q4_0",
    "llava:13b": "Q4_0",
    "mistral:latest": "Q4_0",
    "qwen:7b-q4_K_M": "Q4_K_M",
}


def answer(text: str, model: str, models: Mapping[str, str] | None = MODELS, **facts: Any) -> str | None:
    """The model that a table gives for a name, None when it has nothing to say about it."""
    chosen = resolve(parse_table(text), RequestFacts(model, **facts), models)
    return chosen.model if chosen else None


@pytest.mark.parametrize(
    ("text", "name", "model"),
    [
        ("", "gpt-4", None),
        ("gpt-4 = llama3:8b", "gpt-4", "llama3:8b"),
        ("gpt-4 = llama3:8b", "gpt-4o", None),
        ("gpt-4 = llama3:8b", "GPT-4", None),
        ("gpt-4 = llama3:8b", "", None),
        ("gpt-4 = nothing, llama3:70b, llama3:8b", "gpt-4", "llama3:70b"),
        ("gpt-4 = mistral", "gpt-4", "mistral:latest"),
        ("gpt-4 = qwen:7b-q4_k_m", "gpt-4", "qwen:7b-q4_K_M"),
        ("gpt-* = llama3:8b\ngpt-4 = llama3:70b", "gpt-4", "llama3:70b"),
        ("gpt-* = llama3:8b\ngpt-4* = llama3:70b", "gpt-4o", "llama3:70b"),
        ("gpt-* = llama3:8b\ngpt-4 = nothing", "gpt-4", "llama3:8b"),
        ("openai/* = *", "openai/mistral", "mistral:latest"),
        ("openai/* = *", "openai/", None),
        ("*-x = l*3:8b", "lama-x", "llama3:8b"),
        ("*-x = *3:8b", "llama-x", "llama3:8b"),
        ("llama* = llama3:8*, llama3:70b", "llama", "llama3:70b"),
        ("x* = llama3:*, llama3:70b [quant=q8_0]", "x", "llama3:70b"),
        ("*/*-y = *3:8b", "llama/z-y", "llama3:8b"),
        ("a = b\nb = c\nc = llama3:8b", "a", "llama3:8b"),
        ("a = b, llama3:70b\nb = nothing, llama3:8b", "a", "llama3:8b"),
        ("a = b, llama3:70b\nb = llava:13b [vision]", "a", "llama3:70b"),
        ("a = b, llama3:70b\nb* = llama3:8b", "a", "llama3:70b"),
        ("x/* = *\na = llama3:8b", "x/a", "llama3:8b"),
        ("a = llama3:8b [quant=q8_0]", "a", "llama3:8b-instruct-q8_0"),
        ("a = llama3:8b [quant=q2_K]", "a", "llama3:8b"),
        ("a = b [quant=q8_0]\nb = llama3:8b", "a", "llama3:8b"),
    ],
)
def test_name_is_answered_by(text: str, name: str, model: str | None) -> None:
    """Would catch a rule of the table that does not hold: one line for each of them."""
    assert answer(text, name) == model


@pytest.mark.parametrize(
    ("facts", "model"),
    [
        ({}, "llama3:8b"),
        ({"images": True}, "llava:13b"),
        ({"tools": True}, "mistral:latest"),
        ({"tokens": 8191}, "llama3:8b"),
        ({"tokens": 8192}, "llama3:70b"),
        ({"groups": frozenset({"staff"})}, "qwen:7b-q4_K_M"),
        ({"groups": frozenset({"others"})}, "llama3:8b"),
    ],
)
def test_request_decides(facts: dict[str, Any], model: str) -> None:
    """Would catch a condition that does not lead to its row's model."""
    text = """
        gpt-4 = llama3:8b
        gpt-4 = llava:13b [vision]
        gpt-4 = mistral [tools]
        gpt-4 = llama3:70b [context>=8k]
        gpt-4 = qwen:7b-q4_K_M [group=staff|teachers]
    """
    assert answer(text, "gpt-4", **facts) == model


def test_row_whose_condition_does_not_hold_is_not_asked() -> None:
    """Would catch a name that nothing applies to being refused instead of standing for itself."""
    assert answer("gpt-4 = nothing [vision]", "gpt-4") is None


def test_models_that_are_not_known_are_taken_at_their_word() -> None:
    """Would catch a pipeline without a node to ask that refuses every alias."""
    assert answer("gpt-4 = gpt-3, anything [quant=q8_0]\ngpt-3 = more:1b", "gpt-4", models=None) == "more:1b"


def test_denied_models_are_passed_over() -> None:
    """Would catch a model that the user may not use, or a reason that is not the true one."""
    table = parse_table("gpt-4 = nothing, llama3:70b, llama3:8b")
    chosen = resolve(table, RequestFacts("gpt-4"), MODELS, {"llama3:70b"})
    assert chosen == Resolution(
        alias="gpt-4",
        model="llama3:8b",
        row=table.rows[0],
        passed_over=(("nothing", NOT_INSTALLED), ("llama3:70b", NOT_PERMITTED)),
    )
    assert chosen.status == "gpt-4 → llama3:8b"
    assert chosen.why == "nothing is not installed · you may not use llama3:70b"


def test_denied_variant_gives_way_to_the_model_itself() -> None:
    """Would catch a preference that costs the user the answer."""
    table = parse_table("gpt-4 = llama3:8b [quant=q8_0]")
    chosen = resolve(table, RequestFacts("gpt-4"), MODELS, {"llama3:8b-instruct-q8_0"})
    assert chosen
    assert chosen.model == "llama3:8b"


def test_models_are_listed_once_at_most() -> None:
    """Would catch all ids coming from Redis once for each candidate, or although nobody needs them."""
    listed = 0

    class Counting(UserDict[str, str]):
        def __iter__(self) -> Iterator[str]:
            nonlocal listed
            listed += 1
            return super().__iter__()

    models = Counting(MODELS)
    assert answer("a = llama3:8b", "a", models) == "llama3:8b"
    assert listed == 0
    assert answer("a = x, y, z [quant=q8_0]\nb = a, llama3:8b", "b", models) == "llama3:8b"
    assert listed == 1


def test_status_without_detours_is_short() -> None:
    """Would catch empty brackets in the status line."""
    chosen = resolve(parse_table("gpt-4 = llama3:8b"), RequestFacts("gpt-4"), MODELS)
    assert chosen
    assert chosen.status == "gpt-4 → llama3:8b"


def test_nothing_left_says_why() -> None:
    """Would catch an error that does not name each model with its reason and what an admin can do."""
    table = parse_table("gpt-4 = nothing, llama3:8b\ngpt* = less:1b")
    with pytest.raises(AliasUnavailableError) as refused:
        resolve(table, RequestFacts("gpt-4"), MODELS, {"llama3:8b"})
    assert isinstance(refused.value, PackError)
    assert refused.value.alias == "gpt-4"
    assert refused.value.passed_over == (
        ("nothing", NOT_INSTALLED),
        ("llama3:8b", NOT_PERMITTED),
        ("less:1b", NOT_INSTALLED),
    )
    assert str(refused.value) == (
        "No model behind the alias 'gpt-4' can answer: nothing is not installed, you may not use llama3:8b, "
        "less:1b is not installed. An admin can install one (ollama pull nothing), grant access "
        "to it, or change the alias."
    )


# --- by property. Few names, so that rows, models and requests meet often. What examples are made of is made
# once, of one seed: Hypothesis then draws thousands of them in seconds.

ALIASES = ["a", "b", "ab", "a*", "*b", "a*b", "*", "*a*", "b*"]
INSTALLABLE = ["x", "x:1", "x:1-q8_0", "X:1-Q4_0", "x:latest", "y", "y:2", "Y:2-q8_0"]
CANDIDATES = ["a", "b", "ab", *INSTALLABLE]
LEVELS = ["", "Q8_0", "Q4_0"]


def any_row(dice: Random) -> AliasRow:
    alias = dice.choice(ALIASES)
    named = CANDIDATES + ["*", "x:*"] * ("*" in alias)
    asks = dice.random() < 0.5  # the others are plain, as most rows of a real table
    return AliasRow(
        alias=alias,
        candidates=tuple(dice.sample(named, dice.randint(1, 3))),
        images=asks and dice.random() < 0.4,
        tools=asks and dice.random() < 0.4,
        min_tokens=dice.choice([0, 100, 200]) if asks else 0,
        groups=frozenset(dice.sample("gh", asks and dice.randint(0, 2))),
        quantizations=dice.choice([(), (), ("q8_0",), ("q4_0", "q8_0")]),
    )


def any_facts(dice: Random) -> RequestFacts:
    return RequestFacts(
        model=dice.choice([*CANDIDATES, "aab", "b:1", "c"]),
        images=dice.random() < 0.5,
        tools=dice.random() < 0.5,
        tokens=dice.choice([0, 100, 200]),
        groups=frozenset(dice.sample("gh", dice.randint(0, 2))),
    )


dice = Random(3)  # noqa: S311 - no secret is made of it
ROWS = sorted((any_row(dice) for _ in range(400)), key=lambda row: len(row.text))  # the plain ones fail first
FACTS = [any_facts(dice) for _ in range(200)]


def table_of(some: Sequence[AliasRow]) -> AliasTable:
    """A table of as many of the rows as can stand in one, in their order."""
    kept: tuple[AliasRow, ...] = ()
    for row in some:
        try:
            kept = AliasTable((*kept, row)).rows
        except AliasTableError:
            continue
    return AliasTable(kept)


TABLES = st.lists(st.sampled_from(ROWS), max_size=7).map(table_of)
REQUESTS = st.lists(st.sampled_from(FACTS), min_size=5, max_size=5)
MODEL_SETS = st.lists(st.tuples(st.sampled_from(INSTALLABLE), st.sampled_from(LEVELS)), max_size=6).map(dict)
DENIED = st.frozensets(st.sampled_from(INSTALLABLE), max_size=3)
many = settings(max_examples=400, deadline=None)


def outcome(
    table: AliasTable, facts: RequestFacts, models: Mapping[str, str] | None, denied: frozenset[str]
) -> tuple[str, AliasRow] | str | None:
    """What `resolve` says, in a form to compare."""
    try:
        chosen = resolve(table, facts, models, denied)
    except AliasUnavailableError:
        return "unavailable"
    return (chosen.model, chosen.row) if chosen else None


@many
@given(TABLES, REQUESTS, st.none() | MODEL_SETS, DENIED)
def test_answers_as_the_reference_does(
    table: AliasTable, requests: list[RequestFacts], models: dict[str, str] | None, denied: frozenset[str]
) -> None:
    """Would catch an index, an order or a shortcut that answers otherwise than the rules read plainly."""
    for facts in requests:
        try:
            expected: object = reference_resolve(table.rows, facts, models, denied)
        except NoneLeftError:
            expected = "unavailable"
        assert outcome(table, facts, models, denied) == expected
        assert [*candidates(table, facts)] == reference_candidates([*table.rows], facts)


@many
@given(TABLES, REQUESTS, MODEL_SETS, DENIED)
def test_answer_is_there_permitted_and_named(
    table: AliasTable, requests: list[RequestFacts], models: dict[str, str], denied: frozenset[str]
) -> None:
    """Would catch an answer by a model that is missing, denied or not the next one that the table names."""
    for facts in requests:
        named = [*candidates(table, facts)]
        try:
            chosen = resolve(table, facts, models, denied)
        except AliasUnavailableError as error:
            assert list(dict(error.passed_over)) == list(dict(named))  # noqa: PT017 - either is an outcome
            continue
        assert (chosen is None) == (not named)
        if chosen:
            count = len(chosen.passed_over)
            name, row = named[count]
            assert list(dict(chosen.passed_over)) == list(dict(named[:count]))
            assert row == chosen.row
            assert split_tag(name)[0].lower() == split_tag(chosen.model)[0].lower()
            assert chosen.model in models.keys() - denied


@many
@given(TABLES, REQUESTS, MODEL_SETS, DENIED, st.randoms())
def test_order_of_the_models_does_not_matter(
    table: AliasTable,
    requests: list[RequestFacts],
    models: dict[str, str],
    denied: frozenset[str],
    shuffler: Random,
) -> None:
    """Would catch an answer that changes when Ollama lists its models in another order, or by itself."""
    shuffled = list(models.items())
    shuffler.shuffle(shuffled)
    again = AliasTable(table.rows)
    for facts in requests:
        assert outcome(again, facts, dict(shuffled), denied) == outcome(table, facts, models, denied)


def without(table: AliasTable, missing: set[str]) -> AliasTable:
    """The table as if nobody had written these models into it."""
    cut = (
        replace(row, candidates=tuple(name for name in row.candidates if name not in missing))
        for row in table.rows
    )
    return AliasTable(tuple(row for row in cut if row.candidates))


@many
@given(TABLES, REQUESTS, MODEL_SETS)
def test_models_that_are_not_there_make_no_difference(
    table: AliasTable, requests: list[RequestFacts], models: dict[str, str]
) -> None:
    """Would catch a missing model that decides more than that it does not answer."""
    for facts in requests:
        answered = outcome(table, facts, models, frozenset())
        if isinstance(answered, tuple):
            missing = {name for name, _ in candidates(table, facts) if find_model(name, models) is None}
            # a missing name with a preference still stands for its variants
            missing -= {name for row in table.rows if row.quantizations for name in row.candidates}
            again = outcome(without(table, missing), facts, models, frozenset())
            assert again[0] == answered[0] if again else False
