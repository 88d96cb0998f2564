"""Capture: a PyTorch model to a `Program`, through `torch.export` on fake tensors.

No weights are allocated: the factory runs under `FakeTensorMode`. It runs twice, with two batch sizes, to see
which dimensions of its inputs grow with the batch.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from soaprl.errors import CaptureError, SoaprlError
from soaprl.graph.capture.nodes import import_program
from soaprl.graph.program import Program

Factory = Callable[[int], tuple[Any, ...]]


class WithStandInLoss(nn.Module):
    """A model that returns no scalar, with the mean square of its floating-point outputs as the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The sum over the outputs of the mean of their squares."""
        outputs = pytree.tree_leaves(self.model(*args, **kwargs))
        squares = [
            o.square().mean() for o in outputs if isinstance(o, torch.Tensor) and o.is_floating_point()
        ]
        if not squares:
            raise CaptureError(
                "the model returns no floating-point tensor, so there is nothing to train: return the loss"
            )
        return torch.stack(squares).sum() if len(squares) > 1 else squares[0]


def capture(factory: Factory, batch_size: int, *, name: str) -> Program:
    """Captures the model that `factory` makes.

    Args:
        factory: ``factory(batch_size)`` returns ``(module, args)`` or ``(module, args, kwargs)``.
        batch_size: Global batch size.
        name: Names the model in results.

    Raises:
        CaptureError: The factory or the model fails, or the model cannot be exported.
    """
    if batch_size < 1:
        raise CaptureError(f"the batch size must be at least 1, found {batch_size}")
    with _capturing():
        module, args, kwargs = _call_factory(factory, batch_size, name)
        sample_dims, notes = _sample_dims(factory, batch_size, name, (args, kwargs))
        module.train()
        wrapped = not _returns_scalar(module, args, kwargs, name)
        if wrapped:
            module = WithStandInLoss(module)
            notes.append("the model returns no scalar: the mean square of its outputs stands in for the loss")
        exported = _export(module, args, kwargs, name)
    return import_program(
        exported,
        name=name,
        batch_size=batch_size,
        sample_dims=sample_dims,
        aliases=_tied_parameters(module),
        prefix="model." if wrapped else "",
        notes=tuple(notes),
    )


@contextmanager
def _capturing() -> Iterator[None]:
    """No weights, no warnings of PyTorch; ``torch.compile`` and checkpoints do nothing."""
    stance = torch.compiler.set_stance("force_eager")
    with warnings.catch_warnings(), stance, _open_checkpoints(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _open_checkpoints() -> Iterator[None]:
    """Runs what reentrant checkpoints hold as if they were not there: inside, export sees no gradients."""
    original = CheckpointFunction.apply

    def run(function: Callable[..., Any], preserve_random_state: bool, *args: object) -> object:
        return function(*args)

    CheckpointFunction.apply = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        CheckpointFunction.apply = original  # type: ignore[method-assign]


def describe_failure(error: BaseException) -> str:
    """An exception of the user's code in one line, with advice where the cause is well known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    text += _place(error)
    if type(error).__name__ in _DATA_DEPENDENT or "data-dependent" in text.lower():
        return f"{text}. Models are captured without data: {_NO_DATA}"
    if "cuda" in text.lower():
        return f"{text}. No GPU is needed: make the model and its inputs on the CPU"
    return text


def _place(error: BaseException) -> str:
    """Where in the user's code an exception comes from: the innermost line of neither PyTorch nor us."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]), "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    return f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name})" if frames else ""


_DATA_DEPENDENT = ("DataDependentOutputException", "DynamicOutputShapeException")
_NO_DATA = "nothing may depend on the values of tensors (no .item(), no branches or shapes by data)"


def _call_factory(
    factory: Factory, batch_size: int, name: str
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    try:
        with _converting_fake_modules():
            made = factory(batch_size)
    except SoaprlError:
        raise
    except (Exception, SystemExit) as error:
        raise CaptureError(
            f"the factory of {name}, called with batch size {batch_size}, raised {describe_failure(error)}"
        ) from error
    expected = "expected (module, args) or (module, args, kwargs) from factory(batch_size)"
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        found = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise CaptureError(f"the factory of {name} returned {found}; {expected}")
    module, args = made[0], made[1]
    kwargs = made[2] if len(made) == 3 else {}
    if not isinstance(module, nn.Module) or not isinstance(args, tuple) or not isinstance(kwargs, dict):
        types = ", ".join(type(part).__name__ for part in made)
        raise CaptureError(
            f"the factory of {name} returned ({types}); {expected}: a torch.nn.Module, a tuple, a dict"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise CaptureError(
            f"the factory of {name} returned a TorchScript module; expected the torch.nn.Module that it was"
            " made from"
        )
    # What torch.compile wraps; its own wrapper is not there in what is exported.
    return getattr(module, "_orig_mod", module), args, kwargs


@contextmanager
def _converting_fake_modules() -> Iterator[None]:
    """Lets ``module.bfloat16()`` and its kin work on fake parameters.

    PyTorch converts fake parameters by swapping tensors, which fails for those that anything else refers to.
    Here they are replaced instead; a parameter that several modules share stays one.
    """
    original = nn.Module._apply
    replaced: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def apply(
        module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(convert)  # type: ignore[no-untyped-call]
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in replaced:
                with torch.no_grad():
                    converted = nn.Parameter(convert(parameter), parameter.requires_grad)
                # The old one is kept alive, so that its id stays its own.
                replaced[id(parameter)] = (parameter, converted)
            module._parameters[name] = replaced[id(parameter)][1]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else convert(buffer)
        return module

    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = original  # type: ignore[method-assign]


def _sample_dims(
    factory: Factory, batch_size: int, name: str, inputs: tuple[Any, ...]
) -> tuple[tuple[tuple[int, ...], ...], list[str]]:
    """For each tensor among the inputs, the dimensions that grow with the batch size."""
    first = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    _, args, kwargs = _call_factory(factory, 2 * batch_size, name)
    second = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    dims = tuple(
        tuple(d for d, (a, b) in enumerate(zip(x.shape, y.shape, strict=False)) if b == 2 * a)
        for x, y in zip(first, second, strict=False)
    )
    if not any(dims):
        return ((),) * len(first), ["no input grows with the batch size: nothing can be split by sample"]
    return dims, []


def _returns_scalar(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bool:
    try:
        output = module(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise CaptureError(f"the forward of {name} raised {describe_failure(error)}") from error
    return isinstance(output, torch.Tensor) and output.numel() == 1 and output.is_floating_point()


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> ExportedProgram:
    try:
        return torch.export.export(module, args, kwargs, strict=False)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"torch.export cannot export {name}: {describe_failure(error)}") from error


def _tied_parameters(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each parameter name, the first name and then all other names of the same parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() for name in group}
