"""Every store of the cache does the same: one suite, on a real Valkey, Redis and cluster, and on SQLite."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harness.valkey import Valkey, server_program
from ollama_pack.base.redis import redis_client
from ollama_pack.cache.key import Slot
from ollama_pack.cache.redis_scripts import RedisNames
from ollama_pack.cache.store import CacheStore, Kept, Lease, Quota, Running, ScopeUse, StoreTimes
from ollama_pack.cache.store_redis import RedisStore
from ollama_pack.cache.store_sqlite import SqliteStore

SHORT = StoreTimes(lease=1_200, follower=1_200, stream=5_000)  # for what is to run out within a test
LONG = StoreTimes()
TTL = 60_000
QUOTA = Quota()
ONE = Slot("a" * 32, "01" + "1" * 64)
TWO = Slot("a" * 32, "01" + "2" * 64)
ELSEWHERE = Slot("b" * 32, "01" + "1" * 64)

Opener = Callable[[StoreTimes], CacheStore]
Test = Callable[[CacheStore, CacheStore], Awaitable[None]]


@pytest.fixture(params=["valkey", "redis_itself", "cluster", "sqlite"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens the same, empty store again and again, as several processes do."""
    if request.param == "sqlite":
        return lambda times: SqliteStore(tmp_path / "cache.sqlite3", times)
    server: Valkey = request.getfixturevalue(request.param)
    with server.client() as client:
        client.flushall()
    url = f"redis+cluster://127.0.0.1:{server.port}" if request.param == "cluster" else server.url
    return lambda times: RedisStore(redis_client(url), redis_client(url), times)


@asynccontextmanager
async def opened(opener: Opener, times: StoreTimes = LONG) -> AsyncIterator[tuple[CacheStore, CacheStore]]:
    """Two openings of one store."""
    one, two = opener(times), opener(times)
    try:
        yield one, two
    finally:
        await one.close()
        await two.close()


def run(opener: Opener, test: Test, times: StoreTimes = LONG, *, then: StoreTimes | None = None) -> None:
    """Run a test on two openings; `then`: the times of the second, where it is to outlast the first."""

    async def within() -> None:
        async with opened(opener, times) as (one, other), opened(opener, then or times) as (two, _):
            await test(one, two if then else other)

    asyncio.run(within())


async def lead(store: CacheStore, slot: Slot = ONE, name: str = "t1") -> Lease:
    found = await store.acquire(slot, name, "read")
    assert isinstance(found, Lease)
    return found


async def keep(store: CacheStore, slot: Slot, sealed: bytes, quota: Quota = QUOTA, ttl: int = TTL) -> Lease:
    lease = await lead(store, slot, f"token of {slot.name}")
    assert await store.commit(lease, sealed, ttl, quota, (1, b"end")) == "stored"
    return lease


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask every 10 ms until it holds; times of the store cannot be waited for otherwise."""
    for _ in range(1000):
        if await holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never holds")


async def led_by_nobody(store: CacheStore, slot: Slot) -> None:
    async def free() -> bool:
        return isinstance(await store.acquire(slot, "waiting", "read"), Lease)

    await until(free)


async def ended(store: CacheStore, slot: Slot) -> None:
    async def absent() -> bool:
        return not isinstance(await store.acquire(slot, "t2", "read"), Kept)

    await until(absent)


def test_finding_takes_no_lease(opener: Opener) -> None:
    """Would catch a look that makes its asker the leader, or that finds what was flushed."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        assert await two.find(ONE) is None
        await keep(one, ONE, b"sealed")
        found = await two.find(ONE)
        assert isinstance(found, Kept)
        assert found.sealed == b"sealed"
        assert await two.find(TWO) is None
        await one.flush()
        assert await two.find(ONE) is None
        assert isinstance(await two.acquire(ONE, "t1", "read"), Lease)

    run(opener, test)


def test_first_asker_leads_and_the_others_follow(opener: Opener) -> None:
    """Would catch two leaders for one answer, or one that is told to follow itself when it repeats."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        found = await asyncio.gather(
            *(store.acquire(ONE, f"t{n}", "read") for n, store in enumerate((one, two) * 20))
        )
        leases = [each for each in found if isinstance(each, Lease)]
        assert len(leases) == 1
        assert all(each == Running(ONE, leases[0].token) for each in found if each != leases[0])
        assert await two.acquire(ONE, leases[0].token, "read") == leases[0]

    run(opener, test)


def test_kept_entry_is_found_by_all(opener: Opener) -> None:
    """Would catch an entry that is lost, changed or given for another slot or scope."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        lease = await keep(one, ONE, b"sealed \x00 bytes")
        for store in (one, two):
            found = await store.acquire(ONE, "t2", "read")
            assert isinstance(found, Kept)
            assert (found.sealed, found.fence) == (b"sealed \x00 bytes", lease.fence)
            assert 0 <= found.age < 60
        assert isinstance(await two.acquire(TWO, "t3", "read"), Lease)
        assert isinstance(await two.acquire(ELSEWHERE, "t4", "read"), Lease)

    run(opener, test)


