"""An alias table: rows of `alias = candidate, candidate [condition, …]`, read once and then only looked up.

For example::

    gpt-4         = mixtral:8x7b, llama3:70b          # the first that can answer
    gpt-4         = llava:13b            [vision]     # asked before the row above: it asks for more
    gpt-4-32k     = qwen2.5:32b          [context>=8k]
    gpt-3.5*      = llama3:8b            [quant=q8_0>q4_K_M]
    openai/*      = *                                 # what the first star matched
    staff-gpt     = mixtral:8x7b         [group=staff|teachers]
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ollama_pack.aliases.errors import AliasTableError
from ollama_pack.aliases.facts import RequestFacts
from ollama_pack.base.messages import message, said_by
from ollama_pack.base.tables import table_rows

MAX_ROWS = 1000
MAX_CANDIDATES = 20
MAX_CHAIN = 10
MAX_NAME_LENGTH = 256  # Open WebUI's own limit on a model id

_ROW = re.compile(r"(?P<alias>[^=\[\]]*)=(?P<candidates>[^\[\]]*)(?:\[(?P<conditions>[^\[\]]*)\])?")
# What a Chinese keyboard types where these tables have punctuation of ASCII.
_WIDE = str.maketrans("，、＝：＊＞｜", ",,=:*>|")  # noqa: RUF001 - on purpose
_OPENINGS, _CLOSINGS = "［【", "］】"  # noqa: RUF001
_PARTS = re.compile(rf"([=＝\[{_OPENINGS}])")  # noqa: RUF001 - before them the alias, the models, the conditions
_CONDITION = re.compile(r"(?P<key>[^<>=]*)(?P<relation>>?=|)(?P<value>.*)")
_TOKENS = re.compile(r"(?P<count>[0-9]{1,9})\s*(?P<kilo>[kK]?)")
_LEVEL = re.compile(r"[\w.-]+")
_KILO = 1024
AUTO = "auto"
_KNOWN_CONDITIONS = "vision, tools, context>=N, group=NAME|NAME, quant=LEVEL>LEVEL, quant=auto"


@dataclass(frozen=True, slots=True)
class AliasRow:
    """One row: who it answers for, when, and with which models.

    Attributes:
        alias: the name that clients ask for; each `*` in it stands for any text.
        candidates: models to answer with, the preferred one first.
        images: the row asks for an image in the request.
        tools: the row asks for tools in the request.
        min_tokens: the row asks for a prompt of at least so many tokens.
        groups: the row asks for a user of one of these groups; empty: anyone.
        quantizations: preferred levels among the installed variants of a candidate; `auto` alone: the best
            that fits each node.
        line: its number in the text, from 1.
    """

    alias: str
    candidates: tuple[str, ...]
    images: bool = False
    tools: bool = False
    min_tokens: int = 0
    groups: frozenset[str] = frozenset()
    quantizations: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)

    @property
    def is_wildcard(self) -> bool:
        return "*" in self.alias

    @property
    def is_automatic(self) -> bool:
        """Whether each node takes the best quantization that fits there."""
        return self.quantizations == (AUTO,)

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the row asks of a request, as it is written between the brackets."""
        asked = (
            "vision" if self.images else "",
            "tools" if self.tools else "",
            f"context>={self.min_tokens}" if self.min_tokens else "",
            f"group={'|'.join(sorted(self.groups))}" if self.groups else "",
        )
        return tuple(filter(None, asked))

    @property
    def text(self) -> str:
        """The row in the table's own notation; parsing it gives the row back."""
        preference = (f"quant={'>'.join(self.quantizations)}",) if self.quantizations else ()
        inside = ", ".join(self.conditions + preference)
        return f"{self.alias} = {', '.join(self.candidates)}" + (f" [{inside}]" if inside else "")

    def applies_to(self, facts: RequestFacts) -> bool:
        """Whether the request has everything that the row asks for."""
        return (
            (facts.images or not self.images)
            and (facts.tools or not self.tools)
            and facts.tokens >= self.min_tokens
            and (not self.groups or not self.groups.isdisjoint(facts.groups))
        )


