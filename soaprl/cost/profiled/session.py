"""Measuring what a profile lacks: each thing once, however many processes work on it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
        done: Shards that are in the profile, or cannot be measured.
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
) -> int:
    """Measures what the profile lacks of anchors and updates; returns how many this process measured.

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
    """
    items = [_Item(family=a.family, extents=a.extents, operator=graph.operators[a.operator]) for a in anchors]
    items += [_Item(family=f"{UPDATE}{optimizer}", extents=(size,), operator=None) for size in sizes]
    there = {(row.family, row.extents) for row in profile.all(measurer.setting)}
    waiting = [item for item in items if (item.family, item.extents) not in there]
    measured = 0
    with Claims(profile.path) as claims:
        while waiting:
            left: list[_Item] = []
            for number, item in enumerate(waiting):
                done = len(items) - len(waiting) + number - len(left)
                listen(Progress(done=done, total=len(items), measured=measured, name=_name(item)))
                found = _settled(profile, claims, measurer, graph, item)
                if found is None:
                    left.append(item)
                else:
                    measured += found[1]
            if len(left) == len(waiting):
                time.sleep(_POLL_S)
            waiting = left
    listen(Progress(done=len(items), total=len(items), measured=measured, name=""))
    return measured


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
        if row is not None:
            return row, False
        row = _measured(measurer, graph, item)
        profile.put(setting, row)
        return row, True
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
