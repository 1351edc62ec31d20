"""Alias tables: how they are read, what they refuse and in which words, in which order their rows answer."""

import string
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.aliases.errors import AliasTableError
from ollama_pack.aliases.facts import RequestFacts
from ollama_pack.aliases.table import (
    MAX_CANDIDATES,
    MAX_CHAIN,
    MAX_NAME_LENGTH,
    MAX_ROWS,
    AliasRow,
    AliasTable,
    parse_table,
)
from ollama_pack.errors import PackError
from unit.reference_aliases import star_text

LONG = "x" * (MAX_NAME_LENGTH + 1)
MANY = ", ".join(f"m{number}" for number in range(MAX_CANDIDATES + 1))
CHAIN = "\n".join(f"a{number} = a{number + 1}" for number in range(MAX_CHAIN + 1))
FULL = "\n".join(f"a{number} = m" for number in range(MAX_ROWS))

# A row alone, and words of the reason against it.
ROWS = {
    "no equals sign": ("gpt-4 llama3", "write it as `alias = model, model [condition,"),
    "bracket left open": ("a = b [vision", "write it as"),
    "text after the bracket": ("a = b [vision] c", "write it as"),
    "two brackets": ("a = b [vision] [tools]", "write it as"),
    "bracket before the equals sign": ("a[vision] = b", "write it as"),
    "no alias": ("= b", "the alias before `=` is missing"),
    "two aliases, with a comma": ("a,b = c", "'a,b' is more than one name"),
    "two aliases, with a space": ("a b = c", "'a b' is more than one name"),
    "no model": ("a =", "a model is missing"),
    "conditions, but no model": ("a = [vision]", "a model is missing"),
    "comma at the end": ("a = b,", "a model is missing"),
    "two commas": ("a = b,,,c", "a model is missing"),
    "space in a model": ("a = b c", "'b c' has a space in it: separate models with commas"),
    "two equals signs": ("a = b = c", "'b = c' has a space in it"),
    "model named twice": ("a = b, c, b", "a model is named twice"),
    "too many models": (f"a = {MANY}", "21 models are named, and at most 20 are tried"),
    "alias too long": (f"{LONG} = b", "… has 257 characters, and a model id has at most 256"),
    "model too long": (f"a = b, {LONG}", "has 257 characters"),
    "invisible character": (
        "a = b\u200b",
        r"'b\u200b' has an invisible character in it: type the name again",
    ),
    "byte order mark": ("\ufeffa = b", r"'\ufeffa' has an invisible character"),
    "star from nowhere": ("a = b*", "the star in 'b*' has no star in the alias"),
    "more stars than text": ("a*b* = c*d*", "'c*d*' has two stars: one can stand for"),
    "unknown condition": (
        "a = b [audio]",
        "unknown condition 'audio': the known ones are vision, tools, context>=N, group=NAME|NAME, quant=",
    ),
    "condition with a value too many": ("a = b [vision=yes]", "unknown condition"),
    "condition torn apart": ("a = b [vi sion]", "unknown condition 'vi sion'"),
    "context with another relation": ("a = b [context<8k]", "unknown condition"),
    "context without a relation": ("a = b [context=8k]", "unknown condition"),
    "context without a number": ("a = b [context>=]", "such as context>=8192 or"),
    "context in megabytes": ("a = b [context>=8M]", "of tokens, such as context>="),
    "context below nothing": ("a = b [context>=-1]", "a number of tokens"),
    "context beyond all bounds": (f"a = b [context>={'9' * 5000}]", "needs a number of tokens"),
    "group without a name": ("a = b [group=]", "group= needs names of groups"),
    "group lost between bars": ("a = b [group=x||y]", "group=staff|teachers, not 'x"),
    "level without a name": ("a = b [quant=]", "quant= needs levels, the preferred one"),
    "level lost at the end": ("a = b [quant=q8_0>]", "quant= needs levels"),
    "levels without an order": ("a = b [quant=q8_0|q4_0]", "not 'q8_0|q4_0'"),
    "levels with a comma": ("a = b [quant=q8_0, q4_0]", "unknown condition 'q4"),
    "the same condition twice": ("a = b [tools, tools]", "'tools' is the second"),
    "two groups apart": (
        "a = b [group=x, group=y]",
        "'group=y' is the second condition of its kind: put both into one",
    ),
}
# Text, number of the row that is wrong, the row as it is quoted, words of the reason.
TABLES = {
    "too many rows": (
        f"{FULL}\nlast = m",
        MAX_ROWS + 1,
        "last = m",
        "a table has at most 1000 rows: use wildcards",
    ),
    "the same alias twice": (
        "a = b\n\n# c\na = d",
        4,
        "a = d",
        "row 1 already answers 'a' in the same case: put both rows' models into one row",
    ),
    "the same case in other words": (
        "a = b [tools, context>=8k]\na = c [context >= 8192, tools]",
        2,
        "a = c [tools, context>=8192]",
        "row 1 already answers 'a' in the same case",
    ),
    "the same but for the preference": ("a* = b\na* = b [quant=q8_0]", 2, "a* = b [quant=q8_0]", "row 1 alr"),
    "alias of itself": ("a = b\nc = d, c", 2, "c = d, c", "the alias leads back to itself: c → c"),
    "aliases in a circle": (
        "x = y\na = b\nb = m, c [tools]\nc = a",
        2,
        "a = b",
        "the alias leads back to itself: a → b → c → a",
    ),
    "chain too deep": (CHAIN, 1, "a0 = a1", "aliases of aliases, 11 deep: 10 is the limit"),
}
REFUSALS = {name: (row, 1, row, reason) for name, (row, reason) in ROWS.items()} | TABLES


