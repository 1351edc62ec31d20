"""The nodes of pack.yaml as they are now: what they have installed, how much memory, what is loaded."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from deploy.config import Endpoint
from deploy.errors import UnreachableError
from deploy.shown import plain, shown_address
from deploy.web import fetch
from ollama_pack.base.messages import message
from ollama_pack.engines.model_kinds import chats
from ollama_pack.engines.ollama.names import quantization_in
from ollama_pack.engines.ollama.values import ListedModel, LoadedModel, ShownModel, entries_in
from ollama_pack.fit.choose import usable_memory
from ollama_pack.fit.planning import PlannedVariant
from ollama_pack.fit.shapes import level_bits
from ollama_pack.routing.nodes import DISCOVERED, NodeRow, parse_nodes
from ollama_pack.routing.plan.report import SeenNode
from ollama_pack.routing.probe.gpus import LOAD_PATH, report_in

SECONDS = 10.0
MAX_MODELS = 200  # of one node
MAX_UNANSWERED = 3  # questions about models, each of which takes `SECONDS`, before the node is left out


def look_at(node: Endpoint, number: int) -> SeenNode:
    """Ask a node, and its agent. What goes wrong is its `fault`."""
    name = node.name or f"gpu{number}"
    if node.kind != "ollama" or node.url.startswith(DISCOVERED):
        fault = message("only Ollama nodes with an address of their own are planned")
        return SeenNode(name, shown_address(node.url), fault=fault)
    (row,) = parse_nodes(node.text(number))
    try:
        listed, _ = entries_in(_ask(row, "/api/tags"), ListedModel)
        loaded, _ = entries_in(_ask(row, "/api/ps"), LoadedModel)
        shown = list(_shown(row, [model for model in listed[:MAX_MODELS] if not model.is_remote]))
    except (UnreachableError, ValueError) as error:
        fault = message("does not answer as an Ollama ({reason})", reason=plain(error))
        return SeenNode(name, shown_address(row.url), fault=fault)
    room, source = _room(row, loaded)
    return SeenNode(
        name=row.name,
        url=shown_address(row.url),
        room=room,
        source=source,
        slots=row.slots or 1,
        variants={
            model.name: _variant(model, about) for model, about in shown if about is None or _is_chat(about)
        },
    )


def _room(row: NodeRow, loaded: list[LoadedModel]) -> tuple[int, str]:
    """Bytes that models can have there, and how that is known."""
    if row.memory:
        return usable_memory(row.memory), message("as its row says")
    if row.agent:
        try:
            way = row.agent_way_in
            url, headers = way.url.rstrip("/") + LOAD_PATH, way.fixed_headers
            report = report_in(fetch("GET", url, headers=headers, seconds=SECONDS).json())
        except (UnreachableError, ValueError):
            report = None
        sizes = [gpu.memory_total for gpu in report.gpus if gpu.memory_total] if report else []
        if sizes:
            return usable_memory(sum(sizes), len(sizes)), message("as its GPUs report")
    spilled = [model for model in loaded if 0 < model.size_vram < model.size]
    if spilled:
        return sum(model.size_vram for model in loaded), message(
            "as a model shows that is only partly in GPU memory"
        )
    return 0, ""


def _variant(model: ListedModel, shown: ShownModel | None) -> PlannedVariant:
    level = model.details.quantization_level or quantization_in(model.name)
    return PlannedVariant(model.name, level, level_bits(level), (shown or ShownModel()).shape(model.size))


def _is_chat(shown: ShownModel) -> bool:
    return chats(shown.capabilities) if shown.capabilities else not shown.is_embedder


def _shown(row: NodeRow, models: list[ListedModel]) -> Iterator[tuple[ListedModel, ShownModel | None]]:
    """What the node says of each model; None where it says nothing, as of a model whose file is damaged.

    Raises:
        UnreachableError: there is no answer for one model after another.
    """
    unanswered = 0
    for model in models:
        try:
            shown = _show(row, model.name)
        except UnreachableError:
            unanswered += 1
            if unanswered > MAX_UNANSWERED:
                raise
            shown = None
        yield model, shown


def _show(row: NodeRow, model: str) -> ShownModel | None:
    try:
        return ShownModel.model_validate(_ask(row, "/api/show", {"model": model}))
    except (ValidationError, ValueError):
        return None


def _ask(row: NodeRow, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object of a good answer.

    Raises:
        UnreachableError: there is no answer.
        ValueError: it is none.
    """
    method, url, headers = "POST" if body else "GET", row.url + path, row.way_in.fixed_headers
    answer = fetch(method, url, headers=headers, seconds=SECONDS, json=body)
    if not answer.ok:
        raise ValueError(message("status {status} from {path}", status=answer.status, path=path))
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError(message("{path} is no JSON object", path=path))  # noqa: TRY004 - of the answer, not of an argument
    return found
