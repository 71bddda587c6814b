"""How many replicas each pool should have: one decision for both pools together.

Predictive: prefill by the rate at which tokens are asked for and those that wait; decode by the requests that are there
and those that will be when prefill is done with them, at the measured tokens per second that each would get (step
times, accepted length and verify budget as they are now) and the pages that they take.

    up      to what is needed at UP of a replica's capacity, at once; and one more if by these numbers there are enough,
            but what is measured misses the target, and no replica of the pool has nothing to do
    down    to what would be needed at DOWN of it, when that has been less than there is for `down_seconds`: so what
            remains still carries the load, and a load that does not change never moves it twice

At last, budgets: a device or watt too many is taken where it is missed least.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from policy.load import Load, ReplicaLoad

PREFILL = "prefill"
UP, DOWN = 0.85, 0.7
ALONE = 0.8  # no replica can promise a user more than this share of what one request gets that is all alone
PAGES = 0.9  # the share of pages that may be in use
MEMORY_SECONDS = 5.0  # over so long the rate of tokens asked for is smoothed
SETTLE_SECONDS = 15.0  # so long after a change it is seen in what is measured


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the service promises, and what it may cost. Seconds to the first token, tokens per second of each user;
    devices and watts of all pools together (None: no limit)."""

    ttft_seconds: float = 2.0
    tokens_per_second: float = 20.0
    devices: float | None = None
    watts: float | None = None
    down_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Of one pool: replicas at least and at most, devices and watts of each replica."""

    least: int = 1
    most: int = 1
    devices: float = 1.0
    watts: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """What is expected of a pool with so many replicas: seconds to the first token (prefill) or tokens per second of
    each user (decode)."""

    made: float
    pool: str
    replicas: int
    value: float


@dataclass(frozen=True)
class Outcome:
    """A prediction, and what was measured once it should have come true; None if nobody was served."""

    prediction: Prediction
    measured: float | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Replicas of each pool, why, and what is expected of pools that change. `outcomes`: of earlier decisions."""

    replicas: Mapping[str, int]
    reasons: Mapping[str, str]
    predictions: tuple[Prediction, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True, kw_only=True)
class State:
    """What the policy remembers from one decision to the next."""

    load: Load | None = None
    tokens_per_second: float = 0.0
    down_needs: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    changed: Mapping[str, float] = field(default_factory=dict)
    pending: tuple[Prediction, ...] = ()


@dataclass(frozen=True)
class Need:
    """Of a pool: the replicas needed at UP and at DOWN of their capacity; whether they miss their target, all of them,
    and one more could help; and the work that there is, in capacities of one replica."""

    up: int
    down: int
    misses: bool
    work: float
    because: str


def decide(targets: Targets, bounds: Mapping[str, Bounds], load: Load, state: State) -> tuple[Decision, State]:
    """The decision for `load`, and what to remember. A pool that is not in `bounds` stays as it is.

    Pure: the same loads in the same order give the same decisions, here, in a replay and in the simulator.
    """
    demand = offered(load, state)
    needs = {PREFILL: prefill_need(targets, load, demand)} if PREFILL in bounds else {}
    needs |= {pool: decode_need(targets, load, pool) for pool in load.decode if pool in bounds}
    wanted, reasons, down_needs = dict(load.replicas), {}, {}
    for pool, need in needs.items():
        history = (*state.down_needs.get(pool, ()), (load.now, _within(need.down, bounds[pool])))
        down_needs[pool] = tuple(entry for entry in history if entry[0] > load.now - targets.down_seconds)
        whole = history[0][0] <= load.now - targets.down_seconds
        wanted[pool], reasons[pool] = _step(load, state, pool, need, down_needs[pool] if whole else ())
        wanted[pool] = _within(wanted[pool], bounds[pool])
    wanted = within_budget(targets, bounds, wanted, {pool: need.work for pool, need in needs.items()})
    changed = [pool for pool in needs if wanted[pool] != load.replicas[pool]]
    values = {pool: expected(load, pool, wanted[pool], demand) for pool in changed}
    made = tuple(Prediction(load.now, pool, wanted[pool], value) for pool, value in values.items() if value is not None)
    outcomes, pending = _outcomes(load, state, changed)
    decision = Decision(replicas=wanted, reasons=reasons, predictions=made, outcomes=outcomes)
    return decision, State(
        load=load,
        tokens_per_second=demand,
        down_needs=down_needs,
        changed={**state.changed, **dict.fromkeys(changed, load.now)},
        pending=(*pending, *made),
    )