@pytest.mark.parametrize(("text", "line", "row", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(text: str, line: int, row: str, reason: str) -> None:
    """Would catch a bad table that is taken, or a refusal without the row, the words of it or the reason."""
    with pytest.raises(AliasTableError) as refused:
        parse_table(text)
    error = refused.value
    assert (error.line, error.row) == (line, row)
    assert reason in error.reason
    assert str(error) == f"row {line} ({row!r}): {error.reason}"


def test_refusal_is_known_to_validators_and_to_callers() -> None:
    """Would catch an error that pydantic does not report, or that `except PackError` misses."""
    assert issubclass(AliasTableError, ValueError)
    assert issubclass(AliasTableError, PackError)


@given(st.text(alphabet=st.sampled_from("ab*=,[]|> \t\n#kq8\u2028\x1c") | st.characters(), max_size=60))
def test_any_text_is_a_table_or_refused(text: str) -> None:
    """Would catch text for which the admin sees another error than ours."""
    with suppress(AliasTableError):
        assert all(row.alias and all(row.candidates) for row in parse_table(text).rows)


def test_limits_are_within_bounds() -> None:
    """Would catch limits that refuse one row, model, letter or step too early."""
    assert len(parse_table(FULL).rows) == MAX_ROWS
    assert len(parse_table(f"a = {MANY.rpartition(',')[0]}").rows[0].candidates) == MAX_CANDIDATES
    assert parse_table(f"{'x' * MAX_NAME_LENGTH} = {'y' * MAX_NAME_LENGTH}").rows
    assert len(parse_table(CHAIN.partition("\n")[2]).rows) == MAX_CHAIN


def test_everything_that_a_row_can_say() -> None:
    """Would catch a part of a row that is lost or misread, with the freest spacing."""
    written = (
        " gpt-* =a ,b:7b,*[ tools,vision , context >= 8 K, group = big staff|x, quant=q8_0 > Q4_K_M ] # note"
    )
    assert parse_table(f"# a note\n\n{written}").rows == (
        AliasRow(
            alias="gpt-*",
            candidates=("a", "b:7b", "*"),
            images=True,
            tools=True,
            min_tokens=8192,
            groups=frozenset({"big staff", "x"}),
            quantizations=("q8_0", "Q4_K_M"),
        ),
    )


def test_rows_are_numbered_as_the_admin_sees_them() -> None:
    """Would catch numbers that skip comments and empty lines."""
    assert [row.line for row in parse_table("\n# x\na = b\r\n\r\nc = d").rows] == [3, 5]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("gpt-4＝llama3：8b，mixtral:8x7b、b【vision】", "gpt-4 = llama3:8b, mixtral:8x7b, b [vision]"),
        ("gpt-＊ = b ［context＞＝8k，tools］ ＃ 注释", "gpt-* = b [tools, context>=8192]"),
        ("模型 ＝ llama3：8b【group＝a｜b】", "模型 = llama3:8b [group=a|b]"),
        ("a = b【group=学生】", "a = b [group=学生]"),
        ("a = 语文、数学：助手【内部】", "a = 语文、数学：助手【内部】"),
        ("a = b [group=【高三】一班，甲]", "a = b [group=【高三】一班，甲]"),
    ],
)
def test_punctuation_of_a_chinese_keyboard(typed: str, meant: str) -> None:
    """Would catch models that nobody has, made of two names, and names that lose a character of their own."""
    assert [row.text for row in parse_table(typed).rows] == [meant]


