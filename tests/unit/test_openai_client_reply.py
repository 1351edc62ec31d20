"""What an OpenAI-compatible engine says, in the form that all answers have; and what its refusals mean."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.openai_wire import LLAMACPP_MODELS, LLAMACPP_PROPS, MODEL, SGLANG_MODELS, VLLM_MODELS
from ollama_pack.engines.errors import (
    ModelNotFoundError,
    NodeBusyError,
    NodeError,
    NodeFaultError,
    RequestRefusedError,
)
from ollama_pack.engines.ollama.stream import UsagePlace, completion_of
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.openai.failures import engine_status_error
from ollama_pack.engines.openai.models import ServedName, engine_models, served_context
from ollama_pack.engines.openai.stream import EngineReply, engine_usage

JSON = dict[str, Any]
HEAD = ReplyHead("chatcmpl-1", 1_700_000_000, "gpt-4")
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13, "prompt_tokens_details": None}


def says(finish: str | None = None, **delta: Any) -> JSON:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "theirs", "model": "theirs", "choices": [choice], "system_fingerprint": "x"}


def part(arguments: str, **fields: Any) -> JSON:
    """A part of a tool call."""
    name = {"name": fields.pop("name")} if "name" in fields else {}
    return {**fields, "function": {**name, "arguments": arguments}}


def reply(*chunks: JSON, place: UsagePlace = "last") -> list[JSON]:
    made = EngineReply(HEAD, place)
    said = [chunk for given in chunks for chunk in made.take(given)]
    return said + made.end()


def deltas(chunks: list[JSON]) -> list[JSON]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


ROLE = says(role="assistant", content="")
END = says("stop")
FIGURES = {"choices": [], "usage": USAGE}


def test_an_answer() -> None:
    """Would catch a chunk that says nothing, which counts as the first token, or one of another form."""
    chunks = reply(ROLE, says(content="Hel"), says(content="lo"), END, FIGURES)
    assert deltas(chunks) == [{"role": "assistant", "content": "Hel"}, {"content": "lo"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        ("chatcmpl-1", "chat.completion.chunk", 1_700_000_000, "gpt-4")
    }
    assert all(chunk.keys() <= {"id", "object", "created", "model", "choices", "usage"} for chunk in chunks)
    assert all(
        choice.keys() == {"index", "delta", "logprobs", "finish_reason"}
        for chunk in chunks
        for choice in chunk["choices"]
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts(name: str) -> None:
    """Would catch thoughts that get lost, or that are shown as the answer."""
    chunks = reply(ROLE, says(**{name: "Hm", "content": None}), says(content="Yes"), END)
    assert deltas(chunks) == [{"role": "assistant", "reasoning_content": "Hm"}, {"content": "Yes"}, {}]


def test_thoughts_of_mistral() -> None:
    """Would catch Magistral's thoughts, which come in a list where text is, being dropped."""
    thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}], "closed": True}]
    said = says(content=thought), says(content=[{"type": "text", "text": "Y"}]), says(content="es")
    expected = [{"role": "assistant", "reasoning_content": "Hm"}, {"content": "Y"}, {"content": "es"}, {}]
    assert deltas(reply(*said, END)) == expected


@pytest.mark.parametrize(
    "content", [[None, 7], [{"thinking": 7}], [{"thinking": [None, {"text": 7}]}], [{"text": None}], {}, 7]
)
def test_odd_parts_say_nothing(content: object) -> None:
    """Would catch an answer that ends with an error of ours."""
    assert deltas(reply(says(content=content), END)) == [{"role": "assistant"}]


def test_where_the_figures_go() -> None:
    """Would catch figures that Open WebUI does not find, or a client that asked for a chunk of their own."""
    last = reply(says(content="a"), END, FIGURES)
    assert len(last) == 2
    assert last[-1]["usage"]["completion_tokens"] == 3
    *_, finish, apart = reply(says(content="a"), END, FIGURES, place="apart")
    assert "usage" not in finish
    assert (apart["choices"], apart["usage"]["prompt_tokens"]) == ([], 10)


@pytest.mark.parametrize(
    "chunks",
    [
        [says(content="a"), END, FIGURES],
        [says(content="a"), END | {"usage": USAGE}],
        [says(content="a") | {"usage": USAGE | {"completion_tokens": 1}}, END | {"usage": USAGE}],
        [says(content="a"), END, {"usage": USAGE}],
    ],
    ids=["apart", "with the end", "in every chunk", "without choices"],
)
def test_wherever_the_figures_come(chunks: list[JSON]) -> None:
    """Would catch an engine that has its figures elsewhere, whose answers seem to cost nothing."""
    said = reply(*chunks)
    assert ["usage" in chunk for chunk in said] == [False, True]
    assert said[-1]["usage"]["completion_tokens"] == 3


