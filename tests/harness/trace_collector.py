"""An OpenTelemetry collector: takes spans as OTLP over HTTP, and keeps them."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class TakenSpan:
    """A span as it was exported: ids in hexadecimal, times in nanoseconds."""

    scope: str
    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    events: list[str]


@dataclass
class TraceCollector:
    """What has come so far."""

    url: str = ""
    spans: list[TakenSpan] = field(default_factory=list)

    def of(self, scope: str) -> list[TakenSpan]:
        """Those of one tracer."""
        return [span for span in self.spans if span.scope == scope]

    def take(self, body: bytes) -> None:
        """Read a request's body."""
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        self.spans += [
            TakenSpan(
                scope=scope.scope.name,
                name=span.name,
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                start=span.start_time_unix_nano,
                end=span.end_time_unix_nano,
                failed=span.status.code == 2,
                attributes={
                    one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes
                },
                events=[event.name for event in span.events],
            )
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def trace_collector() -> Iterator[TraceCollector]:
    """A collector on loopback, until the end."""
    collector = TraceCollector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        yield collector
        server.shutdown()
        thread.join()