def test_hash_inside_a_name_is_no_comment() -> None:
    """Would catch a group or a model that is cut off at a # in its name."""
    (row,) = parse_table("a#1 = b#2 [group=c#3] #4").rows
    assert (row.alias, row.candidates, row.groups) == ("a#1", ("b#2",), frozenset({"c#3"}))


NAMES = st.text(alphabet=string.ascii_letters + string.digits + ":/._-@#é模", min_size=1, max_size=12).filter(
    lambda name: not name.startswith("#")
)
GROUPS = st.text(alphabet="abZ é#<>=&'", min_size=1, max_size=8).filter(
    lambda name: name == name.strip() and " #" not in name
)


@st.composite
def any_row(draw: st.DrawFn) -> AliasRow:
    stars = draw(st.integers(0, 2))
    alias = "*".join(draw(st.lists(NAMES, min_size=stars + 1, max_size=stars + 1)))
    candidates = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    if stars:
        candidates.append(draw(st.sampled_from(["*", "x/*"])))
    return AliasRow(
        alias=alias,
        candidates=tuple(candidates),
        images=draw(st.booleans()),
        tools=draw(st.booleans()),
        min_tokens=draw(st.integers(0, 999_999_999)),
        groups=draw(st.frozensets(GROUPS, max_size=3)),
        quantizations=tuple(draw(st.lists(st.sampled_from(["q8_0", "Q4_K_M", "f16"]), max_size=3))),
    )


@given(any_row().filter(lambda row: row.alias not in row.candidates))
def test_row_is_read_as_it_is_written(row: AliasRow) -> None:
    """Would catch notation that says something else than the row, or cannot be read back."""
    (read,) = parse_table(row.text).rows
    assert read == row
    assert read.text == row.text


def rows_for(table: AliasTable, name: str) -> Iterator[str]:
    return (row.candidates[0] for row, _ in table.matching(name))


def test_exact_names_then_longer_wildcards() -> None:
    """Would catch a wildcard that hides what an admin said about one name, or about fewer names."""
    table = parse_table(
        "* = any\ngpt-* = short\n*-turbo-* = seven\ngpt-3.5-* = longer\ngpt-3.5-turbo-16k = exact"
    )
    assert [*rows_for(table, "gpt-3.5-turbo-16k")] == ["exact", "longer", "seven", "short", "any"]


def test_length_of_a_wildcard_is_its_text() -> None:
    """Would catch stars that count as text."""
    table = parse_table("g*t*-* = three\ngpt-* = four\ngpt-4* = five")
    assert [*rows_for(table, "gpt-4")] == ["five", "four", "three"]


