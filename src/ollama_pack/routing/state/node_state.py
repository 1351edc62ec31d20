"""What is known of one node between two decisions: its models, its runners, what was learned of it."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ollama_pack.base.breaker import Breaker, BreakerRule, BreakerState
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.prefix import PrefixMirror
from ollama_pack.routing.decide.view import (
    FleetRequest,
    InstalledModel,
    ModelRates,
    NodeView,
    RunnerOptions,
    RunnerView,
)
from ollama_pack.routing.naming import fold_name
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.state.external_load import ExternalLoad
from ollama_pack.routing.state.model_stats import ModelStats
from ollama_pack.routing.state.node_memory import NodeMemory, is_split

MODEL_RULE = BreakerRule(threshold=2)
NODE_RULE = BreakerRule(threshold=1)
REMOTE_SLOTS = 64  # free ones of a model that runs elsewhere, whatever it answers already
UNSEEN_SECONDS = (
    300.0  # a runner of a node that does not tell of its memory is believed in after its last use
)
LOAD_RULE = BreakerRule(threshold=1, shortest=120.0, longest=3600.0)  # of loads that nobody waits for
GPU_LAG = 2.0  # seconds for which a GPU's utilization may still tell of a request that has ended


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A line of a node's `/api/ps`.

    Attributes:
        model: the name by which it was loaded.
        size: bytes in memory.
        context: tokens that it was loaded for; 0: not told.
        expires_at: when it is to be unloaded, on any clock that stays the same.
        busy: that moment has passed, and still it is listed: it answers somebody.
        loading: it is listed, but not loaded yet, as far as can be seen.
        vram: of the bytes, those in GPU memory; 0: it is computed by the CPU.
    """

    model: str
    size: int = 0
    context: int = 0
    expires_at: float = 0.0
    busy: bool = False
    loading: bool = False
    vram: int = 0

    @property
    def fits(self) -> bool:
        """Whether it is in one kind of memory as a whole."""
        return self.vram in {0, self.size}


@dataclass(slots=True)
class RunnerState:
    """A runner as it is believed to be.

    Attributes:
        context, asked, options: as in `RunnerView`.
        ends: id of a request of ours → when it is predicted to end.
        loading: nothing has shown yet that it is loaded.
        since: when the load began.
        touched: by us since the last probe: then it does not matter that `expires_at` moves.
        external: what other clients do with it.
        counted: the engine itself counts its requests, and tells.
        remote: as in `InstalledModel`.
    """

    blob: str
    model: str
    size: int
    context: int
    asked: int | None
    options: RunnerOptions | None
    ready_at: float
    loading: bool
    mirror: PrefixMirror
    since: float = 0.0
    ends: dict[str, float] = field(default_factory=dict)
    expires_at: float = 0.0
    touched: bool = True
    external: ExternalLoad = field(default_factory=ExternalLoad)
    counted: bool = False
    remote: bool = False

    def begin(self, request: FleetRequest, now: float, ends_at: float, shared: int, kind: int) -> None:
        """A request of ours is sent to it; the last two are as in `KeptPrefix`."""
        self.ends[request.id] = ends_at
        self.mirror.started(request.blocks, now, shared=shared, kind=kind)
        self.touched = True

    @property
    def loaded_with(self) -> dict[str, Any]:
        """The options of a request for which it is not loaded again, as far as they are known."""
        context = self.context if self.asked is None else self.asked
        return {**dict(self.options or ()), **({"num_ctx": context} if context else {})}

    def serves(self, wanted: tuple[int, RunnerOptions]) -> None:
        """It answers a request with these options, so it has them: another client may have loaded it."""
        context, options = wanted
        self.asked = context if self.asked is None else self.asked
        self.options = options if self.options is None else self.options


