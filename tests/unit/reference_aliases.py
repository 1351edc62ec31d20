"""What the documentation says about aliases, written down as plainly as it can be: loops, and no indexes.

`ollama_pack.aliases` is held against it. It shares none of its code; of its values, only the rows.
"""

from collections.abc import Collection, Iterable, Mapping

from ollama_pack.aliases.facts import RequestFacts
from ollama_pack.aliases.table import AliasRow


class NoneLeftError(Exception):
    """Rows apply, and none of their models can answer."""


def reference_resolve(
    rows: Iterable[AliasRow],
    facts: RequestFacts,
    models: Mapping[str, str] | None,
    denied: Collection[str] = (),
) -> tuple[str, AliasRow] | None:
    """The model that answers and the row that named it; None when no row is about the request."""
    named = reference_candidates(list(rows), facts)
    for name, row in named:
        model = name if models is None else choose(name, row, models, denied)
        if model and model not in denied:
            return model, row
    if named:
        raise NoneLeftError(facts.model)
    return None


def reference_candidates(rows: list[AliasRow], facts: RequestFacts) -> list[tuple[str, AliasRow]]:
    """Every model that is named, in order of preference, each where it is named first."""
    asked = [row for row in rows if star_text(row.alias, facts.model) is not None and applies(row, facts)]
    asked.sort(key=lambda row: (*rank(row), rows.index(row)))
    named: list[tuple[str, AliasRow]] = []
    for row in asked:
        for model, by in expand(rows, facts, row, star_text(row.alias, facts.model) or ""):
            if model not in [earlier for earlier, _ in named]:
                named.append((model, by))
    return named


def expand(rows: list[AliasRow], facts: RequestFacts, row: AliasRow, star: str) -> list[tuple[str, AliasRow]]:
    """The candidates of a row; one that is an alias stands for the candidates of its own rows."""
    named: list[tuple[str, AliasRow]] = []
    for candidate in row.candidates:
        name = candidate.replace("*", star)
        deeper = [other for other in rows if other.alias == name and applies(other, facts)]
        deeper = [other for other in deeper if "*" not in other.alias]
        deeper.sort(key=lambda other: (*rank(other), rows.index(other)))
        for other in deeper:
            named += expand(rows, facts, other, "")
        if name and not deeper:
            named.append((name, row))
    return named


def rank(row: AliasRow) -> tuple[bool, int, int, int]:
    """Exact names, then longer wildcards; of the same, rows that ask for more."""
    fixed = len([letter for letter in row.alias if letter != "*"])
    asked = [row.images, row.tools, row.min_tokens > 0, len(row.groups) > 0].count(True)
    return "*" in row.alias, -fixed if "*" in row.alias else 0, -asked, -row.min_tokens


def applies(row: AliasRow, facts: RequestFacts) -> bool:
    if row.images and not facts.images:
        return False
    if row.tools and not facts.tools:
        return False
    if row.min_tokens > facts.tokens:
        return False
    return not row.groups or any(group in facts.groups for group in row.groups)


def star_text(pattern: str, name: str) -> str | None:
    """What the first star stands for, as much as it can; empty without a star, None where nothing fits."""
    if "*" not in pattern:
        return "" if pattern == name else None
    head, _, tail = pattern.partition("*")
    rest = name[len(head) :]
    for length in range(len(rest), -1, -1):
        if name.startswith(head) and fits(tail, rest[length:]):
            return rest[:length]
    return None


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern covers a name, letter by letter."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(fits(pattern[1:], name[skipped:]) for skipped in range(len(name) + 1))
    return name[:1] == pattern[0] and fits(pattern[1:], name[1:])


def choose(name: str, row: AliasRow, models: Mapping[str, str], denied: Collection[str]) -> str | None:
    """The id of a candidate: in the preferred level when there is one, else as `find` has it."""
    itself = find(name, models)
    for level in row.quantizations:
        for model in sorted(models, key=lambda model: (model != itself, model)):
            if model not in denied and (model == itself or continues(model, name)):
                written = models[model] or model.rpartition("-")[2]
                if written.lower() == level.lower():
                    return model
    return itself


def find(name: str, models: Iterable[str]) -> str | None:
    """The id of a name: as written, with the tag `latest` added or left out, or in another case."""
    for form in (str, with_tag, lambda name: with_tag(name).lower()):
        for model in sorted(models):
            if form(model) == form(name):
                return model
    return None


def with_tag(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def continues(model: str, name: str) -> bool:
    """Whether a model is another tag of a name without one, or a longer tag of a name with one."""
    model, name = model.lower(), name.lower()
    return model.startswith(f"{name}-") if ":" in name else model.partition(":")[0] == name
