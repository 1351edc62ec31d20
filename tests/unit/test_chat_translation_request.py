"""An OpenAI chat body as Ollama's: by example, and what holds for every body."""

import base64
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.messages import ollama_messages
from ollama_pack.engines.ollama.options import OPTION_TYPES, ollama_options
from ollama_pack.engines.ollama.to_ollama import Thinking, request_to_ollama, thinking_of

PIXEL = base64.b64encode(b"a picture").decode()
USER = {"role": "user", "content": "Hello"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


def request(thinking: Thinking | None = None, **body: Any) -> dict[str, Any]:
    return request_to_ollama({"model": "llama3:8b", "messages": [USER], **body}, thinking)


def extra(thinking: Thinking | None = None, **body: Any) -> dict[str, Any]:
    """What a body adds to the least request."""
    sent = request(thinking, **body)
    return {name: value for name, value in sent.items() if name not in request()}


def only(message: dict[str, Any]) -> dict[str, Any]:
    (converted,) = ollama_messages([message])
    return converted


def assistant_call(identity: str | None, name: str, arguments: object) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return call | ({"id": identity} if identity else {})


def test_least_request() -> None:
    """Would catch a field too many, or a `stream` left to Ollama, which streams unless told otherwise."""
    assert request() == {"model": "llama3:8b", "messages": [USER], "stream": False}
    assert request(stream=True)["stream"] is True


def test_what_ollama_has_no_word_for_stays_here() -> None:
    """Would catch a user's id, session or key that travels to a node for nothing."""
    private: dict[str, Any] = {"metadata": {"user_id": "u1"}, "user": "u1", "chat_id": "c1", "n": 1}
    assert extra(**private, logit_bias={"5": 1}, parallel_tool_calls=True, stream_options=None) == {}


# --- messages


@pytest.mark.parametrize(
    ("role", "sent"),
    [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")],
)
def test_roles(role: str, sent: str) -> None:
    """Would catch a system prompt that is lost because its client calls it by the new name."""
    assert only({"role": role, "content": "x"}) == {"role": sent, "content": "x"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain ", "plain "),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": " a\n"}, {"type": "text", "text": "b "}], " a\nb "),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "ab"),
        ([{"type": "refusal", "refusal": "no"}], "no"),
    ],
)
def test_content_becomes_text(content: object, text: str) -> None:
    """Would catch content that Ollama refuses, or text that changes and so misses the node's prefix."""
    assert only({"role": "user", "content": content}) == {"role": "user", "content": text}


@pytest.mark.parametrize(
    "where",
    [
        {"url": f"data:image/png;base64,{PIXEL}"},
        {"url": f"DATA:image/png;name=a;BASE64,{PIXEL}", "detail": "high"},
        {"url": PIXEL},
        f"data:image/png;base64,{PIXEL}",
        f"data:image/png;base64,{PIXEL[:4]}\n {PIXEL[4:]}",
    ],
)
def test_images(where: object) -> None:
    """Would catch a picture that reaches the node with its head, or not at all."""
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": where}]
    assert only({"role": "user", "content": parts}) == {
        "role": "user",
        "content": "What?",
        "images": [PIXEL],
    }


def test_images_in_ollamas_own_field() -> None:
    """Would catch a picture that is lost because a filter has put it where Ollama wants it."""
    parts = [{"type": "image_url", "image_url": {"url": PIXEL}}]
    assert only({"role": "user", "content": parts, "images": [PIXEL]})["images"] == [PIXEL, PIXEL]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://example.org/cat.png", "is a link: Ollama fetches none"),
        ("HTTP://example.org/cat.png", "is a link"),
        ("data:image/svg+xml,%3Csvg/%3E", "is a data URL without base64"),
        ("/api/v1/files/1/content", "is not base64"),
        ("not base64!", "is not base64"),
        ("ÄÖÜ", "is not base64"),
        ("data:image/png;base64,", "is empty"),
        ("", "is empty"),
        (None, "must be text, not None"),
    ],
)
def test_images_that_cannot_be_sent(url: object, says: str) -> None:
    """Would catch an answer about a picture that the model never got."""
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(ChatBodyError, match=says) as caught:
        ollama_messages([USER, {"role": "user", "content": [part]}])
    assert caught.value.field == "messages[1].content[0].image_url"


