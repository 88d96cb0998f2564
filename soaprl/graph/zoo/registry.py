"""Which models the zoo has, and how to build one. Torch is imported by `build` alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from soaprl.errors import CaptureError, unknown_name
from soaprl.graph.zoo.catalogue import CATALOGUE, Option, ZooModel

if TYPE_CHECKING:
    from torch import nn


def zoo_models() -> dict[str, ZooModel]:
    """All models of the zoo by name, in the order to show them in."""
    return {model.name: model for model in CATALOGUE}


def build(
    name: str, batch_size: int, **options: Option
) -> "tuple[nn.Module, tuple[Any, ...], dict[str, Any]]":
    """The module in training mode, and the arguments to call it with; the call returns the loss.

    Weights and inputs are drawn from torch's global generator. Under ``FakeTensorMode`` neither takes memory.

    Args:
        name: A key of `zoo_models`.
        batch_size: Number of samples in the arguments.
        options: Values for some of the model's options.

    Raises:
        UnknownNameError: The model or an option does not exist.
        CaptureError: The batch size or the value of an option is not legal.
    """
    models = zoo_models()
    if name not in models:
        raise unknown_name("zoo model", name, models)
    model = models[name]
    _check_size(f"batch size of {name}", batch_size)
    for option, value in options.items():
        if option not in model.options:
            raise unknown_name(f"option of {name}", option, model.options)
        _check_option(f"option {option} of {name}", model.options[option], value)
    module_name, function_name = model.factory.split(":")
    factory = getattr(import_module(module_name), function_name)
    module, args = factory(batch_size, **{**model.options, **options})
    return module, args, {}


def _check_option(what: str, default: Option, value: Option) -> None:
    """Whole numbers are sizes, others are probabilities."""
    if isinstance(default, int):
        _check_size(what, value)
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise CaptureError(f"expected a number from 0 to below 1 as {what}, found {value!r}: change it")


def _check_size(what: str, value: Option) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CaptureError(f"expected a positive whole number as {what}, found {value!r}: change it")
