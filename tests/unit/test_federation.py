"""Sites that learn together: what leaves a site, and what the others' evidence is worth here."""

import json
import math
from argparse import Namespace
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

import federate
from bench.caching.sites import fewest_labels, fewest_labels_of_users
from federation.counts import (
    CLASSES,
    EPSILONS,
    MOST_PAIRS,
    Agreement,
    AgreementError,
    not_given_yet,
    read_agreement,
    round_for,
    with_given,
    with_noise,
)
from federation.masking import CLIPPING, QUANTIZATION, threshold_of
from ollama_pack.cache import pool
from ollama_pack.cache.bound import THRESHOLDS, Judged, usable_threshold
from ollama_pack.cache.pool import PooledRound, pooled_thresholds, read_rounds, round_counts, rounds_in
from ollama_pack.cache.semantic import Calibration, as_forgotten, as_set, calibration_report, label_key

KEY = label_key("llama3:8b", "e", "user:1", "hello")
ERROR = 0.01
AGREED = Agreement("schools", 3, 2.0, (KEY,))


def dice(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - drawn the same each time


def counted(right: int, wrong: int = 0) -> Judged:
    rest = (0,) * (CLASSES - 1)
    return Judged((right, *rest), (wrong, *rest))


def labelled(right: int, wrong: int = 0) -> Calibration:
    """As after so many labels of the highest similarity."""
    calibration = Calibration()
    calibration.learn({f"judged/{KEY}/0/right": right, f"judged/{KEY}/0/wrong": wrong})
    return calibration


def table(right: int, wrong: int = 0) -> dict[str, dict[str, list[int]]]:
    judged = counted(right, wrong)
    return {KEY: {"right": list(judged.right), "wrong": list(judged.wrong)}}


def alone() -> int:
    """How many labels without a wrong one a site needs by itself."""
    return fewest_labels(0, ERROR)


def test_scripts_and_cache_have_the_same_limits() -> None:
    """What runs beside Flower cannot import the pack. Would catch a round that every cache refuses."""
    assert (len(THRESHOLDS), pool.EPSILONS) == (CLASSES, EPSILONS)


def handed(agreed: Agreement, tables: list[dict[str, dict[str, list[int]]]], chance: Random) -> PooledRound:
    """What the first site gets of a round."""
    sent = [with_noise(not_given_yet(each, {}, agreed), agreed, chance) for each in tables]
    others = [sum(column) for column in zip(*sent[1:], strict=True)]
    return read_rounds(round_for(others, 1, agreed))[KEY]


def test_three_sites_reach_the_bound_with_about_a_third_each() -> None:
    """Would catch noise that eats up what the others give, or a round that is counted for nothing."""
    each = math.ceil(1.1 * alone() / 3)
    reached = 0
    for seed in range(200):
        agreed = Agreement("schools", 3, 5.0, (KEY,))
        found = handed(agreed, [table(each)] * 3, dice(seed))
        reached += bool(pooled_thresholds(counted(each), (found,), ERROR))
    assert usable_threshold(counted(each), ERROR) is None
    assert reached > 0.85 * 200


@pytest.mark.parametrize("users", [5, 10])
def test_three_small_sites_reach_the_bound_with_a_third_each(users: int) -> None:
    """Would catch labels of others that do not help a site whose threshold must hold without any one user."""
    each = fewest_labels_of_users(users, ERROR) // 3
    looks = [counted(each), counted(each - math.ceil(each / users))]
    reached = 0
    for seed in range(200):
        agreed = Agreement("schools", 3, 5.0, (KEY,))
        found = handed(agreed, [table(each)] * 3, dice(seed))
        reached += all(pooled_thresholds(look, (found,), ERROR) for look in looks)
    assert reached > 0.8 * 200


def test_bound_holds_for_sites_that_are_alike() -> None:
    """Would catch a bound that takes the noise for evidence, or that looks again until it is lucky."""
    sites, bad = 300, 0
    agreed = Agreement("schools", 3, 1.0, (KEY,))
    for seed in range(sites):
        chance = dice(seed)
        rate = ERROR * chance.uniform(1.0, 1.6)
        own, rounds, used = [0, 0], [], False
        for number in range(1, 5):
            more = [sum(chance.random() < rate for _ in range(150)) for _site in range(3)]
            own = [own[0] + 150 - more[0], own[1] + more[0]]
            sent = [
                with_noise([150 - wrong, *[0] * 5, wrong, *[0] * 5], agreed, chance) for wrong in more[1:]
            ]
            others = [sum(column) for column in zip(*sent, strict=True)]
            rounds.append(read_rounds(round_for(others, number, agreed))[KEY])
            used = used or bool(pooled_thresholds(counted(*own), tuple(rounds), ERROR))
        bad += used
    assert bad <= 0.05 * sites


def test_own_contradiction_takes_the_others_evidence_back() -> None:
    """Would catch a site that goes on to serve wrong answers because elsewhere they are right."""
    calibration = labelled(100)
    calibration.learn(
        {f"judged/{KEY}/0/right": 100.0} | round_counts(KEY, PooledRound(counted(2000), 2.0, 1.0))
    )
    assert calibration.threshold(KEY, ERROR) == THRESHOLDS[-1]
    labels = 0
    while calibration.threshold(KEY, ERROR) is not None:
        calibration.label(KEY, 0.99, right=bool(labels % 5), error=ERROR)
        labels += 1
    assert labels < 30
    assert calibration.pooled(KEY) == ()
    for _ in range(300):  # what was right before it was wrong does not open the door again
        calibration.label(KEY, 0.99, right=True, error=ERROR)
    assert calibration.threshold(KEY, ERROR) is None


def test_two_processes_take_the_others_evidence_back_at_once() -> None:
    """Would catch a new era that the others' evidence opens again, and one that forgetting leaves apart."""
    others = round_counts(KEY, PooledRound(counted(2000), 2.0, 1.0))
    one, two, shared = Calibration(), Calibration(), dict(others)

    def contradict() -> None:
        for _label in range(3):
            for each in (one, two):
                each.learn(shared)
            added = [each.label(KEY, 0.99, right=False, error=ERROR) for each in (one, two)]
            for name, more in [pair for each in added for pair in each.items()]:
                shared[name] = shared.get(name, 0) + more
        one.learn(shared)
        assert one.threshold(KEY, ERROR) is None
        assert one.pooled(KEY) == ()
        assert calibration_report(shared)["apart"] == [KEY]

    contradict()
    assert calibration_report(shared)["labels"][KEY]["wrong"][0] == 6  # every label may be given to others
    forgotten = as_forgotten(shared)
    for name, less in [*forgotten.items(), *forgotten.items()]:  # two admins at once
        shared[name] += less
    shared = {name: value for name, value in shared.items() if not name.startswith("judged/")}
    for name, more in as_set({KEY: rounds_in(others)[KEY][0]}, shared).items():
        shared[name] = shared.get(name, 0) + more
    one.learn(shared)
    assert one.threshold(KEY, ERROR) is not None
    contradict()


def test_evidence_of_others_is_of_one_model_scope_and_language() -> None:
    """Would catch a threshold that English questions have earned, and that Chinese ones are served by."""
    calibration = Calibration()
    calibration.learn(round_counts(KEY, PooledRound(counted(2000), 2.0, 1.0)))
    assert calibration.threshold(KEY, ERROR) is not None
    for other in (
        ("llama3:8b", "e", "user:1", "你好"),
        ("llama3:8b", "e", "global", "hello"),
        ("m", "e", "user:1"),
    ):
        assert calibration.threshold(label_key(*other), ERROR) is None
    assert calibration.report(ERROR)[0]["pooled"] == 2000


def test_a_round_counts_once_and_can_be_forgotten() -> None:
    """Would catch evidence that is counted twice when it is handed over twice, or that stays for good."""
    counts = {f"labels/{KEY}/0/right": 7.0, f"judged/{KEY}/0/right": 5.0}
    one = PooledRound(counted(90, -1), 2.0, 1.0, 4)
    for _again in range(2):
        for name, more in as_set({KEY: one}, counts).items():
            counts[name] = counts.get(name, 0) + more
    assert rounds_in(counts) == {KEY: (one,)}
    report = calibration_report(counts)
    assert report["labels"] == {KEY: {"right": [7, 0, 0, 0, 0, 0], "wrong": [0] * 6}}
    assert report["pooled"][KEY][0]["round"] == 4
    for name, more in as_forgotten(counts).items():
        counts[name] += more
    assert rounds_in(counts) == {}
    assert counts[f"judged/{KEY}/0/right"] == 5


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"round": 0}, "`round`"),
        ({"epsilon": 99}, "`epsilon`"),
        ({"shares": 0}, "`shares`"),
        ({"labels": []}, "`labels`"),
        ({"labels": {KEY: {"right": [1], "wrong": [0] * 6}}}, KEY),
        ({"labels": {"x": table(1)[KEY]}}, "'x'"),
    ],
)
def test_what_is_no_round_is_refused(changed: dict[str, object], named: str) -> None:
    """Would catch nonsense that is kept and that no later look can read."""
    given = round_for([0] * 12, 1, AGREED) | changed
    with pytest.raises(ValueError, match=named.replace("|", r"\|")):
        read_rounds(given)


