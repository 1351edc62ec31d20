"""A server on a raw socket that answers whatever a test wants, valid HTTP or not."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any, Self

Answer = bytes | Iterable[bytes]
Handler = Callable[[str, str], Answer]


def http_answer(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """A whole answer. A header's name is written with `_` for `-`."""
    fields = {"Content_Type": "application/json", "Content_Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}Connection: close\r\n\r\n".encode("latin-1", "replace") + body


def json_answer(value: Any, status: str = "200 OK") -> bytes:
    return http_answer(json.dumps(value).encode(), status)


class HostileServer:
    """Answers each connection once, by `handler(method, path)`.

    Attributes:
        url: its address.
        heads: what was asked, with all headers.
    """

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.handler = handler
        self.heads: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        if tls:
            self._socket = tls.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._ended = threading.Event()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        """Begin to listen."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; connections that still send end with their clients."""
        self._ended.set()
        self._socket.close()

    def wait(self, seconds: float) -> None:
        """Say nothing for a while, or until the end."""
        self._ended.wait(seconds)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                head = self._request(connection)
                self.heads.append(head)
                method, path, *_ = [*head.split(" ", 2), "", ""]
                answer = self.handler(method, path.partition("?")[0])
                for part in (answer,) if isinstance(answer, bytes) else answer:
                    if self._ended.is_set():
                        return
                    connection.sendall(part)
            except OSError:
                return

    def _request(self, connection: socket.socket) -> str:
        """Read a request to its end, and return its head."""
        connection.settimeout(10)
        read = b""
        while b"\r\n\r\n" not in read:
            read += (got := connection.recv(65536))
            if not got:
                break
        head, _, body = read.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        left = (int(lengths[0].split(b":")[1]) if lengths else 0) - len(body)
        while left > 0 and (got := connection.recv(65536)):
            left -= len(got)
        return head.decode("latin-1")
