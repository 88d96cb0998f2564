"""Device types by name, with where each of their numbers comes from."""

from dataclasses import dataclass

from soaprl.cluster.cluster import DeviceType
from soaprl.errors import unknown_name

_GB = 10**9
_TERA = 1e12

_EFFICIENCY = "assumed: large matrix kernels reach about 0.7 of the datasheet's peak in published benchmarks"
_MEMORY_EFFICIENCY = "assumed: stream-like kernels reach about 0.8 of the datasheet's memory bandwidth"
_LAUNCH = "assumed: small kernels follow each other every 5 to 10 us from PyTorch"
_CPU = "measured 2026-11-22: one of 2 cores of an AMD EPYC virtual machine, torch 2.13"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Datasheet:
    """What a manufacturer states: TFLOP/s (dense) by dtype, GB/s, GB."""

    title: str
    teraflops: tuple[tuple[str, float], ...]
    memory_gb_per_s: float
    memory_gb: int


_DATASHEETS = {
    "k80": _Datasheet(
        title="NVIDIA Tesla K80, one of its two dies, at boost clock",
        teraflops=(("float32", 4.4), ("float16", 4.4), ("float64", 1.45)),
        memory_gb_per_s=240,
        memory_gb=12,
    ),
    "p100": _Datasheet(
        title="NVIDIA Tesla P100 SXM2",
        teraflops=(("float32", 10.6), ("float16", 21.2), ("float64", 5.3)),
        memory_gb_per_s=732,
        memory_gb=16,
    ),
    "v100": _Datasheet(
        title="NVIDIA Tesla V100 SXM2 32 GB",
        teraflops=(("float32", 15.7), ("float16", 125.0), ("float64", 7.8)),
        memory_gb_per_s=900,
        memory_gb=32,
    ),
    "a100": _Datasheet(
        title="NVIDIA A100 SXM4 80 GB",
        teraflops=(
            ("float32", 19.5),
            ("tf32", 156.0),
            ("float16", 312.0),
            ("bfloat16", 312.0),
            ("float64", 19.5),
        ),
        memory_gb_per_s=2039,
        memory_gb=80,
    ),
    "h100": _Datasheet(
        title="NVIDIA H100 SXM5 80 GB",
        teraflops=(
            ("float32", 67.0),
            ("tf32", 494.0),
            ("float16", 989.0),
            ("bfloat16", 989.0),
            ("float64", 67.0),
        ),
        memory_gb_per_s=3350,
        memory_gb=80,
    ),
    "h200": _Datasheet(
        title="NVIDIA H200 SXM5 141 GB",
        teraflops=(
            ("float32", 67.0),
            ("tf32", 494.0),
            ("float16", 989.0),
            ("bfloat16", 989.0),
            ("float64", 67.0),
        ),
        memory_gb_per_s=4800,
        memory_gb=141,
    ),
    "b200": _Datasheet(
        title="NVIDIA B200 SXM",
        teraflops=(
            ("float32", 80.0),
            ("tf32", 1125.0),
            ("float16", 2250.0),
            ("bfloat16", 2250.0),
            ("float64", 40.0),
        ),
        memory_gb_per_s=8000,
        memory_gb=192,
    ),
}


def device_type_names() -> tuple[str, ...]:
    """Names that `device_type` knows."""
    return (*_DATASHEETS, "cpu")


def device_type(name: str) -> DeviceType:
    """The device type called `name`.

    Raises:
        UnknownNameError: There is no such type.
    """
    if name == "cpu":
        return _cpu()
    if name not in _DATASHEETS:
        raise unknown_name("device type", name, device_type_names())
    sheet = _DATASHEETS[name]
    source = f"datasheet: {sheet.title}"
    # K80 dies compute half precision at the speed of single precision: there it only saves memory.
    half = " (half precision runs at single speed)" if name == "k80" else ""
    return DeviceType(
        name=name,
        peak_flops_per_s=tuple((dtype, tera * _TERA) for dtype, tera in sheet.teraflops),
        memory_bytes=sheet.memory_gb * _GB,
        memory_bandwidth_bytes_per_s=sheet.memory_gb_per_s * 1e9,
        kernel_launch_s=7e-6,
        matmul_efficiency=0.7,
        memory_efficiency=0.8,
        provenance=(
            ("peak_flops_per_s", source + half),
            ("memory_bytes", source),
            ("memory_bandwidth_bytes_per_s", source),
            ("kernel_launch_s", _LAUNCH),
            ("matmul_efficiency", _EFFICIENCY),
            ("memory_efficiency", _MEMORY_EFFICIENCY),
        ),
    )


def _cpu() -> DeviceType:
    """One process on one core of this kind of machine; what it reaches stands for its peak."""
    return DeviceType(
        name="cpu",
        peak_flops_per_s=(("float32", 100e9), ("float64", 50e9)),
        memory_bytes=4 * _GB,
        memory_bandwidth_bytes_per_s=40e9,
        kernel_launch_s=2.2e-6,
        matmul_efficiency=1.0,
        memory_efficiency=1.0,
        provenance=(
            ("peak_flops_per_s", f"{_CPU}: float32 product of 1024 x 1024 matrices; float64 assumed half"),
            ("memory_bytes", "assumed: a fair share of a small machine for each process"),
            ("memory_bandwidth_bytes_per_s", f"{_CPU}: addition over 64 MiB, read and written"),
            ("kernel_launch_s", f"{_CPU}: addition of 4 numbers"),
            ("matmul_efficiency", "by definition: the peak is a measured one"),
            ("memory_efficiency", "by definition: the bandwidth is a measured one"),
        ),
    )
