"""The compiler: a graph and a strategy become one static program for each rank.

Steps are emitted in one global order (see `soaprl.runtime.program`): for each operator its tasks' forward
passes, then one exchange of what they wrote; the loss; for each operator in reverse its tasks' backward
passes, one exchange of the gradients that are complete then, and the reductions of the parameter cells whose
last contribution that was, in buckets; at the end the updates. With micro-batches there is a copy of each
operator for each of them, and passes come in the order of the schedule. Where state is sharded
(`soaprl.runtime.sharding`), reductions leave to each rank its part, and gathers bring parameters together
again: after the update or, where parameters are sharded, before passes. This is what `soaprl.simulator`
simulates, with three differences: pieces that go the same way at the same time are one message, small cells
with the same holders are one reduction or gather, and large partial results of a group are summed.
"""

from collections.abc import Iterable

from soaprl.errors import GraphError, StrategyError
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import common, num_elements
from soaprl.runtime.buckets import Buckets, packed
from soaprl.runtime.cells import Cell, completed_in, parameter_cells, parameter_holdings, rank_blocks
from soaprl.runtime.deliveries import Partials, Route, find_deliveries
from soaprl.runtime.exchanges import exchange_steps, total_bytes
from soaprl.runtime.gathers import Group, Pace, Pass, pace
from soaprl.runtime.layout import Tasks, graph_tasks
from soaprl.runtime.micro_batches import Unrolled, unrolled
from soaprl.runtime.program import (
    Backward,
    Block,
    CompileOptions,
    Direction,
    Forward,
    GatherParameters,
    LoadInputs,
    MakeConstants,
    Piece,
    Program,
    RankProgram,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ReduceStatistics,
    ReleaseParameters,
    ScatterGradients,
    Shared,
    Step,
    SumPartials,
    Update,
    UpdateBuffers,
)
from soaprl.runtime.sharding import is_sharded, owned_blocks, parts_by_holder, within
from soaprl.runtime.sources import buffer_updates, needed_sources
from soaprl.runtime.statistics import Normalization, channel_groups, normalizations, synchronized_calls
from soaprl.strategy.strategy import Sharding, Strategy
from soaprl.strategy.validation import check_strategy


def compile_program(
    graph: OperatorGraph,
    strategy: Strategy,
    *,
    num_ranks: int | None = None,
    options: CompileOptions | None = None,
    fingerprint: str | None = None,
) -> Program:
    """The programs of all ranks.

    Args:
        graph: What to run.
        strategy: How; device numbers are ranks.
        num_ranks: Number of ranks; by default as many as the strategy names.
        options: What the strategy does not say.
        fingerprint: Of `graph`, where the caller already has it.

    Raises:
        StrategyError: The strategy does not fit the graph or the number of ranks.
        GraphError: The graph has no loss of one element that an operator computes, or its batch cannot be cut
            into micro-batches.
    """
    named = 1 + max((d for config in strategy.configs for d in config.devices), default=0)
    num_ranks = named if num_ranks is None else num_ranks
    if num_ranks < named:
        raise StrategyError(
            f"the strategy for {graph.name!r} names {named} devices, and there are {num_ranks} ranks: start"
            f" {named} processes, or search for a strategy for {num_ranks} devices"
        )
    check_strategy(graph, num_ranks, strategy)
    options = options or CompileOptions()
    work = unrolled(graph, strategy)
    check_strategy(work.graph, num_ranks, work.strategy)
    return Program(
        model=graph.name,
        graph_fingerprint=fingerprint or graph_fingerprint(graph),
        configs=strategy.configs,
        sharding=strategy.sharding,
        micro_batches=strategy.micro_batches,
        schedule=strategy.schedule,
        stages=strategy.stages,
        options=options,
        ranks=_Compiler(work, num_ranks, options).compiled(),
    )


