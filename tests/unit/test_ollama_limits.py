"""What is refused before it reaches an Ollama, where it would end in status 500 or end the runner."""

from typing import Any

import pytest

from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.to_ollama import request_to_ollama

JSON = dict[str, Any]
TREE: JSON = {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}}


def nested(levels: int) -> JSON:
    schema: JSON = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def sent(**body: Any) -> JSON:
    return request_to_ollama({"model": "m", "messages": [{"role": "user", "content": "hi"}], **body})


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"type": "nonsense"}, "format.type"),
        ({"type": ["string", 5]}, "format.type"),
        ({"type": "object", "properties": 5}, "format.properties"),
        ({"type": "object", "properties": {"a": {"type": "int"}}}, "format.properties.a.type"),
        ({"type": "array", "items": "x"}, "format.items"),
        ({"anyOf": 5}, "format.anyOf"),
        ({"anyOf": []}, "format.anyOf"),
        ({"$ref": "#/x"}, "format.$ref"),
        ({"$ref": "https://example.org/schema"}, "format.$ref"),
        ({"type": "string", "pattern": "a"}, "format.pattern"),
        ({"type": "string", "pattern": "^a{10000}$"}, "format.pattern"),
        ({"type": "string", "minLength": -1}, "format.minLength"),
        ({"type": "string", "maxLength": 100_000}, "format.maxLength"),
        ({"type": "array", "items": {}, "maxItems": "5"}, "format.maxItems"),
        ({"type": "integer", "minimum": "x"}, "format.minimum"),
        (nested(200), "format"),
        ({"enum": list(range(5000))}, "format"),
    ],
)
def test_a_schema_that_no_ollama_can_use_is_refused(schema: JSON, field: str) -> None:
    """Would catch a request that makes every node fail, or that ends a runner which others use."""
    with pytest.raises(ChatBodyError) as caught:
        sent(format=schema)
    assert caught.value.field == field
    with pytest.raises(ChatBodyError):
        sent(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"name": {"type": "string", "maxLength": 80}}, "required": ["name"]},
        {"type": ["string", "null"], "format": "date-time"},
        {**TREE, "$ref": "#/$defs/node"},
        {"type": "array", "items": {"anyOf": [{"const": 1}, {"enum": ["a", None]}]}, "minItems": 1},
        {"type": "object", "additionalProperties": False, "description": "an odd one", "x-own": {"type": 5}},
        {"type": "string", "pattern": "^[a-z]{2,5}$"},
        nested(30),
    ],
)
def test_a_usual_schema_goes_as_it_is(schema: JSON) -> None:
    """Would catch valid schemas that are refused, or changed on their way."""
    assert sent(format=schema)["format"] == schema


@pytest.mark.parametrize("value", ["xml", "JSON", True, [1], 5])
def test_a_format_is_json_or_a_schema(value: object) -> None:
    """Would catch `format: "xml"`, for which every node answers with status 500."""
    with pytest.raises(ChatBodyError, match="format"):
        sent(format=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_batch", 0),
        ("num_batch", -1),
        ("num_thread", 10_000),
        ("num_thread", -1),
        ("num_gpu", -7),
        ("main_gpu", -1),
        ("num_ctx", 10**12),
        ("repeat_last_n", 10**9),
        ("repeat_penalty", 0),
        ("temperature", 1e300),
        ("presence_penalty", -1e300),
        ("seed", 2**70),
    ],
)
def test_an_option_out_of_its_range_is_refused(name: str, value: float) -> None:
    """Would catch one user's option that ends a runner, or takes all of a machine."""
    with pytest.raises(ChatBodyError) as caught:
        sent(options={name: value})
    assert caught.value.field == name


@pytest.mark.parametrize("value", ["abc", "1h30", "5 minutes", True, []])
def test_a_keep_alive_is_a_duration(value: object) -> None:
    """Would catch what Ollama refuses, after a wait for a slot."""
    with pytest.raises(ChatBodyError, match="keep_alive"):
        sent(keep_alive=value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("5m", "5m"), ("1h30m", "1h30m"), ("1.5h", "1.5h"), ("-1", -1), (0, 0), ("300", 300)],
)
def test_usual_times_to_keep_a_model_pass(value: object, expected: object) -> None:
    """Would catch a `keep_alive` that works with Ollama and is refused here."""
    assert sent(keep_alive=value)["keep_alive"] == expected


def test_as_many_likelihoods_as_ollama_gives() -> None:
    """Would catch a refusal that comes only after a wait for a slot."""
    assert sent(logprobs=True, top_logprobs=20)["top_logprobs"] == 20
    with pytest.raises(ChatBodyError, match="top_logprobs"):
        sent(logprobs=True, top_logprobs=21)