def test_tool_calls_and_their_results() -> None:
    """Would catch arguments as text, which Ollama refuses, and results that do not tell whose they are."""
    calls = [assistant_call("c1", "weather", '{"city": "Paris"}'), assistant_call("c2", "time", "")]
    history = [
        USER,
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    _, assistant, time, weather = ollama_messages(history)
    assert assistant["content"] == "I look."
    assert assistant["tool_calls"] == [
        {"id": "c1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}},
        {"id": "c2", "function": {"index": 1, "name": "time", "arguments": {}}},
    ]
    assert time == {"role": "tool", "content": "noon", "tool_name": "time", "tool_call_id": "c2"}
    assert weather == {"role": "tool", "content": "sunny", "tool_name": "weather", "tool_call_id": "c1"}


def test_the_old_form_of_calls() -> None:
    """Would catch a call of an older conversation that is lost, while its result stays."""
    call = {"name": "weather", "arguments": '{"city": "Paris"}'}
    history = [
        USER,
        {"role": "assistant", "content": None, "function_call": call, "tool_calls": None},
        {"role": "function", "name": "weather", "content": "sunny"},
        {"role": "assistant", "content": "It is.", "function_call": None},
    ]
    _, assistant, result, last = ollama_messages(history)
    function = {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}
    assert assistant["tool_calls"] == [{"function": function}]
    assert result == {"role": "tool", "content": "sunny", "tool_name": "weather"}
    assert "tool_calls" not in last
    both = request(functions=[{"name": "f"}], tools=[tool("a")])
    assert [one["function"]["name"] for one in both["tools"]] == ["a"]
    assert "tools" not in request(functions=[{"name": "f"}], function_call="none")


def test_an_id_that_comes_again_means_the_later_call() -> None:
    """Would catch clients that count calls anew in every turn, and get the first turn's tool named."""
    history = []
    for name in ("first", "second"):
        history += [
            {"role": "assistant", "content": None, "tool_calls": [assistant_call("call_0", name, "{}")]},
            {"role": "tool", "tool_call_id": "call_0", "content": "x"},
        ]
    names = [message.get("tool_name") for message in ollama_messages(history)]
    assert names == [None, "first", None, "second"]


@pytest.mark.parametrize(
    ("message", "result"),
    [
        ({"name": "f"}, {"tool_name": "f"}),
        ({"tool_name": "f", "name": "g"}, {"tool_name": "f"}),
        ({"tool_call_id": "unknown"}, {"tool_call_id": "unknown"}),
        ({}, {}),
    ],
)
def test_results_of_calls_that_are_not_there(message: dict[str, Any], result: dict[str, Any]) -> None:
    """Would catch a history whose beginning was cut off and that is refused for it."""
    expected = {"role": "tool", "content": "x", **result}
    assert only({"role": "tool", "content": "x", **message}) == expected
    assert only({"role": "function", "content": "x", **message}) == expected


@pytest.mark.parametrize("arguments", ["{", "5", "[]", '{"a": NaN}', "[" * 100_000, 5])
def test_arguments_that_are_no_object(arguments: object) -> None:
    """Would catch a call cut off in an earlier answer that comes back as the node's riddle, or a crash."""
    message = {"role": "assistant", "tool_calls": [assistant_call("c", "f", arguments)]}
    with pytest.raises(ChatBodyError) as caught:
        ollama_messages([message])
    assert caught.value.field == "messages[0].tool_calls[0].function.arguments"


@pytest.mark.parametrize("name", ["thinking", "reasoning_content", "reasoning"])
def test_thoughts_go_back(name: str) -> None:
    """Would catch a model that is not given its own thoughts again, whichever field they came in."""
    assert only({"role": "assistant", "content": "4", name: "2 + 2"}) == {
        "role": "assistant",
        "content": "4",
        "thinking": "2 + 2",
    }
    assert "thinking" not in only({"role": "assistant", "content": "4", name: None})


# --- what stands beside the messages


ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]},
}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["a", "b"]),
        ("auto", ["a", "b"]),
        ("required", ["a", "b"]),
        ("none", []),
        ({"type": "function", "function": {"name": "b"}}, ["b"]),
        ({"type": "function", "name": "b"}, ["b"]),
        ({"type": "tool", "name": "b", "disable_parallel_tool_use": True}, ["b"]),
        ("b", ["b"]),
        ("any", ["a", "b"]),
        (True, ["a", "b"]),
        ("", ["a", "b"]),
        ({"type": "auto"}, ["a", "b"]),
        ({"type": "any"}, ["a", "b"]),
        ({"any": {}}, ["a", "b"]),
        ({"type": "function"}, ["a", "b"]),
        ({"type": "none"}, []),
        (False, []),
        (ALLOWED, ["b"]),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "b"}]}, ["b"]),
    ],
)
def test_tool_choice(choice: object, names: list[str]) -> None:
    """Would catch tools that are offered although the client forbids them, or asks for another."""
    sent = request(tools=[tool("a"), tool("b")], tool_choice=choice).get("tools", [])
    assert [entry["function"]["name"] for entry in sent] == names


