"""Builds operator graphs by hand, without torch: linear layers, tables, windows, sums and a loss.

Tensors are ``[sample, position, channel]``; elements take 4 bytes. FLOPs are those of the usual layers.
"""

from soaprl.graph.factors import Factor, FactorKind, Span
from soaprl.graph.operators import Access, Operator, OperatorGraph, Tensor, TensorRole, Term

_ITEMSIZE = 4


class BlockBuilder:
    """Adds operators one by one; methods return the index of the tensor that was made.

    Args:
        sample: Batch size.
        position: Positions of a sample (steps, pixels).
        split: Kinds of factors that may be split.
    """

    def __init__(
        self, *, sample: int, position: int, split: frozenset[FactorKind] = frozenset(FactorKind)
    ) -> None:
        self.sample = sample
        self.position = position
        self._split = split
        self._tensors: list[Tensor] = []
        self._operators: list[Operator] = []

    def input(self, channel: int) -> int:
        """Values that come with the batch."""
        return self._tensor("x", TensorRole.INPUT, (self.sample, self.position, channel), grad=False)

    def weight(self, *shape: int) -> int:
        """A parameter; several operators may read it."""
        return self._tensor("w", TensorRole.PARAMETER, shape, grad=True)

    def linear(self, x: int, channel: int, *, weight: int | None = None) -> int:
        """``x[s, p, i] w[o, i] -> y[s, p, o]``."""
        inner = self._channels(x)
        factors = (
            *self._rows(),
            self._factor("channel", channel, FactorKind.PARAMETER),
            self._factor("in_channel", inner, FactorKind.REDUCTION),
        )
        w = self.weight(channel, inner) if weight is None else weight
        y = self._activation(channel)
        rows = self._row_spans()
        return self._operator(
            "linear",
            factors,
            inputs=(self._access(x, (*rows, _plain(3, inner)), saved=True),),
            parameters=(self._access(w, (_plain(2, channel), _plain(3, inner)), saved=True),),
            output=self._access(y, (*rows, _plain(2, channel)), saved=False),
            forward=2.0,
            matmul=True,
        )

    def table(self, x: int, vocabulary: int, channel: int) -> int:
        """A row of a table of `vocabulary` rows for each position; hardly any work, many parameters."""
        factors = (*self._rows(), self._factor("channel", channel, FactorKind.PARAMETER))
        y, w = self._activation(channel), self.weight(vocabulary, channel)
        rows, whole = self._row_spans(), Span(factor=-1, lower=0, upper=vocabulary)
        ids = Span(factor=-1, lower=0, upper=self._channels(x))
        return self._operator(
            "embedding",
            factors,
            inputs=(self._access(x, (*rows, ids), saved=True),),
            parameters=(self._access(w, (whole, _plain(2, channel)), saved=False),),
            output=self._access(y, (*rows, _plain(2, channel)), saved=False),
            forward=0.0,
            matmul=False,
        )

    def window(self, x: int, *, width: int) -> int:
        """A weighted sum over `width` neighbouring positions of each channel: parts read halos."""
        channel, before = self._channels(x), width // 2
        factors = (*self._rows(), self._factor("channel", channel, FactorKind.PARAMETER))
        y, w = self._activation(channel), self.weight(channel, width)
        sample, position = self._row_spans()
        halo = Span(factor=1, lower=0, upper=self.position, add_first=-before, add_last=width - 1 - before)
        every = Span(factor=-1, lower=0, upper=width)
        return self._operator(
            "conv1d",
            factors,
            inputs=(self._access(x, (sample, halo, _plain(2, channel)), saved=True),),
            parameters=(self._access(w, (_plain(2, channel), every), saved=True),),
            output=self._access(y, (sample, position, _plain(2, channel)), saved=False),
            forward=2.0 * width,
            matmul=False,
        )

    def add(self, *operands: int) -> int:
        """The sum of tensors of one shape."""
        channel = self._channels(operands[0])
        factors = (*self._rows(), self._factor("channel", channel, FactorKind.ATTRIBUTE))
        spans = (*self._row_spans(), _plain(2, channel))
        return self._operator(
            "add",
            factors,
            inputs=tuple(self._access(x, spans, saved=False) for x in operands),
            parameters=(),
            output=self._access(self._activation(channel), spans, saved=False),
            forward=float(len(operands) - 1),
            matmul=False,
        )

    def loss(self, x: int) -> int:
        """The mean of everything: partial sums where it is split."""
        channel = self._channels(x)
        sample, position = self._rows()
        factors = (sample, position, self._factor("channel", channel, FactorKind.REDUCTION))
        y = self._tensor("y", TensorRole.ACTIVATION, (), grad=True)
        return self._operator(
            "mean",
            factors,
            inputs=(self._access(x, (*self._row_spans(), _plain(2, channel)), saved=False),),
            parameters=(),
            output=self._access(y, (), saved=False),
            forward=1.0,
            matmul=False,
        )

    def build(self, name: str) -> OperatorGraph:
        """The graph of everything that was added; the last operator's output is the loss."""
        return OperatorGraph(
            name=name,
            batch_size=self.sample,
            tensors=tuple(self._tensors),
            operators=tuple(self._operators),
            loss=self._operators[-1].outputs[0].tensor,
        )

    def _factor(self, name: str, extent: int, kind: FactorKind) -> Factor:
        return Factor(name=name, extent=extent, kind=kind, max_degree=extent if kind in self._split else 1)

    def _rows(self) -> tuple[Factor, Factor]:
        sample = self._factor("sample", self.sample, FactorKind.SAMPLE)
        return sample, self._factor("position", self.position, FactorKind.ATTRIBUTE)

    def _row_spans(self) -> tuple[Span, Span]:
        return _plain(0, self.sample), _plain(1, self.position)

    def _channels(self, tensor: int) -> int:
        return self._tensors[tensor].shape[-1]

    def _activation(self, channel: int) -> int:
        return self._tensor("y", TensorRole.ACTIVATION, (self.sample, self.position, channel), grad=True)

    def _tensor(self, prefix: str, role: TensorRole, shape: tuple[int, ...], *, grad: bool) -> int:
        self._tensors.append(
            Tensor(
                name=f"{prefix}{len(self._tensors)}",
                role=role,
                dtype="float32",
                itemsize=_ITEMSIZE,
                refined=tuple((extent,) for extent in shape),
                requires_grad=grad,
            )
        )
        return len(self._tensors) - 1

    def _access(self, tensor: int, spans: tuple[Span, ...], *, saved: bool) -> Access:
        return Access(
            tensor=tensor,
            spans=spans,
            layout=tuple((d,) for d in range(len(spans))),
            gradient=self._tensors[tensor].requires_grad,
            saved=saved,
        )

    def _operator(
        self,
        kind: str,
        factors: tuple[Factor, ...],
        *,
        inputs: tuple[Access, ...],
        parameters: tuple[Access, ...],
        output: Access,
        forward: float,
        matmul: bool,
    ) -> int:
        """Adds an operator of `forward` FLOPs, and twice as many backward, for each point of its factors."""
        every = tuple(range(len(factors)))
        self._operators.append(
            Operator(
                name=f"{kind}{len(self._operators)}",
                kind=kind,
                factors=factors,
                inputs=inputs,
                parameters=parameters,
                buffers=(),
                outputs=(output,),
                forward_flops=(Term(coefficient=forward, factors=every),),
                backward_flops=(Term(coefficient=2 * forward, factors=every),),
                internal_bytes=(),
                internal_saved_bytes=(),
                num_forward_kernels=1,
                num_backward_kernels=2 if parameters else 1,
                matmul=matmul,
                body=(),
                body_outputs=(),
            )
        )
        return output.tensor


def _plain(factor: int, extent: int) -> Span:
    """The tensor's dimension is the factor."""
    return Span(factor=factor, lower=0, upper=extent)
