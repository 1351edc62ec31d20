"""A public trace over real HTTP: simulated engines with OpenAI's protocol, and real routers in front of them.

Ours runs in this process, and as its users have it: as the plugin of a real Pipelines server.
The routers of SGLang and vLLM live on the wall's clock, so all runs take the trace's own time.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, cast, get_args

from bench.routing.bursts import first_token
from bench.routing.chats import Call, Way
from bench.routing.figures import percentile
from bench.routing.prompts import CHARS_PER_TOKEN
from bench.routing.traces import TRACES, TraceRequest, read_trace
from bench.routing.ways import OURS, way_of, way_through
from harness.sim_process import simulated_nodes
from local.gateways import Gateway, gateway
from local.pipelines import RunningPipelines, pipelines_server

MODEL = "m0"
PIPELINE = Path(__file__).parents[2] / "pipelines/gpu_router.py"
MAX_QUEUE = 1000
DECODE_RATE = 40.0
LEAST_BUSY = "least busy"
UNDECLARED = f"{OURS}, slots not declared"
PIPELINES = f"{OURS}, Pipelines server"
REPLAYED = ("round robin", LEAST_BUSY, *get_args(Gateway), OURS, UNDECLARED, PIPELINES)


def replay(  # noqa: PLR0913 - each is a fact of its own
    policy: str,
    trace: str,
    folder: Path,
    *,
    scale: float,
    nodes: int,
    slots: int,
    prefixes: int,
    first: int,
    seed: int = 1,
) -> dict[str, Any]:
    """Play the first requests of a trace; returns figures of the times to first token, in seconds."""
    requests = read_trace(trace, folder, scale, first)
    pace = f"prompt_rate={TRACES[trace].prompt_rate} decode_rate={DECODE_RATE} write_seconds=0.5"
    room = f"slots={slots} prefixes={prefixes} engine=vllm"
    longest = 512 * 1024  # tokens: no prompt of a trace is cut
    model = f"models={MODEL};context_length={longest};num_ctx={longest}"
    rows = [f"engine{number} {model} {room} {pace}" for number in range(nodes)]
    with simulated_nodes(*rows) as engines:
        if policy in get_args(Gateway):
            peer = cast("Gateway", policy)
            with (
                tempfile.TemporaryDirectory() as scratch,
                gateway(peer, list(engines.urls.values()), Path(scratch)) as url,
            ):
                way_to_gateway = way_of(LEAST_BUSY, {peer: url}, seed, kind="openai", serves=(MODEL,))
                waits = asyncio.run(_play(way_to_gateway, requests))
        elif policy == PIPELINES:
            with (
                tempfile.TemporaryDirectory() as scratch,
                _our_pipelines(engines.urls, slots, Path(scratch)) as server,
            ):
                waits = asyncio.run(_play(way_through(server.url, "gpu_router.{}", server.key), requests))
        else:
            declared = None if policy in (UNDECLARED, LEAST_BUSY) else slots
            name = OURS if policy == UNDECLARED else policy
            way = way_of(name, engines.urls, seed, slots=declared, kind="openai")
            waits = asyncio.run(_play(way, requests))
        totals = [engines.stats(name)["totals"] for name in engines.urls]
    hit = sum(one["prompt_tokens_reused"] for one in totals)
    evaluated = sum(one["prompt_tokens_evaluated"] for one in totals)
    return {
        "mean": round(sum(waits) / len(waits), 3),
        **{f"p{round(100 * share)}": round(percentile(waits, share), 3) for share in (0.5, 0.95, 0.99)},
        "reused": round(hit / max(1, hit + evaluated), 3),
        "requests": len(waits),
    }


@contextmanager
def _our_pipelines(engines: Mapping[str, str], slots: int, folder: Path) -> Iterator[RunningPipelines]:
    """A Pipelines server with `gpu_router` over these engines."""
    (folder / "pipelines").mkdir()
    shutil.copy(PIPELINE, folder / "pipelines")
    rows = [f"{name} {url} kind=openai slots={slots}" for name, url in engines.items()]
    environment = {"GPU_ROUTER_NODES": "; ".join(rows), "GPU_ROUTER_MAX_QUEUE": str(MAX_QUEUE)}
    with pipelines_server(folder, environment=environment) as server:
        yield server


async def _play(opened: AbstractAsyncContextManager[Way], requests: Sequence[TraceRequest]) -> list[float]:
    loop = asyncio.get_running_loop()

    async def ask(way: Way, request: TraceRequest, began: float) -> float:
        await asyncio.sleep(began + request.at - loop.time())
        message = {"role": "user", "content": text_of(request)}
        options = {"num_predict": request.output}
        call = Call(request.user, request.session, MODEL, (message,), options=options)
        return await first_token(way, call)

    async with opened as way:
        began = loop.time() + 1.0
        return list(await asyncio.gather(*(ask(way, request, began) for request in requests)))


def text_of(request: TraceRequest) -> str:
    """The prompt of a request as text: equal blocks are equal texts. It ends with the answer's length."""
    ends = [0, *(block.upto for block in request.blocks)]
    texts = [
        _text(block.chain, (upto - before) * CHARS_PER_TOKEN)
        for (before, upto), block in zip(pairwise(ends), request.blocks, strict=True)
    ]
    asked = f" Write {max(1, request.output)} tokens."
    whole = "".join(texts)
    return whole[: max(0, len(whole) - len(asked))] + asked


def _text(seed: int, length: int) -> str:
    """Text that only this seed has, so long."""
    word = sha256(str(seed).encode()).hexdigest() + " "
    return (word * (length // len(word) + 1))[:length]


def table_of(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each policy."""
    return [
        f"{policy:28} mean {one['mean']:6.2f}  p95 {one['p95']:6.2f}  p99 {one['p99']:6.2f}"
        f"  reused {one['reused']:.0%}"
        for policy, one in found.items()
    ]
