"""Measured costs: a profile file, what is measured for a model, and the cost model that reads both.

Nothing here runs a kernel. What does is a `Measurer`, which is handed in
(`soaprl.runtime.measuring.ShardMeasurer` is the one for this machine), because the runtime's rules execute a
shard, and the runtime lies above the costs.
"""

from soaprl.cost.profiled.measurement import (
    Measured,
    Measurement,
    Measurer,
    Setting,
    UnmeasurableError,
)
from soaprl.cost.profiled.model import ProfiledCostModel, Settings
from soaprl.cost.profiled.plan import Anchor, plan_anchors, update_sizes
from soaprl.cost.profiled.session import Progress, deviations, measure_missing
from soaprl.cost.profiled.sources import Sources, sources_of
from soaprl.cost.profiled.store import Profile

__all__ = [
    "Anchor",
    "Measured",
    "Measurement",
    "Measurer",
    "Profile",
    "ProfiledCostModel",
    "Progress",
    "Setting",
    "Settings",
    "Sources",
    "UnmeasurableError",
    "deviations",
    "measure_missing",
    "plan_anchors",
    "sources_of",
    "update_sizes",
]
