from dataclasses import replace

from soaprl.graph.factors import Span, num_parts, part_box
from soaprl.graph.operators import Access, Operator, OperatorGraph, TensorRole
from soaprl.graph.shrink import shrink
from tests.toys import ToyBuilder


def network() -> OperatorGraph:
    builder = ToyBuilder(sample=12)
    x = builder.linear("first", builder.input("x", channel=6), 6)
    builder.mean("loss", builder.add("sum", builder.window("window", x, kernel=3), x))
    return builder.build()


def touched(operator: Operator, access: Access, degrees: tuple[int, ...], part: int) -> list[tuple[int, int]]:
    box = part_box(operator.extents, degrees, part)
    whole = (0, 1)
    return [span.interval(*(box[span.factor] if span.factor >= 0 else whole)) for span in access.spans]


def test_a_part_of_the_smaller_graph_is_the_part_of_the_larger_one() -> None:
    graph = network()
    small = shrink(graph, [0] * len(graph.operators), kept=2, replicas=4)
    assert small.batch_size == 6
    for large, less in zip(graph.operators, small.operators, strict=True):
        rest = tuple(min(2, f.max_degree) for f in large.factors[1:])
        accesses = zip(
            (*large.inputs, *large.parameters, *large.outputs),
            (*less.inputs, *less.parameters, *less.outputs),
            strict=True,
        )
        for wide, narrow in accesses:
            for part in range(num_parts((2, *rest))):
                assert touched(less, narrow, (2, *rest), part) == touched(large, wide, (4, *rest), part)


def test_tensors_shrink_with_the_batch_and_parameters_do_not() -> None:
    graph = network()
    small = shrink(graph, [0] * len(graph.operators), kept=1, replicas=3)
    for before, after in zip(graph.tensors, small.tensors, strict=True):
        if before.role is TensorRole.PARAMETER or not before.shape:
            assert after == before
        else:
            assert (before.shape, after.shape) == ((12, 6), (4, 6))


def test_an_input_that_someone_reads_whole_keeps_its_shape() -> None:
    graph = network()
    whole = graph.operators[0].inputs[0]
    fixed = tuple(Span(factor=-1, lower=span.lower, upper=span.upper) for span in whole.spans)
    reader = replace(whole, spans=fixed)
    last = graph.operators[-1]
    changed = replace(last, inputs=(*last.inputs, reader))
    graph = replace(graph, operators=(*graph.operators[:-1], changed))
    small = shrink(graph, [0] * len(graph.operators), kept=1, replicas=3)
    assert small.tensors[whole.tensor].shape == (12, 6)
    assert small.operators[-1].inputs[-1] == reader
    assert small.operators[0].extents[0] == 4
