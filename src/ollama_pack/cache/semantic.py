"""The semantic tier: answers to questions that mean the same, once it is known how often that is wrong.

Beside the answers, a list of neighbours is kept for each scope and exact context: a vector for each question,
and the slot of its wording. Lists are sealed, end and are flushed as answers are. In a miss with other words:

1. The question's vector is compared with those of the list. A neighbour counts only when it passes the guards
   (`may_be_same`), and its answer is still there.
2. If its similarity reaches the threshold that is in use for the model and the kind of scope, its answer is
   given. One in ten goes to the model all the same.
3. Where the model has answered, a judge compares its answer with the neighbour's, when nothing else is going
   on (`judge`). That is a label, and so is a thumbs-down or a *regenerate* of somebody who was given such an
   answer; `bound` says which threshold the labels allow. Without enough labels, none.
4. A pair that the judge accepts is promoted: each of the two wordings becomes a key of the other's answer.
"""

import asyncio
import base64
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from ollama_pack.cache.bound import (
    THRESHOLDS,
    Judged,
    class_of,
    has_drifted,
    upper_bound,
    usable_thresholds,
)
from ollama_pack.cache.errors import EntryUnreadableError
from ollama_pack.cache.guards import GUARDS_VERSION
from ollama_pack.cache.judge import JudgeTask
from ollama_pack.cache.keyring import Keyring, digest_of
from ollama_pack.cache.pool import (
    APART,
    EPSILON_OF_NOISE,
    POOL,
    PooledRound,
    pooled_bound,
    pooled_thresholds,
    round_counts,
    rounds_in,
)

log = logging.getLogger(__name__)

NEIGHBOURS = 256  # of one context; the oldest go first
MOST_KEYS = 64  # models and kinds of scopes that labels are kept for
NO_ROOM = "similar/no room"  # counts labels of others
ASKED_ANYWAY = 0.1  # of those that could be served, so that labels go on coming
RECENT = 100  # labels of a page of the window in which a change is looked for; it has up to two
_VERSION = 1
_PATIENT_TRIES = 60
_FEW = 20  # labels of a user that go to other sites in any case
_BEGIN, _ERA = "judged/", "era/begun"
_EVER = "labels/"  # the same labels, never taken back: what a site may give to others


@dataclass(frozen=True, slots=True)
class Lent:
    """What a request lends the semantic tier.

    Attributes:
        key: what labels are counted by: see `label_key`.
        error: the share of wrong answers that the admin allows.
        embed: the vector of a text.
        judge: asks the same model; its answer.
        embedder: the name of what makes the vectors: those of another one cannot be compared.
        queues: the judge waits behind people wherever it is asked, as `gpu_router` has it. Else it is asked
            only while nobody chats, and leaves when somebody does.
        is_busy: whether anybody chats that the cache does not see.
        user: the id of who asks.
    """

    key: str
    error: float
    embed: Callable[[str], Awaitable[Sequence[float]]]
    judge: Callable[[JudgeTask], Awaitable[str]]
    embedder: str = ""
    queues: bool = False
    is_busy: Callable[[], Awaitable[bool]] | None = None
    user: str = ""


def label_key(model: str, embedder: str, scope: str, asked: str = "", weights: str = "") -> str:
    """What labels are counted by: the model, what it is made of, the kind of the scope, the language.

    Of another maker of vectors, or in another language, the same similarity means something else. Of other
    weights, which a name has after a pull, other answers come. So their evidence is their own.

    Args:
        model: the name.
        embedder: what makes the vectors.
        scope: of the question.
        asked: the question.
        weights: the digest of the model's; empty where an engine has none.
    """
    made_of = digest_of(f"{embedder} {weights} {GUARDS_VERSION}".encode())[:8]
    return f"{model}|{made_of}|{scope.partition(':')[0]}|{language_of(asked)}"


def language_of(asked: str) -> str:
    """`zh` for a question with Chinese characters, `en` for all others."""
    return "zh" if any("\u3400" <= each <= "\u9fff" for each in asked) else "en"


class Neighbour(NamedTuple):
    """A question in a list.

    Attributes:
        place: name of the slot of its wording.
        vector: in bytes, each a number from -127 to 127.
    """

    place: str
    vector: bytes


