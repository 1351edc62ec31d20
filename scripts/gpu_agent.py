"""Tell over HTTP how busy this machine's NVIDIA GPUs are: as JSON for the router, and for Prometheus.

It only reads. Point `agent=` of the node's row in the router's `nodes` at it.
"""

import argparse
import asyncio
import ipaddress
import json
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent.server import Agent, ListenError, serving
from deploy.shown import message, translated
from ollama_pack.routing.probe.gpu_nvml import GpuReader
from ollama_pack.routing.probe.gpus import GpuReport, agent_load
from package import command_line, pack_version

ROOT = Path(__file__).resolve().parent.parent
DONE, FAILED, USAGE = 0, 1, 2
MAX_PORT = 65535


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when told to end, 1 when it failed (with `--once`: when no GPU was read), 2 for bad usage."""
    options = _parser().parse_args(arguments)
    try:
        return asyncio.run(_print_once() if options.once else _serve(options.host, options.port))
    except ListenError as error:
        print(f"gpu_agent: {error}", file=sys.stderr)
        return USAGE if error.is_usage else FAILED
    except KeyboardInterrupt:
        return FAILED if options.once else DONE


def _parser() -> argparse.ArgumentParser:
    parser = command_line(translated(__doc__))
    parser.add_argument(
        "--host",
        type=_host,
        default="127.0.0.1",
        help=message("address to listen on; default: 127.0.0.1, this machine only"),
    )
    parser.add_argument(
        "--port", type=_port, default=9400, help=message("default: 9400; 0: any that is free")
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help=message("print the JSON and end: with 1 when no GPU could be read"),
    )
    return parser


def _host(value: str) -> str:
    if value:
        return value
    raise argparse.ArgumentTypeError(message("is empty: write 0.0.0.0 to listen on every address"))


def _port(value: str) -> int:
    if value.isdecimal() and int(value) <= MAX_PORT:
        return int(value)
    raise argparse.ArgumentTypeError(
        message("{value!r} is no port: write a number from 0 to {most}", value=value, most=MAX_PORT)
    )


async def _print_once() -> int:
    reader = GpuReader()
    report = await reader.read()
    await reader.close()
    print(json.dumps(agent_load(socket.gethostname(), report), ensure_ascii=False, indent=2))
    return DONE if any(not gpu.fault for gpu in report.gpus) else FAILED


async def _serve(host: str, port: int) -> int:
    """Answer until SIGTERM or Ctrl-C."""
    stopped = _stop_signal()
    reader = GpuReader()
    agent = Agent(reader, socket.gethostname(), pack_version(ROOT), clock=time.monotonic)
    try:
        async with serving(agent, host, port) as addresses:
            announce(await agent.report(), addresses)
            await stopped.wait()
    finally:
        await reader.close()
    return DONE


def _stop_signal() -> asyncio.Event:
    """Set by SIGTERM and Ctrl-C; on Windows Ctrl-C is a KeyboardInterrupt instead."""
    stopped = asyncio.Event()
    with suppress(NotImplementedError):
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


def announce(report: GpuReport, addresses: list[tuple[str, int]]) -> None:
    """Say where it answers and what it found, and who else can read it."""
    for address, port in addresses:
        print(f"gpu_agent: {_url(address, port)}", flush=True)
    if any(not ipaddress.ip_address(address).is_loopback for address, _ in addresses):
        note = message(
            "everyone who reaches this address can read the GPUs' names and load, and nothing else"
        )
        print(f"gpu_agent: {note}", file=sys.stderr)
    for gpu in report.gpus:
        memory = f", {gpu.memory_total / 2**30:.0f} GiB" if gpu.memory_total else ""
        about = translated(gpu.fault) or (gpu.name or message("no name")) + memory
        print(
            f"gpu_agent: GPU {gpu.index}: {about}",
            flush=True,
        )
    if report.reason:
        print(message("gpu_agent: no GPU: {reason}", reason=report.reason), file=sys.stderr)


def _url(address: str, port: int) -> str:
    """The address as a URL; for all addresses, with this machine's name."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        address = socket.gethostname()
    elif isinstance(ip, ipaddress.IPv6Address):
        address = f"[{address}]"
    return f"http://{address}:{port}"


if __name__ == "__main__":
    sys.exit(main())