def test_entry_ends_with_its_time_and_a_hit_does_not_prolong_it(opener: Opener) -> None:
    """Would catch a time to live that does not end, or begins anew with each hit."""

    async def test(one: CacheStore, _two: CacheStore) -> None:
        await keep(one, ONE, b"sealed", ttl=200)
        await ended(one, ONE)  # by many hits: were each to prolong it, this would not end

    run(opener, test)


def test_refresh_gets_a_lease_of_its_own_and_overwrites(opener: Opener) -> None:
    """Would catch a regenerated answer that is read from the cache, or that is not kept."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        await keep(one, ONE, b"old")
        again = await two.acquire(ONE, "again", "refresh")
        assert isinstance(again, Lease)
        assert not again.shared
        assert await two.commit(again, b"new", TTL, QUOTA, (1, b"end")) == "stored"
        found = await one.acquire(ONE, "t2", "read")
        assert isinstance(found, Kept)
        assert found.sealed == b"new"

    run(opener, test)


def test_refresh_beside_a_leader_wins_over_it(opener: Opener) -> None:
    """Would catch an older generation that overwrites the regenerated answer because it ended later."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        lease = await lead(one)
        again = await two.acquire(ONE, "again", "refresh")
        assert isinstance(again, Lease)
        assert await two.commit(again, b"new", TTL, QUOTA, (1, b"end")) == "stored"
        assert await one.commit(lease, b"old", TTL, QUOTA, (1, b"end")) == "fenced"

    run(opener, test)


def test_expired_leader_cannot_overwrite(opener: Opener) -> None:
    """Would catch two writers of one answer: the one that was thought dead comes back."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        late = await lead(one, name="late")
        await led_by_nobody(two, ONE)
        assert await one.commit(late, b"late, too early", TTL, QUOTA, (1, b"end")) == "fenced"
        next_one = await two.acquire(ONE, "waiting", "read")
        assert isinstance(next_one, Lease)
        assert next_one.fence > late.fence
        assert not await one.append(late, 1, [b"late"])
        assert await one.renew(late) is None
        assert await two.commit(next_one, b"right", TTL, QUOTA, (1, b"end")) == "stored"
        assert await one.commit(late, b"late", TTL, QUOTA, (1, b"end")) == "fenced"
        found = await one.acquire(ONE, "t3", "read")
        assert isinstance(found, Kept)
        assert found.sealed == b"right"

    run(opener, test, SHORT, then=LONG)


def test_exactly_one_takes_over(opener: Opener) -> None:
    """Would catch followers that all begin to generate when their leader is gone, or none."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        running = Running(ONE, (await lead(one, name="gone")).token)
        while (await two.tail(running, "f", 0, 20)).alive:
            pass
        found = await asyncio.gather(*(two.acquire(ONE, f"t{n}", "read") for n in range(20)))
        leases = [each for each in found if isinstance(each, Lease)]
        assert len(leases) == 1
        assert all(each == Running(ONE, leases[0].token) for each in found if each != leases[0])

    run(opener, test, SHORT, then=LONG)


def test_renewed_lease_lasts_and_tells_its_followers(opener: Opener) -> None:
    """Would catch a heartbeat that does not keep the lease, or a leader that believes itself alone."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        lease = await lead(one)
        assert await one.renew(lease) == 0
        running = await two.acquire(ONE, "follower", "read")
        assert isinstance(running, Running)
        assert await one.renew(lease) == 1
        for _ in range(10):  # twice as long as it lasts without
            await asyncio.sleep(0.1)
            assert await one.renew(lease) is not None
        assert await two.acquire(ONE, "other", "read") == running
        await two.tail(running, "a", 0, 0)
        await two.tail(running, "b", 0, 0)
        assert (await one.renew(lease) or 0) >= 2

        async def alone() -> bool:
            return await one.renew(lease) == 0

        await until(alone)  # those that are silent are forgotten

    run(opener, test, SHORT)


def test_leader_leaves_only_when_nobody_follows(opener: Opener) -> None:
    """Would catch a generation that is stopped while somebody begins to follow it."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        lease = await lead(one)
        running = await two.acquire(ONE, "follower", "read")
        assert await one.leave(lease) == 1
        assert await two.acquire(ONE, "other", "read") == running

        async def left() -> bool:
            return await one.leave(lease) == 0

        await until(left)
        assert isinstance(await two.acquire(ONE, "next", "read"), Lease)
        assert not await one.append(lease, 1, [b"late"])

    run(opener, test, SHORT)


