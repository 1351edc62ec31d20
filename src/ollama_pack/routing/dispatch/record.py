"""What is written down of a chat when it has ended: figures and names, and nothing of what was said."""

import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from typing import Any

from ollama_pack.base.messages import in_language
from ollama_pack.base.translations import TRANSLATIONS
from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.errors import error_code
from ollama_pack.routing.decide.assignment import ConsideredNode
from ollama_pack.routing.dispatch.explain import Decision
from ollama_pack.routing.dispatch.pending_chat import PendingChat

MAX_CONSIDERED = 5  # nodes, the cheapest ones
MAX_ERROR = 300  # characters

ChatRecord = Mapping[str, Any]
NoteChat = Callable[[ChatRecord], None]


def note_nowhere(_record: ChatRecord) -> None:
    """Forget it."""


def chat_record(pending: PendingChat, error: BaseException | None, now: float) -> dict[str, Any]:
    """The record, as JSON has it.

    | field | what |
    |---|---|
    | `at` | when it ended, Unix time |
    | `asked`, `model`, `node` | the name that was asked for, the model that answered, and where |
    | `user` | its id |
    | `outcome` | `answered`, `stopped` (its user left) or `failed` |
    | `error`, `error_text`, `error_texts` | of a failed one: the kind, and the sentence in each language |
    | `waited`, `first`, `took` | seconds: in the queue, to the first token, in all; from when it came |
    | `predicted` | seconds to the first token at the node, as predicted |
    | `prompt`, `held`, `written` | tokens: of the prompt, of these those that the node held, of the answer |
    | `loads`, `background` | the model had to be loaded; nobody looked at the answer |
    | `tried` | nodes that failed it, each with what was wrong |
    | `tried_texts` | the same in other languages |
    | `considered` | the cheapest nodes, the chosen one first: node, model, terms in seconds |

    Args:
        pending: the chat.
        error: with which it ended.
        now: on the loop's clock.
    """
    decision, spent = pending.decision, pending.spent
    record: dict[str, Any] = {
        "id": pending.request.id,
        "at": round(time.time(), 3),
        "asked": pending.head.model.removeprefix(ROUTER),
        "model": decision.model if decision else "",
        "node": decision.node if decision else "",
        "user": pending.user,
        "outcome": _outcome(error),
        "waited": _seconds(decision.waited if decision else now - pending.came),
        "took": _seconds(now - pending.came),
        "loads": bool(decision and decision.loads),
        "background": pending.request.background,
    }
    if pending.began is not None:
        record["first"] = _seconds(pending.began - pending.came)
    if decision:
        record["predicted"] = _seconds(decision.predicted)
        record["considered"] = _considered(decision)
        record |= {"prompt": decision.tokens, "held": decision.hit}
    if spent and spent.prompt_count:
        record |= {"prompt": spent.prompt_count, "written": spent.decode_count}
        record |= {} if spent.hit is None else {"held": spent.hit}
    if record["outcome"] == "failed" and isinstance(error, Exception):
        record |= {"error": error_code(error), "error_text": str(error)[:MAX_ERROR]}
        others = {language: in_language(error, language)[:MAX_ERROR] for language in TRANSLATIONS}
        record["error_texts"] = {name: text for name, text in others.items() if text != record["error_text"]}
    if pending.tried:
        faults = {node: fault.plain for node, fault in pending.tried.items()}
        record["tried"] = {node: fault[:MAX_ERROR] for node, fault in faults.items()}
        record["tried_texts"] = {
            language: {node: in_language(fault, language)[:MAX_ERROR] for node, fault in faults.items()}
            for language in TRANSLATIONS
        }
    return record


def running_record(pending: PendingChat, now: float) -> dict[str, Any]:
    """The same of a chat that has not ended: its outcome is `waiting`, `loading` or `answering`."""
    record = chat_record(pending, None, now)
    if not pending.bound.done():
        return record | {"outcome": "waiting"}
    return record | {"outcome": "loading" if record["loads"] and pending.began is None else "answering"}


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "answered"
    return "stopped" if isinstance(error, CancelledError | GeneratorExit) else "failed"


def _seconds(value: float) -> float:
    return round(max(0.0, value), 3)


def _considered(decision: Decision) -> list[dict[str, Any]]:
    def chosen_first(one: ConsideredNode) -> tuple[bool, float]:
        node, model, terms = one
        return (node, model) != (decision.node, decision.model), sum(terms.as_dict().values())

    cheapest = sorted(decision.considered(), key=chosen_first)[:MAX_CONSIDERED]
    return [
        {
            "node": node,
            "model": model,
            "terms": {name: _seconds(cost) for name, cost in terms.as_dict().items()},
        }
        for node, model, terms in cheapest
    ]
