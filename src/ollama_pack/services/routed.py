"""Aliases over a fleet: which names a router offers, and which models may answer for one."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from ollama_pack.aliases.errors import (
    NOT_ANSWERING,
    NOT_INSTALLED,
    NOT_PERMITTED,
    AliasUnavailableError,
    why_not,
)
from ollama_pack.aliases.facts import RequestFacts
from ollama_pack.aliases.published import answering_models, concrete_names, models_behind
from ollama_pack.aliases.resolve import (
    automatic_variants,
    candidates,
    find_candidate,
)
from ollama_pack.aliases.table import AliasRow, AliasTable
from ollama_pack.base.messages import Message
from ollama_pack.base.single_flight import process_wide
from ollama_pack.engines.ollama.names import Families
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.errors import PackError
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.naming import auto_name, auto_parts, fold_name
from ollama_pack.routing.plan.report import WantedModels
from ollama_pack.routing.probe.catalogue import Catalogue

Answered = Callable[[ReplyHead], AsyncGenerator[dict[str, Any], None]]

LATE_LOOK_SECONDS = 10.0  # that a chat waits for nodes which nobody has looked at yet


@dataclass(frozen=True, slots=True)
class DirectChat:
    """A chat that the router will answer.

    Attributes:
        model: that would answer now.
        weights: see `weights_behind`.
        body: as the nodes get it.
        chunks: asks it.
    """

    model: str
    weights: str
    body: Mapping[str, Any]
    chunks: Answered


async def catalogue_for(router: Router, table: AliasTable, name: str) -> Catalogue:
    """What the nodes have. Waits for those that nobody has looked at yet where the others cannot answer.

    A router that has just begun, since its code or its valves have changed, may know nothing yet.
    """
    catalogue = router.catalogue()
    if not catalogue.find(name) and not models_behind(table, name, catalogue.levels):
        await router.ready(LATE_LOOK_SECONDS)
        catalogue = router.catalogue()
    return catalogue


def offered_meanwhile(router: Router | None, models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What to offer: these models, and until all nodes have been looked at also those from before.

    Each update of the code and each change of valves begins with a router that knows nothing. Without models
    from before Open WebUI would answer chats with "Model not found".

    Args:
        router: whose models they are; None: it cannot say.
        models: plain values, as the code that reads them may be newer. Each has an `id`.
    """
    kept = process_wide("routed models", dict[str, Any])
    if router is not None and router.has_seen_all:
        kept["models"] = [dict(model) for model in models]
        return models
    known = {model["id"] for model in models}
    return models + [dict(model) for model in kept.get("models", ()) if model["id"] not in known]


def models_for(
    table: AliasTable, facts: RequestFacts, catalogue: Catalogue, denied: AbstractSet[str] = frozenset()
) -> tuple[str, ...]:
    """Names of the models that may answer for a name, the preferred first; of no alias: the name itself.

    One of them may be an automatic name, whose variants `auto_parts` gives.

    Args:
        table: the aliases.
        facts: what is known of the request.
        catalogue: the models that nodes have.
        denied: names of those that this user may not use.

    Raises:
        AliasUnavailableError: rows apply, but no node has any of their models, or the user may use none.
    """
    levels = {name: level for name, level in catalogue.levels.items() if name not in denied}
    there = tuple(dict.fromkeys(_answering(table, facts, levels)))
    named = [] if there else [name for name, _ in candidates(table, facts)]
    if named:
        without = dict.fromkeys(answering_models(table, facts, catalogue.levels))
        refused = [(name, NOT_PERMITTED) for name in without]
        raise AliasUnavailableError(facts.model, tuple(refused or [(name, NOT_INSTALLED) for name in named]))
    return there or (facts.model,)


def passed_over(
    table: AliasTable, facts: RequestFacts, catalogue: Catalogue, denied: AbstractSet[str], chosen: str
) -> tuple[Message, ...]:
    """Why none of the models answers that the table prefers to the chosen one.

    Args:
        table: the aliases.
        facts: what is known of the request.
        catalogue: the models that nodes have.
        denied: names of those that this user may not use.
        chosen: the one that answers.
    """
    found = []
    families = Families(catalogue.levels)
    for name, row in candidates(table, facts):
        model = _answering_for(name, row, catalogue.levels, families)
        if model and fold_name(chosen) in map(fold_name, auto_parts(model)[0]):
            break
        reason = NOT_PERMITTED if model in denied else NOT_ANSWERING
        found.append(why_not(name, reason if model else NOT_INSTALLED))
    return tuple(found)


def _answering(table: AliasTable, facts: RequestFacts, levels: Mapping[str, str]) -> Iterator[str]:
    """As `answering_models`, with an automatic name for the variants of which each node takes one."""
    families = Families(levels)
    for name, row in candidates(table, facts):
        if model := _answering_for(name, row, levels, families):
            yield model


def _answering_for(name: str, row: AliasRow, levels: Mapping[str, str], families: Families) -> str:
    if row.is_automatic:
        variants = automatic_variants(name, levels, families=families)
        return auto_name(variants) if variants else ""
    return find_candidate(name, row, levels, families=families) or ""


def why_absent(error: AliasUnavailableError, router: Router) -> PackError:
    """The error for an alias without a model: where some nodes do not answer, they may have it."""
    missing = [model for model, reason in error.passed_over if reason == NOT_INSTALLED]
    absent = router.no_node(missing)
    return absent if missing and (absent.silent or not absent.nodes) else error


def routed_aliases(table: AliasTable, catalogue: Catalogue) -> list[str]:
    """The aliases that can be offered as models: no wildcards, and a node has one of their models."""
    return [alias for alias in concrete_names(table) if models_behind(table, alias, catalogue.levels)]


def wanted_models(table: AliasTable) -> WantedModels:
    """The models that the table names, for a plan."""
    rows = [(row, name) for row in table.rows for name in row.candidates if "*" not in name]
    named = [(row, name) for row, name in rows if not table.exact(name)]  # else it is an alias itself
    automatic = frozenset(name for row, name in named if row.is_automatic)
    return WantedModels(tuple(dict.fromkeys(name for _, name in named)), automatic)


def weights_behind(model: str, catalogue: Catalogue) -> str:
    """A model's weights, as against others of its name, for the response cache; empty: no node has it."""
    found = [one for name in auto_parts(model)[0] if (one := catalogue.find(name))]
    return "+".join(part for one in found for part in (one.name, *one.digests))