def test_follower_gets_all_records_from_the_start(opener: Opener) -> None:
    """Would catch records that are lost, repeated or out of order between two processes."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        lease = await lead(one)
        assert await one.append(lease, 1, [b"1", b"2"])
        assert await one.append(
            lease, 2, [b"2", b"3"]
        )  # the answer to an attempt was lost, and it is repeated
        running = Running(ONE, lease.token)
        assert (await two.tail(running, "f", 0, 1000)).records == (b"1", b"2", b"3")
        waiting = asyncio.create_task(two.tail(running, "f", 3, 5000))
        assert (await two.tail(running, "f", 3, 0)).records == ()
        assert await one.append(lease, 4, [b"4"])
        assert (await waiting).records == (b"4",)
        assert await one.commit(lease, b"sealed", TTL, QUOTA, (5, b"end")) == "stored"
        last = await two.tail(running, "f", 4, 1000)
        assert (last.records, last.alive) == ((b"end",), False)
        assert (await two.tail(running, "late", 0, 0)).records == (b"1", b"2", b"3", b"4", b"end")

    run(opener, test)


def test_follower_of_a_dead_leader_is_told(opener: Opener) -> None:
    """Would catch a follower that waits for ever for a process that was killed."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        lease = await lead(one)
        assert await one.append(lease, 1, [b"1"])
        running = Running(ONE, lease.token)
        while (await two.tail(running, "f", 1, 50)).alive:
            pass
        last = await two.tail(running, "f", 0, 50)
        assert (last.records, last.alive) == ((b"1",), False)

    run(opener, test, SHORT)


def test_released_lease_is_free_at_once(opener: Opener) -> None:
    """Would catch an answer that is not kept, after which everybody waits until the lease runs out."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        lease = await lead(one)
        await one.release(lease, (1, b"end"))
        assert (await two.tail(Running(ONE, lease.token), "f", 0, 0)).records == (b"end",)
        assert isinstance(await two.acquire(ONE, "t2", "read"), Lease)

    run(opener, test)


def test_commit_may_be_repeated(opener: Opener) -> None:
    """Would catch a commit whose answer was lost, and that is refused when it is sent again."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        lease = await keep(one, ONE, b"sealed")
        assert await two.commit(lease, b"sealed", TTL, QUOTA, (1, b"end")) == "stored"
        assert await one.use_of(ONE.scope) == ScopeUse(1, len(b"sealed"))

    run(opener, test)


def test_flush_of_a_scope_is_seen_by_all(opener: Opener) -> None:
    """Would catch an answer that survives a flush, kept before or generated across it."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        await keep(one, ONE, b"kept")
        await keep(one, ELSEWHERE, b"kept elsewhere")
        across = await lead(one, TWO)
        assert await one.append(across, 1, [b"1"])
        await two.flush(ONE.scope)
        assert isinstance(await one.acquire(ONE, "t2", "read"), Lease)
        assert isinstance(await one.acquire(TWO, "t3", "read"), Lease)
        assert await one.append(across, 2, [b"2"])  # whoever asked before still gets it
        assert await one.commit(across, b"old", TTL, QUOTA, (3, b"end")) == "flushed"
        assert (await two.tail(Running(TWO, across.token), "f", 0, 0)).records == (b"1", b"2", b"end")
        assert isinstance(await two.acquire(ELSEWHERE, "t4", "read"), Kept)
        assert (await two.use_of(ONE.scope)).entries == 0

    run(opener, test)


def test_flush_of_everything_reaches_every_scope(opener: Opener) -> None:
    """Would catch a scope that a flush forgets, or a generation of before that is kept after it."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        for scope in "cdefg":
            await keep(one, Slot(scope * 32, ONE.name), b"kept")
        across = await lead(one, ONE)
        await two.flush()
        assert await one.commit(across, b"old", TTL, QUOTA, (1, b"end")) == "flushed"
        for scope in "cdefg":
            assert isinstance(await one.acquire(Slot(scope * 32, ONE.name), f"t{scope}", "read"), Lease)

    run(opener, test)