def test_a_choice_of_no_tool() -> None:
    """Would catch a forced call of a tool that is not there, answered without any tool."""
    with pytest.raises(ChatBodyError, match="names a function that is not among the tools"):
        request(tools=[tool("a")], tool_choice={"type": "function", "function": {"name": "b"}})


@pytest.mark.parametrize("choice", ["b", 1.5, {"type": "file_search"}, {}])
def test_a_choice_that_says_nothing(choice: object) -> None:
    """Would catch a tool that must be called and is not, without a word."""
    with pytest.raises(ChatBodyError, match="tool_choice must be"):
        request(tools=[tool("a")], tool_choice=choice)


def test_tools_of_other_apis() -> None:
    """Would catch a tool in the Responses API's form, or Anthropic's, that reaches Ollama without a name."""
    schema = {"type": "object", "properties": {}}
    flat = {"type": "function", "name": "a", "parameters": schema}
    anthropic = {"name": "b", "description": "does", "input_schema": schema}
    hosted = {"type": "web_search_20250305", "name": "web_search"}
    assert request(tools=[flat, anthropic, hosted])["tools"] == [
        {"type": "function", "function": {"name": "a", "parameters": schema}},
        {"type": "function", "function": {"name": "b", "description": "does", "parameters": schema}},
        hosted,
    ]


SILENT_PARTS: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "hm", "signature": "x"},
    {"type": "redacted_thinking", "data": "x"},
    {"type": "reasoning", "summary": []},
    {"type": "reasoning", "reasoning": "hm"},
    {"type": "reasoning_content", "reasoning_content": {"text": "hm"}},
    {"type": "reasoning.encrypted", "data": "x"},
    {"type": "thought_signature", "data": "x"},
    {"type": "summary_text", "text": "hm"},
    {"type": "cachePoint"},
    {"type": "step-start"},
]


@pytest.mark.parametrize("part", SILENT_PARTS, ids=lambda part: str(part["type"]))
def test_parts_that_are_for_no_model(part: dict[str, Any]) -> None:
    """Would catch a conversation that is refused for what another model thought, or that repeats it."""
    text = {"type": "text", "text": "b"}
    assert only({"role": "assistant", "content": [part, text]})["content"] == "b"
    assert only({"role": "assistant", "content": [part]})["content"] == ""


def test_calls_that_are_in_the_content_as_well() -> None:
    """Would catch LangChain's messages refused, which have a call of a tool twice."""
    part = {"type": "tool_use", "id": "c1", "name": "clock", "input": {}}
    calls = [assistant_call("c1", "clock", "{}")]
    message = only({"role": "assistant", "content": [part], "tool_calls": calls})
    assert (message["content"], message["tool_calls"][0]["function"]["name"]) == ("", "clock")
    with pytest.raises(ChatBodyError, match="is of the type 'tool_use'"):
        ollama_messages([{"role": "assistant", "content": [part]}])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "image", "source_type": "base64", "mime_type": "image/png", "data": PIXEL},
        {"type": "image", "base64": PIXEL},
        {"type": "image", "image": f"data:image/png;base64,{PIXEL}"},
        {"type": "image", "source": {"type": "url", "url": f"data:image/png;base64,{PIXEL}"}},
    ],
)
def test_images_of_other_apis(part: dict[str, Any]) -> None:
    """Would catch a picture in Anthropic's form, or in LangChain's, that is refused."""
    assert only({"role": "user", "content": [part, "what is this?"]}) == {
        "role": "user",
        "content": "what is this?",
        "images": [PIXEL],
    }


JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"response_format": JSON_SCHEMA}, SCHEMA),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "json"),
        ({"format": "json"}, "json"),
        ({"format": SCHEMA}, SCHEMA),
        ({"format": ""}, None),
        ({"options": {"format": json.dumps(SCHEMA)}}, SCHEMA),
        ({"params": {"format": "json"}}, "json"),
        ({"format": "json", "response_format": JSON_SCHEMA}, SCHEMA),
    ],
)
def test_formats(body: dict[str, Any], sent: object) -> None:
    """Would catch a client that asks for JSON and gets prose."""
    assert extra(**body) == ({} if sent is None else {"format": sent})


@pytest.mark.parametrize(
    ("body", "never", "switch", "levels", "unknown"),
    [
        ({}, None, None, None, None),
        ({"reasoning_effort": "high"}, None, True, "high", None),
        ({"reasoning_effort": "minimal"}, None, True, "low", None),
        ({"reasoning_effort": "none"}, False, False, False, False),
        ({"params": {"reasoning_effort": "low"}}, None, True, "low", None),
        ({"think": True}, True, True, True, True),
        ({"think": False, "reasoning_effort": "high"}, False, False, False, False),
        ({"think": "High"}, "high", True, "high", "high"),
        ({"options": {"think": "true"}}, True, True, True, True),
        ({"params": {"custom_params": {"think": "false"}}}, False, False, False, False),
    ],
)
def test_thinking(
    body: dict[str, Any], never: object, switch: object, levels: object, unknown: object
) -> None:
    """Would catch a `think` that the model's node refuses, or an effort that has no effect."""
    models: tuple[Thinking | None, ...] = ("never", "switch", "levels", None)
    assert [request(model, **body).get("think") for model in models] == [never, switch, levels, unknown]


@pytest.mark.parametrize(
    ("capabilities", "family", "thinking"),
    [
        (("completion",), "gptoss", "never"),
        (("completion", "thinking"), "qwen3", "switch"),
        (("completion", "thinking"), "gptoss", "levels"),
    ],
)
def test_thinking_of_models(capabilities: tuple[str, ...], family: str, thinking: str) -> None:
    """Would catch levels sent to a model that has none, which Ollama answers with 400."""
    assert thinking_of(capabilities, family) == thinking


@pytest.mark.parametrize(
    ("given", "sent"),
    [("5m", "5m"), ("-1", -1), ("300", 300), (0, 0), (-1, -1), (0.5, 0.5), ('"10m"', "10m"), ("", None)],
)
def test_keep_alive(given: object, sent: object) -> None:
    """Would catch seconds as text, which Ollama refuses, and a zero that is taken for nothing."""
    for body in (
        {"keep_alive": given},
        {"options": {"keep_alive": given}},
        {"params": {"keep_alive": given}},
    ):
        assert extra(**body) == ({} if sent is None else {"keep_alive": sent})


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"temperature": 0.5, "top_p": 1, "top_k": 40}, {"temperature": 0.5, "top_p": 1, "top_k": 40}),
        ({"min_p": 0.1, "typical_p": 0.9}, {"min_p": 0.1, "typical_p": 0.9}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1, "frequency_penalty": -1}),
        ({"repeat_penalty": "1.1", "repeat_last_n": "64"}, {"repeat_penalty": 1.1, "repeat_last_n": 64}),
        ({"seed": 42, "num_ctx": 8192.0}, {"seed": 42, "num_ctx": 8192}),
        ({"mirostat": 2, "mirostat_tau": 5, "mirostat_eta": 0.1}, None),
        ({"num_gpu": 0, "num_thread": 4, "num_batch": 512, "num_keep": 5, "use_mmap": "true"}, None),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"max_tokens": 5}, {"num_predict": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 6, "num_predict": 7}, {"num_predict": 5}),
        ({"temperature": None, "stop": None, "max_tokens": None, "seed": None}, {}),
    ],
)
def test_options(given: dict[str, Any], sent: dict[str, Any] | None) -> None:
    """Would catch a setting that is lost, or under a name that Ollama does not know, wherever it stands."""
    expected = {**given, "use_mmap": True} if "use_mmap" in given else given if sent is None else sent
    for body in (given, {"options": given}, {"params": given}, {"params": {"custom_params": given}}):
        assert ollama_options(body) == expected
    assert extra(**given) == ({"options": expected} if expected else {})


