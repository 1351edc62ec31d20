"""A registry that an Ollama can pull from: it serves one model of an Ollama's own store, and counts pulls."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@contextmanager
def registry(store: Path, model: str, pulled: list[str]) -> Iterator[str]:
    """Serve a model of a store; yields the name to pull, and notes each manifest that is asked for."""
    manifest = next(store.glob(f"manifests/*/library/{model.replace(':', '/')}")).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send(body=False)

        def do_GET(self) -> None:
            self._send(body=True)

        def _send(self, *, body: bool) -> None:
            if "/manifests/" in self.path:
                pulled.append(self.path)
                self._answer(200, manifest, body=body)
                return
            content = (store / "blobs" / self.path.rpartition("/")[2].replace(":", "-")).read_bytes()
            begin, end = 0, len(content) - 1
            if asked := self.headers.get("Range"):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(end, int(last or end))
            self._answer(206 if asked else 200, content[begin : end + 1], body=body)

        def _answer(self, status: int, content: bytes, *, body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    json.loads(manifest)  # it is one
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/library/pulled:latest"
        finally:
            server.shutdown()