def as_bytes(vector: Sequence[float]) -> bytes:
    """A vector at unit length, each of its numbers in one byte.

    Raises:
        ValueError: it is none.
    """
    import numpy as np  # noqa: PLC0415 - Open WebUI has it; whoever leaves the tier off need not

    found = np.asarray(vector, dtype=np.float32)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError  # an engine that has failed gives such
    return bytes(np.rint(found / (float(np.abs(found).max()) or 1.0) * 127).astype(np.int8).tobytes())


def similarities(vector: bytes, others: Sequence[bytes]) -> list[float]:
    """The cosine of a vector with each of some others; -1 where the model of the vectors has changed."""
    import numpy as np  # noqa: PLC0415 - see above

    one = np.frombuffer(vector, dtype=np.int8).astype(np.float32)
    alike = [other if len(other) == len(vector) else bytes(len(vector)) for other in others]
    if not alike:
        return []
    table = np.frombuffer(b"".join(alike), dtype=np.int8).reshape(len(alike), -1).astype(np.float32)
    sizes = np.linalg.norm(table, axis=1) * np.linalg.norm(one)
    found = np.where(sizes > 0, table @ one / np.maximum(sizes, 1e-9), -1.0)
    return [float(each) for each in found]


def seal_neighbours(neighbours: Sequence[Neighbour], scope: str, place: str, keyring: Keyring) -> bytes:
    rows = [[each.place, base64.b64encode(each.vector).decode()] for each in neighbours[-NEIGHBOURS:]]
    return keyring.seal_entry(scope, place, orjson.dumps({"version": _VERSION, "neighbours": rows}))


def open_neighbours(sealed: bytes, scope: str, place: str, keyring: Keyring) -> list[Neighbour]:
    """The list again; an empty one where it cannot be read."""
    try:
        fields = orjson.loads(keyring.open_entry(scope, place, sealed))
    except (EntryUnreadableError, orjson.JSONDecodeError):
        return []
    if not isinstance(fields, dict) or fields.get("version") != _VERSION:
        return []
    return [Neighbour(name, base64.b64decode(vector)) for name, vector in fields["neighbours"]]


class Evidence(NamedTuple):
    """The labels of a key since they were last taken back.

    A threshold serves a user if these prove it, and if they still do without the labels of any one other
    user. That asks for more than the bound does, so the bound holds as it did, and what one user's questions
    have earned serves nobody else. In the scope `user` one's own labels are never left out: they are of one's
    own questions, as the answers will be.

    Rejected answers are no sample of those that were given. They prove nothing and only ever lower the
    evidence, so the bound holds whichever of them count: those of one user for this one alone, and for all
    once a second user has rejected some.

    Attributes:
        pairs: that a judge has compared, by who asked; of some nobody knows who.
        rejected: answers that were not wanted, by who did not want them.
    """

    pairs: Mapping[str, Judged]
    rejected: Mapping[str, Judged]

    def counted(self, user: str = "") -> Judged:
        """All that count for a user."""
        rejected = [each for who, each in self.rejected.items() if who == user or len(self.rejected) > 1]
        return Judged().plus(*self.pairs.values(), *rejected)

    def may_be_given(self, user: str) -> bool:
        """Whether a user has few labels, or less than a quarter of all: the rest is for this site alone."""
        mine, every = (
            sum(each.above(len(THRESHOLDS) - 1)[1] for who, each in self.pairs.items() if who in some)
            for some in ((user,), self.pairs)
        )
        return not user or mine < max(_FEW, every / 4)

    def looks(self, user: str = "") -> list[Judged]:
        """What has to prove a threshold: all labels, and those without each other user's."""
        every = self.counted(user)
        others = [each for who, each in self.pairs.items() if who and who != user]
        return [every, *dict.fromkeys(every.plus(each, times=-1) for each in others)]