class NodeState:
    """One node. Its memory is bounded by the models that it has."""

    def __init__(self, row: NodeRow, policy: RoutingPolicy, expected: Callable[[str], ModelRates]) -> None:
        """Begin with nothing known of it.

        Args:
            row: of the node.
            policy: weights and bounds.
            expected: what is believed of weights before anything is measured here, by their blob.
        """
        self.row = row
        self.models: dict[str, InstalledModel] = {}  # by the names that it lists
        self.listed: Mapping[str, InstalledModel] = {}  # by those, and by what `fold_name` makes of them
        self.runners: dict[str, RunnerState] = {}
        self.loading_until = 0.0
        self.memory = NodeMemory(row)
        self.draining = False
        self.gpu = ExternalLoad(sure=False)  # what its GPU does without us
        self.paused_until = 0.0
        self.left_at = -math.inf  # when the last request of ours ended
        self.on_change: Callable[[str], None] = lambda _: None
        self.next_change = 0.0  # when it looks otherwise though nothing is told
        self._seen: NodeView | None = None
        self.breaker = Breaker(NODE_RULE)
        self._loads_ahead = row.kind == "ollama" and not row.way_in.needs_user
        self._failed_loads: dict[str, Breaker] = {}  # blob → when it may be loaded again without a chat
        self._policy = policy
        self._expected = expected
        self._stats: dict[str, ModelStats] = {}
        self._rates: Mapping[str, ModelRates] = {}  # replaced, never changed: views hold it
        self._breakers: dict[str, Breaker] = {}
        self._broken_for: dict[str, str] = {}  # model → the user whose answer broke off last
        self._autos: dict[str, InstalledModel] = {}  # automatic name → the variant that answers for it here
        self._learned = False  # the last look has taught something about the memory
        self._sized_for = 0  # the context that the models' sizes are for where nobody asks for one
        self._default_contexts: dict[str, int] = {}  # blob → tokens that it has when nobody asks for any

    def stats(self, blob: str) -> ModelStats:
        if blob not in self._stats:
            self._stats[blob] = ModelStats(self.row.slots, self._policy)
        return self._stats[blob]

    def has_weights(self, blob: str) -> bool:
        """Whether it has a model of these weights."""
        return blob in self._rates

    def known(self, blob: str) -> ModelRates:
        """The rates of one set of weights."""
        return self._rates.get(blob) or self.stats(blob).known(self._expected(blob))

    def learned(self, blob: str) -> None:
        """Something was learned of these weights."""
        stats = self.stats(blob)
        self._rates = {**self._rates, blob: stats.known(self._expected(blob))}
        if runner := self.runners.get(blob):
            runner.mirror.retain(stats.retention.retention)
        self.changed()

    # --- its breakers: one of the node, and one of each model that has failed ---

    def _on_the_way(self, model: str) -> Iterable[Breaker]:
        own = self._breakers.get(model)
        return (self.breaker, own) if own else (self.breaker,)

    def allows(self, model: str, now: float) -> bool:
        """Whether a request may be sent to it now."""
        return all(breaker.allows(now) for breaker in self._on_the_way(model))

    def passed(self, model: str) -> None:
        """A request is sent to it."""
        for breaker in self._on_the_way(model):
            breaker.passed()

    def succeeded(self, model: str) -> None:
        """A request was answered."""
        self.breaker.succeeded()
        self._breakers.pop(model, None)
        self._broken_for.pop(model, None)
        if known := self.models.get(model):
            self._failed_loads.pop(known.blob, None)

    def gave_up(self, model: str) -> None:
        """A request ended and tells nothing."""
        for breaker in self._on_the_way(model):
            breaker.gave_up()

    def failed(self, model: str, now: float, *, node_down: bool, hung: bool) -> None:
        """A request failed, for the node's sake or for one model's."""
        self.changed()
        if node_down:
            self.breaker.failed(now)
        elif model in self.models:
            self._breakers.setdefault(model, Breaker(MODEL_RULE)).failed(now, at_once=hung)
            self.breaker.gave_up()

    def busy(self, model: str, now: float, *, pause: float | None) -> None:
        """A request was not taken: the model is busy, for so many seconds if the node says that."""
        self.changed()
        if model in self.models:
            breaker = self._breakers.setdefault(model, Breaker(MODEL_RULE))
            breaker.failed(now, grows=False, pause=pause)
        self.breaker.gave_up()

    def broke_off(self, model: str, user: str, now: float) -> None:
        """An answer ended in the middle. One user's request may be the reason, two users' are not."""
        if self._broken_for.setdefault(model, user) != user:
            self.failed(model, now, node_down=False, hung=True)
        else:
            self.gave_up(model)

    def shut(self, now: float) -> dict[str, BreakerState]:
        """The models that are not asked for here at the moment, since they have failed."""
        states = {model: breaker.state(now) for model, breaker in self._breakers.items()}
        return {model: state for model, state in states.items() if state != "closed"}

    def retry_at(self) -> Iterable[float]:
        """When each of its open breakers lets one request try."""
        if not self._breakers and self.breaker.retry_at is None:
            return ()
        breakers = (self.breaker, *self._breakers.values())
        return [breaker.retry_at for breaker in breakers if breaker.retry_at is not None]

    # --- what it tells ---

    def probed(
        self, models: Mapping[str, InstalledModel], residents: Iterable[ResidentModel] | None, now: float
    ) -> None:
        """Take in what `/api/tags` and `/api/ps` say; None: nothing is said of what is in its memory."""
        residents = None if residents is None else tuple(residents)
        known = {fold_name(name): model for name, model in models.items()}
        self._measure(residents or (), known)
        default = max((one.context for one in residents or ()), default=0) if not self._sized_for else 0
        if self._learned or default or models != self.models:
            self.models = dict(models)
            self._sized_for = self._sized_for or default
            self._list()
        blobs = {model.blob for model in models.values()}
        self._stats = {blob: stats for blob, stats in self._stats.items() if blob in blobs}
        self._rates = {blob: self.known(blob) for blob in blobs}
        self._failed_loads = {blob: known for blob, known in self._failed_loads.items() if blob in blobs}
        self._breakers = {name: breaker for name, breaker in self._breakers.items() if name in models}
        self._broken_for = {name: user for name, user in self._broken_for.items() if name in models}
        self._default_contexts = {
            blob: context for blob, context in self._default_contexts.items() if blob in blobs
        }
        listed = {self._blob(resident): resident for resident in residents or ()}
        elsewhere = {model.blob: name for name, model in models.items() if model.remote}
        keeps_all = residents is None and now - self.left_at < UNSEEN_SECONDS
        for blob, runner in list(self.runners.items()):
            stays = blob in listed or blob in elsewhere or (keeps_all and not runner.remote)
            if not stays and not runner.loading and not runner.ends:
                del self.runners[blob]
        for blob, name in elsewhere.items():
            if blob not in self.runners or not self.runners[blob].remote:
                mirror = self._mirror(blob)
                self.runners[blob] = RunnerState(
                    blob, name, 0, 0, None, None, now, loading=False, mirror=mirror, remote=True
                )
        for blob, resident in listed.items():
            self._adopt(blob, resident, now)
        self._loads_on(now)
        if all(resident.fits for resident in residents or ()):
            self.memory.seen_together(
                sum(runner.size for runner in self.runners.values() if not runner.loading)
            )

    def _measure(self, residents: Sequence[ResidentModel], models: Mapping[str, InstalledModel]) -> None:
        """Learn from what models take that are in memory."""
        self._learned = False
        for resident in residents:
            model = models.get(fold_name(resident.model))
            if model is not None and not resident.loading:
                self._learned |= self.memory.seen(
                    model, resident.context, resident.size, on_gpu=resident.vram > 0
                )
        if not all(resident.fits or is_split(self._options(resident, models)) for resident in residents):
            self.memory.spilled(sum(resident.vram for resident in residents))

    def _options(self, resident: ResidentModel, models: Mapping[str, InstalledModel]) -> RunnerOptions:
        """With which it was loaded, as far as is known."""
        model = models.get(fold_name(resident.model))
        runner = self.runners.get(model.blob) if model else None
        return (runner.options if runner else None) or (model.options if model else ())

    def _list(self) -> None:
        """Put together what it may be asked for. A list that is the same stays the same object."""
        self._autos = {auto: model for auto, model in self._autos.items() if model.name in self.models}
        named = self.memory.sized(self.models, self._sized_for)
        self.listed = named | {fold_name(name): model for name, model in named.items()} | self._autos

    def offer(self, auto: str) -> tuple[InstalledModel, bool] | None:
        """As `NodeMemory.choose`, next to what is in memory now."""
        resident = [(runner.blob, runner.size) for runner in self.runners.values() if not runner.remote]
        return self.memory.choose(auto, self.listed, resident)

    def set_auto(self, auto: str, model: InstalledModel | None) -> None:
        """Answer for an automatic name with one of its variants, or with none."""
        if self._autos.get(auto) == model:
            return
        self._autos.pop(auto, None)
        if model is not None:
            self._autos[auto] = model
        self._list()
        self.changed()

    def _loads_on(self, now: float) -> None:
        """A load that takes longer than predicted goes on, for longer the more it has taken."""
        for runner in self.runners.values():
            if runner.loading and runner.ends and runner.ready_at <= now:
                left = max(1.0, self._policy.overdue_share * (now - runner.since))
                runner.ready_at = self.loading_until = now + left

    def _blob(self, resident: ResidentModel) -> str:
        model = self.listed.get(fold_name(resident.model))
        return model.blob if model else resident.model

    def _adopt(self, blob: str, resident: ResidentModel, now: float) -> None:
        """Compare a runner with what is known of it. What moved without us was moved by another client."""
        runner = self.runners.get(blob)
        if runner is None:
            size = self._size(blob, resident)
            mirror, context = self._mirror(blob), resident.context
            runner = RunnerState(
                blob, resident.model, size, context, None, None, now, loading=False, mirror=mirror
            )
            self.runners[blob] = runner
        elif runner.loading:
            return
        elif resident.context and runner.context and resident.context != runner.context:
            runner.mirror.clear()
            runner.asked = runner.options = None
        elif not runner.touched and resident.expires_at != runner.expires_at:
            runner.mirror.clear()
        runner.context = resident.context or runner.context
        if runner.asked == 0 and runner.context:
            self._default_contexts[blob] = runner.context
        runner.expires_at = resident.expires_at
        runner.touched = bool(runner.ends)
        if not runner.counted:
            external = resident.busy and not runner.ends
            runner.external.seen(int(external), now, self.known(blob).service)
            if external:
                runner.mirror.clear()

    def counts(self, running: int, waiting: int, now: float) -> None:
        """Take in an engine's own numbers of requests, over all clients."""
        external = max(0, running + waiting - sum(len(runner.ends) for runner in self.runners.values()))
        for runner in self.runners.values():
            runner.counted = True
            runner.external.seen(external, now, self.known(runner.blob).service)
            self.stats(runner.blob).slots.counted(running, waiting)
            self.learned(runner.blob)

    def gpu_busy(self, utilization: float, now: float) -> None:
        """Take in how busy its busiest GPU is, in percent. With ours there, or just gone, it says nothing."""
        here = {blob: runner for blob, runner in self.runners.items() if not runner.remote}
        ours = any(runner.ends or runner.loading for runner in here.values())
        busy = utilization >= self._policy.busy_percent and not ours and now - self.left_at >= GPU_LAG
        services = [self.known(blob).service for blob in here]
        self.gpu.seen(int(busy and bool(services)), now, max(services, default=0.0))

    def left(self, runner: RunnerState, request_id: str, now: float) -> None:
        """A request of ours is no longer there."""
        runner.ends.pop(request_id, None)
        runner.touched = True
        runner.external.ours_ended(now)
        self.left_at = now

    def _mirror(self, blob: str) -> PrefixMirror:
        """Of a runner that holds nothing yet."""
        return PrefixMirror(retention=self.stats(blob).retention.retention)

    def _size(self, blob: str, resident: ResidentModel) -> int:
        """Bytes of a runner: as it says, where what is predicted of others compares with that."""
        known = next((model for model in self.models.values() if model.blob == blob), None)
        if known is None or known.shape is not None:
            return resident.vram or resident.size
        return known.size or resident.size

    # --- what is done with it ---

    def adopt(self, model: str, wanted: tuple[int, RunnerOptions], now: float) -> RunnerState:
        """Another worker knows that a model of this name is in memory, with these options."""
        installed = self.listed[model]
        mirror = self._mirror(installed.blob)
        size = installed.takes(wanted[0])
        runner = RunnerState(installed.blob, model, size, 0, *wanted, now, loading=False, mirror=mirror)
        self.runners[installed.blob] = runner
        return runner

    def load(
        self, model: str, wanted: tuple[int, RunnerOptions], victims: Collection[str], now: float
    ) -> RunnerState:
        """A request makes it load a model of this name, with these options; what makes room is forgotten."""
        asked, options = wanted
        installed = self.listed[model]
        for blob in victims:
            self.runners.pop(blob, None)
        self.loading_until = now + self.known(installed.blob).load
        runner = RunnerState(
            blob=installed.blob,
            model=model,
            size=installed.takes(asked),
            context=0,
            asked=asked,
            options=options,
            ready_at=self.loading_until,
            loading=True,
            mirror=self._mirror(installed.blob),
            since=now,
        )
        self.runners[installed.blob] = runner
        return runner

    def take_back(
        self, runner: RunnerState, evicted: Mapping[str, RunnerState], loading_until: float
    ) -> None:
        """The load never began: those that should have made room are still there."""
        if self.runners.get(runner.blob) is runner:
            del self.runners[runner.blob]
        self.runners = {**evicted, **self.runners}
        self.loading_until = loading_until

    def did_not_load(self, runner: RunnerState, now: float, *, grows: bool) -> None:
        """A load that nobody waited for has failed: it is tried later, and if it `grows` later each time."""
        self._failed_loads.setdefault(runner.blob, Breaker(LOAD_RULE)).failed(now, grows=grows)
        if self.runners.get(runner.blob) is runner and not runner.ends:
            del self.runners[runner.blob]
        self.changed()

    def pause(self, until: float) -> None:
        """Give it nothing new for a moment: somebody else was faster."""
        self.paused_until = until
        self.changed()

    def loaded(self, runner: RunnerState, now: float) -> None:
        """The first token came: the model is there."""
        runner.loading = False
        runner.ready_at = min(runner.ready_at, now)
        self.loading_until = min(self.loading_until, now)

    # --- what a decision sees ---

    def view(self, now: float) -> NodeView:
        """What a decision may know of it. The same one until something is told, or a time is up."""
        if self._seen is None or now >= self.next_change:
            self._seen = self._view(now)
            self.next_change = min((when for when in self.changes_at() if when > now), default=math.inf)
        return self._seen

    def changes_at(self) -> Iterable[float]:
        """When it may look otherwise though nothing is told: a breaker's time or a pause is over, say."""
        due = [self.paused_until, self.loading_until, *self.retry_at()]
        due += [known.retry_at for known in self._failed_loads.values() if known.retry_at is not None]
        if self.gpu.count:
            due += self.gpu.changes_at()
        for runner in self.runners.values():
            due.append(runner.ready_at)
            if runner.external.count:
                due += runner.external.changes_at()
        return due

    def changed(self) -> None:
        """Something is told of it: to be called after whatever changes it from outside."""
        self._seen = None
        self.on_change(self.row.name)

    def _view(self, now: float) -> NodeView:
        rates = self._rates
        return NodeView(
            name=self.row.name,
            tier=self.row.tier,
            weight=self.row.weight,
            models=self._allowed(now),
            runners=tuple(
                [self._runner_view(runner, rates.get(runner.blob), now) for runner in self.runners.values()]
            ),
            loading_until=self.loading_until,
            room=self.memory.room,
            smallest=self._smallest,
            rates=rates,
            loads_ahead=self._loads_ahead,
            failed_loads=frozenset(
                [blob for blob, known in self._failed_loads.items() if not known.allows(now)]
            ),
        )

    @property
    def _smallest(self) -> int:
        """Bytes of the smallest model; 1 where it is not known how much memory there is."""
        if not self.memory.measured:
            return 1
        return min((model.size for model in self.listed.values() if model.size), default=1)

    def _allowed(self, now: float) -> Mapping[str, InstalledModel]:
        """The models that it may be asked for, by the names that requests are compared with."""
        if self.draining or now < self.paused_until or not self.breaker.allows(now):
            return {}
        shut = {name for name, breaker in self._breakers.items() if not breaker.allows(now)}
        if not shut:
            return self.listed
        return {name: model for name, model in self.listed.items() if model.name not in shut}

    def _asked(self, runner: RunnerState) -> int | None:
        """The context that a runner was asked for. One that is the node's default counts as not asked for."""
        default = self._default_contexts.get(runner.blob)
        if default is None:
            return runner.asked
        asked = runner.context if runner.asked is None else runner.asked
        return 0 if asked == default else asked

    def _runner_view(self, runner: RunnerState, known: ModelRates | None, now: float) -> RunnerView:
        rates = known or replace(self._expected(runner.blob), slots=self.row.slots or 1)
        if runner.remote:
            busy = tuple(runner.ends.values())
            slots = len(busy) + REMOTE_SLOTS
            return RunnerView(runner.blob, runner.model, slots=slots, ends=busy, remote=True)
        external = runner.external if runner.external.count else self.gpu
        ends = (*runner.ends.values(), *external.ends(now, rates.slots))
        return RunnerView(
            blob=runner.blob,
            model=runner.model,
            size=runner.size,
            context=runner.context,
            asked=self._asked(runner),
            options=runner.options,
            slots=rates.slots,
            keeps=rates.keeps,
            ready_at=runner.ready_at,
            ends=ends,
            prefixes=runner.mirror,
        )
