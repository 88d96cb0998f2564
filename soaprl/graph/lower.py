"""Lowering: turns a captured program and its rules into operators over factors.

Views disappear: each value is resolved to the tensor that stores it and a map of refined dimensions, and the
operators that read it get an `Access` to that tensor. A node without a rule becomes an operator that cannot
be split. `soaprl.graph.coarsen` follows.
"""

from collections import Counter
from dataclasses import dataclass, replace

from soaprl.graph.build import Context, OperatorBuilder, Pieces
from soaprl.graph.factors import FactorKind
from soaprl.graph.fallback import broken_view_call, copy_rule, opaque_rule
from soaprl.graph.operators import Call, Literal, Operator, Tensor, TensorRole
from soaprl.graph.program import Program
from soaprl.graph.refine import refine
from soaprl.graph.resolve import Resolved, first_pieces, stored, viewed
from soaprl.graph.rules.base import Node, Reshape, Rule, RuleResult, RuleTable, Value, ValueRef, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """Operators, with the facts that coarsening needs.

    Attributes:
        tensors: All stored tensors.
        operators: One for each call, in execution order.
        pointwise: For each operator, whether its rule is pointwise.
        additive: For each operator, whether partial sums pass through it.
        constants: Calls that depend on no input, in order.
        constant_results: For each of them, the tensor indices of its results.
        loss: Tensor index of the loss.
        literals: Contents of constants that the model's code spells out.
        unknown: Targets without a rule, with their number of calls.
        failed: Targets whose rule raised an exception, with the first one.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    pointwise: tuple[bool, ...]
    additive: tuple[bool, ...]
    constants: tuple[Call, ...]
    constant_results: tuple[tuple[int, ...], ...]
    loss: int
    literals: tuple[Literal, ...]
    unknown: dict[str, int]
    failed: dict[str, str]


def lower(program: Program, table: RuleTable, *, keep_views: bool = False) -> Lowered:
    """Lowers `program` by the rules in `table`.

    Args:
        program: What capture found.
        table: The rules.
        keep_views: Make a copying operator of every view instead of folding it into its readers.
    """
    failed: dict[str, str] = {}
    rules = tuple(_applied(table, node, program.values, failed) for node in program.nodes)
    lowering = _Lowering(program, rules, keep_views, failed)
    lowering.run()
    return lowering.result()


def _applied(table: RuleTable, node: Node, values: tuple[Value, ...], failed: dict[str, str]) -> RuleResult:
    """The rule of a call; None where it raises an exception, which `failed` gets.

    Users call operators in ways that no one thought of. A rule that stumbles over one costs them the splits
    of that call, not the whole model, and they are told.
    """
    try:
        return table.apply(node, values)
    except Exception as error:
        failed.setdefault(node.target, f"{type(error).__name__}: {error}".strip(": "))
        return None


class _Lowering:
    """The state of one run of `lower`."""

    def __init__(
        self,
        program: Program,
        rules: tuple[RuleResult, ...],
        keep_views: bool,
        failed: dict[str, str],
    ) -> None:
        self.program = program
        self.rules = rules
        self.keep_views = keep_views
        self.refinement = refine(program, rules)
        self.tensors: list[Tensor] = []
        self.context = Context(
            values=program.values, extents=self.refinement.dims, tensor_of={}, sample=set()
        )
        self.resolved: dict[int, Resolved] = {}
        self.operators: list[tuple[Operator, Rule]] = []
        self.constants: list[tuple[Call, tuple[int, ...]]] = []
        self.unknown: Counter[str] = Counter()
        self.failed = failed

    def run(self) -> None:
        defined = {value for node in self.program.nodes for value in node.results}
        for value in range(len(self.program.values)):
            if value not in defined:
                self.store(value)
        for index, (node, rule) in enumerate(zip(self.program.nodes, self.rules, strict=True)):
            if rule is None:
                if not self.is_constant(node.results) and node.target not in self.failed:
                    self.unknown[node.target] += 1
                self.add_call(node, opaque_rule(node, self.program.values), {})
            elif not isinstance(rule, Rule):
                for view in rule:
                    self.add_view(node, view)
            elif index in self.refinement.broken_rules:
                self.add_call(node, opaque_rule(node, self.program.values), {})
            else:
                self.add_call(node, rule, self.refinement.labels[index])

    def result(self) -> Lowered:
        return Lowered(
            tensors=self.marked_tensors(),
            operators=tuple(op for op, _ in self.operators),
            pointwise=tuple(rule.pointwise for _, rule in self.operators),
            additive=tuple(rule.additive for _, rule in self.operators),
            constants=tuple(call for call, _ in self.constants),
            constant_results=tuple(results for _, results in self.constants),
            loss=self.context.tensor_of[self.resolved[self.program.loss].root],
            literals=tuple(
                Literal(tensor=self.context.tensor_of[value], data=data)
                for value, data in self.program.literals.items()
            ),
            unknown=dict(self.unknown),
            failed=self.failed,
        )

    def marked_tensors(self) -> tuple[Tensor, ...]:
        """The tensors, each with the dimensions that run over the samples of the batch."""
        sample_dims: dict[int, list[int]] = {}
        for value, dim in sorted(self.context.sample):
            sample_dims.setdefault(self.context.tensor_of[value], []).append(dim)
        return tuple(
            replace(tensor, sample_dims=tuple(sample_dims.get(number, ())))
            for number, tensor in enumerate(self.tensors)
        )

    def is_constant(self, results: tuple[int, ...]) -> bool:
        return all(self.program.values[value].role is TensorRole.CONSTANT for value in results)

    def store(self, value: int) -> None:
        """Makes a tensor of a value."""
        v = self.program.values[value]
        dims = self.context.dims(value)
        self.context.tensor_of[value] = len(self.tensors)
        self.resolved[value] = stored(value, dims)
        self.tensors.append(
            Tensor(
                name=v.name,
                role=v.role,
                dtype=v.dtype,
                itemsize=v.itemsize,
                refined=dims,
                requires_grad=v.requires_grad,
                aliases=self.program.aliases.get(value, ()),
            )
        )
        for dim in self.program.sample_dims.get(value, ()):
            if dims[dim]:
                self.context.sample.add((value, first_pieces(dims)[dim]))

    def add_view(self, node: Node, view: View) -> None:
        """Resolves a view; where it is not a mere renaming, or views are kept, makes a call of it."""
        values = self.program.values
        single = replace(node, results=(view.result,), kwargs=())
        if view.result in self.refinement.broken_views or self.is_constant_slice(view):
            rule, target, args = broken_view_call(view, values)
            single = replace(single, target=target, args=args)
            pieces = {
                label.name: self.context.dims(view.result)[int(label.name[3:])] for label in rule.labels
            }
            self.add_call(single, rule, pieces)
            return
        source = self.resolved[view.source]
        self.resolved[view.result] = viewed(
            source, view, self.context.dims(view.source), self.context.dims(view.result)
        )
        if self.keep_views and not self.is_constant(single.results):
            rule = copy_rule(values[view.result], self.context.dims(view.result))
            single = replace(single, target="soaprl.copy", args=(ValueRef(view.result),))
            self.add_call(single, rule, {label.name: (label.extent,) for label in rule.labels})

    def is_constant_slice(self, view: View) -> bool:
        """Whether a view takes a part of a constant; calls that make constants read whole tensors alone."""
        shape = self.program.values[view.source].shape
        return (
            self.is_constant((view.result,))
            and not isinstance(view, Reshape)
            and any(dim.length < extent for dim, extent in zip(view.dims, shape, strict=True))
        )

    def add_call(self, node: Node, rule: Rule, pieces: Pieces) -> None:
        arguments = node.tensor_arguments()
        resolved = tuple(self.resolved[value] for value in arguments)
        for value in node.results:
            self.store(value)
        builder = OperatorBuilder(self.context, node, rule, pieces, resolved)
        if self.is_constant(node.results):
            call = builder.constant_call()
            self.constants.append((call, tuple(self.context.tensor_of[value] for value in node.results)))
            return
        operator = builder.build()
        self.operators.append((operator, rule))
        for value, access in zip(node.results, operator.outputs, strict=True):
            for k, span in enumerate(access.spans):
                if span.factor >= 0 and operator.factors[span.factor].kind is FactorKind.SAMPLE:
                    self.context.sample.add((value, k))