class Calibration:
    """The labels of all processes, and the thresholds that they allow.

    They are kept as plain counts, so that neither a flush nor a new secret takes them, and nothing of a
    conversation is in them. Users are in them as one of 256 groups, which the deployment's secret draws.
    """

    def __init__(self, dice: random.Random | None = None) -> None:
        self._dice = dice or random.Random()  # noqa: S311 - draws a share of requests, no secret
        self._counts: dict[str, dict[str, float]] = {}  # by key, then by the rest of the name
        self._apart: dict[str, float] = {}
        self._rounds: dict[str, tuple[PooledRound, ...]] = {}
        self._found: dict[tuple[str, float, str], int | None] = {}

    def learn(self, counts: Mapping[str, float]) -> None:
        """Take the counts of all processes."""
        self._counts, self._apart = {}, {}
        self._rounds = rounds_in(counts)
        self._add(counts)

    def judged(self, key: str) -> Judged:
        """All labels of a key that count."""
        return self._evidence(key).counted()

    def threshold(self, key: str, error: float, user: str = "") -> float | None:
        """From which similarity on answers may be given to a user; None: from none."""
        place = self._usable(key, error, user)
        return None if place is None else THRESHOLDS[place]

    def pooled(self, key: str) -> tuple[PooledRound, ...]:
        """The other sites' evidence, where it counts here."""
        return () if self._apart.get(key, 0) > 0 else self._rounds.get(key, ())

    def _evidence(self, key: str) -> Evidence:
        era = self._era(key)
        rows: dict[str, dict[str, list[int]]] = {}
        for name, value in self._counts.get(key, {}).items():
            what, _, verdict = name.partition("/")
            place, _, of_era = what.partition(" ")
            if place.isdigit() and of_era == era.strip():
                kind, _, who = verdict.partition(" by ")
                rows.setdefault(who, {}).setdefault(kind, [0] * len(THRESHOLDS))[int(place)] += round(value)
        none = [0] * len(THRESHOLDS)
        pairs = {
            who: Judged(tuple(row.get("right", none)), tuple(row.get("wrong", none)))
            for who, row in rows.items()
        }
        rejected = {
            who: Judged(wrong=tuple(row["rejected"])) for who, row in rows.items() if "rejected" in row
        }
        return Evidence(pairs, rejected)

    def _usable(self, key: str, error: float, user: str) -> int | None:
        own = user if _kind_of(key) == "user" else ""
        if (key, error, own) not in self._found:
            rounds, looks = self.pooled(key), self._evidence(key).looks(own)
            places = [
                pooled_thresholds(each, rounds, error) if rounds else usable_thresholds(each, error)
                for each in looks
            ]
            self._found[key, error, own] = max(frozenset.intersection(*places), default=None)
        return self._found[key, error, own]

    def asks_anyway(self) -> bool:
        """Whether the model is to answer one that could be served."""
        return self._dice.random() < ASKED_ANYWAY

    def label(  # noqa: PLR0913 - all that is known of a label
        self,
        key: str,
        similarity: float,
        *,
        right: bool,
        error: float,
        user: str = "",
        rejected: bool = False,
    ) -> dict[str, float]:
        """A label, as what is to be added to the counts of all processes.

        Where the newest labels in use say that things have changed, all of the key's are taken back, and
        evidence is gathered from the beginning.

        Args:
            key: see `label_key`.
            similarity: of the two questions.
            right: whether either answer would do for the other question.
            error: the share of wrong ones that is allowed.
            user: the group of who asked; empty: nobody knows.
            rejected: no judge says it, but the user, who did not want the answer.
        """
        place = class_of(similarity)
        if place is None:
            return {}
        added: dict[str, float] = {}
        if not self._has_labels(key) and len(keys := self.keys()) >= MOST_KEYS:
            if (old := _older(key, keys)) is None:
                return {NO_ROOM: 1.0}
            added[f"{_BEGIN}{old}/{_ERA}"] = 1.0
        verdict = "rejected" if rejected else "right" if right else "wrong"
        by = f"{verdict} by {user}" if user else verdict
        added[f"{_BEGIN}{key}/{place}{self._era(key)}/{by}"] = 1.0
        if not rejected and self._evidence(key).may_be_given(user):
            added[f"{_EVER}{key}/{place}/{verdict}"] = 1.0
        used = self._usable(key, error, user)
        if used is not None and place <= used:
            added |= self._recent(key, verdict, by)
        self._add(added)
        if has_drifted(*self._newest(key), error):
            gone = {f"{_BEGIN}{key}/{_ERA}": 1.0}
            if self.pooled(key):  # from now on it counts on its own evidence alone
                gone[f"{APART}{key}"] = 1.0 - self._apart.get(key, 0)
            self._add(gone)
            added |= gone
        return added

    def keys(self) -> set[str]:
        """Of which there are labels; those that were taken back make room for others."""
        return {key for key in self._counts if self._has_labels(key)}

    def _has_labels(self, key: str) -> bool:
        return self.judged(key) != Judged()

    def _era(self, key: str) -> str:
        """What the names of the labels in use end with; empty for those that were never taken back.

        To take labels back, a new era begins. Nothing is ever subtracted, so two processes that do it at the
        same moment lose nothing but an era without labels.
        """
        era = round(self._counts.get(key, {}).get(_ERA, 0))
        return f" era {era}" if era else ""

    def report(self, error: float) -> list[dict[str, Any]]:
        """For the dashboard: of each model and kind of scope, the labels, the threshold and its bound.

        The threshold is the one for all users. Where only one has labels, it is the one for them.
        """
        rows = []
        for key in sorted(self.keys() | self._rounds.keys()):
            evidence, rounds = self._evidence(key), self.pooled(key)
            users = [who for who in evidence.pairs if who]
            only = users[0] if len(users) == 1 and _kind_of(key) == "user" else ""
            place = self._usable(key, error, only)
            shown = len(THRESHOLDS) - 1 if place is None else place
            looks = evidence.looks(only)
            wrong, every = looks[0].above(shown)
            fewest = min(looks, key=lambda each: each.above(shown)[1])
            bounds = [
                pooled_bound(each, rounds, shown, error) if rounds else upper_bound(each, shown, error)
                for each in {looks[0], fewest}
            ]
            rows.append(
                {
                    "model": key.rsplit("|", 3)[0],
                    "scope": _kind_of(key),
                    "language": key.rsplit("|", 1)[-1],
                    "judged": every,
                    "wrong": wrong,
                    "users": len(users),
                    "pooled": sum(one.judged.above(shown)[1] for one in rounds),
                    "threshold": None if place is None else THRESHOLDS[place],
                    "bound": round(max(bounds), 4),
                    "error": error,
                }
            )
        return rows

    def _recent(self, key: str, verdict: str, by: str) -> dict[str, float]:
        """The same label in the moving window: a page of a hundred for every hundred judged ones in use."""
        era = self._era(key)
        page = f"{_BEGIN}{key}/recent {self._page(key)}{era}"
        if verdict == "rejected":
            return {f"{page}/{by}": 1.0}
        seen = f"{_BEGIN}{key}/recent{era}/judged"
        return {seen: 1.0, f"{page}/judged": 1.0} | ({f"{page}/wrong": 1.0} if verdict == "wrong" else {})

    def _page(self, key: str) -> int:
        return int(self._counts.get(key, {}).get(f"recent{self._era(key)}/judged", 0)) // RECENT

    def _newest(self, key: str) -> tuple[int, int]:
        """Wrong ones and all in the window: the page that is being filled, and the one before."""
        era, last = self._era(key), self._page(key)
        pages = [f"recent {page}{era}" for page in (last - 1, last)]
        counts = self._counts.get(key, {})
        wrong, every = (
            sum(counts.get(f"{page}/{what}", 0) for page in pages) for what in ("wrong", "judged")
        )
        rejected: dict[str, float] = {}
        for name, value in counts.items():
            page, _, by = name.partition("/")
            if page in pages and by.startswith("rejected"):
                rejected[by] = rejected.get(by, 0) + value
        more = sum(rejected.values()) if len(rejected) > 1 else 0
        return round(wrong + more), round(every + more)

    def _add(self, counts: Mapping[str, float]) -> None:
        for name, value in counts.items():
            if name.startswith(APART):
                key = name.removeprefix(APART)
                self._apart[key] = self._apart.get(key, 0) + value
            elif name.startswith(_BEGIN):
                key, *rest = name.removeprefix(_BEGIN).rsplit("/", 2)
                of_key = self._counts.setdefault(key, {})
                of_key["/".join(rest)] = of_key.get("/".join(rest), 0) + value
        self._found.clear()


