"""What of a JSON schema no Ollama can use: refused here, as there it ends in status 500, or ends the runner.

Seen on 0.17.4: a bound of 2,000 repetitions works; one of 10,000 ends the runner, for everybody who uses it.
So do 200 levels. What is valid, and only unknown to some version, is left to the node.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import ChatBodyError

MAX_DEPTH = 64
MAX_PARTS = 2000  # schemas and enumerated values of one schema
MAX_REPETITIONS = 2000

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_BOUNDS = ("minLength", "maxLength", "minItems", "maxItems")
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "contains", "propertyNames")
_REPEATED = re.compile(r"\{(\d+)?(?:,(\d+)?)?\}")


def check_schema(schema: Mapping[str, Any], field: str) -> None:
    """Refuse a schema that no Ollama can use.

    Args:
        schema: what an answer has to be.
        field: where it stands.

    Raises:
        ChatBodyError: naming the part that is wrong.
    """
    waiting: list[tuple[Any, str, int]] = [(schema, field, 0)]
    parts = 0
    while waiting:
        part, where, depth = waiting.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            raise ChatBodyError(where, message("must be a JSON schema: an object, true or false"))
        values = part.get("enum")
        parts += 1 + (len(values) if isinstance(values, list) else 0)
        if depth > MAX_DEPTH or parts > MAX_PARTS:
            limits = message(
                "{depth} levels and {count} parts and values",
                depth=MAX_DEPTH,
                count=MAX_PARTS,
            )
            raise ChatBodyError(
                field, message("is too large a JSON schema: at most {limits} are possible", limits=limits)
            )
        _check_part(part, where, schema)
        waiting += [(inner, f"{where}.{name}", depth + 1) for name, inner in _inner(part, where)]


def _inner(part: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """The schemas within one."""
    for key in _SCHEMAS_BY_NAME:
        if key in part:
            if not isinstance(part[key], Mapping):
                raise ChatBodyError(f"{where}.{key}", message("must be an object of JSON schemas"))
            yield from ((f"{key}.{name}", inner) for name, inner in part[key].items())
    for key in _SCHEMA_LISTS:
        if key in part:
            if not isinstance(part[key], list) or not part[key]:
                raise ChatBodyError(f"{where}.{key}", message("must be a list of JSON schemas"))
            yield from ((f"{key}[{number}]", inner) for number, inner in enumerate(part[key]))
    for key in _SCHEMAS:
        if key in part:
            several = part[key] if isinstance(part[key], list) and key == "items" else [part[key]]
            yield from ((key, inner) for inner in several)


def _check_part(part: Mapping[str, Any], where: str, root: Mapping[str, Any]) -> None:
    """Refuse what is wrong with one schema itself."""
    kinds = part.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise ChatBodyError(
                f"{where}.type", message("must be one of {types}", types=", ".join(sorted(_TYPES)))
            )
    for name in _BOUNDS:
        _check_bound(part.get(name, 0), f"{where}.{name}")
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if not isinstance(part.get(name, 0), int | float):
            raise ChatBodyError(f"{where}.{name}", message("must be a number"))
    if "pattern" in part:
        _check_pattern(part["pattern"], f"{where}.pattern")
    if "$ref" in part and not _leads_somewhere(part["$ref"], root):
        raise ChatBodyError(
            f"{where}.$ref", message("must lead to a part of this schema, such as #/$defs/name")
        )


def _check_bound(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_REPETITIONS:
        raise ChatBodyError(
            where,
            message("must be a whole number from 0 to {limit}", limit=MAX_REPETITIONS),
        )


def _check_pattern(pattern: object, where: str) -> None:
    if not isinstance(pattern, str) or not pattern.startswith("^") or not pattern.endswith("$"):
        raise ChatBodyError(where, message("must begin with ^ and end with $: Ollama takes no other pattern"))
    counts = [int(count) for found in _REPEATED.findall(pattern) for count in found if count]
    if max(counts, default=0) > MAX_REPETITIONS:
        raise ChatBodyError(
            where,
            message("may repeat something {limit} times at most", limit=MAX_REPETITIONS),
        )


def _leads_somewhere(reference: object, root: Any) -> bool:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return False
    found = root
    for step in reference.removeprefix("#").strip("/").split("/") if reference.strip("#/") else ():
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            return False
    return isinstance(found, Mapping | bool)
