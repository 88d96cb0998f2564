"""A slow simulator in plain Python, written from the specification: the oracle of the compiled one.

Tasks are objects in dictionaries, all pairs of boxes are compared, the queue is `heapq`. Only the closed
forms of collectives are shared with the compiled simulator; they have tests of their own.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import Any

import numpy as np

from soaprl.cluster.cluster import Overheads
from soaprl.cluster.tables import cluster_tables
from soaprl.cost.model import Shard
from soaprl.cost.ticks import TICKS_PER_S
from soaprl.cost.transfers import all_gather, all_reduce, collective_scratch
from soaprl.graph.factors import num_parts, part_box
from soaprl.graph.operators import Access, TensorRole, evaluate_terms
from soaprl.graph.repeat import repeated
from soaprl.simulator.problem import Problem
from soaprl.strategy.schedules import Schedule, program_steps
from soaprl.strategy.strategy import Strategy

Box = tuple[tuple[int, int], ...]
Key = tuple[Any, ...]
BITS = {"fp16": 16, "bf16": 16, "int8": 8, "ternary": 2}


@dataclass
class Task:
    key: Key
    duration: float = 0.0
    device: int = -1
    route: tuple[int, int] | None = None
    links: list[tuple[int, float]] = field(default_factory=list)
    num_bytes: int = 0
    taken: float = 0.0
    carried: float = 0.0
    taken_from: tuple[int, ...] = ()
    before: set[Key] = field(default_factory=set)
    ready: float = 0.0
    start: float = -1.0
    finish: float = -1.0


@dataclass
class Cell:
    """A piece of parameters that the same tasks hold."""

    group: int
    readers: list[int]
    num_bytes: int
    sent_bytes: int
    holding: list[tuple[int, int]]
    giving: list[tuple[int, int]]
    trainable: bool


@dataclass
class Delivery:
    """One transfer of one box of one output part to one device."""

    key: Key
    source: int
    target: int
    num_bytes: int
    readers: list[tuple[int, int]] = field(default_factory=list)
    gradients: list[tuple[int, int]] = field(default_factory=list)
    savers: list[int] = field(default_factory=list)


class Reference:
    """Simulates on construction; then `time`, `tasks` in sequence order, `peaks`, `moved`."""

    def __init__(self, problem: Problem, strategy: Strategy) -> None:
        copies, stages = strategy.micro_batches, strategy.stages or (0,) * len(problem.graph.operators)
        schedule = strategy.schedule
        # Of which operators gradients are summed together: of all copies, or of each one by itself.
        together = copies if strategy.sharding.value in ("none", "zero1") else 1
        self.block = together * len(problem.graph.operators)
        self.stages = stages * copies
        if not strategy.is_whole:
            problem = replace(problem, graph=repeated(problem.graph, copies).graph)
            strategy = Strategy(strategy.configs * copies, strategy.sharding)
        self.problem, self.graph, self.cluster = problem, problem.graph, problem.cluster
        self.strategy = strategy
        paper = problem.options.paper
        self.overheads = Overheads(collective_s=0.0) if paper else problem.cluster.overheads
        # When the program comes to the forward and to the backward pass of each operator.
        n = len(self.graph.operators)
        self.ordered = schedule is not Schedule.NONE or self.overheads.occupy
        self.there, self.back = list(range(n)), [2 * n - 1 - o for o in range(n)]
        if schedule is not Schedule.NONE:
            self.there, self.back = program_steps(schedule, stages, copies)
        self.tasks: dict[Key, Task] = {}
        self.deliveries: list[Delivery] = []
        self.local: list[tuple[int, int, int, int, int, bool, bool]] = []
        self.held = [[0, 0, 0] for _ in self.cluster.devices]
        self.passing: list[tuple[int, int, int, int]] = []
        self.level = ["none", "zero1", "zero2", "zero3"].index(strategy.sharding.value)
        self.update_s = [0.0] * self.cluster.num_devices
        self.moved = [0, 0, 0]
        self._compute_tasks()
        self._find_readings()
        self._forward_and_backward_edges()
        self._synchronize()
        if self.ordered:
            self._take_turns()
        order = self._order()
        self.time = self._run(order)
        self.order = order
        self.peaks = self._memory()

    # Geometry.

    def boxes(self, o: int, access: Access) -> list[Box]:
        op, config = self.graph.operators[o], self.strategy.configs[o]
        found = []
        for part in range(num_parts(config.degrees)):
            box = part_box(op.extents, config.degrees, part)
            found.append(
                tuple(s.interval(*box[s.factor]) if s.factor >= 0 else s.interval(0, 0) for s in access.spans)
            )
        return found

    def device(self, o: int, part: int) -> int:
        return self.strategy.configs[o].devices[part]

    def parts(self, o: int) -> range:
        return range(self.strategy.configs[o].num_tasks)

    # Tasks.

    def _compute_tasks(self) -> None:
        for o, op in enumerate(self.graph.operators):
            accesses = (*op.inputs, *op.parameters, *op.outputs)
            boxes = [self.boxes(o, a) for a in accesses]
            for p in self.parts(o):
                sizes = [
                    elements(b[p]) * self.graph.tensors[a.tensor].itemsize
                    for a, b in zip(accesses, boxes, strict=True)
                ]
                i, j = len(op.inputs), len(op.inputs) + len(op.parameters)
                extents = tuple(
                    hi - lo for lo, hi in part_box(op.extents, self.strategy.configs[o].degrees, p)
                )
                shard = Shard(
                    extents=extents,
                    input_bytes=tuple(sizes[:i]),
                    parameter_bytes=tuple(sizes[i:j]),
                    output_bytes=tuple(sizes[j:]),
                )
                device = self.device(o, p)
                kind = self.cluster.device_types[self.cluster.devices[device].type]
                time = self.problem.cost.task_time(self.graph, op, shard, kind)
                extra = self.overheads.task_s
                self.tasks["f", o, 0, p] = Task(("f", o, 0, p), ticks(time.forward_s + extra), device)
                if op.has_backward:
                    self.tasks["b", o, 0, p] = Task(("b", o, 0, p), ticks(time.backward_s + extra), device)
                    self.tasks["b", o, 0, p].before.add(("f", o, 0, p))

    def _find_readings(self) -> None:
        """All (producing part, reading part) pairs, each with its box."""
        for o, op in enumerate(self.graph.operators):
            for k, out in enumerate(op.outputs):
                itemsize = self.graph.tensors[out.tensor].itemsize
                written = self.boxes(o, out)
                found: dict[Key, Delivery] = {}
                for c, position in self.graph.consumers[out.tensor]:
                    reader = self.graph.operators[c]
                    access = reader.inputs[position]
                    read = self.boxes(c, access)
                    gradient = access.gradient and reader.has_backward and op.has_backward
                    saved = access.saved and reader.has_backward
                    for p, q in product(self.parts(o), self.parts(c)):
                        box = common(written[p], read[q])
                        if elements(box) == 0:
                            continue
                        source, target = self.device(o, p), self.device(c, q)
                        if source == target:
                            self.local.append((o, k, p, c, q, gradient, saved))
                            continue
                        key = ("t", o, 1, p, k, c, position, q)
                        delivery = found.setdefault(
                            (p, target, box), Delivery(key, source, target, elements(box) * itemsize)
                        )
                        delivery.readers.append((c, q))
                        if gradient:
                            delivery.gradients.append((c, q))
                        if saved:
                            delivery.savers.append(c)
                self.deliveries += found.values()

    def _transfer(self, key: Key, source: int, target: int, num_bytes: int) -> Task:
        route = self.cluster.routes[source][target]
        latency = 0.0
        if not self.problem.options.paper:
            for link in route:
                latency += self.cluster.links[link].latency_s
        narrowest = min(self.cluster.links[link].bandwidth_bytes_per_s for link in route)
        links = [(i, ticks(num_bytes / self.cluster.links[i].bandwidth_bytes_per_s)) for i in route]
        task = Task(
            key,
            ticks(latency + num_bytes / narrowest),
            route=(source, target),
            links=links,
            num_bytes=num_bytes,
            taken=self._taken(num_bytes),
            carried=self._carried(num_bytes),
            taken_from=(source, target),
        )
        self.tasks[key] = task
        return task

    def _taken(self, num_bytes: float) -> float:
        """Processor time of a message at each end."""
        return ticks(self.overheads.message_s + num_bytes * self.overheads.message_s_per_byte)

    def _reduced(self, moved: float) -> float:
        """Processor time of a collective on each of its devices."""
        return ticks(moved * (self.overheads.message_s_per_byte + self.overheads.reduced_s_per_byte))

    def _carried(self, num_bytes: float) -> float:
        """Processor time at each end while a message is on its way."""
        return ticks(num_bytes * self.overheads.carry_s_per_byte)

    def _forward_and_backward_edges(self) -> None:
        for o, _, p, c, q, gradient, _ in self.local:
            self.tasks["f", c, 0, q].before.add(("f", o, 0, p))
            if gradient:
                self.tasks["b", o, 0, p].before.add(("b", c, 0, q))
        for d in self.deliveries:
            _, o, _, p = d.key[:4]
            self._transfer(d.key, d.source, d.target, d.num_bytes).before.add(("f", o, 0, p))
            self.moved[0] += d.num_bytes
            for c, q in d.readers:
                self.tasks["f", c, 0, q].before.add(d.key)
            if d.gradients:
                back = ("g", *d.key[1:])
                task = self._transfer(back, d.target, d.source, d.num_bytes)
                self.moved[1] += d.num_bytes
                task.before |= {("b", c, 0, q) for c, q in d.gradients}
                self.tasks["b", o, 0, p].before.add(back)

    # Synchronization.

    def _cells(self) -> list[Cell]:
        """All cells in order."""
        n = len(self.graph.operators)
        groups: dict[tuple[int, ...], list[tuple[int, list[tuple[int, Access]]]]] = defaultdict(list)
        for first in range(0, n, self.block):
            readers: dict[int, list[tuple[int, Access]]] = defaultdict(list)
            for o in range(first, first + self.block):
                for access in self.graph.operators[o].parameters:
                    if self.graph.tensors[access.tensor].role is TensorRole.PARAMETER:
                        readers[access.tensor].append((o, access))
            for tensor in sorted(readers):
                groups[tuple(sorted({o for o, _ in readers[tensor]}))].append((tensor, readers[tensor]))
        cells = []
        for number, group in enumerate(sorted(groups)):
            merged: dict[Key, list[int]] = {}
            for tensor, reading in groups[group]:
                stored = self.graph.tensors[tensor]
                for index in product(*(range(n) for n in stored.refined_shape)):
                    holding, giving = set(), set()
                    for o, access in reading:
                        for p, box in enumerate(self.boxes(o, access)):
                            if all(lo <= i < hi for i, (lo, hi) in zip(index, box, strict=True)):
                                holding.add((o, p))
                                if access.gradient and self.graph.operators[o].has_backward:
                                    giving.add((o, p))
                    if holding:
                        key = (
                            tuple(sorted(holding)),
                            tuple(sorted(giving)),
                            stored.requires_grad and bool(giving),
                        )
                        sums = merged.setdefault(key, [0, 0])
                        sums[0] += stored.itemsize
                        whole = 8 * stored.itemsize
                        sums[1] += min(whole, BITS.get(self.problem.options.gradient_compression, whole))
            cells += [
                Cell(number, list(group), size, (bits + 7) // 8, list(h), list(g), t)
                for (h, g, t), (size, bits) in merged.items()
            ]
        return cells

    def _synchronize(self) -> None:
        options = self.problem.options
        everything = {key for key in self.tasks if key[0] == "b"}
        if not options.overlap_synchronization and everything:
            self.tasks[("s", -1)] = Task(("s", -1), before=everything)
        waits: dict[int, set[Key]] = defaultdict(set)
        for number, cell in enumerate(self._cells()):
            size = cell.num_bytes
            holders = sorted({self.device(o, p) for o, p in cell.holding})
            piece = size if self.level == 0 else -(-size // len(holders))
            # The parameters of a copy are those of the first one.
            again = cell.readers[0] >= self.block
            if self.level and len(holders) > 1:
                self._gather(number, cell, holders, again)
            for h in holders:
                self.held[h][0] += 0 if again else piece if self.level == 3 else size
            if not cell.trainable:
                continue
            backward: dict[int, set[Key]] = defaultdict(set)
            for o, p in cell.giving:
                backward[self.device(o, p)].add(("b", o, 0, p))
            for h in holders:
                if again:
                    continue
                self.held[h][1] += piece if self.level >= 2 else size
                self.held[h][2] += piece
                kind = self.cluster.device_types[self.cluster.devices[h].type]
                self.update_s[h] += ticks(self.problem.cost.update_time(piece, kind))
            if len(holders) == 1:
                waits[holders[0]] |= backward[holders[0]]
                continue
            if not options.overlap_synchronization:
                backward = {h: {("s", -1)} for h in backward}
            if options.paper:
                self._exchange(number, size, holders, self.device(*cell.holding[0]), backward, waits)
            else:
                self._sum(number, cell, holders, backward, waits)
        for device in sorted(waits):
            key = ("u", device)
            time = self.update_s[device] + ticks(self.overheads.iteration_s)
            self.tasks[key] = Task(key, time, device, before=waits[device])
        if self.level == 3:
            self._paces()

    def _collective(self, key: Key, whole: bool, size: int, holders: list[int], codec: float) -> Task:
        """An all-reduce, or half of one: a reduce-scatter or an all-gather."""
        tables = cluster_tables(self.cluster, paper=self.problem.options.paper)
        links, busy = np.zeros(len(self.cluster.links), np.int64), np.zeros(len(self.cluster.links))
        time, count, _ = (all_reduce if whole else all_gather)(
            tables,
            collective_scratch(tables),
            np.array(holders, np.int64),
            len(holders),
            float(size),
            links,
            busy,
        )
        used = [(i, ticks(s)) for i, s in zip(links[:count].tolist(), busy[:count].tolist(), strict=True)]
        moved = (4 if whole else 2) * (len(holders) - 1) * size / len(holders)
        self.tasks[key] = Task(
            key,
            ticks(time + codec),
            links=used,
            num_bytes=size,
            taken=self._reduced(moved),
            carried=self._carried(moved),
            taken_from=tuple(holders),
        )
        self.moved[2] += (2 if whole else 1) * (len(holders) - 1) * size
        return self.tasks[key]

    def _sum(
        self,
        number: int,
        cell: Cell,
        holders: list[int],
        backward: dict[int, set[Key]],
        waits: dict[int, set[Key]],
    ) -> None:
        key, codec = ("s", number, 0), 0.0
        if cell.sent_bytes != cell.num_bytes:
            kinds = [self.cluster.device_types[self.cluster.devices[h].type] for h in holders]
            slowest = min(k.memory_bandwidth_bytes_per_s * k.memory_efficiency for k in kinds)
            codec = 2 * (cell.num_bytes + cell.sent_bytes) / slowest
        task = self._collective(key, self.level == 0, cell.sent_bytes, holders, codec)
        task.before = set().union(*backward.values())
        for h in holders:
            waits[h].add(key)

    def _gather(self, number: int, cell: Cell, holders: list[int], again: bool) -> None:
        """Gathers after the updates, or before the forward and the backward pass."""
        if self.level < 3 and cell.trainable and not again:
            task = self._collective(("w", cell.group, 0, number), False, cell.num_bytes, holders, 0.0)
            task.before = {("u", h) for h in holders}
        trained = [o for o in cell.readers if self.graph.operators[o].has_backward]
        if self.level == 3:
            pace = self._before("f", cell.readers[0])
            self._gather_for(number, cell, holders, "f", pace)
            first = self._step(*pace) + 1 if pace else 0
            until = max(self._step("f", o) for o in cell.readers)
            if trained and (pace := self._before_back(cell.readers, trained[-1])) is not None:
                self._pass(holders, first, until, cell.num_bytes)
                self._gather_for(number, cell, holders, "b", pace)
                first = self._step(*pace) + 1
            # What is not gathered again stays from the first to the last pass.
            until = max([until, *(self._step("b", o) for o in trained)])
            self._pass(holders, first, until, cell.num_bytes)
        if self.level >= 2 and cell.trainable:
            steps = [self._step("b", o) for o in trained]
            self._pass(holders, min(steps), max(steps), cell.num_bytes)

    def _step(self, which: str, o: int) -> int:
        return (self.there if which == "f" else self.back)[o]

    def _reading(self, stage: int) -> list[tuple[str, int]]:
        """The passes of a stage that read parameters, in the order of the program."""
        found = [
            (which, o)
            for o, op in enumerate(self.graph.operators)
            for which in "fb"
            if self.stages[o] == stage
            and (which == "f" or op.has_backward)
            and any(self.graph.tensors[a.tensor].role is TensorRole.PARAMETER for a in op.parameters)
        ]
        return sorted(found, key=lambda one: self._step(*one))

    def _before(self, which: str, o: int) -> tuple[str, int] | None:
        """The pass that a gather for the pass of an operator waits for."""
        passes = self._reading(self.stages[o])
        before = passes[: passes.index((which, o))]
        ahead = self.problem.options.prefetch
        return before[-ahead] if len(before) >= ahead else None

    def _before_back(self, readers: Sequence[int], o: int) -> tuple[str, int] | None:
        """The pass that a gather for backward passes waits for, the first of them that of operator o.

        None if all is kept that the forward passes of `readers` had.
        """
        found = self._before("b", o)
        last = max(self._step("f", reader) for reader in readers)
        return found if found is not None and self._step(*found) > last else None

    def _gather_for(
        self, number: int, cell: Cell, holders: list[int], which: str, pace: tuple[str, int] | None
    ) -> None:
        key = ("w", cell.group, "fb".index(which), number)
        task = self._collective(key, False, cell.num_bytes, holders, 0.0)
        if pace is not None:
            task.before = {("v", "fb".index(pace[0]), pace[1])}
        for o, p in cell.holding:
            if (which, o, 0, p) in self.tasks:
                self.tasks[which, o, 0, p].before.add(key)

    def _pass(self, holders: list[int], first: int, end: int, num_bytes: int) -> None:
        self.passing += [(h, first, end, num_bytes) for h in holders]

    def _paces(self) -> None:
        """A task without duration wherever some cell, shared or not, would have a gather wait."""
        readers: dict[tuple[int, int], list[int]] = defaultdict(list)
        for o, op in enumerate(self.graph.operators):
            for access in op.parameters:
                if self.graph.tensors[access.tensor].role is TensorRole.PARAMETER:
                    readers[o // self.block, access.tensor].append(o)
        for found in readers.values():
            pace = self._before("f", min(found))
            if pace is not None:
                self._pace("fb".index(pace[0]), pace[1])
            trained = [o for o in found if self.graph.operators[o].has_backward]
            if trained and (back := self._before_back(found, max(trained))) is not None:
                self._pace("fb".index(back[0]), back[1])

    def _pace(self, phase: int, o: int) -> None:
        key = ("v", phase, o)
        self.tasks[key] = Task(key, before={("fb"[phase], o, 0, p) for p in self.parts(o)})

    def _exchange(
        self,
        number: int,
        size: int,
        holders: list[int],
        root: int,
        backward: dict[int, set[Key]],
        waits: dict[int, set[Key]],
    ) -> None:
        join = ("s", number, 1)
        self.tasks[join] = Task(join, before=set(backward.get(root, set())))
        if not self.problem.options.overlap_synchronization:
            self.tasks[join].before.add(("s", -1))
        waits[root].add(join)
        for h in holders:
            if h == root:
                continue
            if h in backward:
                self._transfer(("s", number, 0, h), h, root, size).before |= backward[h]
                self.tasks[join].before.add(("s", number, 0, h))
                self.moved[2] += size
            self._transfer(("s", number, 2, h), root, h, size).before.add(join)
            self.moved[2] += size
            waits[h].add(("s", number, 2, h))

    # Schedule.

    def _take_turns(self) -> None:
        """Every device does its tasks in the order of the program, then its update."""
        turns: dict[int, list[tuple[int, int, Key]]] = defaultdict(list)
        for key, task in self.tasks.items():
            if key[0] in "fb":
                step = (self.there if key[0] == "f" else self.back)[key[1]]
                turns[task.device].append((step, key[3], key))
        for device, queue in turns.items():
            queue.sort()
            for (_, _, before), (_, _, after) in pairwise(queue):
                self.tasks[after].before.add(before)
            if ("u", device) in self.tasks:
                self.tasks["u", device].before.add(queue[-1][2])

    def _order(self) -> list[Task]:
        """All tasks by sequence number."""
        forward = sorted(k for k in self.tasks if k[0] in "ft")
        forward.sort(key=lambda k: k[1:])
        backward = [("b" if k[0] == "f" else "g", *k[1:]) for k in reversed(forward)]
        rest = sorted(k for k in self.tasks if k[0] in "suvw")
        keys = forward + [k for k in backward if k in self.tasks] + rest
        assert len(keys) == len(self.tasks)
        return [self.tasks[k] for k in keys]

    def _run(self, order: list[Task]) -> float:
        number = {task.key: i for i, task in enumerate(order)}
        missing = {task.key: len(task.before) for task in order}
        after: dict[Key, list[Task]] = defaultdict(list)
        for task in order:
            for key in task.before:
                after[key].append(task)
        device_free = [0.0] * self.cluster.num_devices
        handed = [0.0] * self.cluster.num_devices
        link_free = [0.0] * len(self.cluster.links)
        heap = [(0.0, i) for i, task in enumerate(order) if not task.before]
        heapq.heapify(heap)
        end, done = 0.0, 0
        while heap:
            task = order[heapq.heappop(heap)[1]]
            done += 1
            frees = [link_free[i] for i, _ in task.links] + (
                [device_free[task.device]] if task.device >= 0 else []
            )
            sent = task.route is not None and self.overheads.occupy
            given = task.ready
            if sent:
                source = task.route[0]
                given = handed[source] = max(handed[source], task.ready) + task.taken
            task.start = max([given, *frees])
            task.finish = task.start + task.duration + (task.taken if sent else 0.0)
            for i, busy in task.links:
                link_free[i] = task.start + busy
            if task.device >= 0:
                device_free[task.device] = task.finish
            for device in task.taken_from:
                device_free[device] = max(device_free[device], task.ready) + task.taken + task.carried
            end = max(end, task.finish)
            for successor in after[task.key]:
                successor.ready = max(successor.ready, task.finish)
                missing[successor.key] -= 1
                if missing[successor.key] == 0:
                    heapq.heappush(heap, (successor.ready, number[successor.key]))
        assert done == len(order)
        return end

    # Memory.

    def _memory(self) -> list[int]:
        """Peak of each device in program order, item by item and step by step."""
        last = 2 * len(self.graph.operators) - 1
        live = [[0] * (last + 1) for _ in self.cluster.devices]

        def hold(device: int, first: int, end: int, num_bytes: int) -> None:
            for step in range(first, end + 1):
                live[device][step] += num_bytes

        for o, op in enumerate(self.graph.operators):
            for k, out in enumerate(op.outputs):
                size = self.graph.tensors[out.tensor].itemsize
                for p, box in enumerate(self.boxes(o, out)):
                    here = [x for x in self.local if x[:3] == (o, k, p)]
                    there = [d for d in self.deliveries if d.key[1] == o and d.key[3] == p and d.key[4] == k]
                    savers = [x[3] for x in here if x[6]] + ([o] if out.saved and op.has_backward else [])
                    readers = [x[3] for x in here] + [c for d in there for c, _ in d.readers]
                    end = self.back[min(savers)] if savers else self.there[max([o, *readers])]
                    hold(self.device(o, p), self.there[o], end, elements(box) * size)
                    gradients = [x[3] for x in here if x[5]] + [c for d in there for c, _ in d.gradients]
                    if gradients:
                        born = self.back[max(gradients)]
                        hold(self.device(o, p), born, self.back[o], elements(box) * size)
            for position, access in enumerate((*op.inputs, *op.buffers)):
                tensor = self.graph.tensors[access.tensor]
                if tensor.role is TensorRole.ACTIVATION:
                    continue
                kept = position < len(op.inputs) and access.saved and op.has_backward
                for p, box in enumerate(self.boxes(o, access)):
                    end = self.back[o] if kept else self.there[o]
                    hold(self.device(o, p), self.there[o], end, elements(box) * tensor.itemsize)
            if op.has_backward:
                for p in self.parts(o):
                    box = part_box(op.extents, self.strategy.configs[o].degrees, p)
                    extra = evaluate_terms(op.internal_saved_bytes, tuple(hi - lo for lo, hi in box))
                    hold(self.device(o, p), self.there[o], self.back[o], round(extra))
        for d in self.deliveries:
            readers = [c for c, _ in d.readers]
            end = self.back[min(d.savers)] if d.savers else self.there[max(readers)]
            hold(d.target, self.there[min(readers)], end, d.num_bytes)
            if d.gradients:
                givers = [c for c, _ in d.gradients]
                hold(d.target, self.back[max(givers)], self.back[min(givers)], d.num_bytes)
        for device, first, end, num_bytes in self.passing:
            hold(device, first, end, num_bytes)
        state = self.problem.options.state_per_parameter_byte
        return [max(steps) + h[0] + h[1] + state * h[2] for steps, h in zip(live, self.held, strict=True)]


def ticks(time_s: float) -> float:
    """The closest whole number of ticks."""
    return round(time_s * TICKS_PER_S) / TICKS_PER_S


def elements(box: Box) -> int:
    count = 1
    for lo, hi in box:
        count *= max(0, hi - lo)
    return count


def common(a: Box, b: Box) -> Box:
    return tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
