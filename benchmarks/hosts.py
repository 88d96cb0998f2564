"""Measures, on hosts with slow links, the strategy that a search found against data parallelism.

The latter also with gradients in fewer bits, which are one sixteenth of the bytes at best.

The hosts are imitated on one machine: a network namespace for each, joined by a bridge, every link limited by
a token bucket (``tc tbf``). Needs root, ``ip`` and ``tc``; namespaces are named ``soaprl-*`` and taken away
at the end. One process with one thread runs on each host; the strategies take turns.

    sudo python benchmarks/hosts.py --output benchmarks/hosts.md
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import nn

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.compression import compression_names
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph import zoo
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed import Groups, initialize_distributed
from soaprl.runtime.program import CompileOptions
from soaprl.runtime.training import graph_of_model
from soaprl.search.registry import search
from soaprl.search.task import Budget, SearchTask
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem, SimulationOptions
from soaprl.strategy.strategy import Strategy

NUM_HOSTS, PORT, SEED = 2, 29533, 0
MEGABIT_BYTES = 1e6 / 8
# Of 1514 bytes on the wire, 1448 are content.
TCP_SHARE = 1448 / 1514
MODELS: dict[str, tuple[str, int, dict[str, int | float]]] = {
    "AlexNet, quarter width, 16 images": (
        "alexnet",
        16,
        {"num_classes": 100, "width": 16, "linear_width": 1024, "dropout": 0.0},
    ),
    "RNNLM, hidden 256, vocabulary 4000, 10 steps, 16 sequences": (
        "rnnlm",
        16,
        {"vocabulary": 4000, "hidden": 256, "steps": 10, "chunk": 5},
    ),
}


# The hosts.


def name_of(host: int) -> str:
    """The network namespace of a host."""
    return f"soaprl-{host}"


def address_of(host: int) -> str:
    """The address of a host."""
    return f"10.77.0.{host + 1}"


def do(command: str) -> None:
    """Runs a command; its error ends the benchmark."""
    subprocess.run(command.split(), check=True)


@contextmanager
def hosts(num_hosts: int, megabits_per_s: float, burst_bytes: int = 2**16) -> Iterator[None]:
    """Hosts whose links carry this much in each direction after a burst at once; they are gone afterwards.

    What TCP hands to a network card at once, for the card to cut into packets, fits into a burst. A token
    bucket cuts what does not, in software, which takes more of the processors than all else about messages.
    """
    limit = f"tbf rate {megabits_per_s}mbit burst {burst_bytes} latency 500ms"
    at_once = f"gso_max_size {burst_bytes * 3 // 4}"
    switch = name_of(num_hosts)
    try:
        for host in range(num_hosts + 1):
            do(f"ip netns add {name_of(host)}")
            do(f"ip -n {name_of(host)} link set lo up")
        do(f"ip -n {switch} link add bridge0 type bridge")
        do(f"ip -n {switch} link set bridge0 up")
        for host in range(num_hosts):
            own = name_of(host)
            do(f"ip -n {own} link add wire type veth peer name port{host} netns {switch}")
            do(f"ip -n {own} address add {address_of(host)}/24 dev wire")
            do(f"ip -n {switch} link set port{host} master bridge0")
            do(f"ip -n {own} link set dev wire {at_once}")
            do(f"ip -n {switch} link set dev port{host} {at_once}")
            do(f"tc -n {own} qdisc add dev wire root {limit}")
            do(f"tc -n {switch} qdisc add dev port{host} root {limit}")
            do(f"ip -n {switch} link set port{host} up")
            do(f"ip -n {own} link set wire up")
        yield
    finally:
        for host in range(num_hosts + 1):
            subprocess.run(["ip", "netns", "del", name_of(host)], check=False, stderr=subprocess.DEVNULL)


def cluster_of(num_hosts: int, megabits_per_s: float) -> Cluster:
    """The hosts as the simulator sees them."""
    preset = cluster_from_name(f"cpu-{num_hosts}x1")
    bandwidth = megabits_per_s * MEGABIT_BYTES * TCP_SHARE
    links = tuple(
        replace(link, bandwidth_bytes_per_s=bandwidth, provenance="set by tc")
        if "fabric" in (link.source, link.target)
        else link
        for link in preset.links
    )
    return replace(preset, name=f"{num_hosts} hosts at {megabits_per_s:g} Mbit/s", links=links)


# Models and strategies.


def model_of(name: str) -> tuple[nn.Module, tuple[Any, ...], OperatorGraph]:
    """A model, a batch, and the graph."""
    kind, batch_size, options = MODELS[name]
    torch.manual_seed(SEED)
    module, args, *_ = zoo.build(kind, batch_size, **options)
    return module, tuple(args), graph_of_model(module, tuple(args), name=kind)


@dataclass(frozen=True)
class Contender:
    """A strategy, how its gradients travel, and what the simulator says of an iteration."""

    strategy: Strategy
    compression: str
    predicted_s: float


@dataclass(frozen=True)
class Chosen:
    """What is compared for one model: its name here, and contenders by their names."""

    model: str
    contenders: dict[str, Contender]


def chosen(name: str, cluster: Cluster, evaluations: int) -> Chosen:
    """The strategies for a model."""
    _, _, graph = model_of(name)
    contenders = {}
    for method, compression in (*(("data-parallel", how) for how in compression_names()), ("mcmc", "none")):
        options = SimulationOptions(gradient_compression=compression)
        problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel(), options=options)
        task = SearchTask(
            problem=problem,
            evaluator=Simulator(problem),
            budget=Budget(evaluations=evaluations),
            clock=time.monotonic,
            seed=SEED,
        )
        found = search(method, task)
        called = method if compression == "none" else f"{method}, gradients in {compression}"
        contenders[called] = Contender(found.strategy, compression, found.evaluation.iteration_time_s)
    return Chosen(name, contenders)


# The run.


def rank_main(rank: int, folder: Path, turns: int) -> None:
    """What the process on each host does."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://{address_of(0)}:{PORT}", rank=rank, world_size=NUM_HOSTS
    )
    groups = Groups()
    times: dict[str, dict[str, list[float]]] = {}
    for work in TypeAdapter(list[Chosen]).validate_json((folder / "chosen.json").read_text()):
        module, batch, graph = model_of(work.model)
        runtimes = {}
        for called, one in work.contenders.items():
            options = CompileOptions(compression=one.compression)
            program = compile_program(graph, one.strategy, num_ranks=NUM_HOSTS, options=options)
            runtimes[called] = initialize_distributed(
                module, graph, program, optimizer=lambda named: torch.optim.SGD(named, lr=1e-3), groups=groups
            )
        found = times[work.model] = {called: [] for called in runtimes}
        for turn in range(turns + 1):
            for called, runtime in list(runtimes.items())[:: 1 if turn % 2 else -1]:
                dist.barrier()
                start_s = time.perf_counter()
                runtime.step(*batch)
                dist.barrier()
                if turn:
                    # The first turn makes plans and connections.
                    found[called].append(time.perf_counter() - start_s)
    if rank == 0:
        (folder / "times.json").write_bytes(TypeAdapter(dict[str, Any]).dump_json(times))
    dist.barrier()
    groups.close()
    dist.destroy_process_group()


