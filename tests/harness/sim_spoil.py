"""What a commanded fault does to an answer."""

import asyncio

from aiohttp import web

from harness.ollama_wire import JSON, RefusalError, dumps
from harness.sim_faults import Fault

PAGE = "<!DOCTYPE html><html><body><h1>Please sign in to the network</h1></body></html>"
GARBAGE = b"\x00\x7fELF this is not what you asked for\n"


async def spoil_before(fault: Fault, request: web.Request) -> web.StreamResponse | None:
    """Do what comes instead of an answer, or before it: then None.

    Raises:
        RefusalError: the fault is one.
    """
    match fault.kind:
        case "hang":
            await asyncio.Event().wait()
        case "slow":
            await asyncio.sleep(fault.seconds)
        case "error":
            raise RefusalError(fault.status, fault.message)
        case "html":
            return web.Response(text=PAGE, content_type="text/html")
        case "reset":
            return cut(request)
        case _:
            pass
    return None


async def spoil_line(
    fault: Fault, request: web.Request, response: web.StreamResponse, line: JSON
) -> web.StreamResponse:
    """End a stream as the fault wants it, in place of its next line."""
    return await _spoil(fault, request, response, dumps(line).encode() + b"\n", dumps(_without_done(line)))


async def spoil_whole(fault: Fault, request: web.Request, answer: JSON) -> web.StreamResponse:
    """Send an answer in one piece as the fault wants it."""
    response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
    await response.prepare(request)
    whole = dumps(answer).encode()
    if fault.kind in ("crash", "stall"):
        await response.write(whole[: len(whole) // 2])
    return await _spoil(fault, request, response, whole, dumps(_without_done(answer)))


def cut(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Close the connection without a word."""
    if request.transport:
        request.transport.abort()
    return response or web.StreamResponse()


async def _spoil(
    fault: Fault, request: web.Request, response: web.StreamResponse, text: bytes, without_done: str
) -> web.StreamResponse:
    match fault.kind:
        case "crash":
            await asyncio.sleep(0)  # what was written leaves first
            return cut(request, response)
        case "stall":
            await asyncio.Event().wait()
        case "garbage":
            await response.write(GARBAGE)
        case "truncated":
            await response.write(text[: len(text) // 2])
        case _:
            await response.write(without_done.encode() + b"\n")
    await response.write_eof()
    return response


def _without_done(line: JSON) -> JSON:
    return {key: value for key, value in line.items() if key not in ("done", "done_reason")}
