"""A strategy as text that a person can read, and as a Graphviz graph."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from soaprl.cluster.cluster import Cluster
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy
from soaprl.strategy.validation import check_strategy

_LETTERS = {
    FactorKind.SAMPLE: "S",
    FactorKind.ATTRIBUTE: "A",
    FactorKind.PARAMETER: "P",
    FactorKind.REDUCTION: "R",
}
_COLORS = ("#8dd3c7", "#ffffb3", "#bebada", "#fb8072", "#80b1d3", "#fdb462", "#b3de69", "#fccde5", "#d9d9d9")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorGroup:
    """Consecutive operators that are split and placed in the same way.

    Attributes:
        first: Index of the first operator.
        last: Index of the last operator.
        operators: Their names.
        kinds: Their distinct kinds, in order of appearance.
        split: The split as text: ``sample 4 (S) x channel 2 (P)``, or ``not split``.
        devices: The devices as text: ``0-3``, ``node1``.
    """

    first: int
    last: int
    operators: tuple[str, ...]
    kinds: tuple[str, ...]
    split: str
    devices: str


def describe_split(operator: Operator, config: OpConfig) -> str:
    """The degrees above 1 with the factors' SOAP kinds: ``sample 4 (S) x channel 2 (P)``."""
    parts = [
        f"{factor.name} {degree} ({_LETTERS[factor.kind]})"
        for factor, degree in zip(operator.factors, config.degrees, strict=True)
        if degree > 1
    ]
    return " x ".join(parts) or "not split"


def describe_devices(devices: tuple[int, ...], cluster: Cluster) -> str:
    """The devices of an operator's tasks in task order, compressed.

    Runs of equal steps become ``0-3`` or ``0-12 step 4``, repeats ``5 (x4)``, whole nodes in order ``node0``
    or ``node0-node2``, and all devices in order ``all``.
    """
    if devices == tuple(range(cluster.num_devices)):
        return "all"
    return _whole_nodes(devices, cluster) or ", ".join(_runs(devices))


def group_operators(graph: OperatorGraph, cluster: Cluster, strategy: Strategy) -> tuple[OperatorGroup, ...]:
    """Consecutive operators with the same split and devices, merged.

    Raises:
        StrategyError: The strategy does not fit the graph or the cluster.
    """
    check_strategy(graph, cluster.num_devices, strategy)
    pairs = zip(graph.operators, strategy.configs, strict=True)
    stages = strategy.stages or (0,) * len(graph.operators)
    rows = [
        (index, operator, describe_split(operator, config), config.devices, stages[index])
        for index, (operator, config) in enumerate(pairs)
    ]
    groups = []
    for (split, devices, _), members in groupby(rows, key=lambda row: row[2:]):
        run = list(members)
        groups.append(
            OperatorGroup(
                first=run[0][0],
                last=run[-1][0],
                operators=tuple(operator.name for _, operator, *_ in run),
                kinds=tuple(dict.fromkeys(operator.kind for _, operator, *_ in run)),
                split=split,
                devices=describe_devices(devices, cluster),
            )
        )
    return tuple(groups)


def export_text(graph: OperatorGraph, cluster: Cluster, strategy: Strategy) -> str:
    """A report: a summary by SOAP kind, then one line for each group of equally configured operators."""
    groups = group_operators(graph, cluster, strategy)
    lines = [
        f"strategy for {graph.name} (batch {graph.batch_size}) on {cluster.name}"
        f" ({_counted(cluster.num_devices, 'device')})",
        *_sharding(strategy),
        *_micro_batches(strategy),
        "",
        *_summary(graph, strategy),
        "",
        "S sample, A attribute, P parameter, R reduction; devices in task order",
        "",
        *_table([("operators", "kind", "split", "devices"), *(_row(group) for group in groups)]),
    ]
    return "\n".join(lines) + "\n"