def test_no_figures() -> None:
    """Would catch an answer whose last chunk cannot be told from the others."""
    assert reply(says(content="a"), END)[-1]["usage"] is None


def test_figures_of_llamacpp() -> None:
    """Would catch exact durations and hits that do not reach the fleet, or rates that nobody is shown."""
    timings = {"cache_n": 9, "prompt_n": 1, "predicted_per_second": 60.6060, "prompt_per_second": 57.0}
    last = reply(says(content="a"), END, FIGURES | {"timings": timings})[-1]
    assert last["timings"] == timings
    assert (last["usage"]["response_token/s"], last["usage"]["prompt_token/s"]) == (60.61, 57.0)


def test_figures_in_the_words_of_open_webui() -> None:
    """Would catch figures that are null, or that one kind of node has and the other does not."""
    assert engine_usage(USAGE, None) == {
        **{name: value for name, value in USAGE.items() if value is not None},
        "input_tokens": 10,
        "output_tokens": 3,
    }
    assert engine_usage(None, {"predicted_n": 1}) is None


CALL_FORMS: dict[str, list[JSON]] = {
    "in parts": [
        says(tool_calls=[part("", index=0, id="c1", type="function", name="get_weather")]),
        says(tool_calls=[part('{"city"', index=0)]),
        says(tool_calls=[part(': "Paris"}', index=0)]),
        says(tool_calls=[part("{}", index=1, id="c2", name="get_time")]),
    ],
    "at once": [
        says(
            tool_calls=[
                part('{"city": "Paris"}', index=0, id="c1", name="get_weather"),
                part("{}", index=1, id="c2", name="get_time"),
            ]
        )
    ],
    "all numbered 0": [
        says(tool_calls=[part('{"city": "Paris"}', index=0, id="c1", name="get_weather")]),
        says(tool_calls=[part("{}", index=0, id="c2", name="get_time")]),
    ],
    "without numbers": [
        says(tool_calls=[part('{"city": ', id="c1", name="get_weather")]),
        says(tool_calls=[part('"Paris"}')]),
        says(tool_calls=[part("", id="c2", name="get_time")]),
    ],
    "interleaved": [
        says(tool_calls=[part("", index=0, id="c1", name="get_weather")]),
        says(tool_calls=[part("", index=1, id="c2", name="get_time")]),
        says(tool_calls=[part('{"city": "Paris"}', index=0), part("{}", index=1)]),
    ],
    "with the id again": [
        says(tool_calls=[part('{"city": ', index=0, id="c1", name="get_weather")]),
        says(tool_calls=[part('"Paris"}', index=0, id="c1", name="get_weather")]),
        says(tool_calls=[part("", index=4, id="c2", name="get_time")]),
    ],
}


@pytest.mark.parametrize("chunks", CALL_FORMS.values(), ids=CALL_FORMS)
def test_tool_calls(chunks: list[JSON]) -> None:
    """Would catch calls that run together, come in pieces, or whose arguments are no JSON."""
    said = reply(ROLE, *chunks, says("tool_calls"), FIGURES)
    assert deltas(said)[0] == {"role": "assistant"}
    message = completion_of(said)["choices"][0]["message"]
    assert message["tool_calls"] == [
        {
            "index": 0,
            "id": "c1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        },
        {"index": 1, "id": "c2", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
    ]
    assert said[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_first_part_of_a_call_shows() -> None:
    """Would catch an agent's long call that looks as if the engine had not begun, to the very end."""
    made = EngineReply(HEAD, "last")
    assert made.take(ROLE) == []
    assert not made.is_begun
    (first,) = made.take(says(tool_calls=[part("", index=0, id="c1", name="a")]))
    assert (first["choices"][0]["delta"], made.is_begun) == ({"role": "assistant"}, True)
    assert made.take(says(tool_calls=[part("{}", index=0)])) == []


def test_calls_without_ids() -> None:
    """Would catch a result that cannot be matched with its call."""
    said = reply(says(tool_calls=[part("", index=0, name="a")]), says("stop"))
    (call,) = said[1]["choices"][0]["delta"]["tool_calls"]
    assert (call["id"], said[-1]["choices"][0]["finish_reason"]) == ("call_chatcmpl-1_0", "tool_calls")


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "stop"),
        ("eos", "stop"),
    ],
)
def test_reasons_for_the_end(told: str, wanted: str) -> None:
    """Would catch an answer cut off that looks whole, or a reason that clients do not know."""
    assert reply(says(content="a"), says(told))[-1]["choices"][0]["finish_reason"] == wanted


