"""What is measured is what a rank runs: every operator of a model, in every shard that is planned."""

import pytest
import torch

from soaprl.cost.profiled import Setting, UnmeasurableError, plan_anchors
from soaprl.errors import CostError
from soaprl.graph.capture import capture_model
from soaprl.runtime.measuring import Machine, ShardMeasurer, choose_machine, setting_of
from soaprl.runtime.measuring.clocks import spread_of

SMALL = {"num_layers": 1, "width": 16, "vocabulary": 30, "sequence": 8}


def measurer() -> ShardMeasurer:
    return ShardMeasurer(setting=setting_of(Machine(threads=1), "cpu"), warm_up=0, repeats=1, most_repeats=1)


@pytest.mark.parametrize(
    ("model", "batch_size", "options"),
    [
        ("lenet", 4, {}),
        ("rnnlm-2step", 4, {"hidden": 8, "vocabulary": 20}),
        ("gpt2", 2, {**SMALL, "num_heads": 2}),
        ("dlrm", 4, {"max_rows": 10, "width": 4}),
        ("moe", 2, {**SMALL, "num_heads": 2, "num_experts": 2}),
    ],
)
def test_every_planned_shard_of_the_zoo_can_be_measured(
    model: str, batch_size: int, options: dict[str, int]
) -> None:
    graph = capture_model(model, batch_size, options=options)
    found = measurer()
    for anchor in plan_anchors(graph, 2):
        operator = graph.operators[anchor.operator]
        times = found.measure_task(graph, operator, anchor.extents)
        assert times.forward_s > 0, operator.name
        assert (times.backward_s > 0) == operator.has_backward, operator.name
        assert times.repeats == 1


def test_an_update_is_measured_for_every_optimizer() -> None:
    for optimizer in ("sgd", "momentum", "adam"):
        times = measurer().measure_update(optimizer, 4096)
        assert times.forward_s > 0
        assert times.backward_s == 0


def test_what_fails_is_unmeasurable_with_the_reason_and_leaves_no_trace() -> None:
    graph = capture_model("lenet", 4)
    broken = ShardMeasurer(
        setting=Setting(
            device_type="cpu", device_name="", threads=1, torch_version="", compute_dtype="bfloat16"
        ),
        warm_up=0,
    )
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with pytest.raises(UnmeasurableError, match="no first part"):
        # Three of four samples: no number of parts makes a first part of that size.
        broken.measure_task(graph, graph.operators[0], (3, *graph.operators[0].extents[1:]))
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)


def test_threads_of_the_setting_are_a_part_of_its_name_and_used() -> None:
    setting = setting_of(Machine(threads=2), "cpu")
    assert (setting.threads, setting.torch_version) == (2, torch.__version__)
    assert "2 threads" in str(setting)
    before = torch.get_num_threads()
    graph = capture_model("lenet", 2)
    ShardMeasurer(setting=setting, warm_up=0, repeats=1).measure_task(
        graph, graph.operators[0], graph.operators[0].extents
    )
    assert torch.get_num_threads() == before


def test_the_processor_stands_for_cpu_alone_unless_the_user_says_so() -> None:
    assert choose_machine(["cpu"], None, device=None, threads=1) == (Machine(), "cpu")
    assert choose_machine(["k80", "cpu"], None, device=None, threads=1) == (Machine(), "cpu")
    assert choose_machine(["mine"], "mine", device="cpu", threads=3) == (Machine(threads=3), "mine")
    with pytest.raises(CostError, match="a --device-type of cpu"):
        choose_machine(["cpu"], "gpu", device=None, threads=1)
    if not torch.cuda.is_available():
        with pytest.raises(CostError, match="carry the profile"):
            choose_machine(["k80"], None, device=None, threads=1)
        with pytest.raises(CostError, match="found none that PyTorch can use"):
            choose_machine(["k80"], None, device="cuda", threads=1)


def test_the_spread_is_half_the_interquartile_range_over_the_median() -> None:
    # Quartiles of 1..7 (exclusive method): 2, 4, 6.
    assert spread_of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == pytest.approx((6 - 2) / 2 / 4)
    assert spread_of([1.0, 9.0]) == 0.0
