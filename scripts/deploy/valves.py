"""What pack.yaml says about the valves of each plugin."""

from typing import Any

from deploy.config import PackConfig
from deploy.plugin import LocalPlugin
from ollama_pack.routing.nodes import DISCOVERED


def function_valves(plugin: LocalPlugin, config: PackConfig) -> dict[str, Any]:
    """The valves of a function that pack.yaml says something about."""
    aliases = {"aliases": config.alias_text} if config.says_aliases else {}
    sayings: dict[str, dict[str, Any]] = {
        "model_alias_filter": aliases,
        "gpu_router": aliases | config.router_valves,
        "response_cache_filter": config.cache_valves,
        "ollama_pack_events": config.events_valves,
        "usage_budgets": config.budget_valves,
        "ollama_pack_gateway": config.gateway_valves,
    }
    return sayings.get(plugin.id, {})


def pipeline_valves(plugin: LocalPlugin, config: PackConfig) -> dict[str, Any]:
    """The same for the Pipelines server, whose filter must be told where to look for installed models.

    A valve that only the function has is left out: the server would forget it, and be told again each time.
    Its page has fields of one line only, so the rows come with `; ` between them.
    """
    fields = plugin.valves.model_fields if plugin.valves else {}
    valves = {name: value for name, value in function_valves(plugin, config).items() if name in fields}
    for name in {"aliases", "nodes", "warm"} & valves.keys():
        valves[name] = valves[name].replace("\n", "; ")
    urls = ",".join(
        node.url for node in config.nodes if node.kind == "ollama" and not node.url.startswith(DISCOVERED)
    )
    if plugin.id == "model_alias_filter" and urls:
        valves["ollama_urls"] = urls
    return valves
