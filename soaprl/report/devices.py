"""What each device holds and does in a simulated iteration."""

from typing import Any

from soaprl.report.units import format_bytes
from soaprl.simulator.folding import FoldedResult
from soaprl.simulator.result import SimulationResult

DEVICE_COLUMNS = (
    "device", "parameters", "gradients", "optimizer", "activations", "communication", "peak", "of", "busy"
)  # fmt: skip
_PARTS = (
    "parameters_bytes",
    "gradients_bytes",
    "optimizer_bytes",
    "activations_bytes",
    "communication_bytes",
    "peak_bytes",
)


def device_records(result: SimulationResult | FoldedResult) -> list[dict[str, Any]]:
    """For each device its name, memory (bytes by use, at the peak; the capacity), and busy time (seconds)."""
    cluster, memory = result.problem.cluster, result.memory
    columns = {name: getattr(memory, name).tolist() for name in _PARTS}
    return [
        {
            "name": device.name,
            **{name: values[index] for name, values in columns.items()},
            "capacity_bytes": cluster.device_types[device.type].memory_bytes,
            "busy_s": float(result.device_busy_s[index]),
        }
        for index, device in enumerate(cluster.devices)
    ]


def device_rows(result: SimulationResult | FoldedResult) -> list[tuple[str, ...]]:
    """The same as text, under `DEVICE_COLUMNS`; busy as a share of the iteration."""
    return [
        (
            record["name"],
            *(format_bytes(record[name]) for name in (*_PARTS, "capacity_bytes")),
            f"{100 * record['busy_s'] / result.iteration_time_s:.0f} %",
        )
        for record in device_records(result)
    ]
