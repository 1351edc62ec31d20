"""Sampling and runner options of an OpenAI chat body, wherever Open WebUI may have put them."""

from collections.abc import Callable, Mapping
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.body import decimal_in, object_in, switch_in, text_in, whole_in
from ollama_pack.engines.errors import ChatBodyError


def _stop_in(value: object, field: str) -> list[str]:
    """OpenAI allows one text or a list of them, Ollama a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text_in(item, f"{field}[{number}]") for number, item in enumerate(value)]
    raise ChatBodyError(field, message("must be text or a list of texts"))


_WHOLE_OPTIONS = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "num_keep",
    "num_predict",
    "seed",
    "top_k",
    "repeat_last_n",
    "mirostat",
)
_DECIMAL_OPTIONS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "mirostat_tau",
    "mirostat_eta",
)
# The options that are known here, and the type without which Ollama refuses the request. The mirostat ones
# mean nothing to a newer Ollama, and do no harm there.
OPTION_TYPES: dict[str, Callable[[object, str], Any]] = {
    **dict.fromkeys(_WHOLE_OPTIONS, whole_in),
    **dict.fromkeys(_DECIMAL_OPTIONS, decimal_in),
    "use_mmap": switch_in,
    "stop": _stop_in,
}
# From and to. Ollama itself looks at none of them: a batch of 0 ends its runner, 10,000 threads or a window
# of a billion tokens its machine, and what no float32 can hold the request.
_INT32, _DECIMAL = 2**31 - 1, 1e6
OPTION_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_WHOLE_OPTIONS, (-_INT32, _INT32)),
    **dict.fromkeys(_DECIMAL_OPTIONS, (-_DECIMAL, _DECIMAL)),
    "num_batch": (1, _INT32),
    "num_gpu": (-1, _INT32),
    "main_gpu": (0, 255),
    "num_thread": (0, 512),
    "num_keep": (-1, _INT32),
    "seed": (-(2**63), 2**63 - 1),
    "repeat_last_n": (-1, 2**22),
}
# OpenAI's names of `num_predict`; a later one counts where several are given.
_LENGTH_NAMES = ("num_predict", "max_tokens", "max_completion_tokens")
# Open WebUI puts these among the options; Ollama looks for them beside the options, or nowhere.
_BESIDE_OPTIONS = ("format", "keep_alive", "think", "reasoning_effort", "response_format", "system")
# What a runner is loaded with besides its context (Ollama's `api.Runner`): another value makes it load again.
RUNNER_OPTIONS = ("main_gpu", "num_batch", "num_gpu", "num_thread", "use_mmap")
# They say how a node runs a model, not what a chat wants. Ollama keeps some of them for those who ask later
# without any: after `num_gpu: 0` all run on the CPU, after `keep_alive: -1` the model stays for ever.
_MACHINE_OPTIONS = ("keep_alive", *RUNNER_OPTIONS)
_NO_OPTIONS = frozenset((*_BESIDE_OPTIONS, *_LENGTH_NAMES))


def flat_settings(body: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a body sets, in one place and in Ollama's names.

    What stands at the top counts more than `options`, those more than `params.custom_params`, and those more
    than `params`. Null counts as absent.

    Raises:
        ChatBodyError: `params`, `custom_params` or `options` is no object.
    """
    params = object_in(body.get("params"), "params")
    custom = object_in(params.get("custom_params"), "params.custom_params")
    options = object_in(body.get("options"), "options")
    settings: dict[str, Any] = {}
    for layer in (params, custom, options, body):
        given = {name: value for name, value in layer.items() if value is not None}
        settings |= given
        lengths = [given[name] for name in _LENGTH_NAMES if name in given]
        settings |= {"num_predict": lengths[-1]} if lengths else {}
    return settings


def with_machine_options(body: Mapping[str, Any], *admins: Mapping[str, Any]) -> dict[str, Any]:
    """A plain user's body with the machine's options that admins have set, and with none of the user's own.

    Args:
        body: as it came.
        admins: parameters that admins have set, the most general first.
    """
    settings = {name: value for params in admins for name, value in flat_settings({"params": params}).items()}
    own = _without_machine_options(body)
    params = own.get("params")
    if isinstance(params, Mapping):
        params = _without_machine_options(params)
        custom = params.get("custom_params")
        more = {"custom_params": _without_machine_options(custom)} if isinstance(custom, Mapping) else {}
        own["params"] = params | more
    options = own.get("options")
    kept = {name: settings[name] for name in _MACHINE_OPTIONS if name in settings}
    if isinstance(options, Mapping):
        own["options"] = _without_machine_options(options) | kept
    elif kept and options is None:
        own["options"] = kept
    return own


def _without_machine_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _MACHINE_OPTIONS}


def ollama_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's `options` for an OpenAI chat body.

    What is in the body's own `options` and unknown here goes along as it is: a newer Ollama may know it.

    Raises:
        ChatBodyError: an option has a value of a type or in a range that no Ollama can use.
    """
    settings = flat_settings(body)
    own = object_in(body.get("options"), "options")
    unknown = {
        str(name): value
        for name, value in own.items()
        if value is not None and name not in OPTION_TYPES and name not in _NO_OPTIONS
    }
    known = {name: read(settings[name], name) for name, read in OPTION_TYPES.items() if name in settings}
    _check_ranges(known)
    return unknown | known


def _check_ranges(options: Mapping[str, Any]) -> None:
    for name, (least, most) in OPTION_RANGES.items():
        if name in options and not least <= options[name] <= most:
            raise ChatBodyError(
                name, message("must be from {least:.16g} to {most:.16g}", least=least, most=most)
            )
    if options.get("repeat_penalty") == 0:
        raise ChatBodyError("repeat_penalty", message("must not be 0: 1 means no penalty"))
