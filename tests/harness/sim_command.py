"""Simulated nodes in a process of their own, until it is told to end.

    PYTHONPATH=tests python -m harness.sim_command \
        "gpu0 models=llama3:8b;size=4.7GB;tools,mixtral:8x7b;size=26GB slots=2 load_rate=2e9" \
        "gpu1 models=llama3:8b;size=4.7GB decode_rate=30 speed=10 port=11500"

A row is a name and ``key=value`` pairs: ``models``, ``port``, ``gpu``, ``version``, ``engine`` and the fields
of ``NodeShape``. When all of them listen it prints one line of JSON,
``{"control": URL, "nodes": {NAME: URL}}``; ``harness.sim_control`` says what the control does. SIGTERM or
SIGINT ends it. Exit status 2: a row cannot be read.
"""

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack
from typing import TextIO

from aiohttp import web

from harness.ollama_server import NodeServer
from harness.sim_control import process_routes
from harness.sim_shape import NodeRow, node_row
from harness.sim_site import Site


async def serve(rows: list[NodeRow], ready: TextIO) -> None:
    """Serve these nodes until the process is told to end, and say on ``ready`` where."""
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    async with AsyncExitStack() as stack:
        nodes: dict[str, NodeServer] = {}
        for row in rows:
            node = NodeServer(
                row.models,
                shape=row.shape,
                gpu=row.gpu,
                version=row.version,
                engine=row.engine,
                port=row.port,
                keep_requests=False,
            )
            nodes[row.name] = await stack.enter_async_context(node)
        control = Site()
        application = web.Application()
        application.add_routes(process_routes(nodes))
        await control.open(application)
        stack.push_async_callback(control.close)
        told = {"control": control.url, "nodes": {name: node.url for name, node in nodes.items()}}
        print(json.dumps(told), file=ready, flush=True)
        await ending.wait()


def rows_of(texts: list[str]) -> list[NodeRow]:
    """Read rows.

    Raises:
        ValueError: none, a row that cannot be read, or two of one name.
    """
    rows = [node_row(text) for text in texts]
    if not rows:
        raise ValueError("expected at least one row: NAME models=MODEL,… [key=value …]")
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(f"two nodes have the same name: {', '.join(row.name for row in rows)}")
    return rows


def main(argv: list[str]) -> int:
    try:
        rows = rows_of(argv)
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201 - its output
        return 2
    asyncio.run(serve(rows, sys.stdout))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
