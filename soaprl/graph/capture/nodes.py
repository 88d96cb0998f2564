"""From an exported program to a `Program`: plain data, no torch objects, only what the loss depends on."""

import base64
import operator
from collections import Counter
from dataclasses import replace

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from soaprl.errors import CaptureError
from soaprl.graph.capture.expand import expand
from soaprl.graph.capture.targets import is_view, read_keywords, target_name, viewed_node, written_argument
from soaprl.graph.operators import TensorRole
from soaprl.graph.program import Program
from soaprl.graph.rules.base import Node, NodeArgument, Value, ValueRef

_ROLES = {
    InputKind.PARAMETER: TensorRole.PARAMETER,
    InputKind.BUFFER: TensorRole.BUFFER,
    InputKind.CONSTANT_TENSOR: TensorRole.BUFFER,
    InputKind.USER_INPUT: TensorRole.INPUT,
}
# What export names the tensors that a forward makes of literals.
_LITERAL = "lifted_tensor"
# Calls of a part of the graph in another mode; everything else that calls a graph is control flow.
_GRADIENT_MODE, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


def import_program(
    exported: ExportedProgram,
    *,
    name: str,
    batch_size: int,
    sample_dims: tuple[tuple[int, ...], ...],
    aliases: dict[str, tuple[str, ...]],
    prefix: str,
    notes: tuple[str, ...],
) -> Program:
    """The program of an exported model whose only output is the loss.

    Args:
        exported: Result of `torch.export.export`.
        name: The model's name.
        batch_size: Global batch size.
        sample_dims: For each input tensor in order, the dimensions that grow with the batch size.
        aliases: For each parameter name, all names of the same parameter, the first one first.
        prefix: Prefix of module paths and state names that is not part of the user's model.
        notes: What is known so far, for people.
    """
    importer = _Importer(exported, aliases, prefix)
    importer.add_placeholders(sample_dims)
    importer.add_calls(exported.graph)
    loss = importer.loss()
    if not importer.values[loss].requires_grad:
        importer.notes.append(
            "warning: the loss has no gradient with respect to any parameter: only the forward pass is there"
        )
    nodes = expand(importer.nodes, importer.values)
    nodes = _named(_needed(nodes, loss))
    _check_elements(nodes, importer.values)
    return Program(
        name=name,
        batch_size=batch_size,
        values=tuple(_with_roles(importer.values, nodes)),
        nodes=tuple(nodes),
        loss=loss,
        sample_dims=importer.sample_dims,
        aliases=importer.aliases,
        literals=importer.literals,
        notes=(*notes, *importer.notes),
    )


