"""The cost model of measured times.

A task's time is, in this order of preference,

- *measured*: a shard of the same family with the same extents was measured;
- *interpolated*: between measured shards of the family (`soaprl.cost.profiled.interpolation`);
- *roofline*: nothing of the family is near. The roofline's time is scaled by the median ratio of measured to
  roofline times of this kind of operator, or of all: an unmeasured operator must not look fast only because
  nobody looked.

With a measurer, what is missing at the corners of a shard's cell is measured when it is asked for, once, into
the profile. What a model has answered it answers again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

from soaprl.cluster.cluster import DeviceType
from soaprl.cost.model import Shard, TaskTime
from soaprl.cost.profiled.family import family_of, shard_at
from soaprl.cost.profiled.interpolation import (
    LogRatios,
    around,
    between,
    cell,
    inside,
    log_ratio,
    scaled,
    update_time,
)
from soaprl.cost.profiled.measurement import Extents, Measured, Measurement, Measurer, Setting
from soaprl.cost.profiled.plan import corners
from soaprl.cost.profiled.session import UPDATE, measure_one
from soaprl.cost.profiled.store import Profile
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import CostError
from soaprl.graph.operators import Operator, OperatorGraph

Source: TypeAlias = Literal["measured", "interpolated", "roofline"]
_ANY = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Which of a profile's settings to use where it has several for a device type; None: the last one."""

    threads: int | None = None
    torch_version: str | None = None


@dataclass(slots=True, kw_only=True)
class _Device:
    """What is known of one device type.

    Attributes:
        setting: What its times hold for.
        profile: Where they are from.
        measurer: Measures what is missing; None where nothing can.
        families: Times by family and extents; None for what cannot be measured.
        updates: Times of updates by optimizer and bytes.
        initial: What `families` had at first, failures aside.
    """

    setting: Setting
    profile: Path
    measurer: Measurer | None
    families: dict[str, dict[Extents, Measurement | None]] = field(default_factory=dict)
    updates: dict[str, dict[int, float]] = field(default_factory=dict)
    initial: dict[str, dict[Extents, Measurement]] = field(default_factory=dict)

    def enter(self, row: Measured) -> None:
        if row.family.startswith(UPDATE):
            if row.times is not None:
                name = row.family.removeprefix(UPDATE)
                self.updates.setdefault(name, {})[row.extents[0]] = row.times.forward_s
            return
        self.families.setdefault(row.family, {})[row.extents] = row.times


