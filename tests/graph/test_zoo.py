import inspect
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from soaprl.cost.optimizers import optimizer_names
from soaprl.errors import CaptureError, UnknownNameError
from soaprl.graph.zoo import Option, build, zoo_models

NAMES = [
    "lenet",
    "alexnet",
    "vgg-16",
    "inception-v3",
    "resnet-101",
    "rnntc",
    "rnnlm",
    "rnnlm-2step",
    "nmt",
    "bert-large",
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "llama-7b",
    "vit-b-16",
    "dlrm",
    "moe",
]

# Other sizes of a model whose own name stands for the factory's defaults.
VARIANTS = {"rnnlm-2step", "gpt2-medium", "gpt2-large", "gpt2-xl"}

# One LSTM layer: four gates with input and recurrent weights and two biases each.
LSTM_1024 = 4 * 1024 * (1024 + 1024) + 2 * 4 * 1024
LSTM_2048 = 4 * 2048 * (2048 + 2048) + 2 * 4 * 2048
MOE_LAYER = (
    (4 * 512 * 512 + 4 * 512)  # attention
    + 2 * 2 * 512  # norms
    + 8 * 512  # router
    + 8 * (2 * 512 * 2048 + 2048 + 512)  # experts
)
PARAMETERS = {
    # published
    "alexnet": 61_100_840,
    "vgg-16": 138_357_544,
    "inception-v3": 23_834_568,
    "resnet-101": 44_549_160,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "vit-b-16": 86_567_656,
    "bert-large": 335_141_888 - (1024 * 1024 + 1024) + (1024 * 1024 + 1024 + 2 * 1024 + 30_522),
    # sums of the layers' sizes
    "lenet": (25 * 6 + 6) + (6 * 25 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10),
    "rnntc": 20_000 * 1024 + 4 * LSTM_1024 + (1024 * 2 + 2),
    "rnnlm": 10_000 * 2048 + 2 * LSTM_2048 + (2048 * 10_000 + 10_000),
    "rnnlm-2step": 10_000 * 2048 + 2 * LSTM_2048 + (2048 * 10_000 + 10_000),
    "nmt": 2 * 32_000 * 1024 + 4 * LSTM_1024 + (1024**2 + 2048 * 1024) + (1024 * 32_000 + 32_000),
    "dlrm": 16 * 33_762_577
    + (13 * 512 + 512) + (512 * 256 + 256) + (256 * 64 + 64) + (64 * 16 + 16)
    + ((16 + 27 * 26 // 2) * 512 + 512) + (512 * 256 + 256) + (256 + 1),
    "moe": 2 * 32_000 * 512 + 512 * 512 + 4 * MOE_LAYER + 2 * 512,
}  # fmt: skip

TINY_TRANSFORMER: dict[str, Option] = {
    "num_layers": 2,
    "width": 16,
    "num_heads": 2,
    "vocabulary": 50,
    "sequence": 6,
    "dropout": 0.0,
}
TINY_RECURRENT: dict[str, Option] = {"vocabulary": 50, "hidden": 8, "steps": 7, "chunk": 3}
TINY: dict[str, dict[str, Option]] = {
    "lenet": {},
    "alexnet": {"num_classes": 10, "width": 4, "linear_width": 16},
    "vgg-16": {"num_classes": 10, "width": 4, "linear_width": 16, "image_size": 32},
    "inception-v3": {"num_classes": 10, "width": 4, "image_size": 75},
    "resnet-101": {"num_classes": 10, "width": 4, "image_size": 32, "num_stages": 2},
    "rnntc": TINY_RECURRENT,
    "rnnlm": TINY_RECURRENT,
    "rnnlm-2step": {"vocabulary": 50, "hidden": 8},
    "nmt": TINY_RECURRENT,
    "bert-large": TINY_TRANSFORMER,
    "gpt2": TINY_TRANSFORMER,
    "gpt2-medium": TINY_TRANSFORMER,
    "gpt2-large": TINY_TRANSFORMER,
    "gpt2-xl": TINY_TRANSFORMER,
    "llama-7b": {"num_layers": 2, "width": 16, "num_heads": 2, "hidden": 24, "vocabulary": 50, "sequence": 6},
    "vit-b-16": {"num_layers": 2, "width": 16, "num_heads": 2, "image_size": 32, "num_classes": 10},
    "dlrm": {"max_rows": 100},
    "moe": TINY_TRANSFORMER | {"num_experts": 3},
}


def test_names_are_those_that_the_command_line_promises() -> None:
    assert list(zoo_models()) == NAMES


def test_optimizers_are_those_that_costs_are_known_of() -> None:
    # The convolutional and recurrent models are trained with momentum, as published.
    assert {model.optimizer for model in zoo_models().values()} <= set(optimizer_names())
    assert {name for name in NAMES if zoo_models()[name].optimizer == "momentum"} >= {"resnet-101", "nmt"}


def test_listing_the_zoo_does_not_import_torch() -> None:
    code = (
        "import sys; from soaprl.graph.zoo import zoo_models; zoo_models(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_the_factory_s_keyword_arguments(name: str) -> None:
    model = zoo_models()[name]
    module, function = model.factory.split(":")
    batch_size, *keywords = inspect.signature(getattr(import_module(module), function)).parameters.values()
    assert batch_size.name == "batch_size"
    assert [k.name for k in keywords] == list(model.options)
    assert all(type(k.default) is type(model.options[k.name]) for k in keywords)
    if name not in VARIANTS:
        assert {k.name: k.default for k in keywords} == model.options


@pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_model_exports_without_memory_and_has_the_published_number_of_parameters(name: str) -> None:
    with FakeTensorMode():
        module, args, kwargs = build(name, 4)
        exported = torch.export.export(module, args, kwargs, strict=False)
    assert module.training
    assert all(isinstance(t, FakeTensor) for t in (*module.parameters(), *module.buffers(), *args))
    assert len({id(a) for a in args}) == len(args)
    assert all(4 in a.shape[:1] for a in args)
    assert (
        sum(p.numel() for p in module.parameters()) == PARAMETERS[name] == zoo_models()[name].num_parameters
    )
    (output,) = exported.graph.output_node().args[0]
    assert output.meta["val"].shape == ()


@pytest.mark.parametrize("name", NAMES)
def test_small_version_trains_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    module, args, kwargs = build(name, 2, **TINY[name])
    loss = module(*args, **kwargs)
    loss.backward()
    assert loss.isfinite()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_unknown_model_is_answered_with_the_closest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"zoo model 'gpt-2'.*'gpt2'"):
        build("gpt-2", 4)


def test_unknown_option_is_answered_with_the_closest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"option of nmt 'chunks'.*'chunk'"):
        build("nmt", 4, chunks=5)


@pytest.mark.parametrize(
    ("name", "batch_size", "options", "message"),
    [
        ("lenet", 0, {}, "positive whole number as batch size of lenet, found 0"),
        ("lenet", 2.5, {}, "batch size of lenet, found 2.5"),
        ("lenet", True, {}, "batch size of lenet, found True"),
        ("nmt", 4, {"chunk": 0}, "option chunk of nmt, found 0"),
        ("gpt2", 4, {"dropout": 1.0}, "from 0 to below 1 as option dropout of gpt2, found 1.0"),
        ("gpt2", 4, {"dropout": "half"}, "option dropout of gpt2, found 'half'"),
        ("gpt2", 4, {"num_heads": 5}, "width 768 and 5 heads"),
        ("vit-b-16", 4, {"patch": 15}, "found 224 and 15"),
        ("moe", 4, {"num_chosen": 9}, "1 to 8, found 9"),
        ("vgg-16", 4, {"image_size": 31}, "at least 32, found 31"),
        ("inception-v3", 4, {"image_size": 74}, "at least 75, found 74"),
        ("resnet-101", 4, {"num_stages": 5}, "1 to 4 stages, found 5"),
    ],
)
def test_illegal_values_are_refused(
    name: str, batch_size: int, options: dict[str, Option], message: str
) -> None:
    with FakeTensorMode(), pytest.raises(CaptureError, match=message):
        build(name, batch_size, **options)