@pytest.mark.parametrize("alias", ["gpt-4", "gpt-*"])
def test_rows_that_ask_for_more_come_first(alias: str) -> None:
    """Would catch a plain row that hides a special one because it was written before it."""
    conditions = ["", "[tools]", "[context>=8k]", "[context>=32k]", "[vision]", "[vision, group=x]"]
    text = "\n".join(f"{alias} = m{number} {said}" for number, said in enumerate(conditions))
    assert [*rows_for(parse_table(text), "gpt-4")] == ["m5", "m3", "m2", "m1", "m4", "m0"]


@pytest.mark.parametrize("aliases", [("a*", "*b"), ("*b", "a*")])
def test_wildcards_of_one_length_keep_their_order(aliases: tuple[str, str]) -> None:
    """Would catch an order of equals that the admin cannot see, such as the alphabet's."""
    table = parse_table("".join(f"{alias} = {number}\n" for number, alias in enumerate(aliases)))
    assert [*rows_for(table, "ab")] == ["0", "1"]


def test_first_star_takes_as_much_as_it_can() -> None:
    """Would catch another text in the place of the star than the documentation says."""
    table = parse_table("*-* = *")
    assert [star for _, star in table.matching("a-b-c")] == ["a-b"]


@given(
    st.lists(
        st.text("ab*", min_size=1, max_size=6).filter(lambda text: "*" in text), max_size=5, unique=True
    ),
    st.text("ab", max_size=8),
)
def test_wildcards_match_as_their_letters_say(aliases: list[str], name: str) -> None:
    """Would catch a pattern that misses or takes too much: against a matcher that goes letter by letter."""
    table = AliasTable(tuple(AliasRow(alias, ("m",)) for alias in aliases))
    expected = {alias: star for alias in aliases if (star := star_text(alias, name)) is not None}
    assert {row.alias: star for row, star in table.matching(name)} == expected


def test_wildcards_are_no_regular_expressions() -> None:
    """Would catch dots and brackets in a wildcard that stand for something else."""
    table = AliasTable((AliasRow("gpt-3.5(a|b)+*", ("m",)),))
    assert not [*table.matching("gpt-3x5a")]
    assert [*table.matching("gpt-3.5(a|b)+\nx")]


def test_wildcard_with_many_stars_ends() -> None:
    """Would catch backtracking that grows with every star: this would outlast the universe."""
    table = parse_table(f"{'*a' * 60}b = m")
    assert not [*table.matching("a" * 256)]


def test_uses_groups() -> None:
    """Would catch a look into the database for tables that ask for no group, or none for those that do."""
    assert not parse_table("a = b [vision]\nc* = d").uses_groups
    assert parse_table("a = b\nc* = d [group=x]").uses_groups


@pytest.mark.parametrize(
    ("condition", "facts", "applies"),
    [
        ("vision", RequestFacts("a", images=True), True),
        ("vision", RequestFacts("a", tools=True, tokens=9999, groups=frozenset("x")), False),
        ("tools", RequestFacts("a", tools=True), True),
        ("tools", RequestFacts("a", images=True), False),
        ("context>=100", RequestFacts("a", tokens=100), True),
        ("context>=100", RequestFacts("a", tokens=99), False),
        ("group=x|y", RequestFacts("a", groups=frozenset("yz")), True),
        ("group=x|y", RequestFacts("a", groups=frozenset("XZ")), False),
        ("vision, tools", RequestFacts("a", images=True), False),
        ("vision, tools", RequestFacts("a", images=True, tools=True), True),
        ("quant=q8_0", RequestFacts("a"), True),
    ],
)
def test_conditions(condition: str, facts: RequestFacts, applies: bool) -> None:  # noqa: FBT001 - a table of cases
    """Would catch a condition that is not asked, or asked of the wrong fact."""
    (row,) = parse_table(f"a = b [{condition}]").rows
    assert row.applies_to(facts) is applies


def test_tables_are_read_once() -> None:
    """Would catch a table that is read again on every request."""
    text = "a = b # as long as it is the same text"
    assert parse_table(text) is parse_table("".join(text))
