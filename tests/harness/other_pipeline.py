"""Somebody else's pipeline on the server: what must go on while one of the pack's is loaded anew.

Unstreamed it tells how the server is: `{"threads": names, "pool": size of the thread pool}`. Streamed it
says each line that comes from the port that `body["port"]` names, as the test sends them.
"""

import gc
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

from anyio.from_thread import run_sync
from anyio.to_thread import current_default_thread_limiter

gc.disable()  # a stream that is noticed to be over only when rubbish is collected is one too many


class Pipeline:
    """What the server takes for one."""

    def __init__(self) -> None:
        self.name = "Other"

    def pipe(
        self,
        user_message: str,  # noqa: ARG002 - the server passes them
        model_id: str,  # noqa: ARG002
        messages: list[dict[str, Any]],  # noqa: ARG002
        body: dict[str, Any],
    ) -> Any:
        if body.get("stream"):
            return _lines(body["port"])
        names = sorted(thread.name for thread in threading.enumerate())
        return json.dumps({"threads": names, "pool": run_sync(_pool_size)})


def _lines(port: int) -> Iterator[str]:
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile() as lines:
        for line in lines:
            yield line.strip()


def _pool_size() -> float:
    return current_default_thread_limiter().total_tokens