class ProfiledCostModel:
    """Times of tasks from profiles.

    Args:
        profiles: Files; each device type takes the first that knows it.
        roofline: For what is not measured, and the shape of what is interpolated.
        settings: Which settings of a profile to use.
        measurers: Measure what is missing, by the device type of their setting, into the first profile.

    Raises:
        CostError: A profile cannot be read.
    """

    def __init__(
        self,
        profiles: Sequence[Path],
        roofline: RooflineCostModel,
        *,
        settings: Settings | None = None,
        measurers: Sequence[Measurer] = (),
    ) -> None:
        if not profiles:
            raise CostError("expected at least one profile, found none.")
        self.profiles, self.roofline = tuple(profiles), roofline
        self._settings = settings or Settings()
        self._devices: dict[str, _Device] = {}
        for measurer in measurers:
            device = _Device(setting=measurer.setting, profile=profiles[0], measurer=measurer)
            self._devices[measurer.setting.device_type] = device
        for path in profiles:
            self._read(path)
        self._families: dict[int, tuple[Operator, str]] = {}
        self._answers: dict[tuple[str, str, Shard], tuple[TaskTime, Source]] = {}
        # By graph and device type, the medians by kind; graphs are kept, so that their ids stay theirs.
        self._medians: dict[tuple[int, str], tuple[OperatorGraph, dict[str, LogRatios]]] = {}

    def _read(self, path: Path) -> None:
        with Profile(path, create=bool(self._devices)) as profile:
            found: dict[str, Setting] = {}
            for setting in profile.settings():
                if self._fits(setting):
                    found[setting.device_type] = setting
            for name, setting in found.items():
                device = self._devices.setdefault(name, _Device(setting=setting, profile=path, measurer=None))
                if device.profile == path:
                    for row in profile.all(device.setting):
                        device.enter(row)
                    device.initial = {f: _there(times) for f, times in device.families.items()}

    def _fits(self, setting: Setting) -> bool:
        wanted = self._settings
        return (
            setting.compute_dtype == self.roofline.compute_dtype
            and wanted.threads in (None, setting.threads, 0)
            and wanted.torch_version in (None, setting.torch_version)
        )

    @property
    def name(self) -> str:
        """Names the profiles, what they were measured on, and the roofline for the rest."""
        known = "; ".join(str(device.setting) for device in self._devices.values()) or "nothing that fits"
        files = ", ".join(path.name for path in self.profiles)
        return f"profiled({files}: {known}; else {self.roofline.name})"

    @property
    def device_types(self) -> tuple[str, ...]:
        """Names of the device types that there are measurements of, or can be."""
        return tuple(self._devices)

    def setting(self, device_type: str) -> Setting | None:
        """What the times of a device type hold for; None where there are none."""
        device = self._devices.get(device_type)
        return None if device is None else device.setting

    def task_time(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> TaskTime:
        """Time of one task of `operator` with the size `shard` on a device of `device_type`."""
        return self._answer(graph, operator, shard, device_type)[0]

    def source(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> Source:
        """Where the time of a task comes from."""
        return self._answer(graph, operator, shard, device_type)[1]

    def update_time(self, num_bytes: int, device_type: DeviceType) -> float:
        """Seconds of the optimizer's update of parameters of `num_bytes`; 0 for nothing."""
        device = self._devices.get(device_type.name)
        sizes = {} if device is None else device.updates.get(self.roofline.optimizer.name, {})
        if not sizes or num_bytes <= 0:
            return self.roofline.update_time(num_bytes, device_type)
        return update_time(sizes, num_bytes)

    def _answer(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> tuple[TaskTime, Source]:
        key = (device_type.name, self.family(graph, operator), shard)
        if key not in self._answers:
            self._answers[key] = self._found(graph, operator, shard, device_type)
        return self._answers[key]

    def family(self, graph: OperatorGraph, operator: Operator) -> str:
        """The family of an operator, worked out once."""
        known = self._families.get(id(operator))
        if known is None or known[0] is not operator:
            # The operator is kept, so that its id stays its own.
            known = self._families[id(operator)] = (operator, family_of(graph, operator))
        return known[1]

    def _found(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> tuple[TaskTime, Source]:
        plain = self.roofline.task_time(graph, operator, shard, device_type)
        device = self._devices.get(device_type.name)
        if device is None:
            return plain, "roofline"
        family, near = self.family(graph, operator), corners(operator, shard.extents)
        if device.measurer is not None:
            self._measure(device, graph, operator, family, cell(near))
        known = _there(device.families.get(family, {}))
        exact = known.get(shard.extents)
        if exact is not None and shard_at(graph, operator, shard.extents) == shard:
            return _timed(exact.forward_s, exact.backward_s, "measured")
        ratios = self._log_ratios(graph, operator, known, device_type)
        source: Source = "roofline"
        if shard.extents in ratios:
            found, source = ratios[shard.extents], "measured"
        elif ratios and all(corner in ratios for corner in cell(near)):
            found, source = between(near, shard.extents, ratios), "interpolated"
        elif ratios:
            found = around(shard.extents, ratios)
            source = "interpolated" if inside(shard.extents, list(ratios)) else "roofline"
        else:
            found = self._kind_ratios(graph, operator.kind, device, device_type)
        return _timed(scaled(plain.forward_s, found[0]), scaled(plain.backward_s, found[1]), source)

    def _log_ratios(
        self,
        graph: OperatorGraph,
        operator: Operator,
        known: Mapping[Extents, Measurement],
        device_type: DeviceType,
    ) -> dict[Extents, LogRatios]:
        """Measured over roofline, of the measured shards of an operator's family."""
        ratios = {}
        for extents, times in known.items():
            shard = shard_at(graph, operator, extents)
            plain = self.roofline.task_time(graph, operator, shard, device_type)
            forward, backward = times.forward_s, times.backward_s
            ratios[extents] = log_ratio(forward, plain.forward_s), log_ratio(backward, plain.backward_s)
        return ratios

    def _kind_ratios(
        self, graph: OperatorGraph, kind: str, device: _Device, device_type: DeviceType
    ) -> LogRatios:
        """The medians of an operator kind, or of all kinds, over what of the graph was known at first."""
        key = id(graph), device.setting.device_type
        if key not in self._medians or self._medians[key][0] is not graph:
            by_kind: dict[str, list[LogRatios]] = {}
            for operator in graph.operators:
                known = device.initial.get(self.family(graph, operator), {})
                found = self._log_ratios(graph, operator, known, device_type).values()
                by_kind.setdefault(operator.kind, []).extend(found)
                by_kind.setdefault(_ANY, []).extend(found)
            self._medians[key] = graph, {k: _median(ratios) for k, ratios in by_kind.items() if ratios}
        medians = self._medians[key][1]
        return medians.get(kind, medians.get(_ANY, (0.0, 0.0)))

    def _measure(
        self,
        device: _Device,
        graph: OperatorGraph,
        operator: Operator,
        family: str,
        wanted: Sequence[Extents],
    ) -> None:
        known: Mapping[Extents, Measurement | None] = device.families.get(family, {})
        missing = [extents for extents in wanted if extents not in known]
        if missing and device.measurer is not None:
            with Profile(device.profile, create=True) as profile:
                for extents in missing:
                    device.enter(measure_one(profile, device.measurer, graph, operator, family, extents))

    def __getstate__(self) -> dict[str, Any]:
        # What is known by the identity of operators and graphs does not travel.
        return {**self.__dict__, "_families": {}, "_medians": {}}


def _timed(forward_s: float, backward_s: float, source: Source) -> tuple[TaskTime, Source]:
    measured = source != "roofline"
    return TaskTime(forward_s=forward_s, backward_s=backward_s, measured=measured), source


def _there(times: Mapping[Extents, Measurement | None]) -> dict[Extents, Measurement]:
    return {extents: time for extents, time in times.items() if time is not None}


def _median(ratios: Sequence[LogRatios]) -> LogRatios:
    return median(r[0] for r in ratios), median(r[1] for r in ratios)
