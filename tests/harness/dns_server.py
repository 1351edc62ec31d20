"""A real DNS server on loopback, whose answers a test sets."""

from types import TracebackType
from typing import Any, Self

from dnslib import QTYPE, RCODE, RR, SRV
from dnslib.server import BaseResolver, DNSLogger, DNSServer

from local.processes import free_port


class ServiceDns(BaseResolver):  # type: ignore[misc] # dnslib has no types
    """Answers every SRV question.

    Attributes:
        address: for a row of the router.
        servers: host and port of each; none: there is no such name.
    """

    def __init__(self) -> None:
        self.servers: list[tuple[str, int]] = []
        port = free_port()
        self.address = f"dns+srv://127.0.0.1:{port}/_ollama._tcp.example.org"
        self._server = DNSServer(
            self, address="127.0.0.1", port=port, logger=DNSLogger(log="-request,-reply")
        )

    def resolve(self, request: Any, handler: Any) -> Any:
        del handler
        reply = request.reply()
        if not self.servers:
            reply.header.rcode = RCODE.NXDOMAIN
        for host, port in self.servers:
            reply.add_answer(RR(request.q.qname, QTYPE.SRV, ttl=0, rdata=SRV(0, 0, port, host)))
        return reply

    def __enter__(self) -> Self:
        self._server.start_thread()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        self._server.server.server_close()
