"""How often a tier of the cache answers a question in other words, and how often it should not have.

    .venv/bin/python bench/similar.py --tier normalised|semantic --pairs FILE [--json]
    .venv/bin/python bench/similar.py --peers PYTHON      beside others: see `peers/similar.py`

`FILE` has a JSON object a line: `a`, `b`, and `same`, whether the answer to `a` is a good answer to `b`.
Without `--pairs` it is our own pairs, `bench/data/pairs-*.jsonl`. One line of JSON comes out:

- `served`: pairs of the same meaning that the tier serves, of `same` in all.
- `wrong`: pairs of another meaning (traps) that it serves, of `traps` in all.
- `threshold`: of the semantic tier, by language, what a site has earned at `--error` whose users ask what is
  in `bench/data`: `--labels` would-be hits, drawn from these pairs again and again; null: none.
- `by_threshold`: what it would serve at each threshold, with the guards.
- `lookup_ms`: the CPU time that the tier itself takes for a question: median, and the slowest of a hundred.

Besides pairs, `--isolation 100000` tries as often to get the answer of another history, user, system
prompt or model, and `--sites 1000` simulates sites that use the bound: how many were ever above it, of all
kinds (`above`), and of those whose share of wrong answers is just above it (`above_where_just`).
`--federated` prints how many labels each of three sites needs that learn together, and a site alone.

Our pairs were written before the rules. The rules were tuned on the half whose digests are even
(`--half tune`), and not on the other one (`--half held`).

`--halves 5` splits `bench/data/wordings-en.jsonl` in two, by question and five times: would-be hits of one
half are the evidence, and the tiers are measured on the other. Each line there has wordings of one question
(`same`), and questions that only look alike (`other`). The guards were tuned on its first 160 lines, and not
on the rest.
"""

import argparse
import functools
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "src", "tests", "scripts")]

from bench.caching.beside import beside, table  # noqa: E402 - the path is set above
from bench.caching.isolation import tried  # noqa: E402 - see above
from bench.caching.minilm import embedder  # noqa: E402 - see above
from bench.caching.sites import fewest_labels_of_users, sites_above  # noqa: E402 - see above
from ollama_pack.cache.bound import THRESHOLDS, Judged, class_of, usable_threshold  # noqa: E402 - see above
from ollama_pack.cache.guards import may_be_same  # noqa: E402 - see above
from ollama_pack.cache.normal_form import normal_form  # noqa: E402 - see above
from ollama_pack.cache.semantic import as_bytes, language_of, similarities  # noqa: E402 - see above

DATA = ROOT / "bench/data"
WORDINGS = DATA / "wordings-en.jsonl"
LANGUAGES = ("en", "zh")
EPSILONS = (1.0, 2.0, 3.0, 5.0, 10.0)
USERS = (5, 10, 15, 25, 100)


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


@functools.cache
def serves_normalised(pair: Pair) -> bool:
    """Whether the second question gets the first one's answer."""
    form = normal_form(pair.a)
    return bool(form) and form == normal_form(pair.b)


def read_wordings(file: Path) -> list[list[Pair]]:
    """The pairs of each line: of two wordings of a question, and of a wording and another question."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        alike = [Pair(a, b, same=True) for a, b in combinations(row["same"], 2)]
        found.append(alike + [Pair(a, b, same=False) for a in row["same"] for b in row["other"]])
    return found


def our_pairs() -> list[Pair]:
    """All that are in the repository."""
    return read_pairs(sorted(DATA.glob("pairs-*.jsonl"))) + list(chain(*read_wordings(WORDINGS)))


@functools.cache
def similarity(pair: Pair) -> float:
    """The cosine of the two questions."""
    one, two = (as_bytes(embedder()(text)) for text in (pair.a, pair.b))
    return similarities(one, [two])[0]


def earned(pairs: Sequence[Pair], error: float, labels: int, seed: int = 0) -> dict[str, float | None]:
    """By language, the threshold of a site whose users ask these questions, after so many would-be hits."""
    hits = [
        pair
        for pair in pairs
        if not serves_normalised(pair)
        and may_be_same(pair.a, pair.b)
        and class_of(similarity(pair)) is not None
    ]
    found: dict[str, float | None] = {}
    for language in LANGUAGES:
        counts = {same: [0] * len(THRESHOLDS) for same in (True, False)}
        asked = [pair for pair in hits if language_of(pair.b) == language]
        for pair in Random(seed).choices(asked, k=labels) if asked else ():
            counts[pair.same][class_of(similarity(pair)) or 0] += 1
        place = usable_threshold(Judged(tuple(counts[True]), tuple(counts[False])), error)
        found[language] = None if place is None else THRESHOLDS[place]
    return found


def serves_semantic(pair: Pair, thresholds: Mapping[str, float | None]) -> bool:
    """Whether the second question gets the first one's answer, by its wording or its meaning."""
    if serves_normalised(pair):
        return True
    threshold = thresholds[language_of(pair.b)]
    return threshold is not None and may_be_same(pair.a, pair.b) and similarity(pair) >= threshold


def in_halves(times: int, error: float, labels: int) -> list[dict[str, object]]:
    """What the tiers do with one half of our questions, on the evidence of the other one."""
    questions, found = read_wordings(WORDINGS), []
    for seed in range(times):
        mixed = Random(seed).sample(questions, len(questions))
        evidence, held = (list(chain(*mixed[part::2])) for part in range(2))
        thresholds = earned(evidence, error, labels, seed)
        semantic = functools.partial(serves_semantic, thresholds=thresholds)
        tiers = {"normalised": report(held, serves_normalised), "semantic": report(held, semantic)}
        found.append({"seed": seed, "threshold": thresholds, **tiers})
    return found


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


def simulated(args: argparse.Namespace) -> object:
    """What is measured without pairs of others."""
    if args.isolation:
        return tried(args.isolation)
    if args.sites:
        above = [sites_above(args.sites, args.error, just=just) for just in (False, True)]
        return {"sites": args.sites, "above": above[0], "above_where_just": above[1], "error": args.error}
    if args.federated:
        return [
            {"users": users, "alone": fewest_labels_of_users(users, args.error)}
            | {f"epsilon {each:g}": fewest_labels_of_users(users, args.error, each) for each in EPSILONS}
            for users in USERS
        ]
    return in_halves(args.halves, args.error, args.labels)


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
    parser.add_argument("--federated", action="store_true", help="labels that each of three sites needs")
    parser.add_argument("--labels", type=int, default=3000, help="that a site has for a threshold")
    parser.add_argument("--halves", type=int, metavar="TIMES", help="learn from one half, measure the other")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has them: prints tables")
    args = parser.parse_args()
    if args.isolation or args.sites or args.halves or args.federated:
        print(json.dumps(simulated(args)))
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
        thresholds = earned(our_pairs(), args.error, args.labels)
        told |= report(pairs, functools.partial(serves_semantic, thresholds=thresholds))
        told |= {"threshold": thresholds, "error": args.error}
        told["by_threshold"] = {
            f"{least}": report(
                pairs, functools.partial(serves_semantic, thresholds=dict.fromkeys(LANGUAGES, least))
            )
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