def run_hosts(folder: Path, turns: int) -> dict[str, dict[str, list[float]]]:
    """Starts a process on each host; seconds of the iterations, by model and contender."""
    ranks = []
    for host in range(NUM_HOSTS):
        command = ["ip", "netns", "exec", name_of(host), sys.executable, __file__]
        command += ["--rank", str(host), "--folder", str(folder), "--turns", str(turns)]
        ranks.append(subprocess.Popen(command, env={**os.environ, "GLOO_SOCKET_IFNAME": "wire"}))
    try:
        codes = [rank.wait() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(codes):
        raise SystemExit(f"the processes on the hosts ended with {codes}")
    content = (folder / "times.json").read_text()
    times: dict[str, dict[str, list[float]]] = TypeAdapter(dict[str, Any]).validate_json(content)
    return times


def report(
    work: list[Chosen],
    times: dict[str, dict[str, list[float]]],
    arguments: argparse.Namespace,
) -> str:
    """The table, with how it came about."""
    lines = [
        "# Strategies on hosts with slow links, predicted and measured",
        "",
        f"Measured {datetime.now(UTC):%Y-%m-%d}: {NUM_HOSTS} hosts, imitated on one machine with"
        f" {os.cpu_count()} cores by network namespaces, each link limited to {arguments.megabits:g} Mbit/s;"
        f" load of the machine about {os.getloadavg()[1]:.1f} (5 minutes, what is measured included). PyTorch"
        f" {torch.__version__}, gloo, one thread for each process. The search had"
        f" {arguments.evaluations} evaluations (mcmc, seed {SEED}) and the preset `cpu` with these links."
        f" Strategies take turns; measured times are medians over {arguments.turns} iterations.",
        "",
        "| model | strategy | predicted, s | measured, s | quartiles |",
        "|---|---|---|---|---|",
    ]
    for one in work:
        for called, contender in one.contenders.items():
            low, middle, high = statistics.quantiles(times[one.model][called], n=4)
            lines.append(
                f"| {one.model} | {called} | {contender.predicted_s:.3f} | {middle:.3f}"
                f" | {low:.3f} to {high:.3f} |"
            )
    lines.append("")
    for one in work:
        predicted = one.contenders["data-parallel"].predicted_s / one.contenders["mcmc"].predicted_s
        medians = {called: statistics.median(found) for called, found in times[one.model].items()}
        measured = medians["data-parallel"] / medians["mcmc"]
        outcome = "wins" if (predicted > 1) == (measured > 1) else "loses"
        lines.append(
            f"{one.model}: the searched strategy is predicted {predicted:.2f} times as fast as data"
            f" parallelism, and measured {measured:.2f} times: the predicted winner {outcome}."
        )
    lines += ["", "Written by `python benchmarks/hosts.py --output benchmarks/hosts.md`, as root."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Makes hosts, measures, and prints, or writes, the table."""
    parser = argparse.ArgumentParser(description="Measure strategies on hosts with slow links.")
    parser.add_argument("--megabits", type=float, default=200.0, help="of each link and direction, a second")
    parser.add_argument("--evaluations", type=int, default=3000)
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        rank_main(arguments.rank, arguments.folder, arguments.turns)
        return
    if os.geteuid() != 0:
        raise SystemExit("expected to run as root, which makes network namespaces")
    cluster = cluster_of(NUM_HOSTS, arguments.megabits)
    work = [chosen(name, cluster, arguments.evaluations) for name in MODELS]
    for one in work:
        print(one.model, {k: c.predicted_s for k, c in one.contenders.items()}, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, hosts(NUM_HOSTS, arguments.megabits):
        (Path(folder) / "chosen.json").write_bytes(TypeAdapter(list[Chosen]).dump_json(work))
        times = run_hosts(Path(folder), arguments.turns)
    text = report(work, times, arguments)
    if arguments.output:
        arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