def export_dot(graph: OperatorGraph, cluster: Cluster, strategy: Strategy) -> str:
    """The operator graph in Graphviz' language; operators on the same devices share a color."""
    check_strategy(graph, cluster.num_devices, strategy)
    colors: dict[frozenset[int], str] = {}
    properties = [] if strategy.sharding is Sharding.NONE else [str(strategy.sharding)]
    properties += [] if strategy.is_whole else [f"{strategy.micro_batches} x {strategy.schedule}"]
    shards = f" ({', '.join(properties)})" if properties else ""
    lines = [f"digraph {_quoted(graph.name + shards)} {{", '  node [shape=box, style="filled,rounded"];']
    for index, (operator, config) in enumerate(zip(graph.operators, strategy.configs, strict=True)):
        color = colors.setdefault(frozenset(config.devices), _COLORS[len(colors) % len(_COLORS)])
        where = describe_devices(config.devices, cluster)
        what = f"{operator.kind}: {describe_split(operator, config)}"
        label = "\n".join((operator.name, what, f"on {where}"))
        lines.append(f'  o{index} [label={_quoted(label)}, fillcolor="{color}"];')
    for tensor, readers in graph.consumers.items():
        for reader in dict.fromkeys(operator for operator, _ in readers):
            shape = "x".join(str(extent) for extent in graph.tensors[tensor].shape)
            lines.append(f'  o{graph.producer[tensor]} -> o{reader} [label="{shape}"];')
    return "\n".join([*lines, "}"]) + "\n"


def _sharding(strategy: Strategy) -> list[str]:
    """A line that says what is sharded, if anything is."""
    kept = {
        Sharding.ZERO1: "optimizer state",
        Sharding.ZERO2: "gradients and optimizer state",
        Sharding.ZERO3: "parameters, gradients and optimizer state",
    }
    if strategy.sharding is Sharding.NONE:
        return []
    return [f"devices that hold the same parameters shard {kept[strategy.sharding]} ({strategy.sharding})"]


def _micro_batches(strategy: Strategy) -> list[str]:
    """A line that says how the batch is cut over time, if it is."""
    if strategy.is_whole:
        return []
    stages = _counted(strategy.num_stages, "stage")
    order = "in no order" if strategy.schedule is Schedule.NONE else f"{strategy.schedule} over {stages}"
    return [f"{strategy.micro_batches} micro-batch{'' if strategy.micro_batches == 1 else 'es'}, {order}"]


def _summary(graph: OperatorGraph, strategy: Strategy) -> list[str]:
    """How many operators are split along factors of each SOAP kind, and how many devices are used."""
    split_by: Counter[FactorKind] = Counter()
    whole = 0
    for operator, config in zip(graph.operators, strategy.configs, strict=True):
        kinds = {f.kind for f, degree in zip(operator.factors, config.degrees, strict=True) if degree > 1}
        split_by.update(kinds)
        whole += not kinds
    placements = len({config.devices for config in strategy.configs})
    used = len({device for config in strategy.configs for device in config.devices})
    counts = [f"  {kind.value:<10} {split_by[kind]:>5} operators split" for kind in FactorKind]
    return [
        f"{_counted(len(graph.operators), 'operator')} on {_counted(used, 'device')}"
        f" in {_counted(placements, 'placement')}",
        *counts,
        f"  {'not split':<10} {whole:>5} operators",
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _row(group: OperatorGroup) -> tuple[str, str, str, str]:
    name = group.operators[0]
    if len(group.operators) > 1:
        name = f"{name} .. {group.operators[-1]} ({len(group.operators)})"
    kinds = ", ".join(group.kinds[:3]) + (", .." if len(group.kinds) > 3 else "")
    return name, kinds, group.split, group.devices


def _table(rows: list[tuple[str, str, str, str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _whole_nodes(devices: tuple[int, ...], cluster: Cluster) -> str:
    """The nodes whose devices, in order, are `devices`; empty if there are none."""
    nodes = sorted({cluster.devices[device].node for device in devices})
    if nodes != list(range(nodes[0], nodes[-1] + 1)):
        return ""
    members = tuple(i for node in nodes for i, d in enumerate(cluster.devices) if d.node == node)
    if members != devices or len(devices) == 1:
        return ""
    return f"node{nodes[0]}" if len(nodes) == 1 else f"node{nodes[0]}-node{nodes[-1]}"


def _runs(devices: tuple[int, ...]) -> Iterable[str]:
    """Maximal runs of devices with one step between them, as text."""
    start = 0
    while start < len(devices):
        stop = start + 1
        step = devices[stop] - devices[start] if stop < len(devices) else 0
        while stop < len(devices) and devices[stop] - devices[stop - 1] == step:
            stop += 1
        # Two devices far apart are a list, not a run.
        if stop - start == 2 and step not in (0, 1):
            stop -= 1
        yield _run(devices[start], devices[stop - 1], stop - start, step)
        start = stop


def _run(first: int, last: int, count: int, step: int) -> str:
    if count == 1:
        return str(first)
    if step == 0:
        return f"{first} (x{count})"
    return f"{first}-{last}" if step == 1 else f"{first}-{last} step {step}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
