"""The nodes of pack.yaml as they are now: what they have installed, how much memory, what is loaded."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from deploy.config import Endpoint
from deploy.errors import UnreachableError
from deploy.shown import plain, shown_address
from deploy.web import fetch
from ollama_pack.base.messages import message
from ollama_pack.engines.model_kinds import chats
from ollama_pack.engines.ollama.names import level_of
from ollama_pack.engines.ollama.values import ListedModel, LoadedModel, ShownModel, entries_in
from ollama_pack.fit.memory import Engine
from ollama_pack.fit.planning import PlannedVariant
from ollama_pack.fit.shapes import level_bits
from ollama_pack.routing.decide.view import InstalledModel
from ollama_pack.routing.nodes import DISCOVERED, NodeRow, parse_nodes
from ollama_pack.routing.plan.report import SeenNode
from ollama_pack.routing.probe.gpus import LOAD_PATH, Gpu, report_in
from ollama_pack.routing.state.node_memory import NodeMemory, is_split

SECONDS = 10.0
MAX_MODELS = 200  # of one node
LLAMA_SERVER = (0, 30)  # the first Ollama that runs all models with llama.cpp's server
MAX_UNANSWERED = 3  # questions about models, each of which takes `SECONDS`, before the node is left out


def look_at(node: Endpoint, number: int, shared: Collection[str] = ()) -> SeenNode:
    """Ask a node, and its agent. What goes wrong is its `fault`.

    Args:
        node: its row.
        number: of the row.
        shared: agents that several rows name: which of their GPUs are this node's nobody knows.
    """
    name = node.name or f"gpu{number}"
    if node.kind != "ollama" or node.url.startswith(DISCOVERED):
        fault = message("only Ollama nodes with an address of their own are planned")
        return SeenNode(name, shown_address(node.url), elsewhere=frozenset(node.models), fault=fault)
    (row,) = parse_nodes(node.text(number))
    try:
        listed, _ = entries_in(_ask(row, "/api/tags"), ListedModel)
        loaded, _ = entries_in(_ask(row, "/api/ps"), LoadedModel)
        shown = list(_shown(row, [model for model in listed[:MAX_MODELS] if not model.is_remote]))
    except (UnreachableError, ValueError) as error:
        fault = message("does not answer as an Ollama ({reason})", reason=plain(error))
        return SeenNode(name, shown_address(row.url), fault=fault)
    variants = {model.name: _variant(model, about) for model, about in shown}
    chatting = {model.name for model, about in shown if about is None or _is_chat(about)}
    split = {model.name for model, about in shown if about and is_split(about.runner_options)}
    memory = _memory(row, loaded, variants, split, alone=row.agent not in shared)
    return SeenNode(
        name=row.name,
        url=shown_address(row.url),
        room=memory.room if memory.measured else 0,
        source=memory.source,
        slots=row.slots or memory.options.slots,
        options=memory.options,
        variants={name: variant for name, variant in variants.items() if name in chatting},
        elsewhere=frozenset(model.name for model in listed if model.is_remote),
    )


def _memory(
    row: NodeRow,
    loaded: list[LoadedModel],
    variants: Mapping[str, PlannedVariant],
    split: Collection[str],
    *,
    alone: bool,
) -> NodeMemory:
    """What one look teaches of its memory: the router learns the same at each."""
    memory = NodeMemory(row, _engine(row))
    for model in loaded:
        known = variants.get(model.name)
        if known is not None:
            seen = InstalledModel(known.blob or known.name, shape=known.shape)
            memory.seen(seen, model.context_length, model.size, on_gpu=model.size_vram > 0)
    on_gpu = sum(min(model.size_vram, model.size) for model in loaded)
    if any(0 < model.size_vram < model.size and model.name not in split for model in loaded):
        memory.spilled(on_gpu)
    gpus = _gpus(row) if row.agent and alone else []
    if gpus:
        used = sum(gpu.memory_used or 0 for gpu in gpus)
        memory.told(sum(gpu.memory_total or 0 for gpu in gpus), used, len(gpus), on_gpu)
    return memory


def _engine(row: NodeRow) -> Engine | None:
    """The program that its Ollama runs models with, where that is not as in 0.17."""
    try:
        written = str(_ask(row, "/api/version").get("version"))
    except (UnreachableError, ValueError):
        return None
    found = re.match(r"(\d+)\.(\d+)", written)
    return "llama.cpp" if found and (int(found[1]), int(found[2])) >= LLAMA_SERVER else None


def _gpus(row: NodeRow) -> list[Gpu]:
    """Those whose memory its agent knows."""
    try:
        way = row.agent_way_in
        url, headers = way.url.rstrip("/") + LOAD_PATH, way.fixed_headers
        report = report_in(fetch("GET", url, headers=headers, seconds=SECONDS).json())
    except (UnreachableError, ValueError):
        return []
    return [gpu for gpu in report.gpus if gpu.memory_total]


def _variant(model: ListedModel, shown: ShownModel | None) -> PlannedVariant:
    level = level_of(model.details.quantization_level, model.name)
    about = shown or ShownModel()
    return PlannedVariant(
        name=model.name,
        level=level,
        bits=level_bits(level),
        shape=about.shape(model.size),
        context=about.num_ctx or 0,
        blob=about.blob or model.digest,
    )


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
