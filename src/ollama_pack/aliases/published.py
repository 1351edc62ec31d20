"""Which names of a table can be published as models, and what answers for them."""

from collections.abc import Iterator, Mapping

from ollama_pack.aliases.facts import RequestFacts
from ollama_pack.aliases.resolve import automatic_variants, candidates, find_candidate
from ollama_pack.aliases.table import AliasTable
from ollama_pack.engines.ollama.names import Families

MOST_TOKENS = 2**62  # meets every `context>=`


def concrete_names(table: AliasTable) -> tuple[str, ...]:
    """The aliases that are names of their own, as written; a wildcard is none."""
    return tuple(dict.fromkeys(row.alias for row in table.rows if not row.is_wildcard))


def models_behind(table: AliasTable, name: str, models: Mapping[str, str]) -> tuple[str, ...]:
    """Every model there that may answer for an alias; first those that answer the plainest request.

    Args:
        table: the aliases.
        name: one of them.
        models: id → quantization level (empty where unknown) of the models that are there.
    """
    groups = frozenset(group for row in table.rows for group in row.groups)
    everything = RequestFacts(name, images=True, tools=True, tokens=MOST_TOKENS, groups=groups)
    asked = (RequestFacts(name), everything)
    return tuple(dict.fromkeys(found for facts in asked for found in answering_models(table, facts, models)))


def answering_models(table: AliasTable, facts: RequestFacts, models: Mapping[str, str]) -> Iterator[str]:
    """The models there that the table names for a request, the preferred first; some may come twice."""
    families = Families(models)
    for name, row in candidates(table, facts):
        model = find_candidate(name, row, models, families=families)
        if row.is_automatic:
            yield from automatic_variants(name, models, families=families)
        elif model is not None:
            yield model


def groups_behind(
    table: AliasTable, name: str, models: Mapping[str, str]
) -> dict[str, frozenset[str] | None]:
    """As `models_behind`, with the groups whose members alone reach a model; None: everybody does.

    An empty set: one has to be in several groups.
    """
    groups = frozenset(group for row in table.rows for group in row.groups)

    def reached(*members: str) -> set[str]:
        everything = RequestFacts(
            name, images=True, tools=True, tokens=MOST_TOKENS, groups=frozenset(members)
        )
        asked = (RequestFacts(name, groups=frozenset(members)), everything)
        return {model for facts in asked for model in answering_models(table, facts, models)}

    open_to_all = reached()
    by_group = {group: reached(group) for group in sorted(groups)}
    return {
        model: None
        if model in open_to_all
        else frozenset(group for group, found in by_group.items() if model in found)
        for model in models_behind(table, name, models)
    }


def candidates_of(table: AliasTable, name: str) -> tuple[str, ...]:
    """Every model that the table names for an alias, whether it is there or not."""
    groups = frozenset(group for row in table.rows for group in row.groups)
    everything = RequestFacts(name, images=True, tools=True, tokens=MOST_TOKENS, groups=groups)
    return tuple(model for model, _ in candidates(table, everything))
