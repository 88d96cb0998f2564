"""Measuring what a profile lacks: each thing once, however many processes work on it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log

from soaprl.cluster.cluster import DeviceType
from soaprl.cost.profiled.claims import Claims
from soaprl.cost.profiled.family import shard_at
from soaprl.cost.profiled.measurement import Extents, Measured, Measurer, UnmeasurableError
from soaprl.cost.profiled.plan import Anchor
from soaprl.cost.profiled.store import Profile
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.operators import Operator, OperatorGraph

# What families of optimizers' updates begin with.
UPDATE = "update/"
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a session is.

    Attributes:
        done: Shards that are in the profile, or cannot be measured; one counts once a round.
        total: All.
        measured: How many of them this process measured.
        name: The operator, or the optimizer, at hand.
    """

    done: int
    total: int
    measured: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """How far a measurement is from the roofline.

    Attributes:
        operator: Name of an operator of the family.
        kind: Its kind.
        extents: Of the shard.
        measured_s: Forward and backward, measured.
        roofline_s: The same by the roofline.
    """

    operator: str
    kind: str
    extents: Extents
    measured_s: float
    roofline_s: float

    @property
    def ratio(self) -> float:
        """Measured over roofline."""
        return self.measured_s / self.roofline_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """Something to measure; without an operator it is the update of parameters of ``extents[0]`` bytes."""

    family: str
    extents: Extents
    operator: Operator | None
    round: int = 0


def measure_one(
    profile: Profile,
    measurer: Measurer,
    graph: OperatorGraph,
    operator: Operator,
    family: str,
    extents: Extents,
) -> Measured:
    """What the profile has, or will have once this process or the one at it has measured."""
    item = _Item(family=family, extents=extents, operator=operator)
    with Claims(profile.path) as claims:
        while True:
            found = _settled(profile, claims, measurer, graph, item)
            if found is not None:
                return found[0]
            time.sleep(_POLL_S)


def measure_missing(
    profile: Profile,
    measurer: Measurer,
    graph: OperatorGraph,
    anchors: Sequence[Anchor],
    optimizer: str,
    sizes: Sequence[int],
    listen: Callable[[Progress], None],
    *,
    rounds: int = 1,
) -> int:
    """Measures what the profile lacks of anchors and updates; returns how often this process measured.

    In each round everything is measured once, before anything is measured once more: the speed of a machine
    changes for seconds at a time, and so not all rounds of a shard are within one such time.

    What another process is measuring is left for the end, and waited for. May be interrupted at any moment:
    what was measured is in the profile, and the next call goes on.

    Args:
        profile: Where to.
        measurer: Measures.
        graph: The model of the anchors.
        anchors: Shards to measure.
        optimizer: Whose updates to measure.
        sizes: Bytes of the updates.
        listen: Called before each measurement and at the end.
        rounds: How often each is measured in all; what the profile has counts.
    """
    things = [
        _Item(family=a.family, extents=a.extents, operator=graph.operators[a.operator]) for a in anchors
    ]
    things += [_Item(family=f"{UPDATE}{optimizer}", extents=(size,), operator=None) for size in sizes]
    there = {(row.family, row.extents): row for row in profile.all(measurer.setting)}
    total, measured = rounds * len(things), 0
    with Claims(profile.path) as claims:
        for number in range(rounds):
            missing = [
                replace(item, round=number)
                for item in things
                if not _has(there.get((item.family, item.extents)), number)
            ]
            end = (number + 1) * len(things)

            def begin(item: _Item, left: int, now: int, *, end: int = end, before: int = measured) -> None:
                listen(Progress(done=end - left, total=total, measured=before + now, name=_name(item)))

            measured += _settle_all(profile, claims, measurer, graph, missing, begin)
    listen(Progress(done=total, total=total, measured=measured, name=""))
    return measured


def _settle_all(
    profile: Profile,
    claims: Claims,
    measurer: Measurer,
    graph: OperatorGraph,
    missing: Sequence[_Item],
    begin: Callable[[_Item, int, int], None],
) -> int:
    """Settles all items, those that others are at last; returns how many this process measured.

    `begin` is called before each with the item, how many are left, and how many were measured.
    """
    waiting, left, measured = list(missing), len(missing), 0
    while waiting:
        busy: list[_Item] = []
        for item in waiting:
            begin(item, left, measured)
            found = _settled(profile, claims, measurer, graph, item)
            if found is None:
                busy.append(item)
            else:
                left -= 1
                measured += found[1]
        if len(busy) == len(waiting):
            time.sleep(_POLL_S)
        waiting = busy
    return measured


def _has(row: Measured | None, number: int) -> bool:
    """Whether a row has round `number`; what cannot be measured is tried once."""
    return row is not None and (row.times is None or row.rounds > number)


def _settled(
    profile: Profile, claims: Claims, measurer: Measurer, graph: OperatorGraph, item: _Item
) -> tuple[Measured, bool] | None:
    """The row, and whether it was measured just now; None while another process is at it."""
    setting = measurer.setting
    claim = f"{setting} {setting.compute_dtype} {item.family} {item.extents}"
    if not claims.take(claim):
        return None
    try:
        # Only now: who had the claim before may have measured it.
        row = profile.get(setting, item.family, item.extents)
        if row is not None and _has(row, item.round):
            return row, False
        found = _measured(measurer, graph, item)
        if row is None:
            profile.put(setting, found)
        elif found.times is not None:
            profile.put_again(setting, item.family, item.extents, found.times)
        return found, True
    finally:
        claims.give_back(claim)


def _measured(measurer: Measurer, graph: OperatorGraph, item: _Item) -> Measured:
    operator = item.operator
    try:
        if operator is None:
            times = measurer.measure_update(item.family.removeprefix(UPDATE), item.extents[0])
        else:
            times = measurer.measure_task(graph, operator, item.extents)
    except UnmeasurableError as error:
        reason = str(error)
        return Measured(family=item.family, extents=item.extents, kind=_kind(item), times=None, reason=reason)
    return Measured(family=item.family, extents=item.extents, kind=_kind(item), times=times)


def _kind(item: _Item) -> str:
    return "update" if item.operator is None else item.operator.kind


def _name(item: _Item) -> str:
    return item.family if item.operator is None else item.operator.name


def deviations(
    rows: Sequence[Measured],
    graph: OperatorGraph,
    anchors: Sequence[Anchor],
    roofline: RooflineCostModel,
    device_type: DeviceType,
) -> Iterator[Deviation]:
    """What was measured of the anchors beside the roofline's times, the farthest first."""
    times = {(row.family, row.extents): row.times for row in rows}
    found = []
    for anchor in anchors:
        measured = times.get((anchor.family, anchor.extents))
        if measured is None:
            continue
        operator = graph.operators[anchor.operator]
        plain = roofline.task_time(graph, operator, shard_at(graph, operator, anchor.extents), device_type)
        deviation = Deviation(
            operator=operator.name,
            kind=operator.kind,
            extents=anchor.extents,
            measured_s=measured.forward_s + measured.backward_s,
            roofline_s=plain.forward_s + plain.backward_s,
        )
        if deviation.measured_s > 0 and deviation.roofline_s > 0:
            found.append(deviation)
    yield from sorted(found, key=lambda d: -abs(log(d.ratio)))
