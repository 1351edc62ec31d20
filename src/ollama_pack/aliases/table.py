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
from dataclasses import dataclass, field, replace
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter

from ollama_pack.aliases.facts import RequestFacts
from ollama_pack.errors import AliasTableError

MAX_ROWS = 1000
MAX_CANDIDATES = 20
MAX_CHAIN = 10
MAX_NAME_LENGTH = 256  # Open WebUI's own limit on a model id

_ROW = re.compile(r"(?P<alias>[^=]*)=(?P<candidates>[^\[\]]*)(?:\[(?P<conditions>[^\[\]]*)\])?")
_COMMENT = re.compile(r"(?:^|\s)#.*")
_CONTEXT = re.compile(r"context\s*>=\s*(?P<count>\d+)\s*(?P<kilo>k?)", re.IGNORECASE)
_KILO = 1024
_KNOWN_CONDITIONS = "vision, tools, context>=N, group=NAME|NAME, quant=LEVEL>LEVEL"


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
        quantizations: preferred levels among the installed variants of a candidate.
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
            alias: tuple(sorted(same, key=_fewer_conditions)) for alias, same in exact.items()
        }
        wildcards = sorted((row for row in rows if row.is_wildcard), key=_shorter_then_fewer_conditions)
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
        if self._any_wildcard.fullmatch(name) is None:  # one look settles it for most names
            return
        for pattern, row in self._wildcards:
            if found := pattern.fullmatch(name):
                yield row, found.group(1)


@lru_cache(maxsize=16)  # valves are validated anew on every request, and nearly always hold the same text
def parse_table(text: str) -> AliasTable:
    """Read a table from text: a row a line, `#` starts a comment, empty lines are skipped.

    Raises:
        AliasTableError: naming the row and what is wrong with it.
    """
    rows: list[AliasRow] = []
    for line, raw in enumerate(text.splitlines(), start=1):
        if written := _COMMENT.sub("", raw).strip():
            rows.append(_parse_row(line, written))
        if len(rows) > MAX_ROWS:
            raise AliasTableError(line, written, f"a table has at most {MAX_ROWS} rows: use wildcards")
    return AliasTable(tuple(rows))


def _parse_row(line: int, written: str) -> AliasRow:
    found = _ROW.fullmatch(written)
    if found is None:
        raise AliasTableError(line, written, "write it as `alias = model, model [condition, condition]`")
    row = AliasRow(
        alias=found["alias"].strip(),
        candidates=tuple(name.strip() for name in found["candidates"].split(",")),
        line=line,
    )
    for condition in (found["conditions"] or "").split(","):
        if condition.strip():
            row = _with_condition(row, condition.strip(), written)
    _check_names(row, written)
    return row


def _with_condition(row: AliasRow, condition: str, written: str) -> AliasRow:
    key, _, value = condition.partition("=")
    values = tuple(name.strip() for name in re.split(r"[|>]", value))
    match "".join(key.split()):
        case "vision" if condition == key:
            return replace(row, images=True)
        case "tools" if condition == key:
            return replace(row, tools=True)
        case "context>":
            if found := _CONTEXT.fullmatch(condition):
                return replace(row, min_tokens=int(found["count"]) * (_KILO if found["kilo"] else 1))
            reason = f"{condition!r} needs a number of tokens, such as context>=8192 or context>=8k"
        case "group":
            if all(values):
                return replace(row, groups=frozenset(values))
            reason = f"{condition!r} needs the name of a group, such as group=staff or group=staff|teachers"
        case "quant":
            if all(values):
                return replace(row, quantizations=values)
            reason = f"{condition!r} needs levels, the preferred one first, such as quant=q8_0>q4_K_M"
        case _:
            reason = f"unknown condition {condition!r}: the known ones are {_KNOWN_CONDITIONS}"
    raise AliasTableError(row.line, written, reason)


def _check_names(row: AliasRow, written: str) -> None:
    if reason := _fault_in_row(row) or next(
        filter(None, map(_fault_in_name, (row.alias, *row.candidates))), ""
    ):
        raise AliasTableError(row.line, written, reason)


def _fault_in_row(row: AliasRow) -> str:
    if not row.alias:
        return "the alias before `=` is missing"
    if len(row.candidates) > MAX_CANDIDATES:
        return f"{len(row.candidates)} models are named, and at most {MAX_CANDIDATES} are tried"
    if len(set(row.candidates)) < len(row.candidates):
        return "a model is named twice"
    for name in row.candidates:
        if name.count("*") > min(1, row.alias.count("*")):
            return f"the star in {name!r} has no star in the alias to take its text from"
    return ""


def _fault_in_name(name: str) -> str:
    if not name:
        return "a model is missing: after `=` stand model names with commas between them"
    if len(name.split()) > 1:
        return f"{name!r} has a space in it: separate models with commas, and put conditions in [ ]"
    if len(name) > MAX_NAME_LENGTH:
        return f"{name[:40]!r}… has {len(name)} characters, and a model id has at most {MAX_NAME_LENGTH}"
    return ""


def _fewer_conditions(row: AliasRow) -> int:
    """Sort key: rows that ask for more come first, so that a plain row never hides them."""
    return -len(row.conditions)


def _shorter_then_fewer_conditions(row: AliasRow) -> tuple[int, str, int]:
    return -len(row.alias.replace("*", "")), row.alias, _fewer_conditions(row)


def _pattern(alias: str) -> re.Pattern[str]:
    first, *rest = map(re.escape, alias.split("*"))
    return re.compile(f"{first}(.*){'.*'.join(rest)}", re.DOTALL)


def _refuse_duplicates(rows: tuple[AliasRow, ...]) -> None:
    seen: dict[tuple[str, tuple[str, ...]], AliasRow] = {}
    for row in rows:
        case = (row.alias, row.conditions)
        if case in seen:
            raise AliasTableError(
                row.line,
                row.text,
                f"row {seen[case].line} already answers {row.alias!r} in the same case: "
                "put both rows' models into one row, in order of preference",
            )
        seen[case] = row


def _refuse_cycles(rows: tuple[AliasRow, ...]) -> None:
    """An alias may stand for another alias, but not for itself, and not through ever more of them."""
    exact = [row for row in rows if not row.is_wildcard]
    leads_to: dict[str, set[str]] = defaultdict(set)
    for row in exact:
        leads_to[row.alias].update(row.candidates)
    try:
        order = tuple(TopologicalSorter(leads_to).static_order())
    except CycleError as error:
        way = tuple(reversed(error.args[1]))
        row = next(row for row in exact if row.alias == way[0] and way[1] in row.candidates)
        reason = f"the alias leads back to itself: {' → '.join(way)}"
        raise AliasTableError(row.line, row.text, reason) from error
    depth = dict.fromkeys(order, 0)
    for alias in order:
        depth[alias] = max((depth[name] + 1 for name in leads_to.get(alias, ())), default=0)
    for row in exact:
        if depth[row.alias] > MAX_CHAIN:
            reason = f"aliases of aliases, {depth[row.alias]} deep: {MAX_CHAIN} is the limit"
            raise AliasTableError(row.line, row.text, reason)
