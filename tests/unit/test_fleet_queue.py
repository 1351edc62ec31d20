"""Fair order between users, background calls behind people, and the limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.routing.decide.fair_queue import MAX_TURN, FairQueue, WaitingRequest
from ollama_pack.routing.decide.view import FleetRequest
from ollama_pack.routing.errors import QueueFullError

PATIENCE = 10.0


def ask(number: int, user: str = "ann", *, background: bool = False) -> FleetRequest:
    return FleetRequest(f"r{number}", user, ("m",), background=background)


def ids(queue: FairQueue, now: float = 0.0) -> list[str]:
    return [entry.request.id for entry in queue.order(now)]


def test_a_flood_does_not_go_before_others() -> None:
    """Would catch first come, first served: one user's flood in front of everybody."""
    queue = FairQueue(100, PATIENCE)
    for number in range(10):
        queue.push(ask(number, "flood"), 0.0, 1.0)
    queue.push(ask(10, "ann"), 1.0, 1.0)
    queue.push(ask(11, "bob"), 1.0, 1.0)
    assert ids(queue)[:4] == ["r0", "r10", "r11", "r1"]


def crowd_of(users: int) -> FairQueue:
    """A queue where each of so many users waits with two requests, of different length, in turn."""
    queue = FairQueue(1000, PATIENCE)
    for number in range(2 * users):
        queue.push(ask(number, f"u{number % users}"), 0.0, 1.0 + number % 3)
    return queue


def test_a_crowd_is_served_in_the_order_of_arrival() -> None:
    """Would catch people in an overloaded fleet who wait for twice as long as those who came with them."""
    queue = crowd_of(8)
    served = []
    while len(queue):
        entry = queue.bound(ids(queue)[0], 0.0)
        served.append(entry.number)
        queue.ended(entry, entry.cost)
    assert served == sorted(served)


def test_a_flood_does_not_go_before_a_crowd() -> None:
    """Would catch a crowd whose order of arrival serves one user's flood, or two users'."""
    queue = crowd_of(8)
    for number in range(100, 140):
        queue.push(ask(number, f"flood{number % 2}"), 1.0, 2.0)
    for number in range(200, 208):
        queue.push(ask(number, f"u{number - 200}"), 2.0, 2.0)
    before = ids(queue)[: ids(queue).index("r207")]
    assert sum(name.startswith("r1") and len(name) == 4 for name in before) <= 20


def test_idle_users_save_up_nothing() -> None:
    """Would catch a user who, having been away, goes before all others for a long time."""
    queue = FairQueue(100, PATIENCE)
    queue.push(ask(9, "waits"), 0.0, 1.0)
    for number in range(5):
        queue.push(ask(number, "busy"), 0.0, 1.0)
        queue.ended(queue.bound(f"r{number}", 0.0), 1.0)
    queue.push(ask(5, "busy"), 0.0, 1.0)
    for number in range(6, 9):
        queue.push(ask(number, "back"), 0.0, 1.0)
    assert ids(queue)[:4] == ["r9", "r6", "r5", "r7"]


@pytest.mark.parametrize("somebody_waits", [False, True])
def test_users_who_came_once_are_forgotten(*, somebody_waits: bool) -> None:
    """Would catch a queue that remembers everybody who has ever asked, and looks through them each time."""
    queue = FairQueue(100, PATIENCE)
    if somebody_waits:
        queue.push(ask(-1, "waits"), 0.0, 1.0)
    for number in range(1000):
        queue.push(ask(number, f"u{number}"), float(number), 1.0)
        queue.push(ask(1000 + number, f"u{number}"), float(number), 1.0)
        queue.bound(f"r{number}", float(number))
        queue.bound(f"r{1000 + number}", float(number))
    assert len(queue._ends) < 100  # noqa: SLF001 - the bound is what is tested


def test_background_comes_after_people_until_its_patience_ends() -> None:
    """Would catch a title call in front of a person, or one that waits for ever."""
    queue = FairQueue(100, PATIENCE)
    queue.push(ask(0, background=True), 0.0, 1.0)
    queue.push(ask(1), 5.0, 1.0)
    assert ids(queue, 9.9) == ["r1", "r0"]
    assert queue.ripens_at() == PATIENCE
    assert ids(queue, 10.0) == ["r0", "r1"]
    assert queue.ripens_at() is None


