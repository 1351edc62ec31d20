"""GPUs of this machine, from NVIDIA's driver through NVML.

What NVML's answers mean is in the comments of NVIDIA's `nvml.h`, and its Python form in `nvidia-ml-py`.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from ollama_pack.base.messages import message
from ollama_pack.routing.probe.gpus import MAX_GPUS, Gpu, GpuReport, gpu_in

NVML_SECONDS = 2.0  # a healthy driver takes milliseconds; the first call may wake GPUs up

_Done = TypeVar("_Done")

_NO_BINDINGS = message("pynvml is not installed: pip install nvidia-ml-py")
_NO_GPU = message("the NVIDIA driver lists no GPU: is one passed to this machine or container?")
# By NVML's return codes, which nvml.h promises not to change.
_NVML_REASONS = {
    4: message("the NVIDIA driver refuses this user: allow it to open /dev/nvidiactl and /dev/nvidia*"),
    9: message("the NVIDIA driver is not loaded: load it (`nvidia-smi` does), or restart the machine"),
    12: message("no NVIDIA driver (no NVML library): install it, or start the container with --gpus all"),
    18: message("the NVIDIA driver was updated and the old one still runs: restart the machine"),
}
# Not supported, no permission, function not found, no data: a figure that this GPU or driver does not give.
_NVML_UNTOLD = frozenset({3, 4, 13, 21})


def load_nvml() -> Any:
    """NVIDIA's bindings, which Open WebUI does not install.

    Raises:
        ImportError: they are not there.
    """
    import pynvml  # noqa: PLC0415 - a plugin must load without it

    return pynvml


def preload_nvml(load: Callable[[], Any] = load_nvml) -> None:
    """Import the bindings, where they are there, in a thread: before the first chat it holds up none.

    They are one file of 300 KB. Where nobody has compiled it before, that takes the interpreter a third of a
    second, in which no other thread runs, whichever thread it happens in.
    """
    _in_daemon_thread(load)


class GpuReader:
    """Reads this machine's GPUs without ever blocking the event loop, or more than one thread."""

    def __init__(
        self,
        load: Callable[[], Any] = load_nvml,
        *,
        seconds: float = NVML_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is needed later; nothing is loaded or asked.

        Args:
            load: gives the module `pynvml`, or raises ImportError.
            seconds: how long a read may take.
            clock: seconds, monotonic.
        """
        self._nvml = _NvmlSession(load)
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._reading: Future[GpuReport] | None = None
        self._since = 0.0

    async def read(self) -> GpuReport:
        """The GPUs now. Who asks while a read is under way gets what that one finds.

        A driver that hangs costs one thread, which is waited for no longer than the limit; until it comes
        back, every read says at once that it has not.
        """
        reading, left = self._begin()
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                return await asyncio.wrap_future(reading)
        return GpuReport(
            reason=message(
                "the NVIDIA driver does not answer within {seconds:g} s: does it hang?", seconds=self._seconds
            )
        )

    async def close(self) -> None:
        """Let go of the driver, unless it hangs. A later read takes it up again."""
        with self._lock:
            hangs = self._left(self._clock()) <= 0 and not (self._reading is None or self._reading.done())
        if not hangs:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await asyncio.wrap_future(_in_daemon_thread(self._nvml.close))

    def _begin(self) -> tuple[Future[GpuReport], float]:
        """The read under way, else a new one; and how many seconds are left of its time."""
        with self._lock:
            now = self._clock()
            if self._reading is None or self._reading.done():
                self._reading, self._since = _in_daemon_thread(self._nvml.report), now
            return self._reading, self._left(now)

    def _left(self, now: float) -> float:
        return self._since + self._seconds - now


class _NvmlSession:
    """NVML, initialised when it is first asked. Its calls block; one thread at a time is let in."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._initialized: Any = None

    def report(self) -> GpuReport:
        with self._lock:
            try:
                nvml = self._load()
            except ImportError:
                return GpuReport(reason=_NO_BINDINGS)
            try:
                count = min(self._count(nvml), MAX_GPUS)
            except nvml.NVMLError as error:
                self._end()
                return GpuReport(reason=_nvml_reason(error))
            gpus = tuple(_nvml_gpu(nvml, index) for index in range(count))
            if all(gpu.fault for gpu in gpus):  # as after a reload of the driver: begin anew the next time
                self._end()
            return GpuReport(gpus, "" if gpus else _NO_GPU)

    def close(self) -> None:
        with self._lock:
            self._end()

    def _count(self, nvml: Any) -> int:
        if not self._initialized:
            nvml.nvmlInit()
            self._initialized = nvml
        return int(nvml.nvmlDeviceGetCount())

    def _end(self) -> None:
        nvml, self._initialized = self._initialized, None
        if nvml:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


def _nvml_gpu(nvml: Any, index: int) -> Gpu:
    """What the driver tells of one GPU; what it fails to tell is left open, and does not hinder the rest."""
    fault = ""

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal fault
        try:
            return call(*arguments)
        except UnicodeDecodeError:  # some drivers for WSL give names that are no UTF-8
            return None
        except nvml.NVMLError as error:
            if error.value not in _NVML_UNTOLD:
                fault = fault or str(error)
            return None

    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return gpu_in({"fault": str(error)}, index)
    rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    milliwatts = ask(nvml.nvmlDeviceGetPowerUsage, handle)
    told = {
        "name": ask(nvml.nvmlDeviceGetName, handle),
        "utilization": getattr(rates, "gpu", None),
        "memory_used": getattr(memory, "used", None),
        "memory_total": getattr(memory, "total", None),
        "temperature": ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        "power": None if milliwatts is None else milliwatts / 1000,
    }
    return gpu_in(told | {"fault": fault}, index)


def _nvml_reason(error: Any) -> str:
    return _NVML_REASONS.get(error.value, message("the NVIDIA driver fails: {error}", error=error))


def _in_daemon_thread(job: Callable[[], _Done]) -> Future[_Done]:
    """Run the job in a thread that nothing waits for when the process ends, as it does for a pool's."""
    future: Future[_Done] = Future()
    future.set_running_or_notify_cancel()  # from here on nobody who stops waiting can cancel it

    def work() -> None:
        try:
            future.set_result(job())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, who would wait for ever
            future.set_exception(error)

    threading.Thread(target=work, name="gpu-reader", daemon=True).start()
    return future
