"""Our chat translation against Open WebUI's own converters: where they differ is listed, with the reason.

Elsewhere they must agree, so a change of Open WebUI's shows here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.webui_converters import Converters
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.client_request import fitted_settings
from ollama_pack.engines.ollama.stream import StreamState, completion_of, line_to_chunks
from ollama_pack.engines.ollama.to_ollama import request_to_ollama
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.openai.stream import EngineReply

JSON = dict[str, Any]
HEAD = ReplyHead("chatcmpl-1", 1_700_000_000, "llama3:8b")
USER = {"role": "user", "content": "Hello"}
PIXEL = "aGVsbG8="
SCHEMA = {"type": "object", "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CALL = {"id": "c1", "index": 0, "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
FIGURES = {
    "total_duration": 3_723_000_000_000,
    "load_duration": 1_000_000,
    "prompt_eval_count": 10,
    "prompt_eval_duration": 2_000_000_000,
    "eval_count": 3,
    "eval_duration": 500_000_000,
}


def before_0_12() -> bool:
    """Whether Open WebUI is so old that its converters have the faults that OLD_… list."""
    try:
        return tuple(map(int, version("open-webui").split(".")[:2])) < (0, 12)
    except PackageNotFoundError:
        return False


OLD = before_0_12()


@dataclass(frozen=True)
class Difference:
    """A deliberate difference.

    Attributes:
        reason: why ours is as it is.
        given: what is converted: a body, an answer or the lines of a stream.
        theirs: what only Open WebUI's has, by its place; "raised" for an error.
        ours: what only ours has, by its place; "refused" for the field of a refusal.
    """

    reason: str
    given: Any
    theirs: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)


def says(**message: Any) -> JSON:
    return {"messages": [USER | message]}


def image(url: str) -> JSON:
    return says(content=[{"type": "image_url", "image_url": {"url": url}}])


CONTENT = "messages[0].content"
REQUESTS = [
    Difference(
        "An assistant's text before a call is part of what the model has said.",
        says(role="assistant", content="I look.", tool_calls=[CALL]),
        {CONTENT: "", "messages[0].tool_calls[0].index": 0},
        {CONTENT: "I look.", "messages[0].tool_calls[0].function.index": 0},
    ),
    Difference(
        "Ollama has a call's index in the function, and refuses an id that is no text.",
        says(role="assistant", content="", tool_calls=[{"function": CALL["function"]}]),
        {"messages[0].tool_calls[0].index": 0, "messages[0].tool_calls[0].id": None},
        {"messages[0].tool_calls[0].function.index": 0},
    ),
    Difference(
        "Without indexes, calls are numbered in their order instead of being all the first.",
        says(role="assistant", content="", tool_calls=[CALL, {"id": "c2", "function": CALL["function"]}]),
        {"messages[0].tool_calls[0].index": 0, "messages[0].tool_calls[1].index": 0},
        {
            "messages[0].tool_calls[0].function.index": 0,
            "messages[0].tool_calls[1].function.index": 1,
        },
    ),
    Difference(
        "A call without arguments is a call.",
        says(role="assistant", content="", tool_calls=[{"id": "c1", "function": {"name": "f"}}]),
        {"raised": "TypeError"},
        {
            "model": "llama3:8b",
            "stream": False,
            "messages[0].role": "assistant",
            CONTENT: "",
            "messages[0].tool_calls[0].id": "c1",
            "messages[0].tool_calls[0].function.index": 0,
            "messages[0].tool_calls[0].function.name": "f",
            "messages[0].tool_calls[0].function.arguments": {},
        },
    ),
    Difference(
        "Arguments that are no JSON are refused with the place where they stand.",
        says(role="assistant", tool_calls=[{"id": "c1", "function": {"name": "f", "arguments": "{"}}]),
        {"raised": "JSONDecodeError"},
        {"refused": "messages[0].tool_calls[0].function.arguments"},
    ),
    Difference(
        "Templates tell results apart by `tool_name`.",
        {
            "messages": [
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
            ]
        },
        {"messages[0].tool_calls[0].index": 0},
        {"messages[0].tool_calls[0].function.index": 0, "messages[1].tool_name": "weather"},
    ),
    Difference(
        "`developer` is OpenAI's new name for `system`, which is the one that templates know.",
        says(role="developer"),
        {"messages[0].role": "developer"},
        {"messages[0].role": "system"},
    ),
    Difference(
        "A message without a role is refused with the place where it stands.",
        {"messages": [{"content": "Hello"}]},
        {"raised": "KeyError"},
        {"refused": "messages[0].role"},
    ),
    Difference(
        "Text in parts stays as it was typed, as text without parts does.",
        says(content=[{"type": "text", "text": " Hello\n"}]),
        {CONTENT: "Hello"},
        {CONTENT: " Hello\n"},
    ),
    Difference(
        "Null is how OpenAI's clients write a message without text.",
        says(role="assistant", content=None),
        {"raised": "TypeError"},
        {"model": "llama3:8b", "stream": False, "messages[0].role": "assistant", CONTENT: ""},
    ),
    Difference(
        "A message of an image alone has a text, which is empty, like every other.",
        image(f"data:image/png;base64,{PIXEL}"),
        {},
        {CONTENT: ""},
    ),
    Difference(
        "Ollama would take a link for base64 and refuse it in words that nobody understands.",
        image("https://example.org/cat.png"),
        {
            "model": "llama3:8b",
            "stream": False,
            "messages[0].role": "user",
            "messages[0].images[0]": "https://example.org/cat.png",
        },
        {"refused": "messages[0].content[0].image_url"},
    ),
    Difference(
        "A part that is left out would be answered as if it had never been sent.",
        says(content=[{"type": "input_audio", "input_audio": {}}]),
        {"model": "llama3:8b", "stream": False, "messages[0].role": "user"},
        {"refused": "messages[0].content[0]"},
    ),
    Difference(
        "Images may already be in Ollama's own field, where a filter has put them.",
        says(images=[PIXEL]),
        {},
        {"messages[0].images[0]": PIXEL},
    ),
    Difference(
        "Sampling options at the top are OpenAI's way; Open WebUI's API has lost them by then.",
        {"temperature": 0.5, "seed": 1},
        {},
        {"options.temperature": 0.5, "options.seed": 1},
    ),
    Difference(
        "`max_completion_tokens` is OpenAI's new name for `max_tokens`.",
        {"max_completion_tokens": 5},
        {},
        {"options.num_predict": 5},
    ),
    Difference(
        "Ollama refuses stop words that are no list.",
        {"stop": "END"},
        {"options.stop": "END"},
        {"options.stop[0]": "END"},
    ),
    Difference(
        "Ollama refuses numbers that are text, which custom parameters can be.",
        {"options": {"temperature": "0.5", "num_ctx": "4096"}},
        {"options.temperature": "0.5", "options.num_ctx": "4096"},
        {"options.temperature": 0.5, "options.num_ctx": 4096},
    ),
    Difference(
        "An option of the wrong kind is refused by name.",
        {"options": {"temperature": "hot"}},
        {
            "model": "llama3:8b",
            "stream": False,
            "messages[0].role": "user",
            CONTENT: "Hello",
            "options.temperature": "hot",
        },
        {"refused": "temperature"},
    ),
    Difference(
        "Null means that nothing was set.",
        {"options": {"temperature": None}},
        {"options.temperature": None},
    ),
    Difference(
        "Ollama's chat has no `system`; what it does not know it warns about.",
        {"options": {"system": "Be brief."}},
        {"system": "Be brief.", "options": {}},
    ),
    Difference(
        "What Open WebUI moves out of `options` may as well stand at the top.",
        {"keep_alive": "5m", "think": True, "format": "json"},
        {},
        {"keep_alive": "5m", "think": True, "format": "json"},
    ),
    Difference(
        "`json_object` asks for JSON as well.",
        {"response_format": {"type": "json_object"}},
        {},
        {"format": "json"},
    ),
    Difference(
        "A client that forbids tools gets no calls.",
        {"tools": [TOOL], "tool_choice": "none"},
        {
            "tools[0].type": "function",
            "tools[0].function.name": "weather",
            "tools[0].function.parameters.type": "object",
            "tools[0].function.parameters.required[0]": "city",
        },
    ),
    Difference("No tools are no tools: a model without tools is not refused.", {"tools": []}, {"tools": []}),
    Difference(
        "Who asks, and in which chat, is not a node's business.",
        {"metadata": {"user_id": "u1"}},
        {"metadata.user_id": "u1"},
    ),
    Difference(
        "`stream` is true or false.",
        {"stream": None},
        {"stream": None},
        {"stream": False},
    ),
]
OLD_REQUESTS = [
    Difference(
        "Ollama looks for the length among the options.",
        {"max_tokens": 5},
        {"num_predict": 5},
        {"options.num_predict": 5},
    )
]
SAME_REQUESTS: list[JSON] = [
    {},
    {"stream": True},
    says(role="system", content="Be brief."),
    says(role="assistant", content="4", reasoning_content="2 + 2"),
    says(role="assistant", content="4", thinking="2 + 2"),
    says(role="tool", content="sunny", tool_call_id="unknown"),
    says(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
    says(
        content=[
            {"type": "text", "text": "What?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            {"type": "image_url", "image_url": {"url": PIXEL}},
        ]
    ),
    {"max_tokens": 5},
    {"stop": ["a", "b"]},
    {"tools": [TOOL]},
    {"tools": [TOOL], "tool_choice": "auto"},
    {"options": {"temperature": 0.5, "top_k": 5, "stop": ["a"], "max_tokens": 5, "brand_new": 1}},
    {"options": {"keep_alive": "5m", "think": True, "format": "json", "seed": 1}},
    {"options": {"keep_alive": "-1", "format": '{"type": "object"}', "seed": 1}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    {"response_format": {"type": "text"}},
    {"user": "u1", "n": 1, "logit_bias": {}, "frequency": 5},
]

DONE = {"model": "llama3:8b", "done": True, "done_reason": "stop", **FIGURES}


def line(content: str = "", **message: Any) -> JSON:
    return {
        "model": "llama3:8b",
        "message": {"role": "assistant", "content": content, **message},
        "done": False,
    }


def called(name: str, index: int, **call: Any) -> JSON:
    return {"function": {"index": index, "name": name, "arguments": {"city": "Paris"}}, **call}


NEWER_FAULT = Difference(  # the old converters say "stop" to everything
    "Reasons that OpenAI does not know make its clients fail.",
    DONE | line("a") | {"done": True, "done_reason": "load"},
    {"choices[0].finish_reason": "load"},
    {"choices[0].finish_reason": "stop"},
)
ANSWERS = [
    Difference(
        "Calls are numbered in their order: some nodes number all of them 0.",
        DONE | line(tool_calls=[called("f", 0, id="c1"), called("g", 0, id="c2")]),
        {"choices[0].message.tool_calls[1].index": 0},
        {"choices[0].message.tool_calls[1].index": 1},
    ),
    NEWER_FAULT,
    Difference(
        "Probabilities that were asked for are part of the answer.",
        DONE | line("a") | {"logprobs": [{"token": "a", "logprob": -0.5}]},
        {"choices[0].logprobs": None},
        {
            "choices[0].logprobs.content[0].token": "a",
            "choices[0].logprobs.content[0].logprob": -0.5,
            "choices[0].logprobs.content[0].top_logprobs": [],
            "choices[0].logprobs.refusal": None,
        },
    ),
]
OLD_ANSWERS = [
    Difference(
        "An answer that was cut off must not look whole.",
        DONE | line("Hello") | {"done_reason": "length"},
        {"choices[0].finish_reason": "stop"},
        {"choices[0].finish_reason": "length"},
    ),
]
SAME_ANSWERS: list[JSON] = [
    DONE | line("Hello"),
    DONE | line("4", thinking="2 + 2"),
    DONE | line(""),
    DONE | line("I look.", tool_calls=[called("f", 0, id="c1"), called("g", 1, id="c2")]),
    DONE | line("Hello") | {"done_reason": "length"},
    {"model": "llama3:8b", "done": True, "message": {"role": "assistant", "content": "no figures"}},
]

LAST = DONE | {"message": {"role": "assistant", "content": ""}}
STREAMS = [
    Difference(
        "A line that says nothing is no chunk; as Open WebUI has it, it ends the answer.",
        [line("a"), line()],
        {
            "[1].model": "llama3:8b",
            "[1].object": "chat.completion.chunk",
            "[1].choices[0].index": 0,
            "[1].choices[0].logprobs": None,
            "[1].choices[0].finish_reason": "stop",
            "[1].choices[0].delta": {},
        },
    ),
    Difference(
        "An error must not look like the end of an answer. The client raises it before it comes here.",
        [{"error": "unexpected EOF"}],
        {
            "[0].model": "ollama",
            "[0].object": "chat.completion.chunk",
            "[0].choices[0].index": 0,
            "[0].choices[0].logprobs": None,
            "[0].choices[0].finish_reason": "stop",
            "[0].choices[0].delta.role": "assistant",
        },
        {"": []},
    ),
    Difference(
        "Calls are numbered in their order: some nodes number all of them 0, and they would run together.",
        [line(tool_calls=[called("f", 0, id="c1")]), line(tool_calls=[called("g", 0, id="c2")]), LAST],
        {"[1].choices[0].delta.tool_calls[0].index": 0},
        {"[1].choices[0].delta.tool_calls[0].index": 1},
    ),
]
OLD_STREAMS = [
    Difference(
        "Every answer has an end, also one whose last line says something.",
        [line("a"), LAST | {"message": {"role": "assistant", "content": "b"}}],
        {"[1].choices[0].finish_reason": None},
        {"[1].choices[0].finish_reason": "stop"},
    ),
    Difference(
        "An answer that was cut off must not look whole.",
        [line("a"), LAST | {"done_reason": "length"}],
        {"[1].choices[0].finish_reason": "stop"},
        {"[1].choices[0].finish_reason": "length"},
    ),
]
SAME_STREAMS: list[list[JSON]] = [
    [line("Hel"), line("lo"), LAST],
    [line(thinking="2"), line(thinking=" + 2"), line("4"), LAST],
    [line("I look."), line(tool_calls=[called("f", 0, id="c1")]), LAST],
    [line(tool_calls=[called("f", 0, id="c1"), called("g", 1, id="c2")]), LAST],
    [line("a"), LAST | {"done_reason": "length"}],
    [line("a"), LAST | {"message": {"role": "assistant", "content": "b"}}],
    [
        line("a"),
        LAST | {"message": {"role": "assistant", "content": "", "tool_calls": [called("f", 0, id="c1")]}},
    ],
    [LAST],
]


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converters]:
    """Open WebUI's converters."""
    try:
        version("open-webui")
    except PackageNotFoundError:
        pytest.skip("Open WebUI is not installed")
    with Converters(tmp_path_factory.mktemp("converters")) as converters:
        yield converters


