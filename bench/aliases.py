"""What alias resolution costs: 200 rows, 500 models, beside a dict lookup, a plain reference and LiteLLM.

    uv run bench/aliases.py            writes bench/results/aliases.json

Every case is timed call by call, the subjects in turns, with the garbage collector off; looking at the clock
is part of every figure (of the dict lookup's, most). The goal is a median under 50 µs for each case. LiteLLM
is measured where it is installed (`uv run --with litellm bench/aliases.py`): its alias map, its own models,
its pattern router, in its order. It knows no conditions, quantizations or lists of candidates, and its
wildcards do not act on models that are there.
"""

import gc
import json
import platform
import re
import runpy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from ollama_pack.aliases.facts import RequestFacts, request_facts
from ollama_pack.aliases.resolve import resolve
from ollama_pack.aliases.table import AliasTable, parse_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/aliases.json"
GOAL_MICROSECONDS = 50.0

EXACT_ROWS, WILDCARD_ROWS, MODELS = 120, 80, 500
ROUNDS, CALLS = 40, 100  # subjects take turns: 100 calls of one, 100 of the next, 40 times
SLOW_CALLS = 3  # of the reference in a round, which takes hundreds of times as long

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A request, and what is special about how the table answers it."""

    name: str
    facts: RequestFacts


def installed(dice: Random) -> dict[str, str]:
    """Models as a large deployment has them: sizes and quantizations of families, in no order."""
    levels = ("q4_0", "q4_K_M", "q5_K_M", "q6_K", "q8_0")
    names = [f"family{n // 10}:{n % 10 // 5 * 6 + 8}b-instruct-{levels[n % 5]}" for n in range(MODELS)]
    dice.shuffle(names)
    return {name: name.rpartition("-")[2].upper() for name in names}


def rows() -> Iterator[str]:
    """The rows of the table: exact names first, a few of each special kind among them, then wildcards."""
    yield "gpt-4 = family1:8b-instruct-q4_0"
    yield "gpt-4 = family2:8b-instruct-q4_0 [vision]"
    yield "gpt-4 = family3:8b-instruct-q4_0 [context>=32k]"
    yield "gpt-4o = absent:1b, absent:2b, absent:3b, family4:8b-instruct-q4_0"
    yield "gpt-5 = family5:8b [quant=q8_0>q6_K]"
    yield "best = better"
    yield "better = good"
    yield "good = family6:8b-instruct-q4_0"
    for n in range(EXACT_ROWS - 8):
        said = ("", "[tools]", "[group=staff]", "[quant=q4_K_M]")[n % 4]
        yield f"vendor{n % 7}/model-{n} = family{n % 50}:8b-instruct-q4_0, family1:14b-instruct-q4_0 {said}"
    for n in range(WILDCARD_ROWS // 2):
        yield f"vendor{n}/generation-{n}-* = family{n}:14b-instruct-q4_0"
        yield f"*-v{n}-preview = family{n}:8b-instruct-q4_0"


def cases() -> Iterator[Case]:
    long_prompt = {"messages": [{"role": "user", "content": "word " * 40_000}]}
    yield Case("no alias", RequestFacts("family7:8b-instruct-q4_0"))
    yield Case("exact", RequestFacts("gpt-4"))
    yield Case("exact, condition", request_facts(long_prompt, "gpt-4"))
    yield Case("chain of three", RequestFacts("best"))
    yield Case("first wildcard", RequestFacts("vendor10/generation-10-turbo"))
    yield Case("last wildcard", RequestFacts("claude-v9-preview"))
    yield Case("fourth candidate", RequestFacts("gpt-4o"))
    yield Case("quantization", RequestFacts("gpt-5"))


def reference() -> Callable[..., object]:
    """The plain resolver that the tests hold ours against."""
    names = runpy.run_path(str(ROOT / "tests/unit/reference_aliases.py"))
    return names["reference_resolve"]  # type: ignore[no-any-return] # runpy tells no types


def litellm_lookup(table: AliasTable, models: dict[str, str]) -> Callable[[str], object] | None:
    """How LiteLLM gets from a name to a model: its alias map, the names it has, its pattern router."""
    if find_spec("litellm") is None:
        return None
    from litellm import Router  # noqa: PLC0415 - not everybody has it, and it takes seconds

    def deployment(name: str, model: str) -> dict[str, Any]:
        return {"model_name": name, "litellm_params": {"model": f"ollama/{model}"}}

    wildcards = [deployment(row.alias, row.candidates[0]) for row in table.rows if row.is_wildcard]
    aliases = {row.alias: row.candidates[0] for row in table.rows if not row.is_wildcard}
    router = Router(
        model_list=[deployment(model, model) for model in models] + wildcards, model_group_alias=aliases
    )

    def look_up(name: str) -> object:
        alias = router.get_model_from_alias(model=name)
        return alias or name in router.model_names or router.pattern_router.route(name)

    return look_up


def subjects(
    case: Case, table: AliasTable, models: dict[str, str], litellm: Callable[[str], object] | None
) -> dict[str, Call]:
    plain = {row.alias: row.candidates[0] for row in table.rows}
    calls: dict[str, Call] = {
        "pack": partial(resolve, table, case.facts, models),
        "dict": partial(plain.get, case.facts.model),
        "reference": partial(reference(), table.rows, case.facts, models),
    }
    knows = case.name not in {"exact, condition", "chain of three", "fourth candidate", "quantization"}
    return calls | ({"litellm": partial(litellm, case.facts.model)} if litellm and knows else {})


def measure(calls: dict[str, Call]) -> dict[str, dict[str, float]]:
    """Median and 99th percentile of each subject, in µs."""
    taken: dict[str, list[int]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # caches are warm, as in a server
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken[name] += timed(call, SLOW_CALLS if name == "reference" else CALLS)
    return {name: figures(times) for name, times in taken.items()}


def timed(call: Call, count: int) -> list[int]:
    times = []
    for _ in range(count):
        began = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - began)
    return times


def figures(nanoseconds: list[int]) -> dict[str, float]:
    """Median and 99th percentile, in µs."""
    cuts = statistics.quantiles(nanoseconds, n=100, method="inclusive")
    return {"median_us": round(cuts[49] / 1000, 3), "p99_us": round(cuts[98] / 1000, 3)}


def reading(text: str) -> dict[str, dict[str, float]]:
    """What a valve costs: reading the table anew, and on every request finding it already read."""

    def again() -> object:
        return parse_table(str(copies.pop()))

    copies = [
        text.encode().decode() for _ in range(2000)
    ]  # each request has a text of its own, from the database
    parse_table(text)
    remembered = figures(timed(again, 2000))

    def anew() -> object:
        parse_table.cache_clear()
        re.purge()
        return parse_table(text)

    return {"table read": figures(timed(anew, 50)), "table remembered": remembered}


def run() -> dict[str, Any]:
    text = "\n".join(rows())
    table, models = parse_table(text), installed(Random(1))
    litellm = litellm_lookup(table, models)
    measured = {case.name: measure(subjects(case, table, models, litellm)) for case in cases()}
    return {
        "rows": {"exact": EXACT_ROWS, "wildcard": WILDCARD_ROWS},
        "models": len(models),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "litellm": version("litellm") if litellm else "not installed",
        "goal_us": GOAL_MICROSECONDS,
        "resolution": {name: with_ratios(by_subject) for name, by_subject in measured.items()},
        "reading": reading(text),
    }


def with_ratios(by_subject: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The figures of a case, and how many times the pack's median each peer's is."""
    ours = by_subject["pack"]["median_us"]
    peers = {name: figures["median_us"] for name, figures in by_subject.items() if name != "pack"}
    return {**by_subject, "times_ours": {name: float(f"{peer / ours:.3g}") for name, peer in peers.items()}}


def show(result: dict[str, Any]) -> None:
    columns = ("pack µs", "p99", "dict", "reference", "LiteLLM")
    table = Table("case", *columns, title="200 rows, 500 models; peers as multiples of the pack's median")
    for case, by_subject in result["resolution"].items():
        ours, times = by_subject["pack"], by_subject["times_ours"]
        peers = [f"{times[name]:g} x" if name in times else "-" for name in ("dict", "reference", "litellm")]
        table.add_row(case, f"{ours['median_us']:.1f}", f"{ours['p99_us']:.1f}", *peers)
    for case, ours in result["reading"].items():
        table.add_row(case, f"{ours['median_us']:.1f}", f"{ours['p99_us']:.1f}")
    Console().print(table)
    slowest = max(case["pack"]["median_us"] for case in result["resolution"].values())
    print(f"slowest case {slowest:.1f} µs, goal {GOAL_MICROSECONDS:.0f} µs; LiteLLM: {result['litellm']}")


def main() -> None:
    gc.disable()
    result = run()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
