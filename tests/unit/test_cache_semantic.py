"""The semantic tier: what it serves, from when on, and how often that is wrong."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bench.similar import read_pairs
from harness.cache_processes import ask, until
from harness.cache_upstream import SECRET, ScriptedUpstream, content_chunk, last_chunk, open_store, said
from ollama_pack.cache.bound import (
    THRESHOLDS,
    Judged,
    class_of,
    has_drifted,
    upper_bound,
    usable_threshold,
)
from ollama_pack.cache.cache import ResponseCache
from ollama_pack.cache.guards import may_be_same
from ollama_pack.cache.key import AnswerBasis, Slot, slot_of
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.outcome import Hit, Lead, Question
from ollama_pack.cache.semantic import Calibration, Lent, as_bytes, judged_right, label_key, similarities

DATA = Path(__file__).parents[2] / "bench/data"
ERROR, CLASSES = 0.01, len(THRESHOLDS)
ONE, OTHER, TRAP = (
    "Which food is good for cats?",
    "What should cats best be fed?",
    "Which food is bad for dogs?",
)
VECTORS = {ONE: (1.0, 0.0, 0.0), OTHER: (0.99, 0.1, 0.0), TRAP: (0.0, 0.0, 1.0)}


def evidence(right: int, wrong: int = 0) -> Judged:
    rest = (0,) * (CLASSES - 1)
    return Judged((right, *rest), (wrong, *rest))


def test_nothing_is_used_without_enough_evidence() -> None:
    """Would catch a threshold that somebody guessed."""
    assert usable_threshold(Judged(), ERROR) is None
    assert usable_threshold(evidence(300), ERROR) is None  # enough for one look at one threshold
    assert usable_threshold(evidence(520), ERROR) == CLASSES - 1  # nothing below was ever wrong
    assert usable_threshold(evidence(520, 4), ERROR) is None
    assert 0.008 < upper_bound(0, 600, ERROR) < 0.01
    assert [class_of(each) for each in (1.0, THRESHOLDS[-1], 0.5)] == [0, CLASSES - 1, None]


def simulated_site(dice: Random, need: list[int]) -> bool:
    """Whether a site ever uses a threshold whose true share of wrong answers is above the error."""
    base = ERROR * 10 ** dice.uniform(-1, 1)
    rates = [min(0.9, base * 1.5**place) for place in range(CLASSES)]
    share = [0.05 + dice.random() for _ in rates]
    above = [sum(share[: place + 1]) for place in range(CLASSES)]
    true = [
        sum(part * rate for part, rate in zip(share[: place + 1], rates, strict=False)) / above[place]
        for place in range(CLASSES)
    ]
    if max(true) <= ERROR:
        return False
    wrong, judged = [0] * CLASSES, [0] * CLASSES
    for _ in range(1200):
        (first,) = dice.choices(range(CLASSES), share)
        bad = dice.random() < rates[first]
        for place in range(first, CLASSES):  # a look after each label
            judged[place] += 1
            wrong[place] += bad
            if true[place] > ERROR and wrong[place] < len(need) and judged[place] >= need[wrong[place]]:
                return True
    return False


def test_at_most_one_site_of_twenty_is_above_its_bound() -> None:
    """Would catch a bound that holds for one look at one threshold, and is looked at again and again."""
    need = []
    for wrong in range(12):  # the fewest labels with which a threshold is used
        low, high = wrong + 1, 20_000
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if upper_bound(wrong, middle, ERROR) <= ERROR else (middle + 1, high)
        need.append(low)
    assert need[0] < 530
    dice = Random(7)  # noqa: S311 - drawn the same each time
    sites = 1000
    assert sum(simulated_site(dice, need) for _ in range(sites)) <= 0.05 * sites


def test_change_takes_the_tier_back() -> None:
    """Would catch evidence of last month that serves wrong answers today."""
    calibration = Calibration()
    for _ in range(600):
        calibration.label("model|e|user|en", 0.99, right=True, error=ERROR)
    assert calibration.threshold("model|e|user|en", ERROR) is not None
    assert calibration.threshold("other|user", ERROR) is None
    labels = 0
    while calibration.threshold("model|e|user|en", ERROR) is not None:
        calibration.label("model|e|user|en", 0.99, right=bool(labels % 10), error=ERROR)
        labels += 1
    assert labels < 60
    assert not has_drifted(1, 100, ERROR)


def test_labels_of_one_process_are_those_of_all() -> None:
    """Would catch figures that are lost, or counted twice, on their way through the store."""
    one, two, shared = Calibration(), Calibration(), dict[str, float]()
    for number in range(60):
        each = (one, two)[number % 2]
        for name, more in each.label("m|e|global|en", 0.97, right=number != 7, error=ERROR).items():
            shared[name] = shared.get(name, 0) + more
    one.learn(shared | {"hits": 3.0})
    assert one.judged("m|e|global|en").above(1) == (1, 60)
    assert one.report(ERROR)[0]["model"] == "m"
    assert one.report(ERROR)[0]["threshold"] is None


def test_guards_let_most_paraphrases_pass_and_few_traps() -> None:
    """Would catch a guard that passes numbers or negations, or that stops nearly everything."""
    pairs = read_pairs(sorted(DATA.glob("pairs-*.jsonl")))
    passed = {
        same: [pair for pair in pairs if pair.same is same and may_be_same(pair.a, pair.b)]
        for same in (True, False)
    }
    assert len(passed[True]) > 0.8 * sum(pair.same for pair in pairs)
    assert len(passed[False]) < 0.55 * sum(not pair.same for pair in pairs)
    for one, two in (
        ("Is it safe?", "Is it not safe?"),
        ("Take 2 pills", "Take 3 pills"),
        ("Ask Bob now", "Ask Ann now"),
    ):
        assert not may_be_same(one, two)


@pytest.mark.parametrize(("said_", "right"), [("Yes.", True), ("no", False), ("maybe", False), ("", False)])
def test_what_a_judge_says(said_: str, right: bool) -> None:  # noqa: FBT001
    """Would catch a judge that rambles and counts as one that agrees."""
    assert judged_right(said_) is right


def test_similarity_of_vectors() -> None:
    """Would catch vectors that lose their direction in a byte, or of another length that are compared."""
    one, two, other = (as_bytes(vector) for vector in ((1.0, 0.0), (0.8, 0.6), (1.0, 0.0, 0.0)))
    assert similarities(one, [one, two, other]) == pytest.approx([1.0, 0.8, -1.0], abs=0.01)


class Site:
    """A cache in SQLite whose semantic tier has somebody who makes vectors, and a judge."""

    def __init__(self, path: Path, verdict: str = "yes") -> None:
        self.cache = ResponseCache(open_store(str(path)), Keyring(SECRET))
        self.judged: list[str] = []
        self._verdict = verdict

    def question(
        self, text: str, *, scope: str = "user:1", history: Sequence[dict[str, Any]] = ()
    ) -> Question:
        body = {"model": "llama3:8b", "messages": [*history, {"role": "user", "content": text}]}
        basis = AnswerBasis(scope, body, "sha256:1")
        slot = slot_of(basis, Keyring(SECRET))
        assert isinstance(slot, Slot)
        lent = Lent("llama3:8b|user", ERROR, self._embed, self._judge, "embedder")
        return Question(slot, scope, ("chat:1",), basis=basis, lent=lent)

    async def _embed(self, text: str) -> Sequence[float]:
        return VECTORS.get(text, (0.0, 1.0, 0.0))

    async def _judge(self, text: str) -> str:
        self.judged.append(text)
        return self._verdict


def trusted(cache: ResponseCache) -> None:
    """As after many labels that were right."""
    cache.calibration.learn({"judged/llama3:8b|user/0/right": 2000.0})
    cache.calibration.asks_anyway = lambda: False  # type: ignore[method-assign] # what is drawn there is by chance
    cache._calibrate_at = float("inf")  # noqa: SLF001 - the store has no such labels


def test_would_be_hits_are_judged_and_not_given_before_there_is_evidence(tmp_path: Path) -> None:
    """Would catch a tier that serves from the first day, or that never learns."""

    async def test() -> None:
        site = Site(tmp_path / "cache.sqlite3")
        await ask(site.cache, ScriptedUpstream(), site.question(ONE))
        own = ScriptedUpstream(content_chunk("Own"), last_chunk())
        assert said(await ask(site.cache, own, site.question(OTHER))) == "Own"
        await until(lambda: site.cache.calibration.judged("llama3:8b|user").above(CLASSES - 1) == (0, 1))
        assert ONE in site.judged[0]
        assert OTHER in site.judged[0]
        assert "Own" in site.judged[0]
        counts = await site.cache.shared_counts()
        assert isinstance(counts, dict)
        assert counts["judged/llama3:8b|user/0/right"] == 1
        await site.cache.close()

    asyncio.run(test())


def test_same_meaning_is_served_once_there_is_evidence(tmp_path: Path) -> None:
    """Would catch an answer for another user, history or meaning, and one that is served after it is gone."""

    async def test() -> None:
        site = Site(tmp_path / "cache.sqlite3")
        trusted(site.cache)
        await ask(site.cache, ScriptedUpstream(), site.question(ONE))
        await until(lambda: bool(site.cache._tasks) is False)  # noqa: SLF001 - it is entered after its end
        found = await site.cache.lookup(site.question(OTHER))
        assert isinstance(found, Hit)
        assert found.near is not None
        assert (found.near.asked, found.near.tier) == (ONE, "semantic")
        assert 0.98 < found.near.similarity < 1
        history = [{"role": "user", "content": "I have a dog"}, {"role": "assistant", "content": "Nice."}]
        assert isinstance(await site.cache.lookup(site.question(OTHER, history=history)), Lead)
        assert isinstance(await site.cache.lookup(site.question(OTHER, scope="user:2")), Lead)
        assert isinstance(await site.cache.lookup(site.question(TRAP)), Lead)
        await site.cache.discard("chat:1")
        assert isinstance(await site.cache.lookup(site.question(OTHER)), Lead)
        await site.cache.close()

    asyncio.run(test())


def test_evidence_is_of_one_maker_of_vectors() -> None:
    """Would catch a threshold that one embedding model has earned, and that another one serves by."""
    calibration, keys = Calibration(), [label_key("m", name, "user:1") for name in ("one", "two")]
    for _ in range(600):
        calibration.label(keys[0], 0.99, right=True, error=ERROR)
    assert calibration.threshold(keys[0], ERROR) is not None
    assert calibration.threshold(keys[1], ERROR) is None
    (row,) = calibration.report(ERROR)
    assert (row["model"], row["scope"]) == ("m", "user")


def test_labels_that_two_processes_take_back_hide_no_wrong_one() -> None:
    """Would catch counts below zero, which the next wrong answers would fill up unseen."""
    calibration = Calibration()
    calibration.learn({"judged/m|e|user|en/0/right": -600.0, "judged/m|e|user|en/0/wrong": -12.0})
    added = calibration.label("m|e|user|en", 0.99, right=False, error=ERROR)
    assert added["judged/m|e|user|en/0/wrong"] == 13
    assert calibration.judged("m|e|user|en").above(0) == (1, 1)
