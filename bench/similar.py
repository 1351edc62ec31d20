"""How often a tier of the cache answers a question in other words, and how often it should not have.

    .venv/bin/python bench/similar.py --tier normalised|semantic --pairs FILE [--json]
    .venv/bin/python bench/similar.py --peers PYTHON      beside others: see `peers/similar.py`

`FILE` has a JSON object a line: `a`, `b`, and `same`, whether the answer to `a` is a good answer to `b`.
Without `--pairs` it is our own pairs, `bench/data/pairs-*.jsonl`. One line of JSON comes out:

- `served`: pairs of the same meaning that the tier serves, of `same` in all.
- `wrong`: pairs of another meaning (traps) that it serves, of `traps` in all.
- `threshold`: of the semantic tier, what our own pairs allow at `--error`; null: none.
- `by_threshold`: what it would serve at each threshold, with the guards.
- `lookup_ms`: the CPU time that the tier itself takes for a question: median, and the slowest of a hundred.

Besides pairs, `--isolation 100000` tries as often to get the answer of another history, user, system
prompt or model, and `--sites 1000` simulates sites that use the bound: how many were ever above it.

Our pairs were written before the rules. The rules were tuned on the half whose digests are even
(`--half tune`), and not on the other one (`--half held`).
"""

import argparse
import functools
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "tests")]

from bench.caching.beside import beside, table  # noqa: E402 - the path is set above
from bench.caching.isolation import tried  # noqa: E402 - see above
from bench.caching.minilm import embedder  # noqa: E402 - see above
from bench.caching.sites import sites_above  # noqa: E402 - see above
from ollama_pack.cache.bound import THRESHOLDS, Judged, class_of, usable_threshold  # noqa: E402 - see above
from ollama_pack.cache.guards import may_be_same  # noqa: E402 - see above
from ollama_pack.cache.normal_form import normal_form  # noqa: E402 - see above
from ollama_pack.cache.semantic import as_bytes, similarities  # noqa: E402 - see above

DATA = ROOT / "bench/data"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two questions, and whether one answer is good for both."""

    a: str
    b: str
    same: bool


def read_pairs(files: Sequence[Path]) -> list[Pair]:
    """The pairs of some files, a JSON object a line."""
    found = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                found.append(Pair(str(row["a"]), str(row["b"]), bool(row["same"])))
            except (ValueError, KeyError, TypeError) as error:
                raise SystemExit(f"{file}:{number}: no object with a, b and same: {error}") from error
    return found


def in_half(pair: Pair, half: str) -> bool:
    """Whether a pair is in the half that the rules were tuned on, or in the other one."""
    odd = hashlib.sha256((pair.a + pair.b).encode()).digest()[0] % 2 == 1
    return half == "all" or odd == (half == "held")


def serves_normalised(pair: Pair) -> bool:
    """Whether the second question gets the first one's answer."""
    form = normal_form(pair.a)
    return bool(form) and form == normal_form(pair.b)


def similarity(pair: Pair) -> float:
    """The cosine of the two questions."""
    one, two = (as_bytes(embedder()(text)) for text in (pair.a, pair.b))
    return similarities(one, [two])[0]


def allowed_threshold(evidence: Sequence[Pair], error: float) -> float | None:
    """What the bound allows when these pairs are the labels."""
    counts = {same: [0] * len(THRESHOLDS) for same in (True, False)}
    for pair in evidence:
        place = class_of(similarity(pair))
        if place is not None and not serves_normalised(pair) and may_be_same(pair.a, pair.b):
            counts[pair.same][place] += 1
    place = usable_threshold(Judged(tuple(counts[True]), tuple(counts[False])), error)
    return None if place is None else THRESHOLDS[place]


def serves_semantic(pair: Pair, threshold: float | None) -> bool:
    """Whether the second question gets the first one's answer, by its wording or its meaning."""
    if serves_normalised(pair):
        return True
    return threshold is not None and may_be_same(pair.a, pair.b) and similarity(pair) >= threshold


def lookup_times(pairs: Sequence[Pair], look_up: Callable[[str], object]) -> dict[str, float]:
    """What the tier itself takes for one question, in milliseconds."""
    for pair in pairs:
        look_up(pair.a)
    took = []
    for pair in pairs:
        began = time.thread_time()
        look_up(pair.b)
        took.append((time.thread_time() - began) * 1000)
    ordered = sorted(took)
    return {
        "median": round(statistics.median(ordered), 3),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 3),
    }


def report(pairs: Sequence[Pair], serves: Callable[[Pair], bool]) -> dict[str, int]:
    """What a tier does with the pairs."""
    served = [pair for pair in pairs if serves(pair)]
    return {
        "served": sum(pair.same for pair in served),
        "wrong": sum(not pair.same for pair in served),
        "same": sum(pair.same for pair in pairs),
        "traps": sum(not pair.same for pair in pairs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=["normalised", "semantic"], default="normalised")
    parser.add_argument("--pairs", type=Path, nargs="*", help="files of pairs; ours when left out")
    parser.add_argument("--error", type=float, default=0.01, help="the valve similar_error")
    parser.add_argument("--half", choices=["all", "tune", "held"], default="all")
    parser.add_argument("--json", action="store_true", help="one line of JSON and nothing else")
    parser.add_argument("--show", action="store_true", help="the pairs that were not as they should be")
    parser.add_argument("--isolation", type=int, metavar="TRIES", help="try to cross users and histories")
    parser.add_argument("--sites", type=int, help="simulate sites that use the bound")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has them: prints tables")
    args = parser.parse_args()
    if args.isolation:
        print(json.dumps(tried(args.isolation)))
        return 0
    if args.sites:
        above = sites_above(args.sites, args.error)
        print(json.dumps({"sites": args.sites, "above": above, "error": args.error}))
        return 0
    every = read_pairs(args.pairs or sorted(DATA.glob("pairs-*.jsonl")))
    pairs = [pair for pair in every if in_half(pair, args.half)]
    if not pairs:
        raise SystemExit("there are no pairs")
    if args.peers:
        same = sum(pair.same for pair in pairs)
        found = beside(args.peers, pairs)
        print(json.dumps(found) if args.json else table(found, same, len(pairs) - same))
        return 0
    told: dict[str, object] = {"tier": args.tier}
    if args.tier == "normalised":
        told |= report(pairs, serves_normalised)
    else:
        threshold = allowed_threshold(read_pairs(sorted(DATA.glob("pairs-*.jsonl"))), args.error)
        told |= report(pairs, functools.partial(serves_semantic, threshold=threshold))
        told |= {"threshold": threshold, "error": args.error}
        told["by_threshold"] = {
            f"{least}": report(pairs, functools.partial(serves_semantic, threshold=least))
            for least in THRESHOLDS
        }
    told["lookup_ms"] = lookup_times(pairs, normal_form)
    if args.show and not args.json:
        for pair in pairs:
            if serves_normalised(pair) != pair.same:
                print("WRONG " if not pair.same else "missed", pair.a, "|", pair.b)
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
