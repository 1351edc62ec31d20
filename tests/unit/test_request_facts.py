"""What is read off a chat body, whatever the body is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.aliases.facts import TOKENS_PER_IMAGE, RequestFacts, request_facts

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def user(content: object, **more: object) -> dict[str, Any]:
    return {"role": "user", "content": content} | more


@pytest.mark.parametrize(
    ("messages", "tokens", "images"),
    [
        ([], 0, False),
        ([user("")], 0, False),
        ([user("x")], 1, False),
        ([user("x" * 8)], 2, False),
        ([user("x" * 8), user("x")], 3, False),
        ([user("模型")], 2, False),
        ([user("\ud800")], 1, False),
        ([user([{"type": "text", "text": "x" * 8}, {"type": "text", "text": "x"}])], 3, False),
        ([user([{"type": "text", "text": "x" * 8}, IMAGE])], 2 + TOKENS_PER_IMAGE, True),
        ([user([IMAGE, IMAGE])], 2 * TOKENS_PER_IMAGE, True),
        ([user("x", images=["AAAA", "BBBB"])], 1 + 2 * TOKENS_PER_IMAGE, True),
        ([user("x"), user([IMAGE]), user("x")], 1 + TOKENS_PER_IMAGE, True),
    ],
)
def test_tokens_and_images(messages: list[dict[str, Any]], tokens: int, images: bool) -> None:  # noqa: FBT001 - a table of cases
    """Would catch text or images in one of the forms of a message that are not counted."""
    facts = request_facts({"messages": messages}, "gpt-4")
    assert (facts.tokens, facts.images) == (tokens, images)


@pytest.mark.parametrize(
    ("body", "tools"),
    [
        ({}, False),
        ({"tools": []}, False),
        ({"tools": None, "tool_ids": []}, False),
        ({"tools": [{"type": "function"}]}, True),
        ({"tool_ids": ["clock"]}, True),
    ],
)
def test_tools(body: dict[str, Any], tools: bool) -> None:  # noqa: FBT001 - a table of cases
    """Would catch tools of the client, or those that Open WebUI adds later, that are not seen."""
    assert request_facts(body, "gpt-4").tools is tools


@pytest.mark.parametrize("arguments", ["x" * 8000, {"text": "x" * 8000}])
def test_tools_and_calls_are_a_part_of_the_prompt(arguments: object) -> None:
    """Would catch an agent's long conversation that goes to a model with a short context."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": arguments}}]}
    assert 2000 <= request_facts({"messages": [call]}, "gpt-4").tokens < 2010
    tool = {"type": "function", "function": {"name": "clock", "description": "x" * 8000}}
    assert 2000 <= request_facts({"messages": [], "tools": [tool]}, "gpt-4").tokens < 2030


def test_model_and_groups_are_those_of_the_caller() -> None:
    """Would catch the body's model, which a first resolution may have changed, in the place of the alias."""
    facts = request_facts({"model": "llama3:8b"}, "gpt-4", ["staff", "staff"])
    assert facts == RequestFacts("gpt-4", groups=frozenset({"staff"}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "type", "text", "images", "x"]), values, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(["messages", "tools", "tool_ids", "model"]), JSON)


@given(BODIES | st.builds(lambda messages: {"messages": messages}, st.lists(JSON, max_size=3)))
def test_any_body_has_facts(body: dict[str, Any]) -> None:
    """Would catch a body that makes the filter fail: what is not of the expected form counts as absent."""
    facts = request_facts(body, "gpt-4")
    assert facts.tokens >= TOKENS_PER_IMAGE * facts.images
    assert facts.tools in {True, False}


@pytest.mark.parametrize("odd", [5, True, "text", {"content": "text"}, [5, "text", None, [user("text")]]])
def test_odd_messages_count_as_none(odd: object) -> None:
    """Would catch something counted in what no model would ever see as a message."""
    assert request_facts({"messages": odd, "tools": 5, "tool_ids": "clock"}, "gpt-4") == RequestFacts("gpt-4")


@pytest.mark.parametrize(
    "odd", [{"content": 5}, {"content": [5, {"text": 5}]}, {"images": "AAAA"}, {"images": 5}]
)
def test_odd_parts_count_as_none(odd: dict[str, Any]) -> None:
    """Would catch an image for each letter of a text, or the text of a number."""
    assert request_facts({"messages": [odd]}, "gpt-4") == RequestFacts("gpt-4")