class _Importer:
    """The values and nodes found so far."""

    def __init__(self, exported: ExportedProgram, aliases: dict[str, tuple[str, ...]], prefix: str) -> None:
        self.exported = exported
        self.names = aliases
        self.prefix = prefix
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.known: dict[fx.Node, int | tuple[int, ...]] = {}
        self.state: dict[str, int] = {}
        self.sample_dims: dict[int, tuple[int, ...]] = {}
        self.aliases: dict[int, tuple[str, ...]] = {}
        self.literals: dict[int, str] = {}
        self.notes: list[str] = []
        self.gradient = True

    def add_placeholders(self, sample_dims: tuple[tuple[int, ...], ...]) -> None:
        specs = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        inputs = iter(sample_dims)
        for node in self.exported.graph.nodes:
            if node.op == "placeholder" and isinstance(specs[node.name].arg, TensorArgument):
                spec = specs[node.name]
                if spec.kind not in _ROLES:
                    raise CaptureError(
                        f"the model has an input of kind {spec.kind.name}, which is not supported"
                    )
                index = self._placeholder(node, spec)
                self.known[node] = index
                if spec.kind is InputKind.USER_INPUT:
                    self.sample_dims[index] = next(inputs, ())

    def _placeholder(self, node: fx.Node, spec: InputSpec) -> int:
        name = (spec.target or node.name).removeprefix(self.prefix)
        group = tuple(n.removeprefix(self.prefix) for n in self.names.get(spec.target or "", ()))
        if group and group[0] in self.state:
            return self.state[group[0]]
        role = _ROLES[spec.kind]
        parameter = role is TensorRole.PARAMETER
        trained = parameter and dict(self.exported.named_parameters())[spec.target or ""].requires_grad
        index = self._value(group[0] if group else name, node.meta["val"], role=role, requires_grad=trained)
        if spec.kind is InputKind.CONSTANT_TENSOR and (spec.target or "").startswith(_LITERAL):
            content = self.exported.constants[spec.target or ""]
            if isinstance(content, torch.Tensor) and not isinstance(content, FakeTensor):
                self.literals[index] = _base64(content)
        if group:
            self.state[group[0]] = index
            self.aliases[index] = group[1:]
        return index

    def _value(self, name: str, tensor: torch.Tensor, *, role: TensorRole, requires_grad: bool) -> int:
        self.values.append(
            Value(
                name=name,
                role=role,
                shape=tuple(int(extent) for extent in tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                itemsize=tensor.dtype.itemsize,
                requires_grad=requires_grad,
            )
        )
        return len(self.values) - 1

    def add_calls(self, graph: fx.Graph) -> None:
        """Imports the calls of the exported graph, or of a part of it that another mode applies to."""
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            parts = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
            graphs = [getattr(graph.owning_module, str(part.target)) for part in parts]
            if any(isinstance(part, fx.GraphModule) for part in graphs):
                self._add_part(node, node.args.index(parts[0]), graphs[0])
            else:
                self.add_call(node)

    def _add_part(self, node: fx.Node, position: int, part: fx.GraphModule) -> None:
        """Imports a part in place of its call; `position` of the call's arguments is the part."""
        mode = target_name(node.target)
        if mode not in (_GRADIENT_MODE, _AUTOCAST):
            raise CaptureError(
                f"the model calls {mode} (in module {self._module(node) or '(top)'}), whose course depends on"
                " data; this is not supported: write it without control flow"
            )
        given = [a for a in node.args[position + 1 :] if isinstance(a, fx.Node)]
        places = [n for n in part.graph.nodes if n.op == "placeholder"]
        for outside, inside in zip(given, places, strict=True):
            self.known[inside] = self.known[outside]
        before = self.gradient
        if mode == _GRADIENT_MODE:
            self.gradient = bool(node.args[0])
        self.add_calls(part.graph)
        self.gradient = before
        for outside, inside in zip(given, places, strict=True):
            # It may have been changed in place.
            self.known[outside] = self.known[inside]
        results = [self.known[n] for n in part.graph.output_node().args[0]]  # type: ignore[union-attr, index]
        assert all(isinstance(result, int) for result in results), "parts return tensors"
        self.known[node] = tuple(result for result in results if isinstance(result, int))

    def add_call(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source = self.known[node.args[0]]  # type: ignore[index]
            assert isinstance(source, tuple), "only calls with several results are indexed"
            self.known[node] = source[node.args[1]]  # type: ignore[index]
            return
        meta = node.meta.get("val")
        several = isinstance(meta, list | tuple)
        made = tuple(meta) if isinstance(meta, list | tuple) else (meta,)
        tensors = [t for t in made if isinstance(t, torch.Tensor)]
        if len(tensors) < len(made):
            return
        args = tuple(self._argument(a) for a in node.args)
        kwargs = tuple((k, self._argument(a)) for k, a in read_keywords(node).items())
        captured = Node(
            name=node.name,
            target=target_name(node.target),
            module=self._module(node),
            args=args,
            kwargs=kwargs,
            results=(),
        )
        flows = (
            self.gradient
            and "detach" not in captured.target
            and any(self.values[v].requires_grad for v in captured.tensor_arguments())
        )
        results = tuple(
            self._value(
                node.name if len(tensors) == 1 else f"{node.name}.{k}",
                tensor,
                role=TensorRole.ACTIVATION,
                requires_grad=flows and tensor.is_floating_point(),
            )
            for k, tensor in enumerate(tensors)
        )
        self.nodes.append(replace(captured, results=results))
        self.known[node] = results if several else results[0]
        self._follow_mutation(node, results)

    def _follow_mutation(self, node: fx.Node, results: tuple[int, ...]) -> None:
        """After an in-place call, later readers of what it changed read its result."""
        changed = written_argument(node)
        if changed is None:
            return
        if changed.op == "call_function" and is_view(changed) and len(viewed_node(changed).users) > 1:
            raise CaptureError(
                f"{node.target} changes a view of another tensor in place (in module "
                f"{self._module(node) or '(top)'}); write it without the in-place change, for "
                "example with torch.where or torch.cat"
            )
        self.known[changed] = results[0]

    def _argument(self, argument: object) -> NodeArgument:
        if isinstance(argument, fx.Node):
            known = self.known.get(argument)
            if known is None:
                raise CaptureError(
                    f"{argument.target} gives something that is not a tensor; this is not supported"
                )
            return tuple(ValueRef(v) for v in known) if isinstance(known, tuple) else ValueRef(known)
        if isinstance(argument, list | tuple):
            return tuple(self._argument(a) for a in argument)
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        return str(argument).removeprefix("torch.")

    def _module(self, node: fx.Node) -> str:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0] if stack else ""
        return f"{path}.".removeprefix(self.prefix).rstrip(".")

    def loss(self) -> int:
        output = next(node for node in self.exported.graph.nodes if node.op == "output")
        known = self.known[output.args[0][-1]]
        assert isinstance(known, int), "the loss is one tensor"
        return known


def _base64(content: torch.Tensor) -> str:
    """The elements of a tensor as text."""
    flat = content.detach().contiguous().reshape(-1).view(torch.uint8)
    return base64.b64encode(flat.numpy().tobytes()).decode()


def _needed(nodes: list[Node], loss: int) -> list[Node]:
    """The nodes that the loss depends on."""
    wanted, kept = {loss}, []
    for node in reversed(nodes):
        if wanted.intersection(node.results):
            wanted.update(node.tensor_arguments())
            kept.append(node)
    return kept[::-1]


def _check_elements(nodes: list[Node], values: list[Value]) -> None:
    """Raises `CaptureError` if a call reads a tensor without elements."""
    for node in nodes:
        for value in node.tensor_arguments():
            if 0 in values[value].shape:
                raise CaptureError(
                    f"{node.name} reads a tensor of shape {values[value].shape}, which has no elements; "
                    "this is not supported: leave it out of the model"
                )


def _with_roles(values: list[Value], nodes: list[Node]) -> list[Value]:
    """Marks as constant what is computed from nothing but constants and buffers."""
    fixed = {TensorRole.CONSTANT, TensorRole.BUFFER}
    for node in nodes:
        if all(values[v].role in fixed for v in node.tensor_arguments()):
            for v in node.results:
                values[v] = replace(values[v], role=TensorRole.CONSTANT)
    return values


def _named(nodes: list[Node]) -> list[Node]:
    """Nodes with names for people: the module's path, and the operation if it makes several calls."""
    targets: dict[str, set[str]] = {}
    for node in nodes:
        targets.setdefault(node.module, set()).add(_operation(node) if not _reshapes(node) else "")
    seen: Counter[str] = Counter()
    named = []
    for node in nodes:
        alone = node.module and len(targets[node.module] - {""}) == 1 and not _reshapes(node)
        name = node.module if alone else f"{node.module}.{_operation(node)}".lstrip(".")
        seen[name] += 1
        named.append(replace(node, name=name if seen[name] == 1 else f"{name}#{seen[name]}"))
    return named


_VIEWS = frozenset(
    {"view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "expand", "unsqueeze", "squeeze"}
    | {"slice", "select", "chunk", "split", "split_with_sizes", "unbind", "contiguous", "alias", "detach"}
    | {"zeros", "ones", "arange", "full"}
)


def _reshapes(node: Node) -> bool:
    """Whether a call only looks at a tensor in another way or makes a constant (for naming alone)."""
    return _operation(node) in _VIEWS


def _operation(node: Node) -> str:
    parts = node.target.split(".")
    return (parts[1] if len(parts) > 1 else parts[0]).rstrip("_")
