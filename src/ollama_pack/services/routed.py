"""Aliases over a fleet: which names a router offers, and which models may answer for one."""

from ollama_pack.aliases.errors import AliasUnavailableError
from ollama_pack.aliases.facts import RequestFacts
from ollama_pack.aliases.published import answering_models, concrete_names, models_behind
from ollama_pack.aliases.resolve import NOT_INSTALLED, candidates
from ollama_pack.aliases.table import AliasTable
from ollama_pack.routing.probe.catalogue import Catalogue


def models_for(table: AliasTable, facts: RequestFacts, catalogue: Catalogue) -> tuple[str, ...]:
    """Names of the models that may answer for a name, the preferred first; of no alias: the name itself.

    Raises:
        AliasUnavailableError: rows apply, but no node has any of their models.
    """
    there = tuple(dict.fromkeys(answering_models(table, facts, catalogue.levels)))
    named = [] if there else [name for name, _ in candidates(table, facts)]
    if named:
        raise AliasUnavailableError(facts.model, tuple((name, NOT_INSTALLED) for name in named))
    return there or (facts.model,)


def routed_aliases(table: AliasTable, catalogue: Catalogue) -> list[str]:
    """The aliases that can be offered as models: no wildcards, and a node has one of their models."""
    return [alias for alias in concrete_names(table) if models_behind(table, alias, catalogue.levels)]


def weights_behind(model: str, catalogue: Catalogue) -> str:
    """A model's weights, as against others of its name, for the response cache; empty: no node has it."""
    found = catalogue.find(model)
    return "+".join((found.name, *found.digests)) if found else ""
