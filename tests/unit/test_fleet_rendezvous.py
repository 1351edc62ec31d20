"""Weighted rendezvous hashing: the same for all, by weight, moving little, with bounded loads."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.routing.decide.rendezvous import LOAD_BOUND, may_take, rendezvous_score

CHATS = [f"chat-{number}" for number in range(4000)]


def best(chat: str, weights: dict[str, float]) -> str:
    return max(weights, key=lambda node: rendezvous_score(chat, node, weights[node]))


def test_nodes_win_by_their_weight() -> None:
    """Would catch a score by which a node of twice the weight gets as many chats, or four times more."""
    won = Counter(best(chat, {"a": 1.0, "b": 2.0, "c": 1.0, "d": 0.0}) for chat in CHATS)
    assert 900 < won["a"] < 1100
    assert 1900 < won["b"] < 2100
    assert won["d"] == 0


def test_a_node_more_takes_its_share_and_moves_nothing_else() -> None:
    """Would catch a hash under which one node more sends all chats elsewhere, away from their prefixes."""
    before = dict.fromkeys("abc", 1.0)
    after = {**before, "d": 1.0}
    moved = [chat for chat in CHATS if best(chat, before) != best(chat, after)]
    assert {best(chat, after) for chat in moved} == {"d"}
    assert 900 < len(moved) < 1100


@given(
    st.lists(st.sampled_from("abcdef"), max_size=300), st.lists(st.floats(0.1, 10), min_size=6, max_size=6)
)
def test_loads_stay_bounded_and_somebody_may_always_take(wanted: list[str], weights: list[float]) -> None:
    """Would catch a bound that lets a favourite node run over, or that leaves a request with no node."""
    shares = {node: weight / sum(weights) for node, weight in zip("abcdef", weights, strict=True)}
    loads = Counter[str]()
    for total, node in enumerate(wanted):
        free = [other for other in shares if may_take(loads[other], total, shares[other])]
        assert free
        loads[node if node in free else free[0]] += 1
        assert all(load <= LOAD_BOUND * shares[one] * (total + 1) + 1 for one, load in loads.items())
