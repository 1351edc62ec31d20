"""Nodes behind TLS: with a certificate that nobody knows, with one that is trusted, and with none."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from harness.certificates import self_signed
from harness.ollama_node import Model, OllamaNode
from harness.routing import QUICK, Chat, run
from ollama_pack.routing.dispatch.router import Router
from ollama_pack.routing.errors import NoNodeError
from ollama_pack.routing.nodes import parse_nodes

LLAMA = Model("llama3:8b")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that is signed by itself, and its key, in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def behind_tls(node: OllamaNode, certificate: Path) -> AsyncIterator[str]:
    """The address of a proxy that speaks TLS, as people put before an Ollama."""

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, node.url + request.path, data=body) as answer,
        ):
            return web.Response(body=await answer.read(), status=answer.status)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", forward)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def router_over(*rows: str, trusted: ssl.SSLContext | bool = True) -> AsyncIterator[Router]:
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted))
    router = Router(parse_nodes("\n".join(rows)), session, QUICK)
    await router.ready()
    try:
        yield router
    finally:
        await router.close()


def test_a_certificate_that_nobody_knows(certificate: Path) -> None:
    """Would catch an error that lets an admin look for a node which is down, when a CA is missing."""

    async def scenario() -> tuple[str, str]:
        with OllamaNode([LLAMA]) as node, OllamaNode([Model("other")]) as plain:
            async with behind_tls(node, certificate) as url, router_over(f"gpu0 {url}") as router:
                with pytest.raises(NoNodeError) as alone:
                    await Chat(router).run()
                rows = (f"gpu0 {url}", f"gpu1 {plain.url}")
                async with router_over(*rows) as both:
                    with pytest.raises(NoNodeError) as beside:
                        await Chat(both).run()
        return str(alone.value), str(beside.value)

    alone, beside = run(scenario)
    assert "no node answers that may have 'llama3:8b': gpu0 (has a certificate that is not trusted" in alone
    assert "pull it on one of gpu1; no answer from gpu0 (has a certificate" in beside
    for said in (alone, beside):
        assert "AIOHTTP_CLIENT_SSL_CERT_FILE" in said
        assert "127.0.0.1" not in said


def test_no_tls_where_the_address_says_so() -> None:
    """Would catch the same for an address that begins with https:// by mistake."""

    async def scenario() -> None:
        with OllamaNode([LLAMA]) as node:
            async with router_over(f"gpu0 {node.url.replace('http:', 'https:')}") as router:
                with pytest.raises(NoNodeError, match="or speaks no TLS"):
                    await Chat(router).run()

    run(scenario)


@pytest.mark.parametrize("how", ["its CA", "anybody"])
def test_what_is_trusted_answers(certificate: Path, how: str) -> None:
    """Would catch a private CA, or checks that are switched off, without effect on the nodes."""
    trusted = ssl.create_default_context(cafile=str(certificate)) if how == "its CA" else False

    async def scenario() -> str:
        with OllamaNode([LLAMA]) as node:
            async with (
                behind_tls(node, certificate) as url,
                router_over(f"gpu0 {url}", trusted=trusted) as router,
            ):
                return (await Chat(router).run()).answer

    assert run(scenario) == "You said: hello"
