"""What `GET /api/system/load` shows of what the router tells: keys by name, so that nothing slips out."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ollama_pack.engines.body import object_at

_USAGE = re.compile(r"gpu\d+_usage")

EMPTY_LOAD: Mapping[str, Any] = {"nodes": []}

Checked = Callable[[Any], Any]


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else None


def _text(value: Any) -> Any:
    return value if isinstance(value, str) else None


def _model_names(value: Any) -> list[str]:
    return [model for model in _list_of(value) if isinstance(model, str)]


def _states(value: Any) -> dict[str, str]:
    """Models that are not asked for at a node since they have failed → `open` or `half-open`."""
    told = object_at(value)
    return {str(model): state for model, state in told.items() if isinstance(state, str)}


def _gpus(value: Any) -> list[dict[str, Any]]:
    return [_only(GPU_KEYS, gpu) for gpu in _list_of(value) if isinstance(gpu, Mapping)]


def _list_of(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


GPU_KEYS: Mapping[str, Checked] = {
    "index": _number,
    "name": _text,
    "utilization": _number,  # percent
    "memory_used": _number,  # bytes
    "memory_total": _number,
}
NODE_KEYS: Mapping[str, Checked] = {
    "name": _text,
    "healthy": bool,
    "in_flight": _number,
    "queued": _number,
    "models": _model_names,
    "gpus": _gpus,
}
ADMIN_NODE_KEYS: Mapping[str, Checked] = {"url": _text, "breakers": _states}


def models_in(load: Mapping[str, Any]) -> frozenset[str]:
    """The names of all models in an answer of `system_load`."""
    return frozenset(name for node in load["nodes"] for name in node.get("models", ()))


def without_models(load: Mapping[str, Any], readable: frozenset[str]) -> dict[str, Any]:
    """An answer that names only these models."""
    nodes = [
        node | {"models": [name for name in node.get("models", ()) if name in readable]}
        for node in load["nodes"]
    ]
    return {**load, "nodes": nodes}


def system_load(told: Mapping[str, Any], *, for_admin: bool) -> dict[str, Any]:
    """The answer for one who asks. A plain user's goes through `without_models`, too.

    Args:
        told: what the router reports, addresses of nodes included.
        for_admin: give the addresses too, and the last routed requests where the router reports them.
    """
    usage = {key: _number(value) for key, value in told.items() if _USAGE.fullmatch(str(key))}
    keys = {**NODE_KEYS, **(ADMIN_NODE_KEYS if for_admin else {})}
    nodes = [_only(keys, node) for node in _list_of(told.get("nodes")) if isinstance(node, Mapping)]
    recent = {"recent": told["recent"]} if for_admin and "recent" in told else {}
    return {**usage, "nodes": nodes, **recent}


def _only(keys: Mapping[str, Checked], told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: check(told[key]) for key, check in keys.items() if key in told}
