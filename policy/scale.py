"""Decides how many replicas each pool should have, for all pools together.

The policy is predictive. Prefill is sized by the prompt tokens that arrive per second and those that are queued; decode
by its requests and those that prefill will hand over, at the tokens per second that each would get (with the step
times, accepted length and verify budget of now) and by the pages that they need.

    up      at once, to the replicas needed at UP of a replica's capacity; and by one more if these would be enough but
            the measured latency misses the target and no replica of the pool is idle
    down    to the replicas needed at DOWN of it, once fewer than there are have been needed for `down_seconds`: the
            remaining ones still carry the load, and a constant load never changes a pool twice

Finally the budgets of devices and watts are kept: replicas are removed where the others have the least work.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from policy.load import Load, ReplicaLoad

PREFILL = "prefill"
UP, DOWN = 0.85, 0.7
MAX_RATE_SHARE = 0.8  # the largest share of a lone request's rate that a replica can promise each user
MAX_PAGES_USED = 0.9  # the share of pages that may be in use
SMOOTHING_SECONDS = 5.0  # the time constant of the mean rate of arriving prompt tokens
SETTLE_SECONDS = 15.0  # until a change shows in the measured latencies


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The service levels that scaling keeps, and the budgets of all pools together (None: no limit).

    `tokens_per_second` is each user's. `down_seconds`: how long fewer replicas must have been enough.
    """

    ttft_seconds: float = 2.0
    tokens_per_second: float = 20.0
    devices: float | None = None
    watts: float | None = None
    down_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The limits of one pool, and the devices and watts of each of its replicas."""

    min_replicas: int = 1
    max_replicas: int = 1
    devices: float = 1.0
    watts: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """The expected `value` of a pool with `replicas`: seconds to the first token (prefill) or tokens per second of each
    user (decode). `made`: the moment of the prediction."""

    made: float
    pool: str
    replicas: int
    value: float


@dataclass(frozen=True)
class Outcome:
    """A prediction with the value measured SETTLE_SECONDS later; None if no request was served."""

    prediction: Prediction
    measured: float | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The replicas that each pool should have, with the reasons.

    `predictions` are about the pools that change, `outcomes` about those of earlier decisions.
    """

    replicas: Mapping[str, int]
    reasons: Mapping[str, str]
    predictions: tuple[Prediction, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True, kw_only=True)
class State:
    """The policy's memory between two decisions."""

    load: Load | None = None
    tokens_per_second: float = 0.0
    down_needs: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    changed: Mapping[str, float] = field(default_factory=dict)
    pending: tuple[Prediction, ...] = ()


@dataclass(frozen=True)
class Need:
    """The need of one pool.

    `up`, `down`: the replicas needed at UP and at DOWN of their capacity. `misses`: the target is missed, and another
    replica could help. `work`: the load, in capacities of one replica.
    """

    up: int
    down: int
    misses: bool
    work: float
    reason: str


