"""What this machine has to measure on, and which of a cluster's device types that stands for."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from soaprl.cluster.devices import device_type_names
from soaprl.cost.profiled.measurement import Setting
from soaprl.errors import CostError

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A device to measure on.

    Attributes:
        device: ``cpu``, or ``cuda`` for the current GPU.
        threads: Of the process, on a CPU.
    """

    device: str = "cpu"
    threads: int = 1


def device_name(machine: Machine) -> str:
    """What the driver calls the GPU, or the system the processor."""
    if machine.device == "cuda":
        return str(torch.cuda.get_device_name())
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()


def setting_of(machine: Machine, device_type: str, *, compute_dtype: str = "float32") -> Setting:
    """What times measured on the machine hold for.

    Args:
        machine: The device.
        device_type: Name of the cluster's device type that it stands for.
        compute_dtype: As in `RooflineCostModel`.
    """
    return Setting(
        device_type=device_type,
        device_name=device_name(machine),
        threads=machine.threads if machine.device == "cpu" else 0,
        torch_version=str(torch.__version__),
        compute_dtype=compute_dtype,
    )


def choose_machine(
    device_types: Sequence[str], wanted: str | None, *, device: str | None, threads: int
) -> tuple[Machine, str]:
    """The device of this machine to measure on, and the name of the type that it stands for.

    A type whose name is a part of the GPU's name is measured on the GPU; ``cpu`` on the processor. Anything
    else must be said.

    Args:
        device_types: Names of the cluster's types.
        wanted: The one that the user names.
        device: ``cpu`` or ``cuda`` as the user names it.
        threads: Of the process, on a CPU.

    Raises:
        CostError: Nothing here stands for any of the types.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    if device == "cuda" and not gpu:
        raise CostError("expected a GPU for --device cuda, found none that PyTorch can use.")
    if wanted is not None:
        if wanted not in device_types:
            raise CostError(f"expected a --device-type of {', '.join(device_types)}, found {wanted!r}.")
        chosen = device or _device_of(wanted, gpu) or ("cuda" if gpu else "cpu")
        return Machine(device=chosen, threads=threads), wanted
    for name in device_types:
        found = _device_of(name, gpu)
        if found is not None and device in (None, found):
            return Machine(device=found, threads=threads), name
    raise CostError(
        f"expected a device of a type of the cluster ({', '.join(device_types)}) on this machine, found"
        f" {gpu + ' and ' if gpu else ''}a processor: measure on a machine that has one and carry the profile"
        " here, or name with --device-type which type the device at hand stands for."
    )


def type_of_machine(machine: Machine) -> str:
    """The preset device type that the machine is: ``cpu``, or the one whose name is in the GPU's.

    Raises:
        CostError: The GPU is of none of them.
    """
    if machine.device == "cpu":
        return "cpu"
    name = device_name(machine)
    for known in device_type_names():
        if known != "cpu" and known in name.lower():
            return known
    raise CostError(
        f"expected a GPU of a type in {', '.join(device_type_names())}, found {name}: name with --device-type"
        " the one that is closest."
    )


def _device_of(device_type: str, gpu: str) -> str | None:
    """``cpu``, ``cuda``, or None where the name of a type does not tell."""
    if device_type == "cpu":
        return "cpu"
    return "cuda" if device_type.lower() in gpu.lower() else None