def test_the_last_places_are_kept_for_users_who_have_none() -> None:
    """Would catch one user who fills the queue, so that all others are refused."""
    queue = FairQueue(8, PATIENCE)
    for number in range(6):
        queue.push(ask(number, "flood"), 0.0, 1.0)
    with pytest.raises(QueueFullError, match=r"6 requests wait, 6 of them yours \(the limit is 8\)"):
        queue.push(ask(6, "flood"), 0.0, 1.0)
    for number, user in enumerate(("ann", "bob"), 7):
        assert queue.push(ask(number, user), 0.0, 1.0).displaced is None
    for number in range(9, 14):
        queue.push(ask(number, f"user {number}"), 0.0, 1.0)
    with pytest.raises(QueueFullError) as caught:
        queue.push(ask(14, "eve"), 0.0, 1.0)
    assert (caught.value.limit, caught.value.waiting, caught.value.own) == (8, 8, 0)


def test_a_flood_makes_room_from_its_end() -> None:
    """Would catch users who are refused since others fill the queue, and floods that take turns."""
    queue = FairQueue(8, PATIENCE)
    for number in range(6):
        queue.push(ask(number, "flood"), 0.0, 1.0)
    pushed = [(user, 10 + number) for number, user in enumerate(("ann", "ann", "bob", "bob", "eve"))]
    displaced = [queue.push(ask(number, user), 0.0, 1.0).displaced for user, number in pushed]
    assert [request and request.id for request in displaced] == [None, "r5", None, "r4", "r3"]
    for user in ("ann", "flood"):  # the two would only change places
        with pytest.raises(QueueFullError):
            queue.push(ask(99, user), 0.0, 1.0)
    assert sorted(ids(queue)) == ["r0", "r1", "r10", "r11", "r12", "r13", "r14", "r2"]


def test_background_makes_room_for_people_and_not_the_other_way() -> None:
    """Would catch a person who is refused while titles wait, or who loses the place to one."""
    queue = FairQueue(4, PATIENCE)
    for number in range(3):
        queue.push(ask(number, f"u{number}", background=number > 0), 0.0, 1.0)
    with pytest.raises(QueueFullError):
        queue.push(ask(3, "ann", background=True), 0.0, 1.0)
    displaced = [queue.push(ask(number, f"u{number}"), 0.0, 1.0).displaced for number in (4, 5, 6)]
    assert [request and request.id for request in displaced] == [None, "r2", "r1"]
    with pytest.raises(QueueFullError):
        queue.push(ask(7, "eve"), 0.0, 1.0)
    floods = FairQueue(4, PATIENCE)
    for number in range(3):
        floods.push(ask(number, "flood", background=number > 0), 0.0, 1.0)
    pushed = floods.push(ask(3, "ann", background=True), 0.0, 1.0)
    assert pushed.displaced is not None
    assert pushed.displaced.id == "r2"


def test_only_those_before_it_are_overtaken() -> None:
    """Would catch counts that punish a request for being last."""
    queue = FairQueue(100, PATIENCE)
    entries = [queue.push(ask(number, f"u{number}"), 0.0, 1.0) for number in range(3)]
    queue.bound("r1", 0.0)
    assert [entry.overtaken for entry in entries] == [1, 0, 0]


def test_cancelled_requests_do_not_count_against_their_user() -> None:
    """Would catch a user who waits for requests that were stopped before they began."""
    queue = FairQueue(100, PATIENCE)
    for number in range(5):
        queue.push(ask(number, "ann"), 0.0, 1.0)
    for number in range(5):
        queue.cancel(f"r{number}")
    queue.push(ask(5, "bob"), 0.0, 1.0)
    queue.push(ask(6, "bob"), 0.0, 1.0)
    queue.push(ask(7, "ann"), 0.0, 1.0)
    assert ids(queue) == ["r5", "r7", "r6"]


def test_who_holds_several_slots_comes_after_those_who_hold_none() -> None:
    """Would catch one user's long answers that take every slot as it becomes free."""
    queue = FairQueue(100, PATIENCE)
    held = []
    for number in range(8):
        queue.push(ask(number, "long"), 0.0, 4.0)
        held.append(queue.bound(f"r{number}", 0.0))
    queue.push(ask(8, "long"), 0.0, 4.0)
    queue.push(ask(9, "ann"), 60.0, 4.0)
    queue.push(ask(10, "ann"), 60.0, 4.0)
    assert ids(queue) == ["r9", "r10", "r8"]
    for entry in held:
        queue.ended(entry, 4.0)
    assert ids(queue) == ["r9", "r8", "r10"]  # it holds nothing any more


