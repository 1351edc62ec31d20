"""A chat body of Open WebUI's as an OpenAI-compatible engine takes it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.openai.request import request_to_engine, without_usage

USER = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
PLAIN = {
    "model": "served-model",
    "messages": [USER],
    "stream": True,
    "stream_options": {"include_usage": True},
}


def asked(**body: Any) -> dict[str, Any]:
    """What the engine is asked beside the model, the messages and a stream."""
    made = request_to_engine({"model": "served-model", "messages": [USER], **body})
    assert {name: made.pop(name) for name in PLAIN} == PLAIN
    return made


@pytest.mark.parametrize("stream", [None, True, False])
def test_every_answer_is_streamed_with_figures(stream: bool | None) -> None:  # noqa: FBT001 - a parameter of pytest
    """Would catch an answer that cannot be stopped, or of which the fleet learns nothing."""
    assert asked(stream=stream, stream_options={"include_usage": False}) == {}


def test_what_only_open_webui_and_ollama_know_is_left_out() -> None:
    """Would catch fields that a strict server refuses, with the ids of users and chats among them."""
    body = {
        "metadata": {"user_id": "1"},
        "chat_id": "c",
        "session_id": "s",
        "id": "m",
        "features": {"web_search": True},
        "files": [{}],
        "tool_ids": [],
        "variables": {"{{USER_NAME}}": "Ada"},
        "background_tasks": {},
        "params": {"system": "Be kind", "function_calling": "native", "stream_delta_chunk_size": 2},
        "keep_alive": "5m",
        "options": {"num_ctx": 2048, "num_gpu": 99, "num_thread": 4, "use_mmap": True, "num_keep": 5},
        "num_ctx": 4096,
        "user": {"name": "Ada", "email": "ada@example.org"},
        "n": 3,
        "truncate": True,
    }
    assert asked(**body) == {}


def test_what_an_engine_may_know_goes_along() -> None:
    """Would catch a setting of vLLM's or llama.cpp's own that has no effect."""
    body = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 1,
        "stop": ["a", "b"],
        "presence_penalty": 0.1,
        "user": "somebody",
        "reasoning_effort": "minimal",
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "top_logprobs": 2,
        "parallel_tool_calls": False,
        "guided_choice": ["yes", "no"],
        "chat_template_kwargs": {"custom": 1},
        "cache_prompt": True,
    }
    assert asked(**body) == body


def test_values_are_of_the_type_that_engines_want() -> None:
    """Would catch custom parameters, which Open WebUI keeps as text, that an engine refuses."""
    assert asked(params={"custom_params": {"top_k": "40", "temperature": "0.5"}}) == {
        "top_k": 40,
        "temperature": 0.5,
    }
    with pytest.raises(ChatBodyError, match="temperature must be a number"):
        asked(temperature="warm")


NAMED = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"options": {"num_predict": 5}}, {"max_tokens": 5}),
        ({"options": {"num_predict": 5}, "max_tokens": 7}, {"max_tokens": 7}),
        ({"num_predict": -1}, {}),
        ({"max_tokens": 0}, {}),
        ({"options": {"repeat_penalty": 1.2}}, {"repeat_penalty": 1.2, "repetition_penalty": 1.2}),
        ({"options": {"temperature": 0, "stop": "x"}}, {"temperature": 0, "stop": ["x"]}),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        ({"format": "json", "response_format": {"type": "text"}}, {"response_format": {"type": "text"}}),
        ({"format": ""}, {}),
        ({"think": True}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ({"think": "false"}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"think": "High"}, {"reasoning_effort": "high"}),
        (
            {"think": False, "chat_template_kwargs": {"custom": 1}},
            {"chat_template_kwargs": {"enable_thinking": False, "custom": 1}},
        ),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL], "tool_choice": "auto"}),
        ({"tools": [], "tool_choice": "auto"}, {}),
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, {"tools": [TOOL], "tool_choice": "auto"}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tools": [TOOL], "tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": "any"}, {"tools": [TOOL], "tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": [TOOL], "tool_choice": "none"}),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_weather"}}, NAMED),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "get_weather"}}, NAMED),
        ({"tools": [TOOL], "tool_choice": NAMED["tool_choice"]}, NAMED),
        ({"logit_bias": {"15043": 100}}, {"logit_bias": {"15043": 100}}),
        ({"logit_bias": "5432:100, 413:-100"}, {"logit_bias": {"5432": 100.0, "413": -100.0}}),
        ({"logit_bias": '{"5432": 1}'}, {"logit_bias": {"5432": 1.0}}),
        ({"logit_bias": ""}, {}),
    ],
)
def test_words_for_the_same(body: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Would catch a setting in Ollama's words, or in Open WebUI's, that has no effect or is refused."""
    assert asked(**body) == wanted