def our_request(body: JSON) -> JSON:
    try:
        return request_to_ollama(body)
    except ChatBodyError as error:
        return {"refused": error.field}


def our_stream(lines: Sequence[JSON]) -> list[JSON]:
    state, sent = StreamState(), []
    for each in lines:
        state, chunks = line_to_chunks(each, HEAD, state)
        sent += chunks
    return sent


def body_of(given_fields: JSON) -> JSON:
    return {"model": "llama3:8b", "messages": [USER]} | given_fields


def leaves(value: Any, place: str = "") -> JSON:
    """Every scalar in a value, and every empty container, by its place."""
    if isinstance(value, dict) and value:
        parts = {f"{place}.{name}" if place else name: item for name, item in value.items()}
    elif isinstance(value, list) and value:
        parts = {f"{place}[{number}]": item for number, item in enumerate(value)}
    else:
        return {place: value}
    return {name: leaf for part, item in parts.items() for name, leaf in leaves(item, part).items()}


def read_arguments(found: JSON) -> JSON:
    """Arguments as values: the text of the same JSON depends on whether Open WebUI uses orjson."""
    return {
        place: json.loads(leaf) if place.endswith("function.arguments") and isinstance(leaf, str) else leaf
        for place, leaf in found.items()
    }


def differences(their_value: Any, our_value: Any) -> tuple[JSON, JSON]:
    """What only one of the two has."""
    theirs_alone, ours_alone = map(read_arguments, (leaves(their_value), leaves(our_value)))
    missing = object()
    return (
        {place: leaf for place, leaf in theirs_alone.items() if ours_alone.get(place, missing) != leaf},
        {place: leaf for place, leaf in ours_alone.items() if theirs_alone.get(place, missing) != leaf},
    )


