"""What the options of `soaprl run` ask for, and what follows from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from soaprl.cli.inputs import ModelChoice
from soaprl.cli.simulating import Chosen, choose_strategy
from soaprl.cluster.cluster import Cluster
from soaprl.cluster.files import cluster_from_dict, load_cluster
from soaprl.errors import ExecutionError, SoaprlError, unknown_name
from soaprl.strategy.files import FORMAT, StrategyRecord
from soaprl.strategy.strategy import Sharding

if TYPE_CHECKING:
    from soaprl.runtime.launch import Elastic

DEFAULT_PROCESSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The options of the command line; None is what follows from the others."""

    strategy: str | None
    cluster: str | None
    num_processes: int | None
    sharding: Sharding | None
    optimizer: str | None
    compute_dtype: str | None
    compression: str | None
    learning_rate: float | None
    batch_norm: str
    dtype: str
    executor: str
    backend: str
    device: str
    timeout_s: float
    output: Path | None
    save_every: int
    resume: bool
    trace: Path | None
    check: bool
    num_steps: int
    seed: int


def check_words(wishes: Wishes) -> None:
    """Raises the error of the first option that is none of what it can be."""
    from soaprl.runtime.launch_job import BACKENDS, DEVICES, DTYPES, EXECUTORS

    known = {
        "executor": (wishes.executor, EXECUTORS),
        "backend": (wishes.backend, BACKENDS),
        "device": (wishes.device, DEVICES),
        "dtype": (wishes.dtype, DTYPES),
        "batch normalization": (wishes.batch_norm, ("local", "synchronized")),
    }
    for what, (word, words) in known.items():
        if word not in words:
            raise unknown_name(what, word, words)
    if wishes.check and wishes.resume:
        raise ExecutionError(
            "--check compares from the first step, and --resume begins at a later one: leave one of them out"
        )
    if wishes.output is None and (wishes.resume or wishes.save_every):
        raise ExecutionError("--resume and --save-every need the folder of the checkpoints: add --output DIR")


def strategy_named_as_model(choice: ModelChoice, wishes: Wishes) -> Chosen | None:
    """The strategy file that stands in the place of the model, which it names."""
    if not choice.name.endswith(".json"):
        return None
    try:
        content = json.loads(Path(choice.name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if content is not None and not (isinstance(content, dict) and content.get("format") == FORMAT):
        return None
    chosen = choose_strategy(choice.name)
    if wishes.strategy is not None:
        raise SoaprlError(
            f"{choice.name} is a strategy already: leave out --strategy, or name the model in its place."
        )
    return chosen


def choose_cluster(wishes: Wishes, chosen: Chosen, place: "Elastic | None") -> Cluster:
    """One device a process: the cluster named, that of the strategy, or processes of this machine."""
    count = place.world_size if place is not None else wishes.num_processes
    if wishes.cluster is not None:
        cluster = load_cluster(wishes.cluster)
    elif chosen.record is not None:
        cluster = _own_cluster(chosen.record)
    else:
        cluster = load_cluster(f"cpu-1x{count or DEFAULT_PROCESSES}")
    if count is not None and count != cluster.num_devices:
        where = "torchrun started" if place is not None else "--num-processes asks for"
        raise ExecutionError(
            f"expected a process for each of the {cluster.num_devices} devices of {cluster.name}, and {where}"
            f" {count}: start {cluster.num_devices}, or choose a strategy and a cluster for {count}"
        )
    return cluster


def _own_cluster(record: StrategyRecord) -> Cluster:
    reference = record.cluster
    if reference.definition is None:
        return load_cluster(reference.name)
    return cluster_from_dict(reference.definition, where="the cluster in the strategy file")
