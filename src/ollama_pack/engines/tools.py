"""The tools that a chat body offers, and what its `tool_choice` asks for, in whichever client's words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ollama_pack.base.messages import message
from ollama_pack.engines.body import list_in, object_in, objects_in
from ollama_pack.engines.errors import ChatBodyError

ChoiceMode = Literal["auto", "required", "none"]

# OpenAI's words, Anthropic's and Mistral's `any`, and the switch that LangChain knows.
_CHOICE_MODES: dict[object, ChoiceMode] = {
    "auto": "auto",
    "required": "required",
    "any": "required",
    "none": "none",
    True: "required",
    False: "none",
}
_NAMED_TYPES = frozenset({"function", "tool", "custom"})
_UNKNOWN_CHOICE = message('must be "auto", "none", "required" or the name of one of the tools')


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """What a model may call.

    Attributes:
        tools: in OpenAI's form, those alone that `tool_choice` allows; empty: none.
        mode: whether it must call one; None where the body does not say.
        name: of the one tool that it must call; empty: any.
    """

    tools: list[Mapping[str, Any]]
    mode: ChoiceMode | None = None
    name: str = ""


def offered_tools(body: Mapping[str, Any]) -> OfferedTools:
    """Read `tools` and `tool_choice`.

    Known are the forms of OpenAI's chat API, of its Responses API (`{"type": "function", "name": …}`,
    `allowed_tools`), of Anthropic (`{"type": "auto" | "any" | "tool" | "none"}`)
    and of Bedrock (`{"any": {}}`).

    Raises:
        ChatBodyError: a field is not of its form, or asks for a tool that is not there.
    """
    tools = [_openai_tool(tool) for tool in objects_in(body.get("tools"), "tools")]
    mode, names = _choice_in(body.get("tool_choice"), frozenset(map(_declared_name, tools)))
    if not names:
        return OfferedTools(tools, mode if tools else None)
    chosen = [tool for tool in tools if _declared_name(tool) in names]
    if not chosen:
        raise ChatBodyError("tool_choice", message("names a function that is not among the tools"))
    return OfferedTools(chosen, mode, next(iter(names)) if mode == "required" and len(names) == 1 else "")


def _openai_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool of the Responses API or of Anthropic's has its name at the top."""
    if not isinstance(tool.get("name"), str) or "function" in tool or "custom" in tool:
        return tool
    parameters = tool.get("parameters", tool.get("input_schema"))
    if parameters is None and tool.get("type") != "function":
        return tool  # of a kind that the provider runs itself
    found = {"name": tool["name"], "description": tool.get("description"), "parameters": parameters}
    return {
        "type": "function",
        "function": {name: value for name, value in found.items() if value is not None},
    }


def _declared_name(tool: Mapping[str, Any]) -> str:
    """The name of a tool, or of the tool that a choice asks for; empty where there is none."""
    for inner in (tool.get("function"), tool.get("custom"), tool.get("tool"), tool):
        name = inner.get("name") if isinstance(inner, Mapping) else inner
        if isinstance(name, str) and name:
            return name
    return ""


def _choice_in(choice: object, declared: frozenset[str]) -> tuple[ChoiceMode | None, frozenset[str]]:
    """How much a model must call, and the names of the tools that it may call; empty: all."""
    if choice is None or choice == "":
        return None, frozenset()
    if isinstance(choice, str | bool):
        mode = _mode_in(choice)
        if mode is None and choice not in declared:
            raise ChatBodyError("tool_choice", _UNKNOWN_CHOICE)
        return (mode, frozenset()) if mode else ("required", frozenset({str(choice)}))
    given = object_in(choice, "tool_choice")
    kind = given.get("type")
    if kind == "allowed_tools" or "allowed_tools" in given:
        return _allowed_in(object_in(given.get("allowed_tools", given), "tool_choice.allowed_tools"))
    mode = _mode_in(kind) or next((mode for name in given if (mode := _mode_in(name))), None)
    if mode:
        return mode, frozenset()
    name = _declared_name(given)
    if name or kind in _NAMED_TYPES:
        return "required", frozenset({name} if name else ())
    raise ChatBodyError("tool_choice", _UNKNOWN_CHOICE)


def _mode_in(word: object) -> ChoiceMode | None:
    if not isinstance(word, str | bool):
        return None
    return _CHOICE_MODES.get(word.lower() if isinstance(word, str) else word)


def _allowed_in(allowed: Mapping[str, Any]) -> tuple[ChoiceMode, frozenset[str]]:
    """OpenAI's `allowed_tools`: some of the tools, and whether one must be called."""
    tools = list_in(allowed.get("tools"), "tool_choice.tools")
    names = (_declared_name(tool) for tool in tools if isinstance(tool, Mapping))
    return _mode_in(allowed.get("mode")) or "auto", frozenset(filter(None, names))