def test_which_setting_counts() -> None:
    """Would catch a model's own setting that outvotes what the client asks for in the request."""
    body: dict[str, Any] = {"params": {"seed": 1, "top_k": 1, "top_p": 0.1, "temperature": 0.1}}
    body["params"]["custom_params"] = {"top_k": 2, "top_p": 0.2, "temperature": 0.2}
    body |= {"options": {"top_p": 0.3, "temperature": 0.3, "max_tokens": 3}}
    body |= {"temperature": 0.4, "num_predict": 4}
    expected = {"seed": 1, "top_k": 2, "top_p": 0.3, "temperature": 0.4, "num_predict": 4}
    assert ollama_options(body) == expected


def test_options_that_are_unknown_here() -> None:
    """Would catch an option of a newer Ollama that is lost, or one of Open WebUI's own that is sent."""
    params: dict[str, Any] = {"params": {"function_calling": "native", "system": "x"}}
    assert extra(options={"brand_new": [1], "system": "x", "gone": None}, **params) == {
        "options": {"brand_new": [1]}
    }


def test_probabilities_of_tokens() -> None:
    """Would catch a client that asks for probabilities and gets none."""
    assert extra(logprobs=True, top_logprobs=3) == {"logprobs": True, "top_logprobs": 3}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": None}, "model"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "x", "images": "y"}]}, "messages[0].images"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "assistant", "function_call": "f"}]}, "messages[0].function_call"),
        ({"messages": [{"role": "assistant", "function_call": {"a": 1}}]}, "messages[0].function_call.name"),
        ({"options": [1]}, "options"),
        ({"params": "x"}, "params"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seed": 10**400}, "seed"),
        ({"top_k": "many"}, "top_k"),
        ({"use_mmap": "maybe"}, "use_mmap"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop[0]"),
        ({"think": 5}, "think"),
        ({"think": "a lot"}, "think"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"format": "{"}, "format"),
        ({"format": 5}, "format"),
        ({"keep_alive": True}, "keep_alive"),
        ({"keep_alive": "[1]"}, "keep_alive"),
        ({"keep_alive": 10**400}, "keep_alive"),
    ],
)
def test_refusals_name_the_field(change: dict[str, Any], field: str) -> None:
    """Would catch a body that fails at the node in Go's words, or here without telling where."""
    with pytest.raises(ChatBodyError) as caught:
        request(**change)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


def test_refusals_do_not_show_the_conversation() -> None:
    """Would catch a log that holds what somebody said."""
    secret = {"role": "user", "content": {"text": "my secret"}}
    arguments = {"role": "assistant", "tool_calls": [assistant_call("c", "f", "my secret")]}
    image = {"role": "user", "content": [{"type": "image_url", "image_url": "https://x/my secret"}]}
    for message in (secret, arguments, image):
        with pytest.raises(ChatBodyError) as caught:
            ollama_messages([message])
        assert "secret" not in str(caught.value)


# --- what holds for every body

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def mostly(form: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values in their form, and once in a while something else."""
    return st.integers(0, 60).flatmap(lambda roll: anything if roll == 60 else form)


def near(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that have some of the fields, most of them in their form."""
    return st.fixed_dictionaries({}, optional={name: mostly(form) for name, form in fields.items()})


def option_form(name: str) -> st.SearchStrategy[Any]:
    """Values that an option may have."""
    forms = {
        OPTION_TYPES["seed"]: st.integers(-9, 9) | st.sampled_from(["5", 5.5]),
        OPTION_TYPES["top_p"]: st.floats(0, 1) | st.sampled_from(["0.5", 1]),
        OPTION_TYPES["use_mmap"]: st.booleans() | st.just("true"),
        OPTION_TYPES["stop"]: st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=2),
    }
    return st.none() | forms[OPTION_TYPES.get(name, OPTION_TYPES["num_predict"])]