def unnamed(value: Any) -> Any:
    """An answer, or chunks, without what names it and tells when it was made."""
    if isinstance(value, list):
        return [unnamed(item) for item in value]
    return {name: item for name, item in value.items() if name not in {"id", "created"}}


def request_differences(theirs: Converters, body: JSON) -> tuple[JSON, JSON]:
    whole = body_of(body)
    return differences(theirs.request(whole), our_request(whole))


def answer_differences(theirs: Converters, answer: JSON) -> tuple[JSON, JSON]:
    return differences(
        unnamed(theirs.answer(answer)), unnamed(completion_of(our_stream([answer | {"done": True}])))
    )


def stream_differences(theirs: Converters, lines: list[JSON]) -> tuple[JSON, JSON]:
    return differences(unnamed(theirs.stream(lines)), unnamed(our_stream(lines)))


def listed(differing: Sequence[Difference], old: Sequence[Difference]) -> list[Difference]:
    return [*differing, *old] if OLD else [*differing]


def alike(same: Sequence[Any], old: Sequence[Difference]) -> list[Any]:
    """What is converted alike, but for what the old converters do otherwise."""
    return [case for case in same if not OLD or case not in [difference.given for difference in old]]


@pytest.mark.parametrize("case", listed(REQUESTS, OLD_REQUESTS), ids=lambda case: case.reason)
def test_requests_differ_as_listed(theirs: Converters, case: Difference) -> None:
    """Would catch a difference that is gone, or has become another."""
    assert request_differences(theirs, case.given) == (case.theirs, case.ours)


