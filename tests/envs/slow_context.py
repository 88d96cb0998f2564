"""The context features of one operator's candidates, computed plainly from the strategy as a whole."""

from itertools import pairwise
from math import log, log1p

import numpy as np
from soaprl_envs.choices import Choices

from soaprl.cluster.tables import cluster_tables
from soaprl.search.proposals import tied_groups
from soaprl.simulator.patterns import OperatorPools
from soaprl.simulator.problem import Problem
from soaprl.simulator.tables import graph_index, graph_tables
from soaprl.strategy.strategy import OpConfig


def slow_moving_s(problem: Problem, edge: int, producer: OpConfig, consumer: OpConfig) -> float:
    """Latency of the slowest route plus the busiest link's time, forward and back."""
    graph, index = problem.graph, graph_index(problem.graph)
    tables, found = cluster_tables(problem.cluster), index.edges[edge]
    writer, reader = graph.operators[found.producer], graph.operators[found.consumer]
    written = boxes(problem, found.producer, producer, writer.outputs[found.output])
    read = boxes(problem, found.consumer, consumer, reader.inputs[found.position])
    itemsize = graph.tensors[writer.outputs[found.output].tensor].itemsize
    gradient = graph_tables(graph, index).edge_gradient[edge]
    total = 0.0
    for back in (False, True)[: 1 + int(gradient)]:
        load: dict[int, float] = {}
        latency = 0.0
        for source, mine in zip(producer.devices, written, strict=True):
            for target, theirs in zip(consumer.devices, read, strict=True):
                sides = [max(0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in zip(mine, theirs, strict=True)]
                size = itemsize * int(np.prod(sides, dtype=np.int64))
                if source == target or size == 0:
                    continue
                ends = (target, source) if back else (source, target)
                for link in problem.cluster.routes[ends[0]][ends[1]]:
                    rate = problem.cluster.links[link].bandwidth_bytes_per_s
                    load[link] = load.get(link, 0.0) + size / rate
                latency = max(latency, tables.route_latency_s[ends[0] * tables.num_devices + ends[1]])
        total += latency + max(load.values(), default=0.0)
    return float(np.float32(total))


def boxes(problem, operator, config, access):
    """What each task touches."""
    factors = problem.graph.operators[operator].factors
    cuts = []
    for factor, degree in zip(factors, config.degrees, strict=True):
        size, extra = divmod(factor.extent, degree)
        ends = [part * size + min(part, extra) for part in range(degree + 1)]
        cuts.append(list(pairwise(ends)))
    found = []
    for task in np.ndindex(*config.degrees):
        here = [cuts[f][part] for f, part in enumerate(task)]
        spans = [
            (span.lower, span.upper) if span.factor < 0 else span.interval(*here[span.factor])
            for span in access.spans
        ]
        found.append(spans)
    return found


class SlowContext:
    """Holds what does not depend on the choices."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.problem = choices.problem
        self.tables = choices.tables
        self.index = graph_index(self.problem.graph)
        self.scale_s = max(self.loads_s(choices.start).values())

    def task_s(self, operator: int, config: OpConfig) -> list[float]:
        types = self.problem.cluster.device_types
        pools = OperatorPools(self.problem.graph, self.problem.cost, types)
        pools.add_operator(self.problem.graph.operators[operator], config.degrees)
        times = pools.forward_s.data + pools.backward_s.data
        kinds = [self.problem.cluster.devices[d].type for d in config.devices]
        return [times[task * len(types) + kind] for task, kind in enumerate(kinds)]

    def task_bytes(self, operator: int, candidate: int) -> list[int]:
        alone = self.tables.alone
        family = alone.family[operator]
        count = alone.num_tasks[family, candidate]
        return alone.task_bytes[alone.variant[family, candidate], :count].tolist()

    def loads_s(self, chosen, without: int = -1) -> dict[int, float]:
        loads = dict.fromkeys(range(self.problem.cluster.num_devices), 0.0)
        for o, c in enumerate(chosen):
            config = self.choices.configs[o][c]
            for device, time_s in zip(config.devices, self.task_s(o, config), strict=True):
                loads[device] += time_s * (o != without)
        return loads

    def loads_bytes(self, chosen, without: int) -> dict[int, int]:
        loads = dict.fromkeys(range(self.problem.cluster.num_devices), 0)
        for o, c in enumerate(chosen):
            for device, kept in zip(self.choices.configs[o][c].devices, self.task_bytes(o, c), strict=True):
                loads[device] += kept * (o != without)
        return loads

    def row(self, operator: int, chosen, decided) -> np.ndarray:
        """Shape [candidates, columns]; ``is_current`` is on."""
        others_s, others_bytes = self.loads_s(chosen, operator), self.loads_bytes(chosen, operator)
        ins = [e for e in self.index.edges_of[operator] if self.index.edges[e].consumer == operator]
        outs = [e for e in self.index.edges_of[operator] if self.index.edges[e].producer == operator]
        tied = [m for m in tied_groups(self.problem.graph)[operator] if m != operator]
        near = [self.index.edges[e].producer for e in ins] + [self.index.edges[e].consumer for e in outs]
        rows, totals = [], []
        for c, config in enumerate(self.choices.configs[operator]):
            moved_in = [self._moving(e, chosen, operator, config) for e in ins]
            moved_out = [self._moving(e, chosen, operator, config) for e in outs]
            own = dict.fromkeys(range(self.problem.cluster.num_devices), 0.0)
            kept = dict.fromkeys(own, 0)
            for device, time_s in zip(config.devices, self.task_s(operator, config), strict=True):
                own[device] += time_s
            for device, size in zip(config.devices, self.task_bytes(operator, c), strict=True):
                kept[device] += size
            used = sorted(set(config.devices))
            family = self.tables.alone.family[operator]
            totals.append(
                max(own.values()) + self.tables.alone.sync_s[family, c] + sum(moved_in) + sum(moved_out)
            )
            busiest = max(others_s.values())
            after = max(max(others_s[d] + own[d] for d in used), busiest)
            memory = self.tables.alone.capacity_bytes
            agree = [self.choices.configs[m][chosen[m]] == config for m in tied if decided[m]]
            producers = [set(self._config(self.index.edges[e].producer, chosen).devices) for e in ins]
            rows.append(
                [
                    self.gauge(sum(moved_in)),
                    self.gauge(sum(moved_out)),
                    self.gauge(totals[-1]),
                    0.0,
                    self.gauge(max(others_s[d] for d in used)),
                    self.gauge(sum(others_s[d] for d in used) / len(used)),
                    log(after / max(busiest, 1e-3 * self.scale_s)),
                    max(others_bytes[d] / memory[d] for d in used),
                    max((others_bytes[d] + kept[d]) / memory[d] for d in used),
                    share(time_s == 0 for time_s in moved_in),
                    share(time_s == 0 for time_s in moved_out),
                    share(devices == set(used) for devices in producers),
                    share(agree),
                    share(decided[m] for m in tied),
                    share(decided[m] for m in near),
                    float(chosen[operator] == c),
                ]
            )
        for row, total in zip(rows, totals, strict=True):
            row[3] = log((total + 1e-9 * self.scale_s) / (min(totals) + 1e-9 * self.scale_s))
        return np.clip(np.array(rows), -5.0, 5.0)

    def gauge(self, seconds: float) -> float:
        return 0.5 * log1p(1000 * seconds / self.scale_s)

    def _config(self, operator: int, chosen) -> OpConfig:
        return self.choices.configs[operator][chosen[operator]]

    def _moving(self, edge: int, chosen, operator: int, config: OpConfig) -> float:
        found = self.index.edges[edge]
        producer = config if found.producer == operator else self._config(found.producer, chosen)
        consumer = config if found.consumer == operator else self._config(found.consumer, chosen)
        return slow_moving_s(self.problem, edge, producer, consumer)


def share(values) -> float:
    """The mean; 0 of nothing."""
    known = [float(value) for value in values]
    return sum(known) / len(known) if known else 0.0
