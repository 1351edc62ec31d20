"""What a router tells of its nodes: for the load endpoint, the admin's dashboard, and a plan."""

from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.ollama.names import level_of
from ollama_pack.fit.planning import PlannedVariant
from ollama_pack.routing.decide.view import NodeView, RunnerView
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.plan.report import SeenNode
from ollama_pack.routing.probe.gpus import gpu_usage, gpu_values


def load_report(router: Router) -> dict[str, Any]:
    """The answer of `GET /api/system/load` as an admin gets it, addresses included."""
    nodes = [_node_load(router, view) for view in router.scheduler.cluster.view().nodes]
    return {**_usage(router), "nodes": nodes}


def _usage(router: Router) -> dict[str, float | None]:
    """Percent of each GPU; those that several nodes share count once."""
    sources = {watch.gpu_source: watch.gpus.gpus for watch in router.nodes.values()}
    return gpu_usage(sources.values())


def dashboard_report(router: Router) -> dict[str, Any]:
    """The same, with what is in memory, what was learned, and the chats at work, the newest first."""
    nodes = [
        _node_load(router, view) | _node_details(router, view)
        for view in router.scheduler.cluster.view().nodes
    ]
    told = {"waiting": router.scheduler.waiting, "peers": router.peers, "running": router.running()}
    told["upkeep"] = router.upkeep.report
    return {**_usage(router), "nodes": nodes, **told, "sharing_fault": router.sharing_fault}


def _node_load(router: Router, view: NodeView) -> dict[str, Any]:
    return {
        "name": view.name,
        "url": router.nodes[view.name].client.name,
        "healthy": router.is_healthy(view.name),
        "in_flight": router.in_flight(view.name),
        "queued": router.queued(view.name),
        "breakers": router.scheduler.cluster.nodes[view.name].shut(router.scheduler.cluster.view().now),
        "models": [runner.model for runner in view.runners] if router.is_healthy(view.name) else [],
        "gpus": [gpu_values(gpu) for gpu in router.nodes[view.name].gpus.gpus],
    }


def _node_details(router: Router, view: NodeView) -> dict[str, Any]:
    now = router.scheduler.cluster.view().now
    return {
        "own": router.own_in_flight(view.name),
        "gpu_reason": router.nodes[view.name].gpus.reason,
        "fault": router.nodes[view.name].fault,
        "breaker": router.scheduler.cluster.nodes[view.name].breaker.state(now),
        "runners": [_runner_details(runner) for runner in view.runners],
        # The beginning of its weights' digest, and of an adapter's.
        "rates": {blob[:12] + blob[64:77]: _rate_details(view, blob) for blob in view.rates},
    }


def _runner_details(runner: RunnerView) -> dict[str, Any]:
    return {
        "model": runner.model,
        "context": runner.context,
        "slots": runner.slots,
        "running": len(runner.ends),
        "prefixes": len(runner.prefixes),
    }


def _rate_details(view: NodeView, blob: str) -> dict[str, Any]:
    rates = view.rates[blob]
    return {
        "model": next((name for name, model in view.models.items() if model.blob == blob), ""),
        "load": rates.load,
        "prompt": rates.prompt,
        "token": rates.token,
        "learned": rates.learned,
    }


def nodes_to_plan(router: Router) -> list[SeenNode]:
    """The nodes for `plan_report`: what they have installed, how much memory, and how they load models."""
    return [_node_to_plan(router, name) for name, watch in router.nodes.items() if not watch.leaving]


def _node_to_plan(router: Router, name: str) -> SeenNode:
    watch, state = router.nodes[name], router.scheduler.cluster.nodes[name]
    address = watch.client.name
    if watch.row.kind != "ollama":
        names = frozenset(model.name for model in watch.models)
        return SeenNode(name, address, elsewhere=names, fault=message("only Ollama nodes are planned"))
    if watch.is_gone:
        return SeenNode(name, address, fault=watch.fault or message("it has not answered yet"))
    memory = state.memory
    return SeenNode(
        name=name,
        url=address,
        room=memory.room if memory.measured else 0,
        source=memory.source,
        slots=watch.row.slots or memory.options.slots,
        options=memory.options,
        variants={
            model.name: PlannedVariant(
                name=model.name,
                level=level_of(model.quantization, model.name),
                bits=model.installed.bits,
                shape=model.installed.shape,
                context=model.installed.context,
                blob=model.installed.blob,
            )
            for model in watch.models
            if model.installed.shape is not None and not model.installed.remote
        },
        elsewhere=frozenset(model.name for model in watch.models if model.installed.remote),
    )
