"""The response cache: look an answer up, follow one that is being generated, or lead."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from secrets import token_hex
from typing import Any

import orjson

from ollama_pack.cache.bound import class_of
from ollama_pack.cache.collect import says_something
from ollama_pack.cache.counters import CacheCounters
from ollama_pack.cache.entry import Entry, open_entry
from ollama_pack.cache.errors import EntryUnreadableError, LeaderLostError
from ollama_pack.cache.follow import LiveHub
from ollama_pack.cache.generation import LOST_RECORD, CacheRules, Generation, GenerationTools, Upstream
from ollama_pack.cache.guard import GuardRule, StoreGuard, StoreTrouble
from ollama_pack.cache.guards import may_be_same
from ollama_pack.cache.judge import Answered, judged_same
from ollama_pack.cache.key import AnswerBasis, Slot
from ollama_pack.cache.keyring import Keyring
from ollama_pack.cache.normal_form import LONGEST
from ollama_pack.cache.outcome import CacheOutcome, Follow, Hit, Lead, Miss, Question
from ollama_pack.cache.replay import CacheMark, entry_chunks, shared_chunks
from ollama_pack.cache.semantic import (
    MOST_KEYS,
    NO_ROOM,
    Calibration,
    IdleQueue,
    IdleWork,
    Lent,
    Neighbour,
    as_bytes,
    open_neighbours,
    seal_neighbours,
    similarities,
)
from ollama_pack.cache.similar import (
    Near,
    Pointer,
    context_slot,
    last_asked,
    open_pointer,
    promoted_slot,
    seal_pointer,
    text_slot,
    with_last,
    wording_slot,
)
from ollama_pack.cache.store import CacheStore, Kept, Lease, Running
from ollama_pack.engines.ollama.stream import UsagePlace
from ollama_pack.engines.ollama.to_openai import ReplyHead

log = logging.getLogger(__name__)

_FLUSH_SECONDS = 60.0  # of thousands of scopes, for an admin
_EMBED_SECONDS = 1.0  # that a chat waits for the vector of its question
_EMBEDS_AT_ONCE = 2  # of answers that are entered; a chat's own vector does not wait for them
_JUDGE_SECONDS = 240.0  # for all that it is asked about a pair
_SERVED = "served similar"  # the scope of what is known of answers to similar questions: no user's
_CHANGES = "changes of counts"  # the scope of the lease of who makes one
_LOOKS_FOR_LEASE, _WAIT_FOR_LEASE = 10, 1000  # times, and milliseconds each
_LOOKED_AT = 3  # of the most similar questions
_ROUNDS = 2  # that a request follows in vain before it generates by itself


class ResponseCache:
    """The cache of one process. Used from one event loop.

    Nothing that the store does or fails to do raises here, or takes longer than its limit.

    Attributes:
        counters: what it did.
        keyring: of the admin's secret, which the slots of questions are made with.
        calibration: what is known of the semantic tier's errors.
    """

    def __init__(  # noqa: PLR0913 - everything that it depends on is given to it
        self,
        store: CacheStore,
        keyring: Keyring,
        rules: CacheRules | None = None,
        *,
        guard_rule: GuardRule | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        dice: random.Random | None = None,
    ) -> None:
        """Take what is needed later; nothing is connected.

        Args:
            store: where answers are kept.
            keyring: of the admin's secret.
            rules: when left out, the defaults.
            guard_rule: when the store is given up; when left out, the defaults.
            clock: seconds that nobody sets.
            wall: Unix time in seconds, for what is shown alone.
            dice: for the jitter.
        """
        self.counters = CacheCounters()
        self._store = store
        self.keyring = keyring
        self._rules = rules or CacheRules()
        self._clock = clock
        self._dice = dice or random.Random()  # noqa: S311 - spreads the ends of entries, no secret
        self._guard = StoreGuard(store, guard_rule or GuardRule(), clock)
        self._tools = GenerationTools(
            guard=self._guard,
            keyring=keyring,
            rules=self._rules,
            counters=self.counters,
            clock=clock,
            wall=wall,
            lasting=self._lasting,
            detached=set(),
            remember=self._remember,
        )
        self._hub = LiveHub(self._tools)
        self._tasks: set[asyncio.Task[None]] = set()
        self._published = clock()
        self.calibration = Calibration()
        self._calibrate_at = 0.0
        self._said_no_room = False
        self._idle = IdleQueue()
        self._seen_at = -self._rules.quiet_seconds
        self._entering = asyncio.Semaphore(_EMBEDS_AT_ONCE)
        self._answers = 0  # that are being taken from it
        self._retired = False
        self._noting: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    async def lookup(self, question: Question) -> CacheOutcome:
        """Find out what to do for a request. What it says is then done by `chunks`, within seconds."""
        self.saw_chat()
        began = self._clock()
        outcome = await self._look_up(question, "refresh" if question.refresh else "absent")
        now = self._clock()
        self.counters.looked_up(now - began)
        if now - self._published >= self._rules.publish_seconds:
            self._published = now
            self._begun(self._publish())
        return outcome

    def bypass(self, reason: str) -> None:
        """Count a request that is not for the cache; a few words, without any text of the conversation."""
        self.saw_chat()
        self.counters.add(f"bypasses/{reason}")

    def saw_chat(self) -> None:
        """Somebody chats, whether the cache is for it or not: work that people come before waits."""
        self._seen_at = self._clock()

    async def chunks(
        self, outcome: CacheOutcome, head: ReplyHead, upstream: Upstream, place: UsagePlace = "last"
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as OpenAI's chunks; of a leader, as they come from its upstream.

        Whoever stops before the end closes the iterator (`contextlib.aclosing`). A generation that others
        follow goes on then, and one that nobody follows is stopped.

        Args:
            outcome: of `lookup`. Each can be used once.
            head: id, time and model of this answer, for one that comes from the cache.
            upstream: begins the generation; it is called when it is needed, at most once.
            place: where the client wants the figures.

        Raises:
            LeaderLostError: another process led, and was lost half-way.
            Exception: what the upstream raises.
        """
        self._answers += 1
        try:
            async with aclosing(self._answer(outcome, head, upstream, place)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._answers -= 1
            self._close_if_idle()

    def _answer(
        self, outcome: CacheOutcome, head: ReplyHead, upstream: Upstream, place: UsagePlace
    ) -> AsyncGenerator[dict[str, Any], None]:
        match outcome:
            case Hit():
                return _kept_chunks(outcome, head, place)
            case Lead():
                return self._led(outcome, upstream)
            case Follow():
                return self._shared(outcome, head, upstream, place)
        return upstream()

    def later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do what no chat waits for, such as `note`, while the chat goes on."""
        task = asyncio.create_task(work)
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    def reject_later(self, label: str) -> None:
        """`reject` while the chat goes on, after the notes under way: one may be of the same message."""
        self.later(self._reject_after(tuple(self._noting), label))

    async def _reject_after(self, noting: tuple[asyncio.Task[Any], ...], label: str) -> None:
        await asyncio.gather(*noting, return_exceptions=True)
        await self.reject(label)

    async def note(self, question: Question, label: str) -> bool:
        """Make an answer known under one more label, such as the message that shows it; whether it is."""
        ttl = round(self._rules.ttl_seconds * (1 + self._rules.jitter) * 1000)
        tag = self.keyring.label_tag(label)
        done = await self._ask_patiently(lambda store: store.label(tag, question.slot, ttl))
        return not isinstance(done, StoreTrouble)

    async def note_similar(self, question: Question, near: Near, label: str) -> None:
        """Remember that an answer to a similar question is shown as this message: it may not be wanted."""
        lent, basis = question.lent, question.basis
        both = (basis, with_last(basis, near.asked)) if basis else ()
        promoted = [slot for each in both if (slot := promoted_slot(each, self.keyring))]
        judged = lent and near.tier != "normalised"
        told = {
            "key": lent.key if lent and judged else "",
            "user": self._group(lent) if lent else "",
            "error": lent.error if lent and judged else 0.0,
            "similarity": near.similarity,
            "promoted": [list(slot) for slot in promoted],
        }
        place = self._served_slot(label)
        await self._put(place, self.keyring.seal_entry(_SERVED, place.name, orjson.dumps(told)))

    async def reject(self, label: str) -> bool:
        """Somebody did not want the answer of a message. Was it a similar question's, that one was wrong.

        Each message counts once, in whichever process. Neither wording leads to the other's answer any more.
        """
        place = self._served_slot(label)
        found = await self._ask_patiently(lambda store: store.find(place))
        if not isinstance(found, Kept):
            return False
        if await self._ask_patiently(lambda store: store.discard(place, found.fence)) is not True:
            return False  # another process was first
        try:
            told = orjson.loads(self.keyring.open_entry(_SERVED, place.name, found.sealed))
        except (EntryUnreadableError, orjson.JSONDecodeError):
            return False
        self.counters.add("similar/rejected")
        for promoted in told["promoted"]:
            await self._ask_patiently(partial(_discard, slot=Slot(*promoted)))
        if told["key"]:
            await self.label(
                told["key"],
                told["similarity"],
                right=False,
                error=told["error"],
                user=told.get("user", ""),
                rejected=True,
            )
        return True

    def _served_slot(self, label: str) -> Slot:
        return Slot(self.keyring.scope_tag(_SERVED), self.keyring.label_tag(f"served/{label}"))

    async def discard(self, label: str) -> int | StoreTrouble:
        """Discard what is known under a label, also what is being generated; how many answers it was."""
        tag = self.keyring.label_tag(label)
        done: int | StoreTrouble = await self._ask_patiently(lambda store: store.discard_labelled(tag))
        return done

    async def flush(self, scope: str | None = None) -> StoreTrouble | None:
        """Make all answers of a scope, or all there are, unusable, in every process, at once."""
        tag = None if scope is None else self.keyring.scope_tag(scope)
        return await self._guard.ask(lambda store: store.flush(tag), _FLUSH_SECONDS)

    async def shared_counts(self) -> dict[str, float] | StoreTrouble:
        """The figures of all processes, with this one's newest."""
        await self._publish()
        found: dict[str, float] | StoreTrouble = await self._ask_patiently(lambda store: store.counts())
        return found

    async def change_counts(
        self, change: Callable[[Mapping[str, float]], Mapping[str, float]]
    ) -> StoreTrouble | None:
        """Add to the figures of all processes what a function of them says.

        One change at a time, whichever process makes it: two that read the same figures would both add the
        same difference.
        """
        lease = await self._alone(Slot(self.keyring.scope_tag(_CHANGES), self.keyring.label_tag(_CHANGES)))
        if isinstance(lease, StoreTrouble):
            return lease
        try:
            trouble = await self._change_counts(change, lease)
        finally:
            await self._ask_patiently(lambda store: store.release(lease, (1, b"")))
        await self._calibrate()
        return trouble

    async def _alone(self, place: Slot) -> Lease | StoreTrouble:
        """The lease of a place, once nobody else has it."""
        token = token_hex(16)
        for _ in range(_LOOKS_FOR_LEASE):
            found = await self._ask_patiently(lambda store: store.acquire(place, token, "read"))
            if not isinstance(found, Running):
                return found if isinstance(found, Lease) else StoreTrouble("slow")
            await self._ask_patiently(partial(_end_of, running=found))
        return StoreTrouble("slow")

    async def _change_counts(
        self, change: Callable[[Mapping[str, float]], Mapping[str, float]], lease: Lease
    ) -> StoreTrouble | None:
        counts = await self.shared_counts()
        if isinstance(counts, StoreTrouble):
            return counts
        if more := dict(change(counts)):
            if not isinstance(await self._ask_patiently(lambda store: store.renew(lease)), int):
                return StoreTrouble("slow")  # the lease has ended, and somebody else may be at it
            done = await self._ask_patiently(lambda store: store.add_counts(more))
            if isinstance(done, StoreTrouble):
                return done
        return None

    @property
    def fault(self) -> str:
        """What is wrong with the store at the moment, in words; empty: nothing that is known."""
        return self._guard.fault

    async def warm(self) -> bool:
        """Connect before the first chat does; whether the store answers."""
        return not isinstance(await self._ask_patiently(lambda store: store.ping()), StoreTrouble)

    def retire(self) -> None:
        """Another one is used from now on: close, once the answers that are being taken have ended."""
        self._retired = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._retired and not self._answers and self._closing is None:
            self._closing = asyncio.create_task(self.close())

    async def close(self) -> None:
        """Stop what is being generated or followed, and give the store back."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._idle.close()
        await self._hub.close()
        await self._publish()
        await self._guard.close()
        await self._store.close()

    async def _look_up(self, question: Question, reason: str) -> CacheOutcome:
        for why in (reason, "unreadable"):
            match await self._guard.acquire(question.slot, refresh=question.refresh):
                case Kept() as kept:
                    if entry := await self._opened(question, kept):
                        return self._hit(question, entry, kept.age)
                case Lease() as lease:
                    if hit := await self._similar(question, lease):
                        return hit
                    self.counters.add(f"misses/{why}")
                    return Lead(question, lease, why)
                case Running() as running:
                    self.counters.add("follows")
                    return Follow(question, running)
                case StoreTrouble() as trouble:
                    return self._miss(question, f"store {trouble.reason}")
        return self._miss(question, "unreadable")

    async def _similar(self, question: Question, lease: Lease) -> Hit | None:
        """The answer to the same question in other words; the lease goes back then."""
        if question.basis is None or question.refresh or not last_asked(question.basis.body):
            return None
        hit = await self._by_wording(question, question.basis)
        if hit is None and not self.calibration.asks_anyway():  # drawn once: both ways may find the same
            hit = await self._by_promotion(question, question.basis) or await self._by_meaning(question)
        if hit is not None:
            await self._give_back(question, lease)
        return hit

    async def _by_wording(self, question: Question, basis: AnswerBasis) -> Hit | None:
        place = wording_slot(basis, self.keyring)
        pointer = await self._pointer(question, place) if place else None
        return await self._led_to(question, Near(pointer.slot, pointer.asked)) if pointer else None

    async def _by_promotion(self, question: Question, basis: AnswerBasis) -> Hit | None:
        """An answer that a judge has accepted for these words, while the tier serves at all."""
        if (lent := question.lent) is None or len(last_asked(basis.body)) > LONGEST:
            return None
        self._refresh_calibration()
        if self.calibration.threshold(lent.key, lent.error, self._group(lent)) is None:
            return None
        place = promoted_slot(basis, self.keyring)
        promoted = await self._pointer(question, place) if place else None
        pointer = await self._pointer(question, promoted.slot) if promoted else None
        if promoted is None or pointer is None:
            return None
        near = Near(pointer.slot, pointer.asked, promoted.similarity, "promoted")
        return await self._led_to(question, near)

    async def _by_meaning(self, question: Question) -> Hit | None:
        """An answer to a question that means the same, as far as the labels allow it."""
        if (lent := question.lent) is None or question.basis is None:
            return None
        if len(last_asked(question.basis.body)) > LONGEST:
            return None  # none so long is among the neighbours
        self._refresh_calibration()
        threshold = self.calibration.threshold(lent.key, lent.error, self._group(lent))
        if threshold is None or (vector := await self._vector(question)) is None:
            return None
        near = self._nearest(question, vector, await self._neighbours(question))
        if (found := await near) is None or found.similarity < threshold:
            return None
        return await self._led_to(question, found)

    async def _led_to(self, question: Question, near: Near) -> Hit | None:
        """The answer in another slot, if it is still there."""
        found = await self._guard.ask(lambda store: store.find(near.slot))
        if not isinstance(found, Kept):
            return None
        entry = await self._opened(replace(question, slot=near.slot), found)
        if entry is None:
            return None
        self.counters.add(f"similar/{near.tier}")
        return replace(self._hit(question, entry, found.age), near=near)

    async def _vector(self, question: Question) -> bytes | None:
        """The vector of a question; None where nobody makes it in time."""
        if question.lent is None or question.basis is None:
            return None
        try:
            async with asyncio.timeout(_EMBED_SECONDS):
                return as_bytes(await question.lent.embed(last_asked(question.basis.body)))
        except Exception:  # noqa: BLE001 - whatever embeds, the chat goes on without
            self.counters.add("similar/no vector")
            return None

    async def _neighbours(self, question: Question) -> list[Neighbour]:
        place = self._context(question)
        found = await self._guard.ask(lambda store: store.find(place)) if place else None
        if place is None or not isinstance(found, Kept):
            return []
        return open_neighbours(found.sealed, question.scope, place.name, self.keyring)

    def _context(self, question: Question) -> Slot | None:
        if question.basis is None or question.lent is None:
            return None
        return context_slot(question.basis, question.lent.embedder, self.keyring)

    async def _nearest(self, question: Question, vector: bytes, among: list[Neighbour]) -> Near | None:
        """The most similar question whose answer is there, and which nothing tells apart from this one."""
        if question.basis is None:
            return None
        asked = last_asked(question.basis.body)
        alike = zip(similarities(vector, [each.vector for each in among]), among, strict=True)
        for similarity, each in sorted(alike, key=lambda pair: -pair[0])[:_LOOKED_AT]:
            if class_of(similarity) is None:
                return None
            pointer = await self._pointer(question, Slot(question.slot.scope, each.place))
            if pointer is None or pointer.asked == asked or not may_be_same(pointer.asked, asked):
                continue
            if isinstance(await self._guard.ask(partial(_find, slot=pointer.slot)), Kept):
                return Near(pointer.slot, pointer.asked, min(similarity, 1.0), "semantic", each.place)
        return None

    async def _learn(self, question: Question, place: Slot) -> None:
        """Enter a question among its neighbours, and have the nearest answer judged beside its own.

        Whoever wants a new answer would not have been given a kept one, so it is not judged: else one pair
        that is asked anew again and again would count each time, and one that was just rejected come back.
        """
        async with self._entering:
            context, vector = self._context(question), await self._vector(question)
        if context is None or vector is None:
            return
        among = [each for each in await self._neighbours(question) if each.place != place.name]
        near = await self._nearest(question, vector, among)
        among.append(Neighbour(place.name, vector))
        sealed = seal_neighbours(among, question.scope, context.name, self.keyring)
        await self._put(context, sealed)
        if near is not None and not question.refresh:
            self.counters.add("similar/would have served")
            waits = bool(question.lent and question.lent.queues)
            idle = partial(self._nobody_chats, question)
            self._idle.add(IdleWork(partial(self._judge, question, place, near), idle, waits))

    async def _nobody_chats(self, question: Question) -> bool:
        if self._hub.is_busy or self._clock() - self._seen_at < self._rules.quiet_seconds:
            return False
        others = question.lent.is_busy if question.lent else None
        try:
            return others is None or not await others()
        except Exception:  # noqa: BLE001 - who cannot be asked may be chatting
            return False

    async def _judge(self, question: Question, place: Slot, near: Near) -> None:
        """Ask whether the nearest answer would have done, and count what is said."""
        lent, basis = question.lent, question.basis
        if lent is None or basis is None:
            return
        kept = [await self._guard.ask(partial(_find, slot=slot)) for slot in (near.slot, question.slot)]
        entries = [
            await self._opened(replace(question, slot=slot), found)
            for slot, found in zip((near.slot, question.slot), kept, strict=True)
            if isinstance(found, Kept)
        ]
        match entries:
            case [Entry() as other, Entry() as own]:
                pair = (
                    Answered(near.asked, other.content),
                    Answered(last_asked(basis.body), own.content),
                )
            case _:
                return
        try:
            async with asyncio.timeout(_JUDGE_SECONDS):
                right = await judged_same(*pair, lent.judge)
        except Exception:  # noqa: BLE001 - whatever the judge does, no chat waits for it
            self.counters.add("similar/not judged")
            return
        # Apart, so that it is done once, even if somebody comes now
        self._begun(self._conclude(question, place, near, right=right))

    async def _conclude(self, question: Question, place: Slot, near: Near, *, right: bool) -> None:
        """Count a verdict, and have the words of an accepted pair lead to each other's answers."""
        lent, basis = question.lent, question.basis
        if lent is None or basis is None:
            return
        self.counters.add("similar/judged")
        user = self._group(lent)
        await self.label(lent.key, near.similarity, right=right, error=lent.error, user=user)
        if right:
            await self._promote(question, basis, near.place, near.similarity)
            await self._promote(question, with_last(basis, near.asked), place.name, near.similarity)

    async def _promote(
        self, question: Question, basis: AnswerBasis, leads_to: str, similarity: float
    ) -> None:
        """Have the words of a request lead to the answer of another wording.

        It is in the same scope, has an end, and goes with the chat of the question that was judged. It leads
        to the other wording's pointer, so it leads nowhere once that was discarded with its own chat.
        """
        place = promoted_slot(basis, self.keyring)
        if place is None:
            return
        pointer = Pointer(Slot(place.scope, leads_to), "", similarity)
        if await self._labelled(question, place):
            await self._put(place, seal_pointer(pointer, question.scope, place, self.keyring))
            self.counters.add("similar/promotions")

    def _group(self, lent: Lent) -> str:
        """One of 256 groups of users, by which their labels are told apart."""
        return self.keyring.label_tag(f"labels of {lent.user}")[:2] if lent.user else ""

    async def label(  # noqa: PLR0913 - as `Calibration.label` has it
        self,
        key: str,
        similarity: float,
        *,
        right: bool,
        error: float,
        user: str = "",
        rejected: bool = False,
    ) -> None:
        """Count whether an answer to a similar question was right, for all processes."""
        await self._calibrate()  # others may have begun another era
        added = self.calibration.label(
            key, similarity, right=right, error=error, user=user, rejected=rejected
        )
        if added:
            if NO_ROOM in added and not self._said_no_room:
                self._said_no_room = True
                log.warning(
                    "Answers to similar questions are compared for %d models, scopes and languages at most. "
                    "No more labels are counted for %s",
                    MOST_KEYS,
                    key,
                )
            await self._ask_patiently(lambda store: store.add_counts(added))

    def _refresh_calibration(self) -> None:
        """Read the labels of all processes, from time to time."""
        now = self._clock()
        if now >= self._calibrate_at:
            self._calibrate_at = now + self._rules.publish_seconds
            self._begun(self._calibrate())

    async def _calibrate(self) -> None:
        counts = await self._ask_patiently(lambda store: store.counts())
        if not isinstance(counts, StoreTrouble):
            self.calibration.learn(counts)

    async def _put(self, place: Slot, sealed: bytes) -> None:
        """Keep something that is no answer: it has a place, an end and an epoch as answers have."""
        token, quota, ttl = token_hex(16), self._rules.quota, self._lasting()
        lease = await self._guard.ask(lambda store: store.acquire(place, token, "refresh"))
        if isinstance(lease, Lease):
            await self._guard.ask(lambda store: store.commit(lease, sealed, ttl, quota, (1, b"")))

    async def _pointer(self, question: Question, place: Slot) -> Pointer | None:
        """What is entered under the key of a wording."""
        found = await self._guard.ask(lambda store: store.find(place))
        if not isinstance(found, Kept):
            return None
        try:
            return open_pointer(found.sealed, question.scope, place, self.keyring)
        except EntryUnreadableError:
            self.counters.add("unreadable")
            return None

    async def _give_back(self, question: Question, lease: Lease) -> None:
        """Let those who have begun to follow look for themselves."""
        cipher = self.keyring.stream_cipher(question.scope, lease.slot.name, lease.token)
        last = (1, cipher.seal_record(1, LOST_RECORD))
        await self._guard.ask(lambda store: store.release(lease, last))

    async def _remember(self, question: Question) -> None:
        """Enter an answer that was kept under the key of its question's wording, with the same labels."""
        if (basis := question.basis) is None or not (asked := last_asked(basis.body)):
            return
        place = wording_slot(basis, self.keyring)
        if place is None and question.lent is not None and len(asked) <= LONGEST:
            place = text_slot(basis, self.keyring)
        if place is None:
            return
        sealed = seal_pointer(Pointer(question.slot, asked), question.scope, place, self.keyring)
        if not await self._labelled(question, place):
            return
        await self._put(place, sealed)
        if question.lent is not None:
            self._refresh_calibration()
            await self._learn(question, place)

    async def _labelled(self, question: Question, place: Slot) -> bool:
        """Whether a place is known under the labels of a question, and will be discarded with them."""
        for label in question.labels:
            step = partial(_label, label=self.keyring.label_tag(label), slot=place, ttl=self._lasting())
            if isinstance(await self._guard.ask(step), StoreTrouble):
                return False
        return True

    def _hit(self, question: Question, entry: Entry, age: float) -> Hit:
        self.counters.add("hits")
        self.counters.add("seconds_saved", entry.seconds)
        self.counters.add("tokens_saved", entry.completion_tokens)
        return Hit(question, entry, age)

    def _miss(self, question: Question, reason: str) -> Miss:
        self.counters.add(f"misses/{reason}")
        return Miss(question, reason)

    async def _opened(self, question: Question, kept: Kept) -> Entry | None:
        """The entry; None when it cannot be read, and then it is there no more."""
        try:
            return open_entry(kept.sealed, question.scope, question.slot, self.keyring)
        except EntryUnreadableError:
            self.counters.add("unreadable")
            await self._guard.ask(lambda store: store.discard(question.slot, kept.fence))
            return None

    async def _shared(
        self, outcome: CacheOutcome, head: ReplyHead, upstream: Upstream, place: UsagePlace
    ) -> AsyncGenerator[dict[str, Any], None]:
        """What another request generates; one's own where it shows nothing."""
        for _ in range(_ROUNDS):
            if not isinstance(outcome, Follow):
                break
            answer = shared_chunks(self._followed(outcome), head, CacheMark("follow"), place)
            try:
                async with aclosing(answer):
                    async for chunk in answer:
                        yield chunk
            except _NothingShownError:
                self.counters.add("takeovers")
                outcome = await self._look_up(outcome.question, "leader lost")
            else:
                return
        own = upstream() if isinstance(outcome, Follow) else self._answer(outcome, head, upstream, place)
        async with aclosing(own):
            async for chunk in own:
                yield chunk

    async def _led(self, lead: Lead, upstream: Upstream) -> AsyncGenerator[dict[str, Any], None]:
        generation = Generation(self._tools, lead.question, lead.lease)
        live = generation.live
        self._hub.add(lead.lease.token, live)
        task = self._begun(generation.run(upstream))
        task.add_done_callback(lambda _: self._hub.remove(lead.lease.token))
        shown = 0
        async with aclosing(live.listen()) as chunks:
            async for chunk in chunks:
                shown += 1
                yield chunk
        if live.error is not None:
            raise live.error
        if live.end == "lost":
            raise LeaderLostError(shown)

    async def _followed(self, follow: Follow) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of another request's generation, from its first that says something."""
        live = self._hub.live_of(follow.question.scope, follow.running)
        held: list[dict[str, Any]] = []
        shown = 0
        try:
            async with aclosing(live.listen()) as chunks:
                async for chunk in chunks:
                    if not shown and (chunk.get("error") or not says_something(chunk)):
                        held.append(chunk)
                        continue
                    for earlier in held:
                        yield earlier
                    held.clear()
                    shown += 1
                    yield chunk
        except LeaderLostError:
            if shown:
                raise
        finally:
            self._hub.left(follow.running, live)
        if not shown:
            raise _NothingShownError
        if live.end == "lost":
            raise LeaderLostError(shown)

    def _lasting(self) -> int:
        spread = self._rules.jitter * (2 * self._dice.random() - 1)
        return max(1, round(self._rules.ttl_seconds * (1 + spread) * 1000))

    async def _ask_patiently(self, step: Callable[[CacheStore], Any]) -> Any:
        return await self._guard.ask(step, self._guard.patient_limit)

    def _begun(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Its task, which `close` ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _publish(self) -> None:
        if new := self.counters.take_new():
            done = await self._ask_patiently(lambda store: store.add_counts(new))
            if isinstance(done, StoreTrouble):
                self.counters.give_back(new)


async def _kept_chunks(hit: Hit, head: ReplyHead, place: UsagePlace) -> AsyncGenerator[dict[str, Any], None]:
    mark = CacheMark("hit", hit.age_seconds)
    if hit.near is not None:
        mark = CacheMark("similar", hit.age_seconds, hit.near.similarity)
    for chunk in entry_chunks(hit.entry, head, mark, place):
        yield chunk


async def _end_of(store: CacheStore, running: Running) -> None:
    await store.tail(running, token_hex(8), 0, _WAIT_FOR_LEASE)


async def _find(store: CacheStore, slot: Slot) -> Kept | None:
    return await store.find(slot)


async def _discard(store: CacheStore, slot: Slot) -> bool:
    return await store.discard(slot)


async def _label(store: CacheStore, label: str, slot: Slot, ttl: int) -> None:
    await store.label(label, slot, ttl)


class _NothingShownError(Exception):
    """A leader was lost, or failed, before its follower had shown anything."""