def test_seconds_in_service_count_and_not_requests() -> None:
    """Would catch a user of long answers who gets as many as one of short ones, and so most of the time."""
    queue = FairQueue(100, PATIENCE)
    for number in range(0, 8, 2):
        queue.push(ask(number, "long"), 0.0, 4.0)
        queue.push(ask(number + 1, "short"), 0.0, 4.0)
    seconds = {"long": 40.0, "short": 4.0}
    served = []
    for _ in range(6):
        entry = queue.bound(ids(queue)[0], 0.0)
        served.append(entry.request.user)
        queue.ended(entry, seconds[entry.request.user])
    assert served == ["long", "short", "short", "short", "short", "long"]


def test_what_was_used_lately_counts_and_fades() -> None:
    """Would catch a user who has just had minutes of service and goes first again, or never gets any more."""
    for pause, first in ((1.0, "r1"), (200.0, "r2")):
        queue = FairQueue(100, PATIENCE)
        queue.push(ask(0, "long"), 0.0, 4.0)
        queue.ended(queue.bound("r0", 0.0), 100.0)
        queue.push(ask(2, "long"), pause, 4.0)
        queue.push(ask(1, "ann"), pause, 4.0)
        assert ids(queue)[0] == first


actions = st.lists(
    st.tuples(
        st.sampled_from(["push", "bind first", "cancel last", "end", "put back"]),
        st.integers(0, 5),
        st.booleans(),
    ),
    max_size=200,
)


def turns_hold(queue: FairQueue, serving: list[WaitingRequest]) -> bool:
    """Whether each request's turn is the number of its user's requests before it, in service or waiting."""
    for entry in queue:
        own = [
            one
            for one in queue
            if one.owner == entry.owner and (one.start, one.number) < (entry.start, entry.number)
        ]
        held = [one for one in serving if one.owner == entry.owner]
        if entry.turn != min(MAX_TURN, len(own) + len(held)):
            return False
    return True


@given(actions)
def test_order_is_a_permutation_and_memory_is_bounded(actions: list[tuple[str, int, bool]]) -> None:
    """Would catch a request that is lost or doubled, and tags of users who have left long ago."""
    queue = FairQueue(50, PATIENCE)
    there: set[str] = set()
    serving: list[WaitingRequest] = []
    for number, (action, user, background) in enumerate(actions):
        now = number / 4
        if action == "push" and len(there) < 30:
            queue.push(ask(number, f"u{user}-{number // 10}", background=background), now, 1.0)
            there.add(f"r{number}")
        elif serving and action in {"end", "put back"}:
            entry = serving.pop(user % len(serving))
            queue.ended(entry, float(user) if action == "end" else None)
            if action == "put back":
                queue.put_back(entry, "x")
                there.add(entry.request.id)
        elif there and action in {"bind first", "cancel last"}:
            order = ids(queue, now)
            name = order[0] if action == "bind first" else order[-1]
            if action == "bind first":
                serving.append(queue.bound(name, now))
            else:
                queue.cancel(name)
            there.discard(name)
        assert sorted(ids(queue, now)) == sorted(there)
        assert len(queue) == len(there)
        assert turns_hold(queue, serving)
        assert len(queue._ends) <= 2 * 50 + 65  # noqa: SLF001 - the bound is what is tested


def over_budget(number: int, user: str) -> FleetRequest:
    return FleetRequest(f"r{number}", user, ("m",), last=True)


def test_who_is_over_budget_comes_behind_everybody() -> None:
    """Would catch a chat over its budget that steps between the others, as a background call does."""
    queue = FairQueue(100, PATIENCE)
    queue.push(over_budget(0, "ann"), 0.0, 1.0)
    queue.push(ask(1, "title", background=True), 1.0, 1.0)
    for number in range(2, 5):
        queue.push(ask(number, "bob"), 2.0, 1.0)
    assert ids(queue) == ["r2", "r3", "r4", "r1", "r0"]
    assert ids(queue, 10 * PATIENCE)[-1] == "r0"


def test_who_is_over_budget_makes_room_first() -> None:
    """Would catch a full queue of chats over their budget that locks everybody else out."""
    queue = FairQueue(8, PATIENCE)
    for number in range(6):  # the last places are for others
        queue.push(over_budget(number, f"u{number}"), 0.0, 1.0)
    with pytest.raises(QueueFullError):
        queue.push(over_budget(20, "late"), 0.0, 1.0)
    for number in range(30, 38):
        queue.push(ask(number, f"p{number}"), 1.0, 1.0)
    assert ids(queue) == [f"r{number}" for number in range(30, 38)]
    with pytest.raises(QueueFullError):
        queue.push(ask(40, "one too many"), 1.0, 1.0)
