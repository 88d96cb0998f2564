"""What `soaprl profile` does: measures with a bar, and sets what it found beside the roofline."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from soaprl.atomic import check_writable
from soaprl.cli.inputs import Prepared
from soaprl.cli.output import print_table, progress_bar, say
from soaprl.cost.profiled import (
    Measured,
    Profile,
    Progress,
    Setting,
    deviations,
    measure_missing,
    plan_anchors,
    update_sizes,
)
from soaprl.cost.profiled.session import Deviation
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import CostError, unknown_name
from soaprl.report.units import format_seconds
from soaprl.simulator.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_FILE = Path("profile.db")
DEVICES = ("cpu", "cuda")
_UPDATE = "update"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """What a session brought.

    Attributes:
        path: The profile.
        setting: What was measured on.
        num_shards: What the model needs.
        rounds: How often each of them is measured.
        num_measured: How many measurements were made just now.
        unmeasurable: What could not be, with the reason.
        deviations: From the roofline, the farthest first.
    """

    path: Path
    setting: Setting
    num_shards: int
    rounds: int
    num_measured: int
    unmeasurable: tuple[Measured, ...]
    deviations: tuple[Deviation, ...]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "profile": str(self.path),
            "device_type": self.setting.device_type,
            "device_name": self.setting.device_name,
            "threads": self.setting.threads,
            "torch_version": self.setting.torch_version,
            "num_shards": self.num_shards,
            "rounds": self.rounds,
            "num_measured": self.num_measured,
            "unmeasurable": [{"kind": row.kind, "reason": row.reason} for row in self.unmeasurable],
            "median_ratio_to_roofline": median(d.ratio for d in self.deviations) if self.deviations else None,
            "deviations": [
                {
                    "operator": d.operator,
                    "kind": d.kind,
                    "extents": list(d.extents),
                    "measured_s": d.measured_s,
                    "roofline_s": d.roofline_s,
                }
                for d in self.deviations
            ],
        }


def check_words(
    model: str | None, cluster: str | None, device: str | None, *, rounds: int, links: bool
) -> None:
    """Raises the error of what the command line lacks or has too much."""
    if device is not None and device not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    if links and (model is not None or cluster is not None):
        raise CostError("--links measures the links of a job and needs no MODEL and no --cluster.")
    if links and rounds > 1:
        raise CostError("--links measures everything many times; --rounds is for the shards of a MODEL.")
    if not links and (model is None or cluster is None):
        raise CostError("expected a MODEL and --cluster, or --links under torchrun.")


def measure(
    prepared: Prepared,
    path: Path,
    *,
    device: str | None,
    device_type: str | None,
    threads: int,
    rounds: int = 1,
) -> Profiled:
    """Measures what the profile at `path` lacks of the prepared model.

    Raises:
        CostError: This machine has none of the cluster's device types, or the profile is wrong.
        OutputError: The profile cannot be written.
    """
    # torch takes seconds to import: only where something is measured.
    from soaprl.runtime.measuring import ShardMeasurer, choose_machine, setting_of

    check_writable(path)
    problem = prepared.problem
    graph, types = problem.graph, {kind.name: kind for kind in problem.cluster.device_types}
    machine, name = choose_machine(list(types), device_type, device=device, threads=threads)
    roofline = _roofline(problem)
    setting = setting_of(machine, name, compute_dtype=roofline.compute_dtype)
    anchors = plan_anchors(graph, problem.cluster.num_devices)
    sizes = update_sizes(graph, problem.cluster.num_devices)
    measurer = ShardMeasurer(setting=setting, flush=machine.device == "cuda")
    wanted = {anchor.family for anchor in anchors} | {f"{_UPDATE}/{problem.options.optimizer}"}
    with Profile(path, create=True) as profile, _shown(str(setting)) as listen:
        measured = measure_missing(
            profile, measurer, graph, anchors, problem.options.optimizer, sizes, listen, rounds=rounds
        )
        rows = [row for row in profile.all(setting) if row.family in wanted]
    return Profiled(
        path=path,
        setting=setting,
        num_shards=len(anchors) + len(sizes),
        rounds=rounds,
        num_measured=measured,
        unmeasurable=tuple(row for row in rows if row.times is None),
        deviations=tuple(deviations(rows, graph, anchors, roofline, types[name])),
    )


def _roofline(problem: Problem) -> RooflineCostModel:
    assert isinstance(problem.cost, RooflineCostModel), "profiles are made without one"
    return problem.cost


@contextmanager
def _shown(setting: str) -> "Iterator[Callable[[Progress], None]]":
    say(f"soaprl: measuring {setting}")
    with progress_bar() as display:
        bar = display.add_task("measuring", total=None, status="")

        def listen(progress: Progress) -> None:
            status = f"{progress.done} of {progress.total}  {progress.name}"
            display.update(bar, completed=progress.done, total=progress.total, status=status)

        yield listen


def print_profiled(title: str, profiled: Profiled, *, num_shown: int) -> None:
    """Prints how much was measured, and where the roofline is farthest from it."""
    shown = profiled.deviations[:num_shown]
    rows = [
        (
            d.operator,
            d.kind,
            " x ".join(map(str, d.extents)),
            format_seconds(d.measured_s),
            format_seconds(d.roofline_s),
            f"{d.ratio:.2f}x",
        )
        for d in shown
    ]
    if rows:
        columns = ("operator", "kind", "extents", "measured", "roofline", "ratio")
        print_table(f"{title}: farthest from the roofline", columns, rows)
    print_table(f"{title}: by kind of operator", ("kind", "shards", "median ratio"), _by_kind(profiled))
    done = profiled.num_shards * profiled.rounds - profiled.num_measured
    often = f" in {profiled.rounds} rounds" if profiled.rounds > 1 else ""
    say(
        f"soaprl: {profiled.num_shards} shards{often}: {profiled.num_measured} measured now, {done} known"
        f" before; wrote {profiled.path}"
    )
    for (kind, reason), count in Counter((row.kind, row.reason) for row in profiled.unmeasurable).items():
        say(f"soaprl: warning: {count} shards of {kind} cannot be measured and keep estimates: {reason}")


def _by_kind(profiled: Profiled) -> list[tuple[str, str, str]]:
    ratios: dict[str, list[float]] = {}
    for deviation in profiled.deviations:
        ratios.setdefault(deviation.kind, []).append(deviation.ratio)
    return [(kind, str(len(found)), f"{median(found):.2f}x") for kind, found in sorted(ratios.items())]
