"""A scripted NVIDIA driver under the real `pynvml`, for machines without a GPU.

    driver = ScriptedDriver([Card(b"NVIDIA A100"), Card(fails={"nvmlDeviceGetUtilizationRates": 3})])
    pynvml = nvml_over(driver)
    pynvml.nvmlInit()

`pynvml` calls a C library through ctypes. Here an object stands where it keeps that library, and takes and
fills the same arguments, so that the real module's structures, names and errors are what is tested. What the
return codes mean is in nvml.h.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from typing import Any

UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION = 1, 2, 3, 4
LIBRARY_NOT_FOUND, GPU_IS_LOST, VERSION_MISMATCH, UNKNOWN = 12, 15, 18, 999

_HANDLES = 0x1000  # the handle of card 0, which is opaque to whoever gets it


@dataclass
class Card:
    """A GPU.

    Attributes:
        name: as the driver gives it.
        percent: utilization.
        used: bytes.
        total: bytes.
        celsius: temperature.
        milliwatts: power.
        fails: C function → return code, for those that fail on this card.
    """

    name: bytes = b"NVIDIA Test"
    percent: int = 37
    used: int = 5 * 2**30
    total: int = 80 * 2**30
    celsius: int = 41
    milliwatts: int = 61_500
    fails: Mapping[str, int] = field(default_factory=dict)


class ScriptedDriver:
    """What `libnvidia-ml.so.1` is to `pynvml`.

    Attributes:
        cards: the GPUs; a test may change them.
        fails: C function → return code, for those that fail on every card or altogether.
        calls: the C functions that were called, in order.
        answers: cleared by a test to let every call hang until it is set again.
        entered: set as soon as a call has come in.
    """

    def __init__(self, cards: Sequence[Card], fails: Mapping[str, int] | None = None) -> None:
        self.cards = list(cards)
        self.fails = dict(fails or {})
        self.calls: list[str] = []
        self.answers, self.entered = threading.Event(), threading.Event()
        self.answers.set()
        self._initialized = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        """A function of the library. `pynvml` takes an AttributeError for one that the driver lacks."""
        if name not in _FUNCTIONS:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            self.entered.set()
            self.answers.wait()
            return self._call(name, arguments)

        return call

    def _call(self, name: str, arguments: tuple[Any, ...]) -> int:
        if code := self.fails.get(name, 0):
            return code
        if name in _LIFE:
            self._initialized = max(0, self._initialized + _LIFE[name])
            return 0
        if not self._initialized:
            return UNINITIALIZED
        if name == "nvmlDeviceGetCount_v2":
            arguments[0]._obj.value = len(self.cards)  # noqa: SLF001 - how ctypes names what byref points at
            return 0
        return self._device_call(name, arguments)

    def _device_call(self, name: str, arguments: tuple[Any, ...]) -> int:
        by_index = name == "nvmlDeviceGetHandleByIndex_v2"
        index = arguments[0].value if by_index else _index_of(arguments[0])
        if index not in range(len(self.cards)):
            return INVALID_ARGUMENT
        card = self.cards[index]
        if code := card.fails.get(name, 0):
            return code
        target = arguments[1] if name == "nvmlDeviceGetName" else arguments[-1]._obj  # noqa: SLF001 - as above
        _DEVICE_CALLS[name](card, index, target)
        return 0


def _index_of(handle: Any) -> int:
    return (ctypes.cast(handle, ctypes.c_void_p).value or 0) - _HANDLES


def _fill_handle(_: Card, index: int, target: Any) -> None:
    ctypes.c_void_p.from_buffer(target).value = _HANDLES + index


def _fill_name(card: Card, _: int, target: Any) -> None:
    target.value = card.name


def _fill_rates(card: Card, _: int, target: Any) -> None:
    target.gpu, target.memory = card.percent, 1


def _fill_memory(card: Card, _: int, target: Any) -> None:
    target.total, target.used, target.free = card.total, card.used, max(0, card.total - card.used)


def _fill_temperature(card: Card, _: int, target: Any) -> None:
    target.value = card.celsius


def _fill_power(card: Card, _: int, target: Any) -> None:
    target.value = card.milliwatts


_LIFE = {"nvmlInitWithFlags": 1, "nvmlShutdown": -1}
_DEVICE_CALLS = {
    "nvmlDeviceGetHandleByIndex_v2": _fill_handle,
    "nvmlDeviceGetName": _fill_name,
    "nvmlDeviceGetUtilizationRates": _fill_rates,
    "nvmlDeviceGetMemoryInfo": _fill_memory,
    "nvmlDeviceGetTemperature": _fill_temperature,
    "nvmlDeviceGetPowerUsage": _fill_power,
}
_FUNCTIONS = {*_LIFE, *_DEVICE_CALLS, "nvmlDeviceGetCount_v2"}


def pynvml_path() -> str:
    """The file of the real module.

    Raises:
        ModuleNotFoundError: `nvidia-ml-py` is not installed.
    """
    spec = find_spec("pynvml")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pynvml")
    return spec.origin


def nvml_over(driver: ScriptedDriver, path: str = "") -> Any:
    """A copy of the real `pynvml`, for this driver alone.

    Args:
        driver: what its calls reach.
        path: file of the real module, where another one hides it.
    """
    spec = spec_from_file_location("pynvml_copy", path or pynvml_path())
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where it looks for itself to make its error classes
    spec.loader.exec_module(module)
    vars(module)["nvmlLib"] = driver
    return module