class AliasTable:
    """Rows, indexed for looking up. Immutable once made; `parse_table` makes it from text."""

    def __init__(self, rows: tuple[AliasRow, ...]) -> None:
        """Check the rows against each other and index them.

        Raises:
            AliasTableError: two rows are the same case of the same alias, or aliases lead back to themselves.
        """
        self.rows = rows
        _refuse_duplicates(rows)
        _refuse_cycles(rows)
        exact: dict[str, list[AliasRow]] = defaultdict(list)
        for row in rows:
            if not row.is_wildcard:
                exact[row.alias].append(row)
        self._exact: Mapping[str, tuple[AliasRow, ...]] = {
            alias: tuple(sorted(same, key=_asks_for_less)) for alias, same in exact.items()
        }
        wildcards = sorted((row for row in rows if row.is_wildcard), key=_shorter_then_asks_for_less)
        self._wildcards = tuple((_pattern(row.alias), row) for row in wildcards)
        any_of_them = "|".join(pattern.pattern for pattern, _ in self._wildcards)
        self._any_wildcard = re.compile(any_of_them or r"(?!)", re.DOTALL)

    @property
    def uses_groups(self) -> bool:
        """Whether a row asks for the user's groups, which cost a look into the database."""
        return any(row.groups for row in self.rows)

    def exact(self, name: str) -> tuple[AliasRow, ...]:
        """The rows for this very name: those that ask for more come first, then as written."""
        return self._exact.get(name, ())

    def matching(self, name: str) -> Iterator[tuple[AliasRow, str]]:
        """All rows for a name, with what the first star stands for: exact ones, then longer wildcards."""
        for row in self.exact(name):
            yield row, ""
        first = self._any_wildcard.fullmatch(name)  # one look settles it for most names
        if first is None or first.lastindex is None:
            return
        for pattern, row in self._wildcards[first.lastindex - 1 :]:  # each pattern has one group
            if found := pattern.fullmatch(name):
                yield row, found.group(1)


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def parse_table(text: str) -> AliasTable:
    """Read a table from text: a row a line, `#` starts a comment, empty lines are skipped.

    Raises:
        AliasTableError: naming the row and what is wrong with it.
    """
    rows: list[AliasRow] = []
    for line, written in table_rows(text):
        try:
            rows.append(_parse_row(line, written))
        except ValueError as fault:
            raise AliasTableError(line, written, said_by(fault)) from None
        if len(rows) > MAX_ROWS:
            reason = message("a table has at most {limit} rows: use wildcards", limit=MAX_ROWS)
            raise AliasTableError(line, written, reason)
    return AliasTable(tuple(rows))


def _parse_row(line: int, written: str) -> AliasRow:
    """Read a row; here and below a ValueError says what is wrong with it."""
    found = _ROW.fullmatch(_with_ascii_punctuation(written))
    if found is None:
        raise ValueError(message("write it as `alias = model, model [condition, condition]`"))
    alias = found["alias"].strip()
    candidates = tuple(name.strip() for name in found["candidates"].split(","))
    _check_alias(alias)
    _check_candidates(candidates, alias)
    return AliasRow(alias, candidates, line=line, **_conditions(found["conditions"] or ""))


def _with_ascii_punctuation(written: str) -> str:
    """The row as it is meant where a Chinese keyboard has typed it: `模型＝llama3【vision】`.

    Names with letters beyond ASCII stay as they are: models and groups may be called 助手【内部】.
    """  # noqa: RUF002 - on purpose
    before, *others = _PARTS.split(written, maxsplit=2)
    made = _narrowed(before)
    for sign, part in zip(others[::2], others[1::2], strict=True):
        if sign in _OPENINGS and not _narrowed(before).isascii():
            made += sign + part
        elif sign in "=＝":  # noqa: RUF001
            made += "=" + _narrowed(part)
        else:
            made += "[" + (f"{_narrowed(part[:-1])}]" if part[-1:] in tuple(_CLOSINGS) else _narrowed(part))
        before = part
    return made


def _narrowed(text: str) -> str:
    narrow = text.translate(_WIDE)
    return narrow if narrow.isascii() else text


def _conditions(written: str) -> dict[str, Any]:
    """The fields of a row that its conditions set."""
    fields: dict[str, Any] = {}
    for condition in filter(None, map(str.strip, written.split(","))):
        name, value = _condition(condition)
        if name in fields:
            raise ValueError(
                message(
                    "{condition!r} is the second condition of its kind: put both into one",
                    condition=condition,
                )
            )
        fields[name] = value
    return fields


def _condition(written: str) -> tuple[str, Any]:
    """The field of a row that a condition sets, and its value."""
    key, relation, value = map(str.strip, _CONDITION.fullmatch(written).groups())  # type: ignore[union-attr] # fits any text
    match key, relation, value:
        case "vision", "", "":
            return "images", True
        case "tools", "", "":
            return "tools", True
        case "context", ">=", _:
            return "min_tokens", _tokens(value)
        case "group", "=", _:
            return "groups", frozenset(_groups(value))
        case "quant" | "quantization", "=", _:
            return "quantizations", _levels(value)
    raise ValueError(
        message(
            "unknown condition {written!r}: the known ones are {known}",
            written=written,
            known=_KNOWN_CONDITIONS,
        )
    )


def _tokens(value: str) -> int:
    if found := _TOKENS.fullmatch(value):
        return int(found["count"]) * (_KILO if found["kilo"] else 1)
    raise ValueError(
        message(
            "context>= needs a number of tokens, such as context>=8192 or context>=8k, not {value!r}",
            value=value,
        )
    )


def _groups(value: str) -> list[str]:
    groups = [name.strip() for name in value.split("|")]
    if all(groups):
        return groups
    raise ValueError(
        message(
            "group= needs names of groups, such as group=staff or group=staff|teachers, not {value!r}",
            value=value,
        )
    )