def test_fences_and_epochs_grow_after_a_flush(opener: Opener) -> None:
    """Would catch a lease of before a flush that looks newer than one of after."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        leases = []
        for number in range(5):
            leases.append(await lead(one, ONE, f"t{number}"))
            await two.flush(ONE.scope)
        assert leases == sorted(leases, key=lambda lease: (lease.epoch, lease.fence))
        assert len({lease.epoch for lease in leases}) == len({lease.fence for lease in leases}) == 5

    run(opener, test)


def test_oldest_entries_go_when_there_are_too_many(opener: Opener) -> None:
    """Would catch a scope that grows without end, or one that loses the newest."""
    slots = [Slot(ONE.scope, f"{number:066x}") for number in range(6)]

    async def test(one: CacheStore, two: CacheStore) -> None:
        for slot in slots:
            await keep(one, slot, b"sealed", Quota(entries=4))
            await asyncio.sleep(0.002)  # entries of one millisecond have no order
        found = [isinstance(await two.acquire(slot, f"t{slot.name}", "read"), Kept) for slot in slots]
        assert found == [False, False, True, True, True, True]

    run(opener, test)


def test_oldest_entries_go_when_they_take_too_much(opener: Opener) -> None:
    """Would catch a quota in bytes that is not kept, or sums that go wrong when an entry is overwritten."""
    slots = [Slot(ONE.scope, f"{number:066x}") for number in range(4)]
    quota = Quota(octets=1000)

    async def test(one: CacheStore, two: CacheStore) -> None:
        for slot in slots:
            await keep(one, slot, bytes(300), quota)
            await asyncio.sleep(0.002)
        assert await two.use_of(ONE.scope) == ScopeUse(3, 900)
        again = await two.acquire(slots[3], "again", "refresh")
        assert isinstance(again, Lease)
        await two.commit(again, bytes(100), TTL, quota, (1, b"end"))
        assert await one.use_of(ONE.scope) == ScopeUse(3, 700)
        await keep(one, TWO, bytes(900), quota)
        assert await one.use_of(ONE.scope) == ScopeUse(2, 1000)

    run(opener, test)


def test_ended_entries_do_not_count(opener: Opener) -> None:
    """Would catch a quota that is used up by what is not there any more."""

    async def test(one: CacheStore, _two: CacheStore) -> None:
        await keep(one, ONE, bytes(300), ttl=20)
        await ended(one, ONE)
        await keep(one, TWO, bytes(200))
        assert await one.use_of(ONE.scope) == ScopeUse(1, 200)

    run(opener, test)


def test_discarded_entry_is_gone_and_what_runs_is_not_kept(opener: Opener) -> None:
    """Would catch a deleted answer that comes back, also from a generation that ran when it was deleted."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        kept = await keep(one, ONE, b"sealed")
        assert not await two.discard(ONE, kept.fence + 1)
        assert await two.discard(ONE, kept.fence)
        assert not await two.discard(ONE)
        assert await two.use_of(ONE.scope) == ScopeUse(0, 0)
        running = await lead(one, ONE, "t2")
        assert await one.append(running, 1, [b"1"])
        await two.discard(ONE)
        assert await one.append(running, 2, [b"2"])  # its followers get it to the end
        assert await one.commit(running, b"sealed", TTL, QUOTA, (3, b"end")) == "fenced"

    run(opener, test)


def test_labels_lead_to_what_is_to_go(opener: Opener) -> None:
    """Would catch a deleted chat whose answers stay, or that takes those of others along."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        for slot, label in ((ONE, "chat1"), (TWO, "chat1"), (TWO, "user1"), (ELSEWHERE, "chat2")):
            await one.label(label, slot, TTL)
        for slot in (ONE, TWO, ELSEWHERE):
            await keep(one, slot, b"sealed")
        assert await two.discard_labelled("chat1") == 2
        assert await two.discard_labelled("chat1") == 0
        assert await two.discard_labelled("nobody") == 0
        assert isinstance(await one.acquire(ELSEWHERE, "t", "read"), Kept)
        assert isinstance(await one.acquire(ONE, "t", "read"), Lease)

    run(opener, test)


def test_counts_add_up_over_processes(opener: Opener) -> None:
    """Would catch figures of one process that replace another's."""

    async def test(one: CacheStore, two: CacheStore) -> None:
        await one.add_counts({"hits": 2, "seconds saved": 0.5})
        await two.add_counts({"hits": 3})
        await two.add_counts({})
        assert await one.counts() == {"hits": 5.0, "seconds saved": 0.5}

    run(opener, test)


def test_what_has_ended_goes_in_parts(valkey: Valkey) -> None:
    """Would catch a Redis that answers nobody while the entries of a whole week are forgotten."""

    async def test() -> None:
        store = RedisStore(redis_client(valkey.url), redis_client(valkey.url))
        ends = RedisNames(ONE.scope).index[1]
        with valkey.client() as client:
            client.flushall()
            client.zadd(ends, {f"{number:066x}": 1 for number in range(250)})
            await keep(store, ONE, b"sealed")
            assert client.zcard(ends) == 250 - 200 + 1
            await keep(store, TWO, b"sealed")
            assert client.zcard(ends) == 2
        await store.close()

    asyncio.run(test())


def test_there_is_a_server_to_test_with() -> None:
    """Would catch an environment in which the suite would run on SQLite alone."""
    assert server_program()