@pytest.mark.parametrize(
    ("told", "whole", "aborted"), [("stop", True, False), (None, False, False), ("abort", False, True)]
)
def test_whether_it_is_whole(told: str | None, whole: bool, aborted: bool) -> None:  # noqa: FBT001 - of pytest
    """Would catch half an answer that is stored in the cache as whole."""
    made = EngineReply(HEAD, "last")
    made.take(says(told, content="a"))
    assert (made.is_whole, made.is_aborted) == (whole, aborted)


def test_what_open_webui_reads_is_kept() -> None:
    """Would catch sources and probabilities that get lost on the way."""
    logprobs = {"content": [{"token": "a", "logprob": -1.0}]}
    spoken = says(content="a", annotations=[{"type": "url_citation"}], audio={"id": "x"})
    spoken["choices"][0]["logprobs"] = logprobs
    (choice,) = reply(spoken, END)[0]["choices"]
    assert choice["logprobs"] == logprobs
    assert choice["delta"].keys() == {"role", "content", "annotations"}


def test_a_second_choice_is_not_mixed_in() -> None:
    """Would catch two answers that run together."""
    both = says(content="a")
    both["choices"].append({"index": 1, "delta": {"content": "b"}})
    assert completion_of(reply(both, END))["choices"][0]["message"]["content"] == "a"
    only = {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]}
    assert completion_of(reply(says(content="a"), only, END))["choices"][0]["message"]["content"] == "a"


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "stop", "a"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "content",
                    "tool_calls",
                    "function",
                    "finish_reason",
                    "usage",
                    "index",
                    "id",
                    "name",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
CHUNK = st.fixed_dictionaries(
    {"choices": st.lists(st.dictionaries(st.sampled_from(["delta", "index"]), JSON_VALUE))}
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["choices", "usage", "timings"]), JSON_VALUE) | CHUNK, max_size=5
    )
)
def test_nonsense_makes_chunks_of_the_right_form(chunks: list[JSON]) -> None:
    """Would catch a broken engine that crashes the router, or a chunk that crashes a client."""
    said = reply(*chunks)
    json.dumps(said)
    assert completion_of(said)["choices"][0]["finish_reason"]
    assert "role" in deltas(said)[0]
    assert sum("role" in delta for delta in deltas(said)) == 1


# --- models


def test_models_of_vllm_and_sglang() -> None:
    """Would catch a context that is lost, or abilities that are made up: then pictures are kept away."""
    for answer, context in ((VLLM_MODELS, 8192), (SGLANG_MODELS, 32768)):
        (model,) = engine_models(answer)
        assert (model.listed().name, model.listed().size, model.listed().digest) == (MODEL, 0, "")
        assert (model.resident().context_length, model.resident().expires_at) == (context, None)
        shown = model.shown({})
        assert (shown.capabilities, shown.blob, shown.num_ctx, shown.context_length) == (
            (),
            "",
            None,
            context,
        )


def test_a_model_of_llamacpp() -> None:
    """Would catch facts that only llama.cpp tells and that get lost on the way."""
    (model,) = engine_models(LLAMACPP_MODELS)
    listed, shown = model.listed(), model.shown(LLAMACPP_PROPS)
    assert (listed.size, listed.details.quantization_level) == (96_576_768, "Q4_1")
    assert listed.details.parameter_size == "134.52M"
    assert (model.resident().context_length, shown.context_length) == (4096, 8192)
    assert (shown.capabilities, shown.thinking) == (("completion",), "never")
    assert served_context(LLAMACPP_PROPS) == 4096


@pytest.mark.parametrize(
    ("props", "able"),
    [
        ({}, ("completion", "tools")),
        ({"chat_template_caps": {"supports_tools": True}}, ("completion", "tools")),
        (
            {"chat_template_caps": {"supports_tools": False}, "modalities": {"vision": True}},
            ("completion", "vision"),
        ),
    ],
)
def test_abilities_by_the_template(props: JSON, able: tuple[str, ...]) -> None:
    """Would catch tools that are offered to a model whose template has no place for them."""
    (model,) = engine_models(LLAMACPP_MODELS)
    assert model.shown(props).capabilities == able