@pytest.mark.parametrize("body", alike(SAME_REQUESTS, OLD_REQUESTS))
def test_requests_agree(theirs: Converters, body: JSON) -> None:
    """Would catch a request that a model answers otherwise than through Open WebUI alone."""
    assert request_differences(theirs, body) == ({}, {})


@pytest.mark.parametrize("case", listed(ANSWERS, OLD_ANSWERS), ids=lambda case: case.reason)
def test_answers_differ_as_listed(theirs: Converters, case: Difference) -> None:
    """Would catch a difference that is gone, or has become another."""
    if OLD and case is NEWER_FAULT:
        assert answer_differences(theirs, case.given) == ({}, {})
    else:
        assert answer_differences(theirs, case.given) == (case.theirs, case.ours)


@pytest.mark.parametrize("answer", alike(SAME_ANSWERS, OLD_ANSWERS))
def test_answers_agree(theirs: Converters, answer: JSON) -> None:
    """Would catch an answer that Open WebUI shows otherwise than its own."""
    assert answer_differences(theirs, answer) == ({}, {})


@pytest.mark.parametrize("case", listed(STREAMS, OLD_STREAMS), ids=lambda case: case.reason)
def test_streams_differ_as_listed(theirs: Converters, case: Difference) -> None:
    """Would catch a difference that is gone, or has become another."""
    assert stream_differences(theirs, case.given) == (case.theirs, case.ours)


