"""Generated chat requests for the cache's keys: pairs that are the same, and pairs that are not."""

import base64
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import orjson

Body = dict[str, Any]
_WORDS = ("the", "cat", "é", "e\u0301", "猫", "1", "1.0", "true", "null", "", " ", "👋", "{", '"')
_IDS = ("id", "chat_id", "session_id", "message_id", "user")


def chat_body(*, turns: int, tools: int, words: int = 60) -> Body:
    """A body as Open WebUI sends it: this many turns of this many words, and tools."""
    messages = [{"role": "system", "content": "You are a helpful assistant. " * 5}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{turn} " + "word " * words})
        messages.append({"role": "assistant", "content": f"{turn} " + "word " * words})
    messages[-1:] = [] if turns else messages[-1:]
    return {
        "model": "llama3:8b",
        "stream": True,
        "messages": messages,
        "options": {"temperature": 0.7, "num_ctx": 4096},
        **({"tools": [_tool(f"tool_{number}") for number in range(tools)]} if tools else {}),
    }


def random_body(dice: Random) -> Body:
    """Any body: turns, tool calls, images, options, unknown fields."""
    body: Body = {
        "model": f"model{dice.randrange(5)}",
        "messages": [_message(dice, n) for n in range(dice.randint(1, 5))],
    }
    if dice.random() < 0.5:
        body["options"] = {
            name: dice.choice((0, 1, 0.7, 4096)) for name in ("temperature", "num_ctx", "seed")
        }
    if dice.random() < 0.3:
        body["tools"] = [_tool(_text(dice)) for _ in range(dice.randint(1, 3))]
    if dice.random() < 0.3:
        body[f"field{dice.randrange(9)}"] = dice.choice((True, None, 1, "1", [1, [2]], {"a": {"b": 1}}, []))
    return body


def alike(body: Body, dice: Random) -> Body:
    """The same request as another client, chat or moment would send it."""
    same: Body = _shuffled(_copy(body), dice)
    for name in dice.sample(_IDS, 2):
        same[name] = f"{dice.getrandbits(64):x}"
    same["stream"] = dice.random() < 0.5
    same["keep_alive"] = dice.choice(("5m", -1))
    same["metadata"] = {"chat_id": f"{dice.getrandbits(64):x}"}
    renamed: dict[str, str] = {}
    for message in same["messages"]:
        message["id"] = f"{dice.getrandbits(64):x}"
        for call in message.get("tool_calls", ()):
            call["id"] = renamed.setdefault(call["id"], f"call_{dice.getrandbits(64):x}")
        if "tool_call_id" in message:
            name = message["tool_call_id"]
            message["tool_call_id"] = renamed.setdefault(name, f"call_{dice.getrandbits(64):x}")
    spaces = dice.choice(((",", ":"), (" , ", " : ")))
    same = _whole_as_float(same, dice)
    return _read_again(json.dumps(same, indent=dice.choice((None, 1, 4)), separators=spaces))


def different(body: Body, dice: Random) -> Body:
    """The request with one thing changed that may change its answer."""
    other: Body = _copy(body)
    while other == body:
        holder, name = dice.choice(list(_places(other)))
        _change(holder, name, dice)
    return other


def _message(dice: Random, number: int) -> Body:
    match dice.randrange(6):
        case 0:
            call = {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": "f", "arguments": _text(dice)},
            }
            return {"role": "assistant", "content": "", "tool_calls": [call]}
        case 1:
            return {"role": "tool", "tool_call_id": f"call_{max(0, number - 1)}", "content": _text(dice)}
        case 2:
            pixels = base64.b64encode(dice.randbytes(12)).decode()
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixels}"}}
            return {"role": "user", "content": [{"type": "text", "text": _text(dice)}, image]}
        case _:
            return {"role": dice.choice(("system", "user", "assistant")), "content": _text(dice)}


def _tool(name: str) -> Body:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    return {
        "type": "function",
        "function": {"name": name, "description": "Does it.", "parameters": parameters},
    }


def _text(dice: Random) -> str:
    return " ".join(dice.choices(_WORDS, k=dice.randint(1, 8)))


def _read_again(text: str) -> Body:
    read: Body = json.loads(text)
    return read


def _copy(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))  # many times faster than copy.deepcopy


def _shuffled(value: Any, dice: Random) -> Any:
    """Objects in another order."""
    if isinstance(value, list):
        return [_shuffled(item, dice) for item in value]
    if not isinstance(value, dict):
        return value
    names = list(value)
    dice.shuffle(names)
    return {name: _shuffled(value[name], dice) for name in names}


def _whole_as_float(value: Any, dice: Random) -> Any:
    """Some 1 as 1.0: JSON knows one kind of number."""
    if isinstance(value, list):
        return [_whole_as_float(item, dice) for item in value]
    if isinstance(value, dict):
        return {name: _whole_as_float(item, dice) for name, item in value.items()}
    return float(value) if type(value) is int and dice.random() < 0.5 else value


def _places(value: Any, inside: str = "") -> Iterator[tuple[Any, Any]]:
    """All places in a body whose content matters."""
    named = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for name, inner in named:
        if inside == "tool_calls" and name == "id":
            continue
        if isinstance(inner, str) and inner.startswith("data:"):
            yield value, name
        elif isinstance(inner, dict | list):
            if inner:
                yield from _places(inner, name if isinstance(name, str) else inside)
            yield value, name
        elif name != "tool_call_id":
            yield value, name


def _change(holder: Any, name: Any, dice: Random) -> None:
    """Another value in a place, or one more beside it, or none."""
    value = holder[name]
    match dice.randrange(4):
        case 0 if isinstance(holder, dict) and name not in ("model", "messages", "url", "image_url", "type"):
            del holder[name]
        case 1 if isinstance(holder, list) and isinstance(value, dict):
            holder.insert(name, _copy(value))
        case 2 if isinstance(holder, dict) and "url" not in holder:
            holder[f"new{dice.randrange(99)}"] = dice.choice((None, False, 0, "", [], {}))
        case _:
            holder[name] = _another(value, dice)


def _another(value: Any, dice: Random) -> Any:
    match value:
        case str():
            return _another_text(value, dice)
        case bool() | None:
            return dice.choice([other for other in (True, False, None) if other is not value])
        case int() | float():
            return dice.choice((value + 1, str(value), value + 0.5, -value - 1))
        case list():
            return value[::-1] if value != value[::-1] else [*value, _copy(value[0]) if value else {}]
        case _:
            return {**value, "more": dice.randrange(99)}


def _another_text(text: str, dice: Random) -> str:
    if text.startswith("data:"):
        return f"data:image/png;base64,{base64.b64encode(dice.randbytes(13)).decode()}"
    return dice.choice((f"{text} ", f"{text}x", f"{text}\u0301", f"{text}\n", f"{text}\x00", f"x{text}"))
