"""What `soaprl profile --links` does: measures the links of a job, and writes them as a cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from soaprl.atomic import check_writable
from soaprl.cli.output import print_json, print_table, progress_bar, say
from soaprl.cluster.cluster import Cluster
from soaprl.cluster.devices import device_type as preset_type
from soaprl.cluster.files import save_cluster
from soaprl.cost.profiled.links import (
    PairLink,
    measured_cluster,
    predicted_all_reduces,
    with_collectives,
)
from soaprl.report.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from soaprl.runtime.measuring.links import MeasuredLinks

DEFAULT_FILE = Path("cluster.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """Measured links, and the cluster made of them."""

    measured: "MeasuredLinks"
    cluster: Cluster
    path: Path

    @property
    def all_reduce_error(self) -> float:
        """Median relative error of the collective model on the fitted links."""
        times = self.measured.all_reduces_s
        predicted = predicted_all_reduces(self.cluster, self.measured.sizes)
        return median(abs(p - t) / t for p, t in zip(predicted, times, strict=True))

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        measured = self.measured
        return {
            "cluster": str(self.path),
            "backend": measured.backend,
            "hosts": list(measured.hosts),
            "sizes_bytes": list(measured.sizes),
            "links": [
                {
                    "ranks": list(pair),
                    "latency_s": line.latency_s,
                    "bandwidth_bytes_per_s": line.bandwidth_bytes_per_s,
                    "fit_error": line.error,
                    "smallest_s": measured.smallest_s[pair],
                    "transfers_s": list(measured.transfers_s[pair]),
                }
                for pair, line in measured.lines.items()
            ],
            "all_reduces_s": list(measured.all_reduces_s),
            "predicted_all_reduces_s": predicted_all_reduces(self.cluster, measured.sizes),
            "all_reduce_error": self.all_reduce_error,
            "carry_s_per_byte": measured.carry_s_per_byte,
        }


def profile_links(path: Path, *, device: str | None, device_type: str | None, as_json: bool) -> None:
    """Measures the links of the job that this process is in; its first rank writes and prints.

    Args:
        path: The cluster file.
        device: ``cuda`` for a GPU each; otherwise tensors are in the CPU's memory.
        device_type: Of the devices; None: ``cpu``, or what the GPU's name has in it.
        as_json: Whether to print one JSON object.

    Raises:
        SoaprlError: This process is in no job, or the file cannot be written.
    """
    from soaprl.runtime.measuring import Machine, type_of_machine
    from soaprl.runtime.measuring.links import measure_job

    check_writable(path)
    kind = preset_type(device_type or type_of_machine(Machine(device=device or "cpu")))
    rank, measured = measure_job(device, _shown)
    if rank == 0:
        report = _report(measured, kind.name, path)
        save_cluster(report.cluster, path)
        if as_json:
            print_json(report.as_json())
        else:
            _print(report)


@contextmanager
def _shown(rank: int) -> Iterator[Callable[[int, int], None]]:
    if rank:
        yield lambda done, total: None
        return
    with progress_bar() as display:
        bar = display.add_task("measuring links", total=None, status="")

        def listen(done: int, total: int) -> None:
            display.update(bar, completed=done, total=total, status=f"{done} of {total}")

        yield listen


def _report(measured: "MeasuredLinks", device_type: str, path: Path) -> LinkReport:
    today, lines = datetime.now(UTC).date().isoformat(), measured.lines
    span = f"{format_bytes(measured.sizes[0])} to {format_bytes(measured.sizes[-1])}"
    provenance = (
        f"measured {today} on {' and '.join(dict.fromkeys(measured.hosts))}: {measured.backend}, {span} both"
        f" ways at once, median error of the fit {median(line.error for line in lines.values()):.0%}"
    )
    pairs = {
        pair: PairLink(latency_s=line.latency_s, bandwidth_bytes_per_s=line.bandwidth_bytes_per_s)
        for pair, line in lines.items()
    }
    links = measured_cluster(
        path.stem, measured.hosts, preset_type(device_type), pairs, provenance=provenance
    )
    cluster = with_collectives(links, measured.sizes, measured.all_reduces_s)
    overheads = replace(cluster.overheads, carry_s_per_byte=measured.carry_s_per_byte)
    cluster = replace(cluster, overheads=overheads)
    return LinkReport(measured=measured, cluster=cluster, path=path)


def _print(report: LinkReport) -> None:
    rows = [
        (
            f"{first} - {second}",
            format_seconds(line.latency_s),
            f"{format_bytes(line.bandwidth_bytes_per_s)}/s",
            f"{line.error:.0%}",
        )
        for (first, second), line in report.measured.lines.items()
    ]
    print_table("Links between ranks", ("ranks", "latency", "bandwidth", "error of the fit"), rows)
    predicted = predicted_all_reduces(report.cluster, report.measured.sizes)
    sums = [
        (format_bytes(size), format_seconds(time_s), format_seconds(model_s), f"{model_s / time_s:.2f}x")
        for size, time_s, model_s in zip(
            report.measured.sizes, report.measured.all_reduces_s, predicted, strict=True
        )
    ]
    print_table("Sums over all ranks", ("bytes", "measured", "by the cluster", "ratio"), sums)
    lost_ns = report.measured.carry_s_per_byte * 1e9
    say(f"soaprl: who computes loses {lost_ns:.2g} ns for each byte that comes or goes meanwhile")
    say(f"soaprl: wrote {report.path}; name it with --cluster")