@pytest.mark.parametrize("lines", alike(SAME_STREAMS, OLD_STREAMS))
def test_streams_agree(theirs: Converters, lines: list[JSON]) -> None:
    """Would catch chunks that Open WebUI shows otherwise than its own."""
    assert stream_differences(theirs, lines) == ({}, {})


# --- what both have in common, at random

texts = st.text(min_size=1, max_size=8)
plain_texts = texts.filter(lambda text: text == text.strip())
contents = texts | st.lists(
    st.builds(lambda text: {"type": "text", "text": text}, plain_texts), min_size=1, max_size=1
)
messages = st.builds(
    lambda role, content, thinking: {"role": role, "content": content} | thinking,
    st.sampled_from(["system", "user", "assistant"]),
    contents,
    st.just({}) | st.builds(lambda text: {"reasoning_content": text}, texts),
)
numbers = st.integers(0, 9) | st.sampled_from([0.25, 0.5])
options = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty"), numbers),
        "repeat_penalty": numbers.filter(bool),  # Ollama divides by it: 0 is refused
        **dict.fromkeys(("seed", "top_k", "num_ctx", "num_predict", "mirostat"), st.integers(0, 9)),
        "stop": st.lists(texts, max_size=2),
        "use_mmap": st.booleans(),
        "keep_alive": st.sampled_from(["5m", "-1", 60]),
        "think": st.booleans(),
        "format": st.sampled_from(["json", '{"type": "object"}']),
    },
)
bodies = st.fixed_dictionaries(
    {"messages": st.lists(messages, max_size=4)},
    optional={
        "stream": st.booleans(),
        "tools": st.just([TOOL]),
        "stop": st.lists(texts, min_size=1, max_size=2),
        "options": options.filter(lambda given: {*given} - {"keep_alive", "think", "format"}),
    },
)