def _kind_of(key: str) -> str:
    """The kind of a key's scope."""
    return key.rsplit("|", 3)[-2]


def _older(key: str, keys: set[str]) -> str | None:
    """One of the keys that differs by what the model is made of alone: its weights have been pulled since."""
    model, _, *rest = key.rsplit("|", 3)
    same = [each for each in keys if (parts := each.rsplit("|", 3))[0] == model and parts[2:] == rest]
    return min(same, default=None)


def calibration_report(counts: Mapping[str, float]) -> dict[str, Any]:
    """What a site may give to others, and what it has from them: plain counts, by key and similarity."""
    labels: dict[str, dict[str, list[int]]] = {}
    for name, value in counts.items():
        if name.startswith(_EVER):
            key, place, verdict = name.removeprefix(_EVER).rsplit("/", 2)
            row = labels.setdefault(key, {each: [0] * len(THRESHOLDS) for each in ("right", "wrong")})
            row[verdict][int(place)] = round(value)
    pooled = {
        key: [
            {
                "round": one.number,
                "right": one.judged.right,
                "wrong": one.judged.wrong,
                "epsilon": one.epsilon,
                "shares": one.shares,
            }
            for one in rounds
        ]
        for key, rounds in rounds_in(counts).items()
    }
    apart = sorted(
        name.removeprefix(APART) for name, value in counts.items() if name.startswith(APART) and value > 0
    )
    return {
        "thresholds": THRESHOLDS,
        "labels": labels,
        "pooled": pooled,
        "apart": apart,
        "most_keys": MOST_KEYS,
        "no_room": round(counts.get(NO_ROOM, 0)),
    }