def test_a_pair_is_given_once() -> None:
    """Would catch privacy that wears away with each round, and counts that are never given."""
    given: dict[str, dict[str, list[int]]] = {}
    all_given = 0
    labels = table(2 * MOST_PAIRS + 5, 3)
    for _round in range(4):
        counts = not_given_yet(labels, given, AGREED)
        assert max(counts) <= MOST_PAIRS
        given = with_given(given, counts, AGREED)
        all_given += sum(counts)
    assert given == labels
    assert all_given == 2 * MOST_PAIRS + 8
    assert not_given_yet({}, given, AGREED) == [0] * 12  # it began anew: nothing below what was given


@pytest.mark.parametrize("sites", [3, 4, 7])
def test_noise_of_half_of_the_sites_hides_a_pair(sites: int) -> None:
    """Would catch noise that is too small for the ε that is stated."""
    agreed = Agreement("schools", sites, 1.0, (KEY,))
    chance, seen = dice(1), Counter[int]()
    tries = 40_000
    for _ in range(tries // 12):
        parts = [with_noise([0] * 12, agreed, chance) for _site in range(math.ceil(sites / 2))]
        seen.update(sum(column) for column in zip(*parts, strict=True))
    for one, two in pairwise(range(-3, 4)):  # one pair more or less moves what is seen by one
        assert abs(math.log(seen[one] / seen[two])) < agreed.epsilon + 0.2
    assert abs(sum(value * times for value, times in seen.items()) / tries) < 0.05


def test_counts_pass_the_masking_unchanged() -> None:
    """Would catch a count that is rounded at random while it is masked."""
    for count in (-40, -1, 0, 1, MOST_PAIRS, MOST_PAIRS + 40):
        assert ((count + CLIPPING) * QUANTIZATION / (2 * CLIPPING)).is_integer()
    assert [threshold_of(sites) for sites in (3, 4, 5)] == [2, 3, 3]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "name"),
        ("= 3", "no TOML"),
        ('name = "a"\nsites = 2', "`sites`"),
        ('name = "a"\nsites = 3\nepsilon = 0.1', "`epsilon`"),
        ('name = "a"\nsites = 3\nepsilon = 1\nlabels = []', "`labels`"),
        ('name = "a"\nsites = 3\nepsilon = 1\nlabels = ["m"]', "no key"),
    ],
)
def test_what_is_wrong_with_an_agreement(tmp_path: Path, text: str, named: str) -> None:
    """Would catch an agreement whose fault shows in the middle of a round."""
    (tmp_path / "agreement.toml").write_text(text)
    with pytest.raises(AgreementError, match=named):
        read_agreement(tmp_path)