@settings(deadline=None)
@given(body=bodies)
def test_plain_requests_agree(theirs: Converters, body: JSON) -> None:
    """Would catch a difference that nobody has thought of."""
    assert request_differences(theirs, body) == ({}, {})


lines_that_say_something = st.one_of(
    st.builds(line, texts),
    st.builds(lambda text: line(thinking=text), texts),
)


@settings(deadline=None)
@given(lines=st.lists(lines_that_say_something, max_size=4), figures=st.sets(st.sampled_from([*FIGURES])))
def test_plain_answers_agree(theirs: Converters, lines: list[JSON], figures: set[str]) -> None:
    """Would catch a difference that nobody has thought of; Ollama leaves figures of zero out."""
    last = {name: value for name, value in LAST.items() if name not in FIGURES or name in figures}
    assert stream_differences(theirs, [*lines, last]) == ({}, {})
    for each in lines:
        assert answer_differences(theirs, last | {"message": each["message"]}) == ({}, {})


# --- what the gateway gives an own connection ---


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"max_tokens": 9, "max_completion_tokens": 16}, {"options": {"num_predict": 16}}),
        ({"stop": "\n"}, {"options": {"stop": ["\n"]}}),
        ({"top_k": 7, "seed": 1}, {"options": {"top_k": 7, "seed": 1}}),
        ({"response_format": {"type": "json_object"}}, {"format": "json"}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "object"}},
                }
            },
            {"format": {"type": "object"}},
        ),
        ({"response_format": None, "stop": None, "max_tokens": None, "tools": None}, {}),
        ({"reasoning_effort": "none"}, {"think": False}),
        ({"reasoning_effort": "high", "options": {"think": "low"}}, {"think": "low"}),
        ({"options": {"keep_alive": "5m", "num_ctx": 9}}, {"options": {"num_ctx": 9}, "keep_alive": "5m"}),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
    ],
)
def test_settings_reach_an_own_connection(theirs: Converters, asked: Any, sent: Any) -> None:
    """Would catch a setting that Open WebUI loses, or gives in a form that Ollama refuses."""
    body = {"model": "m", "messages": [USER], **asked}
    made = theirs.request(fitted_settings(body, "ollama"))
    made = {name: value for name, value in made.items() if value not in ({}, None)}
    assert made == {"model": "m", "messages": body["messages"], "stream": False, **sent}


@pytest.mark.parametrize("row", [{"max_tokens": 99}, {"num_predict": 99}])
def test_a_client_s_length_counts_more_than_its_model_s(theirs: Converters, row: Any) -> None:
    """Would catch a row's limit in place of the client's: Open WebUI has two names for it."""
    fitted = fitted_settings({"model": "m", "messages": [], "max_completion_tokens": 16}, "ollama")
    merged = fitted | {"options": {**row, **fitted["options"]}}  # as its apply_params_to_form_data does
    assert theirs.request(merged)["options"]["num_predict"] == 16


def test_anthropic_s_figures_count_each_token_once(theirs: Converters) -> None:
    """Would catch a client that takes its context for twice as full as it is, and shortens it for nothing."""
    reply = EngineReply(HEAD, "last")
    figures = {"completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 900}}
    last = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}
    chunks = reply.take({"choices": [last], "usage": {"prompt_tokens": 1000, **figures}}) + reply.end()
    message, events = theirs.message(chunks)
    for usage in (message["usage"], events[-2]["usage"]):
        assert usage["input_tokens"] + usage.get("cache_read_input_tokens", 0) == 1000
        assert usage["output_tokens"] == 5