@pytest.mark.parametrize("written", ['{"type": "object"}', {"type": "object"}])
def test_a_schema(written: object) -> None:
    """Would catch Ollama's `format` with a schema, as text or not, that has no effect."""
    made = asked(format=written)["response_format"]
    assert (made["type"], made["json_schema"]["schema"]) == ("json_schema", {"type": "object"})
    with pytest.raises(ChatBodyError, match="neither json nor a JSON schema"):
        asked(format="{oops")


def messages(*given: dict[str, Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = request_to_engine({"model": "m", "messages": list(given)})["messages"]
    return made


def test_roles_and_pictures_stay() -> None:
    """Would catch a role that chat templates do not know, or a picture that gets lost."""
    parts = [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
    ]
    first, second = messages({"role": "developer", "content": "Be kind"}, {"role": "user", "content": parts})
    assert first == {"role": "system", "content": "Be kind"}
    assert second == {"role": "user", "content": parts}


@pytest.mark.parametrize(
    ("given", "written"),
    [({"city": "Paris"}, '{"city": "Paris"}'), ('{"a":1}', '{"a":1}'), ("", "{}"), (None, "{}"), ({}, "{}")],
)
def test_earlier_calls(given: object, written: str) -> None:
    """Would catch arguments in Ollama's form, or empty ones, by which vLLM and SGLang fail."""
    call = {"id": "c1", "function": {"name": "get_weather", "arguments": given}}
    (message,) = messages({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": written}}
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("sunny", "sunny"),
        (None, ""),
        ([{"type": "text", "text": "sun"}, {"type": "input_text", "text": "ny"}], "sunny"),
    ],
)
def test_results_of_tools(content: object, text: str) -> None:
    """Would catch a tool's result in parts, which not every chat template knows."""
    (message,) = messages({"role": "tool", "tool_call_id": "c1", "content": content})
    assert message == {"role": "tool", "tool_call_id": "c1", "content": text}


def test_pictures_in_results_of_tools() -> None:
    """Would catch a screenshot that a model is not shown, or that stands where engines refuse it."""
    pictures = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}} for data in "ab"]
    results: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "done"}, pictures[0]]},
        {"role": "tool", "tool_call_id": "c2", "content": [pictures[1]]},
    ]
    plain = [{**result, "content": text} for result, text in zip(results, ("done", ""), strict=True)]
    user, answer = {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "A cat."}
    first = messages(*results)[-1]["content"][0]
    assert first["type"] == "text"
    assert messages(*results) == [*plain, {"role": "user", "content": [first, *pictures]}]
    said = {"type": "text", "text": "And now?"}
    assert messages(*results, user)[2:] == [{"role": "user", "content": [first, *pictures, said]}]
    assert messages(*results, answer, user)[2:] == [
        {"role": "user", "content": [first, *pictures]},
        answer,
        user,
    ]


def test_no_calls_at_all() -> None:
    """Would catch an empty list of calls, which is refused."""
    assert messages({"role": "assistant", "content": "a", "tool_calls": []}) == [
        {"role": "assistant", "content": "a"}
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"model": None}, "model"),
        ({"tools": {}}, "tools"),
        ({"options": []}, "options"),
        ({"logit_bias": "a:b"}, "logit_bias"),
    ],
)
def test_bodies_of_another_form(body: dict[str, Any], field: str) -> None:
    """Would catch a malformed body that crashes, or an error that does not say where it is."""
    with pytest.raises(ChatBodyError) as caught:
        request_to_engine({"model": "m", "messages": [USER], **body})
    assert caught.value.field == field


def test_an_engine_that_does_not_know_stream_options() -> None:
    """Would catch a second try with what was refused."""
    made = request_to_engine({"model": "m", "messages": [USER]})
    assert made.keys() - without_usage(made).keys() == {"stream_options"}


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ["model", "messages", "tools", "options", "params", "format", "think", "stop", "logit_bias", "seed"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUE))
def test_any_body_is_put_into_form_or_refused(body: dict[str, Any]) -> None:
    """Would catch a body that crashes the router, and one that is changed on the way."""
    before = json.dumps(body)
    try:
        json.dumps(request_to_engine(body))
    except ChatBodyError as error:
        assert error.field  # noqa: PT017 - either outcome is right
    assert json.dumps(body) == before


def test_parts_of_other_apis() -> None:
    """Would catch a part that llama.cpp and vLLM refuse, though it is text, an image or nothing for them."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    said, heard = {"type": "output_text", "text": "b"}, {"type": "input_audio", "input_audio": {}}
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    (message,) = messages({"role": "user", "content": [thought, said, picture, heard]})
    assert message["content"] == [
        {"type": "text", "text": "b"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        heard,
    ]
    (message,) = messages({"role": "assistant", "content": [thought]})
    assert message["content"] == ""