def _levels(value: str) -> tuple[str, ...]:
    levels = tuple(level.strip() for level in value.split(">"))
    if len(levels) > 1 and AUTO in map(str.lower, levels):
        raise ValueError(message("quant=auto takes no other level next to it, as in {value!r}", value=value))
    if all(map(_LEVEL.fullmatch, levels)):
        return (AUTO,) if levels[0].lower() == AUTO else levels
    raise ValueError(
        message(
            "quant= needs levels, the preferred one first, such as quant=q8_0>q4_K_M, not {value!r}",
            value=value,
        )
    )


def _check_alias(alias: str) -> None:
    if not alias:
        raise ValueError(message("the alias before `=` is missing"))
    if re.search(r"[\s,]", alias):
        raise ValueError(
            message("{alias!r} is more than one name: give each alias a row of its own", alias=alias)
        )
    _check_name(alias)


def _check_candidates(candidates: tuple[str, ...], alias: str) -> None:
    for name in candidates:
        if not name:
            raise ValueError(
                message("a model is missing: after `=` stand model names with commas between them")
            )
        if len(name.split()) > 1:
            raise ValueError(
                message(
                    "{name!r} has a space in it: separate models with commas, conditions go in [ ]", name=name
                )
            )
        if "*" in name and "*" not in alias:
            raise ValueError(
                message("the star in {name!r} has no star in the alias to take its text from", name=name)
            )
        if name.count("*") > 1:
            raise ValueError(
                message(
                    "{name!r} has two stars: one can stand for the text of the alias's first star", name=name
                )
            )
        _check_name(name)
    if len(candidates) > MAX_CANDIDATES:
        raise ValueError(
            message(
                "{count} models are named, and at most {limit} are tried",
                count=len(candidates),
                limit=MAX_CANDIDATES,
            )
        )
    if len(set(candidates)) < len(candidates):
        raise ValueError(message("a model is named twice"))


def _check_name(name: str) -> None:
    if not name.isprintable():  # comes with text that is copied from a web page
        raise ValueError(message("{name!r} has an invisible character in it: type the name again", name=name))
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(
            message(
                "{beginning!r}… has {count} characters, and a model id has at most {limit}",
                beginning=name[:40],
                count=len(name),
                limit=MAX_NAME_LENGTH,
            )
        )


def _asks_for_less(row: AliasRow) -> tuple[int, int]:
    """Sort key: rows that ask for more come first, so that a plain row never hides them."""
    return -len(row.conditions), -row.min_tokens


def _shorter_then_asks_for_less(row: AliasRow) -> tuple[int, int, int]:
    return -len(row.alias.replace("*", "")), *_asks_for_less(row)


def _pattern(alias: str) -> re.Pattern[str]:
    """The first star takes as much as it can; atomic groups keep `*a*a*a*a*` from taking for ever."""
    first, second, *more = map(re.escape, alias.split("*"))
    others = [f"(?>.*?{piece})" for piece in more[:-1]] + [f".*{piece}" for piece in more[-1:]]
    return re.compile(f"{first}(.*){second}{''.join(others)}", re.DOTALL)


def _refuse_duplicates(rows: tuple[AliasRow, ...]) -> None:
    seen: dict[tuple[str, tuple[str, ...]], AliasRow] = {}
    for row in rows:
        case = (row.alias, row.conditions)
        if case in seen:
            raise AliasTableError(
                row.line,
                row.text,
                message(
                    "row {line} already answers {alias!r} in the same case: put both rows' models into "
                    "one row, in order of preference",
                    line=seen[case].line,
                    alias=row.alias,
                ),
            )
        seen[case] = row


def _refuse_cycles(rows: tuple[AliasRow, ...]) -> None:
    """An alias may stand for another alias, but not for itself, and not through ever more of them."""
    exact = [row for row in rows if not row.is_wildcard]
    leads_to: dict[str, list[str]] = defaultdict(list)  # in the order of the rows: so the same cycle is named
    for row in exact:
        leads_to[row.alias].extend(row.candidates)
    try:
        order = tuple(TopologicalSorter(leads_to).static_order())
    except CycleError as error:
        way = tuple(reversed(error.args[1]))
        row = next(row for row in exact if row.alias == way[0] and way[1] in row.candidates)
        reason = message("the alias leads back to itself: {way}", way=" → ".join(way))
        raise AliasTableError(row.line, row.text, reason) from error
    depth = dict.fromkeys(order, 0)
    for alias in order:
        depth[alias] = max((depth[name] + 1 for name in leads_to.get(alias, ())), default=0)
    for row in exact:
        if depth[row.alias] > MAX_CHAIN:
            reason = message(
                "aliases of aliases, {depth} deep: {limit} is the limit",
                depth=depth[row.alias],
                limit=MAX_CHAIN,
            )
            raise AliasTableError(row.line, row.text, reason)