def decide(targets: Targets, bounds: Mapping[str, Bounds], load: Load, state: State) -> tuple[Decision, State]:
    """Return the decision for `load` and the next state. A pool that is not in `bounds` stays as it is.

    The function is pure: the same loads in the same order give the same decisions in the service, a replay and the
    simulator.
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
    """Return the arriving prompt tokens per second, smoothed: the tokens computed plus the growth of the queues."""
    before = state.load
    if before is None or load.now <= before.now:
        return state.tokens_per_second
    seconds = load.now - before.now
    tokens = 0.0
    for name, now in load.prefill.items():
        then = before.prefill.get(name, ReplicaLoad(tokens=now.tokens))
        tokens += now.tokens - then.tokens + now.queued_tokens - then.queued_tokens
    newest = 1 - math.exp(-seconds / SMOOTHING_SECONDS)
    return state.tokens_per_second + newest * (max(0.0, tokens) / seconds - state.tokens_per_second)


def prefill_need(targets: Targets, load: Load, demand: float) -> Need:
    """Size prefill by the arriving tokens, and by the queued ones, which should be computed within the target."""
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
    reason = f"{demand:.0f} tokens/s arrive, {queued:.0f} tokens are queued, {pace:.0f} tokens/s a replica"
    return Need(_ceil(work / UP), _ceil(work / DOWN), misses, work, reason)


def decode_need(targets: Targets, load: Load, pool: str) -> Need:
    """Size a decode pool by its requests and those in prefill, over those that a replica can serve at the target."""
    replicas, current = load.decode[pool].values(), load.replicas[pool]
    measured = [replica for replica in replicas if replica.rates]
    if not measured:
        return Need(current, current, False, 0.0, "no replica has measured its steps")
    all_users = sum(replica.users for of_pool in load.decode.values() for replica in of_pool.values())
    here = sum(replica.users for replica in replicas)
    share = here / all_users if all_users else 1 / len(load.decode)
    users = here + share * sum(replica.users for replica in load.prefill.values())
    capacity = sum(_capacity(targets, replica) for replica in measured) / len(measured)
    work = users / capacity
    rate = load.front.user_rate
    slow = rate is not None and rate < min(_floor(targets, replica) for replica in measured)
    misses = slow and all(replica.running > 1 for replica in measured)
    length = sum(replica.accepted_length for replica in measured) / len(measured)
    reason = f"{users:.0f} requests, {capacity:.1f} a replica at the target, accepted length {length:.2f}"
    return Need(_ceil(work), _ceil(work / (DOWN / UP)), misses, work, reason)


def expected(load: Load, pool: str, replicas: int, demand: float) -> float | None:
    """Predict the seconds to the first token (prefill) or tokens per second of each user (decode) with `replicas`.

    Returns None while nothing has been measured.
    """
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
    """Reduce `wanted` to the budgets, by one replica at a time, of the pool whose other replicas would have least work.

    No pool gets fewer than its bounds allow.
    """
    kept = dict(wanted)

    def over() -> bool:
        devices = sum(bounds[pool].devices * kept[pool] for pool in bounds)
        watts = sum(bounds[pool].watts * kept[pool] for pool in bounds)
        return devices > (targets.devices or math.inf) or watts > (targets.watts or math.inf)

    while over():
        shrinkable = [pool for pool in bounds if kept[pool] > max(1, bounds[pool].min_replicas)]
        if not shrinkable:
            break
        kept[min(shrinkable, key=lambda pool: (work.get(pool, 0.0) / (kept[pool] - 1 or 0.5), pool))] -= 1
    return kept


def _step(
    load: Load, state: State, pool: str, need: Need, down_needs: tuple[tuple[float, int], ...]
) -> tuple[int, str]:
    current = load.replicas[pool]
    if need.up > current:
        return need.up, f"up: {need.reason}"
    running = len(load.prefill if pool == PREFILL else load.decode[pool])
    settled = running >= current and load.now - state.changed.get(pool, -math.inf) >= SETTLE_SECONDS
    if need.misses and settled:
        return current + 1, f"up: the target is missed though there should be enough replicas; {need.reason}"
    enough = max((needed for _, needed in down_needs), default=current)
    if enough < current and not need.misses:
        return enough, f"down: {enough} would have been enough for a while; {need.reason}"
    return current, need.reason


def _prompt_seconds(replicas: Iterable[ReplicaLoad]) -> float:
    """Return the seconds that prefill takes for a lone prompt of mean length."""
    known = [replica for replica in replicas if replica.tokens_per_second]
    prompts = sum(replica.requests for replica in known)
    mean_tokens = sum(replica.tokens for replica in known) / prompts if prompts else 0.0
    return min(replica.min_step_seconds + mean_tokens / replica.tokens_per_second for replica in known)


def _capacity(targets: Targets, replica: ReplicaLoad) -> float:
    """Return how many requests a replica has pages for and serves at the target's tokens per second; at least one."""
    floor = _floor(targets, replica)
    by_rate = next((n for n in range(int(replica.max_requests), 0, -1) if replica.user_rate(n) >= floor), 1)
    by_pages = (
        MAX_PAGES_USED * replica.running / replica.pages_used if replica.running and replica.pages_used else math.inf
    )
    return max(1.0, min(float(by_rate), by_pages))


def _floor(targets: Targets, replica: ReplicaLoad) -> float:
    """Return the tokens per second that each user must get: the target, unless even a lone request is slower."""
    return min(targets.tokens_per_second, MAX_RATE_SHARE * replica.user_rate(1))


def _outcomes(load: Load, state: State, changed: list[str]) -> tuple[tuple[Outcome, ...], tuple[Prediction, ...]]:
    """Return the outcomes of predictions that are due, and those pending; one whose pool has changed is dropped."""
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
    return max(bounds.min_replicas, min(replicas, bounds.max_replicas))


def _ceil(replicas: float) -> int:
    return math.ceil(replicas - 1e-9)