class _Compiler:
    """The steps emitted so far."""

    def __init__(self, work: Unrolled, num_ranks: int, options: CompileOptions) -> None:
        graph, strategy = work.graph, work.strategy
        self.graph, self.work = graph, work
        self.options = options
        self.everyone = tuple(range(num_ranks))
        self.tasks = graph_tasks(graph, strategy)
        self.deliveries = find_deliveries(graph, self.tasks, options, work.losses)
        holdings = parameter_holdings(graph, self.tasks)
        self.cells = parameter_cells(graph, holdings, work.backward_places)
        self.trained = {
            tensor
            for tensor, readings in holdings.items()
            if graph.tensors[tensor].requires_grad and any(r.contributes for r in readings)
        }
        self.sharding = strategy.sharding
        self.sharded = [cell for cell in self.cells if is_sharded(cell, self.sharding, self.trained)]
        self.holdings, self.num_operators = holdings, len(graph.operators) // len(work.losses)
        self.pace = self._paced()
        # For each rank, its sharded blocks that are there or on their way, and what brings them.
        self.gathers: list[dict[Group, list[tuple[Block, int]]]] = [{} for _ in self.everyone]
        self.steps: list[list[Step]] = [[] for _ in self.everyone]
        self.next_id = 0
        self.arrivals: list[dict[Piece, int]] = [{} for _ in self.everyone]
        self.returned_at: dict[int, int] = {}
        self.summed_at: dict[tuple[int, int], list[int]] = {}
        self.awaited: list[set[int]] = [set() for _ in self.everyone]
        self.reductions: list[list[int]] = [[] for _ in self.everyone]

    def compiled(self) -> tuple[RankProgram, ...]:
        """The programs, by rank."""
        sources = needed_sources(self.graph, self.tasks, len(self.everyone))
        for rank, needed in zip(self.everyone, sources, strict=True):
            if needed.inputs:
                self.steps[rank].append(LoadInputs(blocks=needed.inputs))
            if needed.constants:
                self.steps[rank].append(MakeConstants(calls=needed.constants))
        self._after(None)
        producers, reduced = [self._loss_operator(loss) for loss in self.work.losses], set[int]()
        buckets = self._buckets()
        for direction, operator in self.work.order:
            micro_batch = operator // self.num_operators
            if direction == "forward":
                self._forward(operator)
                self._after((direction, operator))
                continue
            if micro_batch not in reduced:
                reduced.add(micro_batch)
                self._reduce_loss(producers[micro_batch], micro_batch)
            filling = buckets[operator]
            if self.graph.operators[operator].has_backward:
                self._backward(operator)
                self._after((direction, operator))
                self._reduce_cells(filling.completed(operator))
            if operator == filling.last:
                self._reduce_cells(filling.rest())
        blocks = rank_blocks(self.cells, len(self.everyone), joined=self.sharding is not Sharding.ZERO3)
        owned = owned_blocks(self.cells, self.sharding, self.trained, len(self.everyone))
        updates = buffer_updates(self.graph, self.tasks)
        for group, buffers in updates.groups:
            self._share(UpdateBuffers(id=self._id(), group=group, buffers=buffers), group)
        self._update(blocks, owned)
        if self.sharding is not Sharding.ZERO3:
            self._gather(self.sharded)
        return tuple(
            RankProgram(
                rank=rank,
                parameters=blocks[rank],
                owned=owned[rank],
                buffers=sources[rank].buffers,
                owned_buffers=updates.owned.get(rank, ()),
                steps=tuple(self.steps[rank]),
            )
            for rank in self.everyone
        )

    def _buckets(self) -> list[Buckets]:
        """For each operator, where the cells wait that its backward pass completes.

        All gradients of a cell add up before they are reduced, unless ranks keep parts of them: then they are
        reduced after each micro-batch.
        """
        size, backward = self.options.bucket_bytes, [o for d, o in self.work.order if d == "backward"]
        if not (self.sharding.synchronizes_each_pass and len(self.work.losses) > 1):
            sharded = self.sharding is not Sharding.NONE
            all_of_them = Buckets(self.graph, self.cells, self.trained, size, backward[-1], sharded=sharded)
            return [all_of_them] * len(self.graph.operators)
        found: list[Buckets] = []
        for micro_batch in range(len(self.work.losses)):
            mine = [o for o in backward if o // self.num_operators == micro_batch]
            places = {operator: place for place, operator in enumerate(mine)}
            cells = [completed_in(cell, self.holdings[cell.block.tensor], places) for cell in self.sharded]
            mine_alone = Buckets(self.graph, cells, self.trained, size, mine[-1], sharded=True)
            found += [mine_alone] * self.num_operators
        return found

    def _paced(self) -> Pace:
        """When parameters are gathered and given up; never where only their state is sharded."""
        if self.sharding is not Sharding.ZERO3:
            return Pace()
        readers: dict[Group, list[int]] = {}
        for tensor, found in self.holdings.items():
            for operator in sorted({holding.operator for holding in found}):
                readers.setdefault((tensor, operator // self.num_operators), []).append(operator)
        has_backward = [operator.has_backward for operator in self.graph.operators]
        return pace(readers, has_backward, self.options.prefetch, self.work.order, self.work.stages)

    def _after(self, passed: Pass | None) -> None:
        """Gives up and gathers what the pace has after a pass."""
        for tensor, micro_batch in self.pace.released.get(passed, ()):
            for rank in self.everyone:
                known = self.gathers[rank].pop((tensor, micro_batch), ())
                if known:
                    waits = self._new(rank, [number for _, number in known])
                    blocks = tuple(block for block, _ in known)
                    self.steps[rank].append(ReleaseParameters(waits=waits, blocks=blocks))
        groups: dict[int, set[int]] = {}
        for tensor, micro_batch in self.pace.gathered.get(passed, ()):
            groups.setdefault(micro_batch, set()).add(tensor)
        for micro_batch, tensors in groups.items():
            self._gather((cell for cell in self.sharded if cell.block.tensor in tensors), micro_batch)

    def _gathered(self, rank: int, operator: int, blocks: Iterable[Block]) -> list[int]:
        """The gathers that bring what a task of an operator reads of some blocks."""
        micro_batch = operator // self.num_operators
        return [
            number
            for block in blocks
            for other, number in self.gathers[rank].get((block.tensor, micro_batch), ())
            if num_elements(common(block.box, other.box))
        ]

    def _id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def _share(self, step: Shared, group: Iterable[int]) -> None:
        for rank in group:
            self.steps[rank].append(step)

    def _new(self, rank: int, ids: Iterable[int]) -> tuple[int, ...]:
        """The ids among `ids` that no step of the rank has awaited yet."""
        waits = sorted(set(ids) - self.awaited[rank])
        self.awaited[rank].update(waits)
        return tuple(waits)

    def _forward(self, operator: int) -> None:
        layout, op = self.tasks[operator], self.graph.operators[operator]
        shared = synchronized_calls(op, layout.boxes, self.options.batch_norm)
        recorded = _recorded(normalizations(op), layout)
        combined: dict[int, int] = {}
        for stage in range(len(shared) + 1):
            for part, rank in enumerate(layout.ranks):
                reads = tuple(self.deliveries.reads[operator, part])
                pieces = (piece for read in reads for piece in read.pieces) if stage == 0 else ()
                ids = [self.arrivals[rank][p] for p in pieces if p in self.arrivals[rank]]
                ids += [combined[part]] if stage else []
                parameters = _blocks(op.parameters, layout.parameters, part) if stage == 0 else ()
                ids += self._gathered(rank, operator, parameters)
                self.steps[rank].append(
                    Forward(
                        operator=operator,
                        part=part,
                        stage=stage,
                        waits=self._new(rank, ids),
                        reads=reads if stage == 0 else (),
                        parameters=parameters,
                        buffers=_blocks(op.buffers, layout.buffers, part) if stage == 0 else (),
                        writes=self._writes(operator, part) if stage == len(shared) else (),
                        statistics=recorded.get(part, ()) if stage == 0 else (),
                    )
                )
            if stage < len(shared):
                combined = self._reduce_statistics("forward", operator, stage, shared[stage])
        self._sum("forward", operator, self.deliveries.sums.get(operator, ()))
        self._exchange("forward", operator, self.deliveries.forward[operator])

    def _writes(self, operator: int, part: int) -> tuple[Piece, ...]:
        accesses, regions = self.graph.operators[operator].outputs, self.tasks[operator].outputs
        return tuple(
            Piece(tensor=access.tensor, part=part, box=boxes[part])
            for access, boxes in zip(accesses, regions, strict=True)
        )

    def _backward(self, operator: int) -> None:
        layout, op = self.tasks[operator], self.graph.operators[operator]
        shared = synchronized_calls(op, layout.boxes, self.options.batch_norm)
        combined: dict[int, int] = {}
        for stage in reversed(range(len(shared) + 1)):
            for part, rank in reversed(list(enumerate(layout.ranks))):
                ids = [self.returned_at[c] for c in self.deliveries.returns.get((operator, part), ())]
                ids += [combined[part]] if part in combined else []
                ids += self.summed_at.get((operator, part), [])
                parameters = _blocks(op.parameters, layout.parameters, part)
                ids += self._gathered(rank, operator, parameters)
                self.steps[rank].append(
                    Backward(operator=operator, part=part, stage=stage, waits=self._new(rank, ids))
                )
            if stage > 0:
                combined = self._reduce_statistics("backward", operator, stage - 1, shared[stage - 1])
        self._sum("backward", operator, self.deliveries.summed_back.get(operator, ()))
        self._exchange("backward", operator, self.deliveries.backward.get(operator, {}))

    def _reduce_statistics(
        self, direction: Direction, operator: int, stage: int, normalization: Normalization
    ) -> dict[int, int]:
        """Reduces the rows of each group of channels; the id that each part waits for."""
        layout, combined = self.tasks[operator], {}
        for parts in channel_groups(layout.boxes, normalization):
            group = tuple(sorted({layout.ranks[p] for p in parts}))
            step = ReduceStatistics(
                id=self._id(), direction=direction, operator=operator, stage=stage, parts=parts, group=group
            )
            self._share(step, group)
            combined.update(dict.fromkeys(parts, step.id))
        return combined

    def _sum(self, direction: Direction, operator: int, sums: Iterable[Partials]) -> None:
        """Sums partial results, or the gradients of their sums."""
        for partials in sums:
            step = SumPartials(
                id=self._id(),
                direction=direction,
                operator=operator,
                group=partials.group,
                pieces=partials.pieces,
                num_bytes=partials.num_bytes,
            )
            self._share(step, partials.group)
            if direction == "forward":
                for rank in partials.group:
                    self.arrivals[rank][partials.total] = step.id
            else:
                for piece in partials.pieces:
                    self.summed_at.setdefault((partials.operator, piece.part), []).append(step.id)

    def _exchange(self, direction: Direction, operator: int, routes: dict[Route, list[Piece]]) -> None:
        if not routes:
            return
        number = self._id()
        for rank, step in exchange_steps(self.graph, number, direction, operator, routes):
            self.steps[rank].append(step)
        if direction == "backward":
            self.returned_at[operator] = number
            return
        for (_, target), pieces in routes.items():
            self.arrivals[target].update(dict.fromkeys(pieces, number))

    def _loss_operator(self, tensor: int) -> int:
        """The operator that computes a loss; if it is no sum of parts, all its ranks get all parts."""
        loss = self.graph.tensors[tensor]
        if tensor not in self.graph.producer or loss.num_elements != 1:
            raise GraphError(
                f"the loss of {self.graph.name!r}, {loss.name!r}, has {loss.num_elements} elements"
                f" and {'an' if tensor in self.graph.producer else 'no'} operator that computes it;"
                " expected one element that an operator computes: return a scalar from forward"
            )
        operator = self.graph.producer[tensor]
        if not self._loss_is_a_sum(operator):
            routes, ranks = self.deliveries.forward[operator], self.tasks[operator].ranks
            for piece in self._loss_pieces(operator):
                for target in set(ranks) - {ranks[piece.part]}:
                    sent = routes.setdefault((ranks[piece.part], target), [])
                    if piece not in sent:
                        sent.append(piece)
            self.deliveries.forward[operator] = dict(sorted(routes.items()))
        return operator

    def _loss_pieces(self, operator: int) -> list[Piece]:
        parts = range(len(self.tasks[operator].ranks))
        return [
            piece for p in parts for piece in self._writes(operator, p) if piece.tensor in self.work.losses
        ]

    def _loss_is_a_sum(self, operator: int) -> bool:
        (access,) = [a for a in self.graph.operators[operator].outputs if a.tensor in self.work.losses]
        return access.combine == "sum" or len(self.tasks[operator].ranks) == 1

    def _reduce_loss(self, operator: int, micro_batch: int) -> None:
        pieces, ranks, number = self._loss_pieces(operator), self.tasks[operator].ranks, self._id()
        summed = self._loss_is_a_sum(operator)
        for rank in self.everyone:
            read = [p for p in pieces if ranks[p.part] == rank or (not summed and rank in ranks)]
            ids = [self.arrivals[rank][p] for p in read if p in self.arrivals[rank]]
            self.steps[rank].append(
                ReduceLoss(
                    id=number,
                    group=self.everyone,
                    waits=self._new(rank, ids),
                    pieces=tuple(read),
                    counted=bool(read) and (summed or rank == ranks[0]),
                    micro_batch=micro_batch,
                    weight=self.work.loss_weight,
                )
            )

    def _reduce_cells(self, buckets: Iterable[list[Cell]]) -> None:
        for bucket in buckets:
            cells, group = tuple(cell.block for cell in bucket), bucket[0].holders
            number, size = self._id(), total_bytes(self.graph, cells)
            if self.sharding is Sharding.NONE:
                self._share(ReduceGradients(id=number, group=group, cells=cells, num_bytes=size), group)
            else:
                parts = parts_by_holder(bucket)
                self._share(ScatterGradients(id=number, group=group, parts=parts, num_bytes=size), group)
            for rank in group:
                self.reductions[rank].append(number)

    def _gather(self, cells: Iterable[Cell], micro_batch: int = 0) -> None:
        """Gathers cells, in as few steps as buckets have room for."""
        for bucket in packed(self.graph, cells, self.options.bucket_bytes):
            group, size = bucket[0].holders, total_bytes(self.graph, [cell.block for cell in bucket])
            step = GatherParameters(id=self._id(), group=group, parts=parts_by_holder(bucket), num_bytes=size)
            self._share(step, group)
            for rank in group:
                for cell in bucket:
                    known = self.gathers[rank].setdefault((cell.block.tensor, micro_batch), [])
                    known.append((cell.block, step.id))

    def _update(self, held: list[tuple[Block, ...]], owned: list[tuple[Block, ...]]) -> None:
        """Each rank updates what it holds of what is trained or, where state is sharded, its parts of it."""
        whole = self.sharding is Sharding.NONE
        trained = [
            tuple(b for b in (blocks if whole else within(own, blocks)) if b.tensor in self.trained)
            for blocks, own in zip(held, owned, strict=True)
        ]
        group = tuple(rank for rank in self.everyone if trained[rank])
        number = self._id() if self.options.clip_gradients and group else None
        for rank in group:
            waits = self._new(rank, self.reductions[rank])
            if number is not None:
                counted = tuple(block for block in owned[rank] if block.tensor in self.trained)
                self.steps[rank].append(ReduceNorm(id=number, group=group, waits=waits, cells=counted))
                waits = self._new(rank, [number])
            self.steps[rank].append(Update(waits=waits, parameters=trained[rank]))


def _recorded(found: tuple[Normalization, ...], layout: Tasks) -> dict[int, tuple[int, ...]]:
    """For each part, the calls whose statistics it records: the first part of each group of channels."""
    recorded: dict[int, tuple[int, ...]] = {}
    for n in found:
        if n.running is not None:
            for parts in channel_groups(layout.boxes, n):
                recorded[parts[0]] = (*recorded.get(parts[0], ()), n.call)
    return recorded


def _blocks(accesses: tuple, regions: tuple, part: int) -> tuple[Block, ...]:  # type: ignore[type-arg]
    return tuple(
        Block(tensor=access.tensor, box=boxes[part]) for access, boxes in zip(accesses, regions, strict=True)
    )
