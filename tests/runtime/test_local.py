import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the library's own convention)
from torch import Tensor, nn

from soaprl.errors import GraphError
from soaprl.graph.capture import graph_from_factory
from soaprl.graph.factors import Factor, FactorKind, Span
from soaprl.graph.operators import Access, Call, DimUse, Operator, OperatorGraph, Ref
from soaprl.runtime.local import run_part
from soaprl.runtime.reference import combined, run_constants, run_graph
from tests.runtime.checking import sources


def linear_by_hand() -> Operator:
    """``x[4, 6] w[3, 6] b[3] -> y[4, 3]`` over the factors sample, channel, in_channel."""
    extents = {"sample": 4, "channel": 3, "in_channel": 6}
    factors = tuple(
        Factor(name=n, extent=e, kind=FactorKind.ATTRIBUTE, max_degree=e) for n, e in extents.items()
    )

    def access(tensor: int, *over: int) -> Access:
        spans = tuple(Span(factor=f, lower=0, upper=factors[f].extent) for f in over)
        layout = tuple((d,) for d in range(len(over)))
        return Access(tensor=tensor, spans=spans, layout=layout, gradient=True, saved=True)

    def uses(*over: int) -> tuple[DimUse, ...]:
        return tuple(DimUse(extent=factors[f].extent, factors=(f,)) for f in over)

    call = Call(
        name="linear",
        target="aten.linear.default",
        args=(
            Ref(source="input", index=0),
            Ref(source="parameter", index=0),
            Ref(source="parameter", index=1),
        ),
        kwargs=(),
        arg_dims=(uses(0, 2), uses(1, 2), uses(1)),
        result_dims=(uses(0, 1),),
    )
    return Operator(
        name="linear",
        kind="linear",
        factors=factors,
        inputs=(access(0, 0, 2),),
        parameters=(access(1, 1, 2), access(2, 1)),
        buffers=(),
        outputs=(access(3, 0, 1),),
        forward_flops=(),
        backward_flops=(),
        internal_bytes=(),
        internal_saved_bytes=(),
        num_forward_kernels=1,
        num_backward_kernels=2,
        matmul=True,
        body=(call,),
        body_outputs=((0, 0),),
    )


def test_a_bias_is_counted_once_along_a_split_reduction() -> None:
    x, w, b = torch.ones(4, 6), torch.ones(3, 6), torch.full((3,), 10.0)
    parts = [
        run_part(linear_by_hand(), (1, 1, 2), part, [x[:, s]], [w[:, s], b], [])[0]
        for part, s in enumerate((slice(0, 3), slice(3, 6)))
    ]
    # Three products of ones each; the first part adds the bias.
    assert torch.equal(parts[0], torch.full((4, 3), 13.0))
    assert torch.equal(parts[1], torch.full((4, 3), 3.0))


def test_a_region_of_another_shape_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"expected the region \(4, 3\)"):
        run_part(linear_by_hand(), (1, 1, 2), 0, [torch.ones(4, 6)], [torch.ones(3, 3), torch.ones(3)], [])


def graph_of(module: nn.Module, *shape: int) -> tuple[OperatorGraph, tuple[Tensor, ...]]:
    args = (torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)),)
    graph = graph_from_factory(lambda n: (module, (args[0][:1].expand(n, *shape),)), 4, name="small")
    return graph, args


def split(graph: OperatorGraph, kind: str, factor: str, degree: int) -> list[tuple[int, ...]]:
    return [
        tuple(degree if op.kind == kind and f.name == factor else 1 for f in op.factors)
        for op in graph.operators
    ]


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) * x.exp()).sum()


def test_batch_normalization_of_split_samples_normalizes_each_part_by_itself() -> None:
    module = Normalized()
    graph, (x,) = graph_of(module, 3, 5, 5)
    tensors = run_graph(graph, split(graph, "batch_norm", "sample", 2), sources(graph, module, (x,)))
    halves, whole = (
        (torch.cat([F.batch_norm(part, None, None, training=True) for part in parts]) * x.exp()).sum()
        for parts in (x.chunk(2), [x])
    )
    assert torch.allclose(tensors[graph.loss], halves, rtol=1e-5)
    assert not torch.allclose(whole, halves, rtol=1e-3)
    assert torch.equal(module.norm.running_mean, torch.zeros(3))


class Drop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


def test_dropout_repeats_with_its_seed_and_changes_with_it() -> None:
    module = nn.Sequential(nn.Linear(64, 64), Drop())
    graph, args = graph_of(module, 64)
    whole = [(1,) * len(op.factors) for op in graph.operators]
    dropped = [run_graph(graph, whole, sources(graph, module, args), seed=seed) for seed in (0, 1)]
    losses = [tensors[graph.loss] for tensors in dropped]
    assert not torch.equal(losses[0], losses[1])
    again = run_graph(graph, whole, sources(graph, module, args), seed=0)
    assert torch.equal(again[graph.loss], losses[0])


def test_a_missing_tensor_is_named() -> None:
    module = nn.Linear(3, 2)
    graph, _ = graph_of(module, 3)
    whole = [(1,) * len(op.factors) for op in graph.operators]
    with pytest.raises(GraphError, match="reads tensor"):
        run_graph(graph, whole, {})


class Positions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * torch.arange(6.0)[2:5]).square().mean()


def test_constants_are_made_from_nothing() -> None:
    graph, _ = graph_of(Positions(), 3)
    made = run_constants(graph, {})
    assert any(torch.equal(t, torch.tensor([2.0, 3.0, 4.0])) for t in made.values())


@pytest.mark.parametrize(
    ("how", "expected"), [("sum", 6.0), ("max", 3.0), ("min", 1.0), ("logaddexp", 3.4076059644443806)]
)
def test_partial_results_combine_as_they_say(how: str, expected: float) -> None:
    # logaddexp: log(e + e^2 + e^3).
    parts = [torch.tensor(value, dtype=torch.float64) for value in (1.0, 2.0, 3.0)]
    assert combined(parts, how).item() == pytest.approx(expected)