def as_set(rounds: Mapping[str, PooledRound], counts: Mapping[str, float]) -> dict[str, float]:
    """What to add to the counts so that they say what a round gave, however often it is handed over."""
    return {
        name: more
        for key, one in rounds.items()
        for name, value in round_counts(key, one).items()
        if (more := value - counts.get(name, 0))
    }


def as_forgotten(counts: Mapping[str, float]) -> dict[str, float]:
    """What to add to the counts so that nothing is left of what others gave; first what makes it a round."""
    names = [name for name, value in counts.items() if name.startswith((POOL, APART)) and value]
    return {
        name: -counts[name] for name in sorted(names, key=lambda name: not name.endswith(EPSILON_OF_NOISE))
    }


class IdleWork(NamedTuple):
    """A piece of work that people come before.

    Attributes:
        do: it.
        is_idle: whether it may go on. Work that has begun is stopped when it may not, and tried again later.
        waits: it stands behind people by itself: after a minute it begins in any case, and is not stopped.
    """

    do: Callable[[], Awaitable[None]]
    is_idle: Callable[[], Awaitable[bool]]
    waits: bool = False


class IdleQueue:
    """Work that waits until nothing else goes on: one piece at a time; what is too much is dropped."""

    def __init__(self, *, most: int = 16, pause: float = 1.0, tries: int = 600) -> None:
        """Do nothing yet.

        Args:
            most: pieces that wait.
            pause: seconds between two looks whether people are there.
            tries: looks after which a piece that could not be done is dropped.
        """
        self._most = most
        self._pause = pause
        self._tries = tries
        self._work: list[IdleWork] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, work: IdleWork) -> bool:
        """Whether it will be tried."""
        if len(self._work) >= self._most:
            return False
        self._work.append(work)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return True

    async def close(self) -> None:
        self._work.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._work:
            work = self._work[0]
            try:
                await self._try(work)
            except Exception:
                log.exception("Work that had waited for people to leave failed, and is dropped")
            if self._work:
                del self._work[0]

    async def _try(self, work: IdleWork) -> None:
        """Do a piece once it may be done; give up after so many looks."""
        for tried in range(self._tries):
            may = (work.waits and tried >= _PATIENT_TRIES) or await work.is_idle()
            if may and await self._did(work):
                return
            await asyncio.sleep(self._pause)

    async def _did(self, work: IdleWork) -> bool:
        """Whether it was done to its end; it is stopped when people come."""
        doing = asyncio.ensure_future(work.do())
        try:
            while not doing.done():
                await asyncio.wait({doing}, timeout=self._pause)
                if not doing.done() and not work.waits and not await work.is_idle():
                    return False
            doing.result()
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
        return True