def offered(load: Load, state: State) -> float:
    """Prompt tokens per second that are asked for: those computed and those that wait more than before, smoothed."""
    before = state.load
    if before is None or load.now <= before.now:
        return state.tokens_per_second
    seconds = load.now - before.now
    tokens = 0.0
    for name, now in load.prefill.items():
        then = before.prefill.get(name, ReplicaLoad(tokens=now.tokens))
        tokens += now.tokens - then.tokens + now.queued_tokens - then.queued_tokens
    newest = 1 - math.exp(-seconds / MEMORY_SECONDS)
    return state.tokens_per_second + newest * (max(0.0, tokens) / seconds - state.tokens_per_second)


def prefill_need(targets: Targets, load: Load, demand: float) -> Need:
    """By the tokens asked for, and those that wait, which should be done within the target."""
    replicas = load.prefill.values()
    paces = [replica.tokens_per_second for replica in replicas if replica.tokens_per_second]
    current = load.replicas[PREFILL]
    if not paces:
        return Need(current, current, False, 0.0, "no replica has measured its pace")
    pace = sum(paces) / len(paces)
    queued = sum(replica.queued_tokens for replica in replicas)
    work = (demand + queued / targets.ttft_seconds) / pace
    measured, alone = load.front.ttft_seconds, _prompt_seconds(load.prefill.values())
    late = measured is not None and measured > targets.ttft_seconds > alone
    misses = late and all(replica.queued_tokens for replica in replicas)
    because = f"{demand:.0f} tokens/s asked for, {queued:.0f} wait, {pace:.0f} tokens/s a replica"
    return Need(_ceil(work / UP), _ceil(work / DOWN), misses, work, because)


def decode_need(targets: Targets, load: Load, pool: str) -> Need:
    """By the requests that are there and are coming, over those that a replica can serve at the target."""
    replicas, current = load.decode[pool].values(), load.replicas[pool]
    measured = [replica for replica in replicas if replica.rates]
    if not measured:
        return Need(current, current, False, 0.0, "no replica has measured its steps")
    everybody = sum(replica.users for of_pool in load.decode.values() for replica in of_pool.values())
    here = sum(replica.users for replica in replicas)
    share = here / everybody if everybody else 1 / len(load.decode)
    users = here + share * sum(replica.users for replica in load.prefill.values())
    capacity = sum(_capacity(targets, replica) for replica in measured) / len(measured)
    work = users / capacity
    rate = load.front.user_rate
    slow = rate is not None and rate < min(_floor(targets, replica) for replica in measured)
    misses = slow and all(replica.running > 1 for replica in measured)
    length = sum(replica.accepted_length for replica in measured) / len(measured)
    because = f"{users:.0f} requests, {capacity:.1f} a replica at the target, accepted length {length:.2f}"
    return Need(_ceil(work), _ceil(work / (DOWN / UP)), misses, work, because)


def expected(load: Load, pool: str, replicas: int, demand: float) -> float | None:
    """What a pool would show with so many replicas: seconds to the first token, or tokens per second of each user; None
    while nothing has been measured."""
    of_pool = (load.prefill if pool == PREFILL else load.decode[pool]).values()
    measured = [r for r in of_pool if (r.tokens_per_second if pool == PREFILL else r.rates)]
    if not measured or not replicas:
        return None
    if pool != PREFILL:
        users = sum(r.users for r in of_pool) / replicas
        return sum(r.user_rate(users) for r in measured) / len(measured)
    pace = sum(r.tokens_per_second for r in measured) / len(measured)
    idle = max(0.05, 1 - demand / (replicas * pace))  # the wait of a queue grows as 1 / idle
    queued = sum(r.queued_tokens for r in measured)
    return _prompt_seconds(measured) / idle + queued / replicas / pace


