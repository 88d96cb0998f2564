"""Throughput of each GPU under data parallelism, an expert's strategy and MCMC (the paper's figure 7).

Writes ``throughput.md``: the six models on 1 to 16 P100 and on 1 to 64 K80, with the paper's assumptions and
with ours.
"""

from dataclasses import dataclass

from benchmarks.paper.cases import EXPERTS, HERE, MODELS, Case, machine, run, table, workers
from soaprl.atomic import write_text_atomic
from soaprl.simulator import simulate

CLUSTERS = {
    "P100": ("p100-1x1", "p100-1x2", "p100-1x4", "p100-2x4", "p100-4x4"),
    "K80": ("k80-1x1", "k80-1x2", "k80-1x4", "k80-2x4", "k80-4x4", "k80-8x4", "k80-16x4"),
}
EVALUATIONS = 20_000
_COLUMNS = (
    "model",
    "devices",
    "data parallelism",
    "expert",
    "MCMC",
    "MCMC / data parallelism",
    "MCMC / better of both",
    "computing",
    "search s",
)
_TEXT = """\
# Throughput of each GPU

{machine}. Written by `python -m benchmarks.paper throughput`; {evaluations:,} evaluations, seed 0.

Samples a second for each device, as the simulator says; the batch for each device is the paper's. *Expert*:
one weird trick for convolutional models, GNMT's for recurrent ones; - where it does not apply. *Computing*:
the share of a data-parallel iteration in which the busiest device computes, so that its inverse bounds what a
strategy can gain that computes as long.

The paper reports 1.3x to 3.3x over data parallelism and experts' strategies, and about 1x for ResNet-101.

{verdict}

{tables}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One problem; samples a second for each device, 0 where a method refuses."""

    case: Case
    num_devices: int
    data_parallel: float
    expert: float
    mcmc: float
    computing: float
    search_s: float

    @property
    def speedup(self) -> float:
        """Of MCMC over data parallelism."""
        return self.mcmc / self.data_parallel

    @property
    def over_both(self) -> float:
        """Of MCMC over the better one of data parallelism and expert."""
        return self.mcmc / max(self.data_parallel, self.expert)

    def cells(self) -> tuple[str, ...]:
        """The line of the table."""
        return (
            self.case.model,
            str(self.num_devices),
            f"{self.data_parallel:,.1f}",
            f"{self.expert:,.1f}" if self.expert > 0 else "-",
            f"{self.mcmc:,.1f}",
            f"{self.speedup:.3f}x",
            f"{self.over_both:.3f}x",
            f"{self.computing:.1%}",
            f"{self.search_s:,.1f}",
        )


def measure(case: Case) -> Row:
    """Runs the three methods."""
    problem = case.problem()
    num_devices, batch_size = problem.cluster.num_devices, problem.graph.batch_size
    results = [run(problem, method, EVALUATIONS) for method in ("data-parallel", EXPERTS[case.model], "mcmc")]
    rates = [0.0 if r is None else batch_size / r.evaluation.iteration_time_s / num_devices for r in results]
    start, found = results[0], results[2]
    assert start is not None
    assert found is not None
    detail = simulate(problem, start.strategy)
    return Row(
        case=case,
        num_devices=num_devices,
        data_parallel=rates[0],
        expert=rates[1],
        mcmc=rates[2],
        computing=float(detail.device_busy_s.max()) / detail.iteration_time_s,
        search_s=found.search_time_s,
    )


def cases() -> list[Case]:
    """All problems, largest first, so that no worker ends long after the others."""
    found = [
        Case(model=model, cluster=cluster, paper=paper)
        for clusters in CLUSTERS.values()
        for cluster in reversed(clusters)
        for model in MODELS
        for paper in (True, False)
    ]
    return sorted(found, key=lambda case: -_num_devices(case.cluster))


def _num_devices(cluster: str) -> int:
    nodes, devices = cluster.split("-")[1].split("x")
    return int(nodes) * int(devices)


def _verdict(rows: list[Row]) -> str:
    """What the largest clusters show, in a sentence for each kind of assumptions."""
    lines = []
    for kind, clusters in CLUSTERS.items():
        for paper in (True, False):
            here = [row for row in rows if row.case.cluster == clusters[-1] and row.case.paper == paper]
            gains = ", ".join(f"{row.case.model} {row.speedup:.2f}x" for row in here)
            lines.append(f"- {here[0].num_devices} {kind}, assumptions: {here[0].case.assumptions}: {gains}.")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the tables."""
    with workers() as pool:
        rows = list(pool.map(measure, cases()))
    rows.sort(key=lambda row: (MODELS.index(row.case.model), row.num_devices))
    tables = []
    for kind, clusters in CLUSTERS.items():
        for paper in (True, False):
            here = [row for row in rows if row.case.cluster in clusters and row.case.paper == paper]
            tables.append(f"## {kind}, assumptions: {here[0].case.assumptions}\n")
            tables.append(table(_COLUMNS, (row.cells() for row in here)) + "\n")
    text = _TEXT.format(
        machine=machine(), evaluations=EVALUATIONS, verdict=_verdict(rows), tables="\n".join(tables).rstrip()
    )
    write_text_atomic(HERE / "throughput.md", text)


if __name__ == "__main__":
    main()