kinds_of_images = [PIXEL, f"data:image/png;base64,{PIXEL}", f"data:image/png;base64,\n{PIXEL}\n"]
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, mostly(st.text(max_size=8))),
    st.builds(
        lambda url: {"type": "image_url", "image_url": {"url": url}}, mostly(st.sampled_from(kinds_of_images))
    ),
)
functions = st.builds(
    lambda name, arguments: {"name": name, "arguments": arguments},
    mostly(st.text(max_size=4)),
    mostly(st.sampled_from(["{}", '{"a": 1}', "", {"a": [1]}])),
)
calls = st.builds(
    lambda function, rest: {"function": function} | rest,
    mostly(functions),
    near(id=st.text(max_size=4), index=st.integers(0, 3)),
)
messages = st.builds(
    lambda role, rest: {"role": role} | rest,
    mostly(st.sampled_from(["system", "developer", "user", "assistant", "tool"])),
    near(
        content=st.none() | st.text(max_size=8) | st.lists(mostly(parts), max_size=3),
        tool_calls=st.lists(mostly(calls), max_size=3),
        tool_call_id=st.text(max_size=4),
        reasoning_content=st.text(max_size=4),
    ),
)
lengths = ("max_tokens", "max_completion_tokens")
settings_of_bodies = {name: option_form(name) for name in (*OPTION_TYPES, *lengths)}
bodies = st.builds(
    lambda sent_messages, rest, settings: {"model": "llama3:8b", "messages": sent_messages} | rest | settings,
    st.lists(mostly(messages), max_size=3),
    near(
        stream=st.booleans(),
        tools=st.lists(st.just(tool("a")), max_size=2),
        tool_choice=st.sampled_from(["auto", "none"]),
        response_format=st.sampled_from([{"type": "json_object"}, JSON_SCHEMA, {}, None]),
        format=st.sampled_from(["json", "{}", SCHEMA]),
        think=st.booleans() | st.just("high"),
        reasoning_effort=st.sampled_from(["low", "none"]),
        keep_alive=st.sampled_from(["5m", -1]),
        options=near(**settings_of_bodies),
        params=near(custom_params=near(**settings_of_bodies), **settings_of_bodies),
    ),
    near(**settings_of_bodies),
)
whether_it_thinks = st.sampled_from(["never", "switch", "levels", None])


@given(body=bodies | st.dictionaries(st.text(max_size=8), anything, max_size=4), thinking=whether_it_thinks)
def test_any_body_is_translated_or_refused(body: dict[str, Any], thinking: Thinking | None) -> None:
    """Would catch a body that makes the translation crash, or that it sends in a form that Ollama refuses."""
    try:
        sent = request_to_ollama(body, thinking)
    except ChatBodyError:
        return
    assert isinstance(sent["model"], str)
    assert isinstance(sent["stream"], bool)
    for message in sent["messages"]:
        assert isinstance(message["role"], str)
        assert isinstance(message["content"], str)
        for call in message.get("tool_calls", ()):
            assert isinstance(call["function"]["arguments"], dict)
    assert isinstance(sent.get("think", True), bool | str)
    assert isinstance(sent.get("format", "json"), str | dict)
    assert isinstance(sent.get("options", {}), dict)


@given(bodies)
def test_a_body_is_left_as_it_is(body: dict[str, Any]) -> None:
    """Would catch a second try, on another node, that is sent something else than the first."""
    before = repr(body)
    try:
        first = request_to_ollama(body)
        assert repr(request_to_ollama(body)) == repr(first)
    except ChatBodyError:
        pass
    assert repr(body) == before


@given(st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), max_size=4))
def test_plain_messages_stay_as_they_are(given_messages: list[dict[str, Any]]) -> None:
    """Would catch text that changes on its way: the node's cached prefix would be lost."""
    assert ollama_messages(given_messages) == given_messages
    assert ollama_messages(ollama_messages(given_messages)) == given_messages


def test_a_long_keep_alive_is_read_in_no_time() -> None:
    """Would catch one field of one user's request that keeps the whole server busy for minutes."""
    began = time.process_time()
    for text in ("1" * 200_000, "1." * 100_000, "1s" * 100_000 + "x", "." * 200_000):
        with pytest.raises(ChatBodyError):
            extra(keep_alive=text)
    assert time.process_time() - began < 5