def test_part_of_a_round_is_none() -> None:
    """Would catch right ones that count without the wrong ones, as the store failed between them."""
    one = PooledRound(counted(3000, 90), 2.0, 1.0)
    whole = as_set({KEY: one}, {})
    for number in range(len(whole)):
        assert rounds_in(dict(list(whole.items())[:number])) == {}
    assert rounds_in(whole) == {KEY: (one,)}
    gone = as_forgotten(whole)
    for number in range(1, len(gone)):
        part = dict(list(gone.items())[:number])
        assert rounds_in({name: value + part.get(name, 0) for name, value in whole.items()}) == {}


def test_number_of_a_round_that_ended_half_way_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a federation that stands still: sites that have given refuse the same number for ever."""
    (tmp_path / "agreement.toml").write_text("", encoding="utf-8")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    asked: list[str] = []
    ends = True

    def run(command: list[str], **_more: object) -> None:
        asked.extend(each for each in command if each.startswith("round="))
        if ends:
            return
        path = tmp_path / f"{asked[-1].replace('=', '-')}.json"
        path.write_text(json.dumps({"round": 2, "sum": [0]}), encoding="utf-8")

    monkeypatch.setattr("federate.subprocess.run", run)
    args = Namespace(folder=tmp_path, server="127.0.0.1:9092", authority=None)
    assert federate._round(args) == 1  # noqa: SLF001 - the rest of it needs Flower
    ends = False
    assert federate._round(args) == 0  # noqa: SLF001 - see above
    assert asked == ["round=1", "round=2"]