@pytest.mark.parametrize(
    ("ftype", "level"),
    [
        ("Q4_1", "Q4_1"),
        ("Q4_K - Medium", "Q4_K_M"),
        ("Q5_K - Small", "Q5_K_S"),
        ("IQ2_XXS - 2.0625 bpw", "IQ2_XXS"),
        ("all F32", "F32"),
        ("mostly BF16", "BF16"),
        ("MXFP4 MoE", "MXFP4"),
        ("unknown, may not work", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_quantization_in_ollamas_words(ftype: object, level: str) -> None:
    """Would catch an alias that prefers a level and does not find it on a llama.cpp."""
    (model,) = engine_models({"data": [{"id": "m", "meta": {"ftype": ftype}}]})
    assert model.quantization == level


def test_models_that_are_not_loaded() -> None:
    """Would catch a llama.cpp with many models, all of which seem to be in memory."""
    states = {
        "a": {"value": "loaded"},
        "b": {"value": "unloaded"},
        "c": {"value": "sleeping"},
        "d": "odd",
        "e": None,
    }
    models = engine_models({"data": [{"id": name, "status": status} for name, status in states.items()]})
    assert [model.name for model in models if model.loaded] == ["a", "d", "e"]


def test_a_model_that_sees() -> None:
    """Would catch a llama.cpp with a projector that is kept from pictures."""
    entry = {"id": "m", "architecture": {"input_modalities": ["text", "image"]}}
    (model,) = engine_models({"data": [entry]})
    assert model.capabilities == ("completion", "vision")
    (older,) = engine_models(
        {"data": [{"id": "m"}], "models": [{"name": "m", "capabilities": ["completion", "multimodal"]}]}
    )
    assert older.capabilities == ("completion",)
    assert older.shown({"modalities": {"vision": True}}).capabilities == ("completion", "vision", "tools")


@pytest.mark.parametrize("answer", [{}, {"data": None}, {"data": [5]}, {"data": [{}]}, {"data": [{"id": 5}]}])
def test_lists_of_another_form(answer: JSON) -> None:
    """Would catch a server of another kind that is taken for an engine without models."""
    with pytest.raises(ValueError, match=r"`data`|`id`"):
        engine_models(answer)


# --- refusals


def openai_form(message: str) -> JSON:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


OVERFLOW = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
EXTRA = {"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}
REFUSALS: list[tuple[int, JSON, type[NodeError], str]] = [
    (404, openai_form("The model `x` does not exist."), ModelNotFoundError, "The model `x` does not exist."),
    (404, {"object": "error", "message": "The model 'x' does not exist"}, ModelNotFoundError, "The model"),
    (400, openai_form("model 'x' not found"), ModelNotFoundError, "model 'x' not found"),
    (400, openai_form("model is not loaded"), ModelNotFoundError, "model is not loaded"),
    (400, openai_form("/chat: Invalid model name passed in model=x"), ModelNotFoundError, "/chat"),
    (404, {"detail": "Not Found"}, NodeFaultError, "Not Found"),
    (400, openai_form(OVERFLOW), RequestRefusedError, OVERFLOW),
    (400, openai_form("request (6031 tokens) exceeds the context"), RequestRefusedError, "request (6031"),
    (400, openai_form("The tool 'a' was not found for this model"), RequestRefusedError, "The tool"),
    (422, {"detail": [EXTRA]}, RequestRefusedError, "body stream_options: Extra inputs"),
    (500, openai_form("image input is not supported - hint: …"), RequestRefusedError, "image input"),
    (500, openai_form("EngineCore encountered an issue"), NodeFaultError, "EngineCore"),
    (503, openai_form("Loading model"), NodeBusyError, "Loading model"),
    (503, openai_form("model is not loaded yet"), NodeBusyError, "model is not loaded yet"),
    (429, openai_form("Too many requests"), NodeBusyError, "Too many"),
    (401, {"error": "Unauthorized"}, NodeFaultError, "Unauthorized"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "answer", "kind", "said"), REFUSALS)
def test_refusals(status: int, answer: JSON, kind: type[NodeError], said: str) -> None:
    """Would catch a request at fault that is tried everywhere, or a fault that is not tried elsewhere."""
    error = engine_status_error("http://gpu1", status, json.dumps(answer).encode(), "x")
    assert type(error) is kind
    assert error.said.startswith(said)
    assert "ollama" not in str(error), "this engine is none"


@given(
    st.binary(max_size=200) | JSON_VALUE.map(lambda value: json.dumps({"error": value}).encode()),
    st.integers(201, 599),
)
def test_any_refusal_is_a_typed_error(answer: bytes, status: int) -> None:
    """Would catch a page of a proxy that crashes the router."""
    assert isinstance(engine_status_error("http://gpu1", status, answer, "x"), NodeError)


SERVED = {"llama-70b": {"llama-70b"}, "llama": {"llama", "prod"}, "prod": {"llama", "prod"}}


@pytest.mark.parametrize(
    ("asked", "answered", "believed"),
    [
        ("llama", "llama", True),
        ("llama", "LLAMA", True),
        ("llama", "prod", True),
        ("llama", "/models/llama.gguf", True),
        ("llama", "meta/llama-2025-01-01", True),
        ("llama", "", True),
        ("llama", None, True),
        ("llama", "llama-70b", False),
        ("llama-70b", "llama", False),
        ("llama", "mistral", False),
    ],
)
def test_whose_answer_it_is(asked: str, answered: object, *, believed: bool) -> None:
    """Would catch another model's answer, or an engine left out for how it writes a name."""
    assert ServedName(asked).may_be(answered, SERVED) == believed