def within_budget(
    targets: Targets, bounds: Mapping[str, Bounds], wanted: Mapping[str, int], work: Mapping[str, float]
) -> dict[str, int]:
    """`wanted`, less what the budgets do not allow: one replica after the other, of the pool where each of those that
    remain would have least to do. Never fewer than the bounds say."""
    kept = dict(wanted)

    def over() -> bool:
        devices = sum(bounds[pool].devices * kept[pool] for pool in bounds)
        watts = sum(bounds[pool].watts * kept[pool] for pool in bounds)
        return devices > (targets.devices or math.inf) or watts > (targets.watts or math.inf)

    while over():
        shrinkable = [pool for pool in bounds if kept[pool] > max(1, bounds[pool].least)]
        if not shrinkable:
            break
        kept[min(shrinkable, key=lambda pool: (work.get(pool, 0.0) / (kept[pool] - 1 or 0.5), pool))] -= 1
    return kept


def _step(
    load: Load, state: State, pool: str, need: Need, down_needs: tuple[tuple[float, int], ...]
) -> tuple[int, str]:
    current = load.replicas[pool]
    if need.up > current:
        return need.up, f"up: {need.because}"
    running = len(load.prefill if pool == PREFILL else load.decode[pool])
    settled = running >= current and load.now - state.changed.get(pool, -math.inf) >= SETTLE_SECONDS
    if need.misses and settled:
        return current + 1, f"up: the target is missed though there should be enough; {need.because}"
    enough = max((needed for _, needed in down_needs), default=current)
    if enough < current and not need.misses:
        return enough, f"down: {enough} would have been enough for a while; {need.because}"
    return current, need.because


def _prompt_seconds(replicas: Iterable[ReplicaLoad]) -> float:
    """Seconds that a prompt of mean length takes in prefill when it is all alone."""
    known = [replica for replica in replicas if replica.tokens_per_second]
    prompts = sum(replica.requests for replica in known)
    mean_tokens = sum(replica.tokens for replica in known) / prompts if prompts else 0.0
    return min(replica.min_step_seconds + mean_tokens / replica.tokens_per_second for replica in known)


def _capacity(targets: Targets, replica: ReplicaLoad) -> float:
    """Requests that a replica can serve at the target's tokens per second, and has pages for; at least one."""
    floor = _floor(targets, replica)
    most = int(replica.max_requests)
    by_rate = next((n for n in range(most, 0, -1) if replica.user_rate(n) >= floor), 1)
    by_pages = PAGES * replica.running / replica.pages_used if replica.running and replica.pages_used else math.inf
    return max(1.0, min(float(by_rate), by_pages))


def _floor(targets: Targets, replica: ReplicaLoad) -> float:
    """More replicas cannot make one request faster than it is alone: what cannot be had is not bought."""
    return min(targets.tokens_per_second, ALONE * replica.user_rate(1))


def _outcomes(load: Load, state: State, changed: list[str]) -> tuple[tuple[Outcome, ...], tuple[Prediction, ...]]:
    """Predictions whose time has come, and those that still wait. One that was overtaken by a change is dropped."""
    due: list[Outcome] = []
    pending: list[Prediction] = []
    for prediction in state.pending:
        if prediction.pool in changed or load.replicas[prediction.pool] != prediction.replicas:
            continue
        replicas = load.prefill if prediction.pool == PREFILL else load.decode[prediction.pool]
        if len(replicas) < prediction.replicas:
            pending.append(replace(prediction, made=load.now))  # they are still starting
        elif load.now - prediction.made < SETTLE_SECONDS:
            pending.append(prediction)
        else:
            measured = load.front.ttft_seconds if prediction.pool == PREFILL else load.front.user_rate
            due.append(Outcome(prediction, measured))
    return tuple(due), tuple(pending)


def _within(replicas: int, bounds: Bounds) -> int:
    return max(bounds.least, min(replicas, bounds.most))


def _ceil(replicas: float) -> int:
    return math.ceil(replicas - 1e-9)
