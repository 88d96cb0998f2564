"""What a policy sees of a problem before anything is decided: operators, edges, devices, candidates.

Nothing names a model, an operator or a device; all columns are shares, logarithms of ratios or flags, clipped
to -5 .. 5. S is the iteration's scale (the busiest device's compute seconds under the start), N the number of
operators, D the number of devices, and ``g(x) = log(1 + 1000 x / S) / 2`` a gauge of seconds. The columns are
named and explained beside the code that fills them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.graph.factors import FactorKind
from soaprl_envs.choices import Choices
from soaprl_envs.devices import DEVICE_COLUMNS, DEVICE_EDGE_COLUMNS, device_features
from soaprl_envs.kernels import fill_moving
from soaprl_envs.moving import link_loads
from soaprl_envs.tables import CandidateTables

FloatFeatures = NDArray[np.float32]

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("linear", ("linear",)),
    ("convolution", ("conv1d", "conv2d", "conv3d")),
    ("attention", ("attention", "bmm", "matmul")),
    ("recurrent", ("lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell")),
    ("embedding", ("embedding", "embedding_bag")),
    ("normalization", ("layer_norm", "batch_norm", "group_norm", "rms_norm")),
)
OPERATOR_COLUMNS = (
    *(f"is_{name}" for name, _ in _KINDS),
    "has_parameters",  # 1 if it reads parameters
    "has_backward",  # 1 if it has a backward pass
    "compute_share",  # log(N x its work at the start / the work of all), / 2
    "compute_time",  # g(its compute seconds at the start)
    "sync_time",  # g(its seconds of summing gradients at the start)
    "sync_over_compute",  # log(summing gradients / computing at the start), / 2
    "speed_up",  # log(start's compute time / least compute time of a candidate)
    "parameter_share",  # log(1 + N x its parameter bytes / all parameter bytes)
    "output_share",  # log(N x its output bytes / all output bytes), / 2
    "parameters_over_outputs",  # log(parameter bytes / output bytes), / 4
    "num_inputs",  # log(1 + edges that it consumes)
    "num_outputs",  # log(1 + edges that it produces)
    "position",  # its place in the topological order, 0 to 1
    "tied",  # log(operators with the same parameters)
    *(
        f"{kind.value}_factors" for kind in FactorKind
    ),  # log(1 + product of max degrees) / log(1 + D), up to 2
    "candidates",  # log(number of candidates)
)
EDGE_COLUMNS = (
    "bytes_share",  # log(E x its bytes / the bytes of all edges), / 2
    "gradient",  # 1 if a gradient flows back
    "moving_at_start",  # g(seconds of moving between the starts of both ends)
    "moving_whole",  # g(bytes of the tensor / bandwidth of the narrowest route)
    "length",  # operators between both ends in the topological order / N
)
CANDIDATE_COLUMNS = (
    "time_relative",  # log(its compute time / the least of the operator's candidates)
    "time",  # g(its compute seconds)
    "time_share",  # log(N x its compute seconds / S), / 2
    "efficiency",  # log(work of the operator's least busy candidate / its work)
    "balance",  # log(work / (devices used x compute time)): 0 if its devices are equally busy
    "devices",  # log(devices used) / log(D)
    "tasks",  # log(tasks) / log(D)
    *(f"{kind.value}_degree" for kind in FactorKind),  # log(product of degrees) / log(D)
    "factors_split",  # number of factors split / 4
    "uneven",  # 1 if a degree does not divide its extent
    "memory",  # share of a device's memory that it takes
    "memory_relative",  # log(that / the least of the operator's candidates)
    "sync",  # g(seconds of summing gradients)
    "sync_bytes",  # log(1 + bytes sent to sum gradients / bytes of the operator's parameters)
    "total_relative",  # log((compute + sync) / the least of the operator's candidates)
    "nodes",  # log(nodes used) / log(number of nodes)
    "devices_per_node",  # log(most devices used in a node) / log(devices of the largest node)
    "bandwidth",  # log(narrowest route among its devices / the cluster's widest), / 2; 0 on one device
    "speed",  # slowest device's rank among types: least task time on its types / on the quickest type, log
    "is_start",  # 1 for data parallelism
    "is_whole",  # 1 if nothing is split
    "consecutive",  # 1 if task i runs on device first + i
)
NUM_OPERATOR, NUM_EDGE = len(OPERATOR_COLUMNS), len(EDGE_COLUMNS)
NUM_CANDIDATE = len(CANDIDATE_COLUMNS)
NUM_DEVICE, NUM_DEVICE_EDGE = len(DEVICE_COLUMNS), len(DEVICE_EDGE_COLUMNS)


class ProblemFeatures(NamedTuple):
    """Features of a problem with N operators, E edges and at most K candidates an operator.

    Attributes:
        operators: Shape [N, `NUM_OPERATOR`].
        edges: Shape [2, E]; producing and consuming operator.
        edge_features: Shape [E, `NUM_EDGE`].
        devices: Shape [G, `NUM_DEVICE`]; nodes of the cluster, or devices where there is one node.
        device_edges: Shape [2, H]; pairs of them.
        device_edge_features: Shape [H, `NUM_DEVICE_EDGE`].
        candidates: Shape [N, K, `NUM_CANDIDATE`]; 0 where there is no candidate.
        mask: Shape [N, K].
        order: Shape [N]; a topological order to decide operators in.
        family: Shape [N]; operators with equal numbers have equal features of their own and of candidates
            (but for position and neighbours), such as the layers of a deep model.
    """

    operators: FloatFeatures
    edges: IntArray
    edge_features: FloatFeatures
    devices: FloatFeatures
    device_edges: IntArray
    device_edge_features: FloatFeatures
    candidates: FloatFeatures
    mask: NDArray[np.bool_]
    order: IntArray
    family: IntArray


def problem_features(choices: Choices) -> ProblemFeatures:
    """The features of a problem and its candidates."""
    tables = choices.tables
    devices, device_edges, device_edge_features = device_features(choices.problem, tables)
    by_family = _candidates(choices, tables)
    return ProblemFeatures(
        operators=_columns(_operators(choices, tables), OPERATOR_COLUMNS),
        edges=np.stack([tables.near.producer, tables.near.consumer]),
        edge_features=_columns(_edges(choices, tables), EDGE_COLUMNS),
        devices=devices,
        device_edges=device_edges,
        device_edge_features=device_edge_features,
        candidates=by_family[tables.alone.family],
        mask=choices.mask,
        order=np.arange(choices.num_operators),
        family=tables.alone.family,
    )


def gauge(seconds: ArrayLike, scale_s: float) -> FloatArray:
    """``g``: how long something takes relative to the iteration."""
    return np.asarray(0.5 * np.log1p(1000.0 * np.asarray(seconds) / scale_s))


def log_ratio(one: ArrayLike, other: ArrayLike) -> FloatArray:
    """The logarithm of a ratio of numbers that are not negative, finite even where they are 0."""
    return np.asarray(np.log((np.asarray(one, np.float64) + 1e-12) / (np.asarray(other, np.float64) + 1e-12)))


def _columns(values: dict[str, FloatArray], names: tuple[str, ...]) -> FloatFeatures:
    """The columns in order along a new last axis, clipped."""
    assert set(values) == set(names), "every column that is named is filled, and no other"
    stacked = np.stack([np.asarray(values[name], np.float64) for name in names], axis=-1)
    return np.clip(np.nan_to_num(stacked, nan=0.0, posinf=5.0, neginf=-5.0), -5.0, 5.0).astype(np.float32)


def _operators(choices: Choices, tables: CandidateTables) -> dict[str, FloatArray]:
    problem, alone = choices.problem, tables.alone
    operators, count = problem.graph.operators, choices.num_operators
    family, scale_s = alone.family, float(alone.scale_s[0])
    at_start = family, choices.start
    own_s, work_s, sync_s = alone.own_s[at_start], alone.work_s[at_start], alone.sync_s[at_start]
    least_s = np.where(alone.variant >= 0, alone.own_s, np.inf).min(axis=1)[family]
    parameters, outputs = tables.parameter_bytes, tables.output_bytes
    near, num_devices = tables.near, problem.cluster.num_devices
    columns = {
        f"is_{name}": np.array([float(op.kind in kinds) for op in operators]) for name, kinds in _KINDS
    }
    for kind in FactorKind:
        degrees = [
            float(np.prod([f.max_degree for f in op.factors if f.kind is kind], dtype=np.float64))
            for op in operators
        ]
        # A product over no factor is 1: nothing to split.
        columns[f"{kind.value}_factors"] = np.minimum(2.0, np.log(degrees) / np.log(1 + num_devices))
    return {
        **columns,
        "has_parameters": (parameters > 0).astype(np.float64),
        "has_backward": np.array([float(op.has_backward) for op in operators]),
        "compute_share": log_ratio(count * work_s / work_s.sum(), 1.0) / 2,
        "compute_time": gauge(own_s, scale_s),
        "sync_time": gauge(sync_s, scale_s),
        "sync_over_compute": log_ratio(sync_s + 1e-6 * scale_s, own_s + 1e-6 * scale_s) / 2,
        "speed_up": log_ratio(own_s, least_s),
        "parameter_share": np.log1p(count * parameters / max(1.0, parameters.sum())),
        "output_share": log_ratio(count * outputs / outputs.sum(), 1.0) / 2,
        "parameters_over_outputs": log_ratio(1.0 + parameters, 1.0 + outputs) / 4,
        "num_inputs": np.log1p(np.diff(near.in_begin)),
        "num_outputs": np.log1p(np.diff(near.out_begin)),
        "position": np.arange(count) / max(1, count - 1),
        "tied": np.log1p(np.diff(near.tie_begin)),
        "candidates": np.log(choices.mask.sum(axis=1)),
    }


def _edges(choices: Choices, tables: CandidateTables) -> dict[str, FloatArray]:
    problem, alone, moves = choices.problem, tables.alone, tables.moves
    graph, cluster, scale_s = problem.graph, tables.cluster, float(alone.scale_s[0])
    producer, consumer = tables.near.producer, tables.near.consumer
    sizes = [graph.operators[e.producer].outputs[e.output].tensor for e in tables.index.edges]
    num_bytes = np.array([graph.tensors[tensor].num_bytes for tensor in sizes], np.float64)
    start = np.asarray(choices.start)
    moving_s = np.zeros(len(num_bytes), np.float64)
    fill_moving(
        cluster,
        moves,
        alone.num_tasks,
        alone.devices,
        link_loads(cluster),
        moves.kind,
        start[producer],
        start[consumer],
        moving_s,
    )
    slowest = cluster.route_bandwidth_bytes_per_s.min()
    return {
        "bytes_share": log_ratio(len(num_bytes) * num_bytes / max(1.0, num_bytes.sum()), 1.0) / 2,
        "gradient": tables.edge_gradient.astype(np.float64),
        "moving_at_start": gauge(moving_s, scale_s),
        "moving_whole": gauge(num_bytes / slowest, scale_s),
        "length": (consumer - producer) / choices.num_operators,
    }


def _candidates(choices: Choices, tables: CandidateTables) -> FloatFeatures:
    """By family; shape [F, K, columns]."""
    problem, alone = choices.problem, tables.alone
    there = alone.variant >= 0
    scale_s, num_devices = float(alone.scale_s[0]), problem.cluster.num_devices
    first = {int(f): o for o, f in reversed(list(enumerate(alone.family.tolist())))}
    operators = [first[f] for f in range(len(there))]
    least_s = _least(alone.own_s, there)
    total_s = alone.own_s + alone.sync_s
    placed = _placed(choices, tables, operators)
    unit = np.log(max(2, num_devices))
    columns = {
        **{name: np.zeros(there.shape) for name in CANDIDATE_COLUMNS},
        **placed,
        "time_relative": log_ratio(alone.own_s, least_s),
        "time": gauge(alone.own_s, scale_s),
        "time_share": log_ratio(choices.num_operators * alone.own_s / scale_s, 1.0) / 2,
        "efficiency": log_ratio(_least(alone.work_s, there), alone.work_s),
        "balance": log_ratio(alone.work_s, placed["devices"] * alone.own_s),
        "devices": np.log(placed["devices"]) / unit,
        "tasks": np.log(np.maximum(1, alone.num_tasks)) / unit,
        "memory": alone.memory_share,
        "memory_relative": log_ratio(alone.memory_share, _least(alone.memory_share, there)),
        "sync": gauge(alone.sync_s, scale_s),
        "sync_bytes": np.log1p(alone.sync_bytes / (1.0 + tables.parameter_bytes[operators][:, None])),
        "total_relative": log_ratio(total_s, _least(total_s, there)),
    }
    columns["is_start"][np.arange(len(operators)), choices.start[operators]] = 1.0
    filled = _columns(columns, CANDIDATE_COLUMNS)
    filled[~there] = 0.0
    return filled


def _least(values: FloatArray, there: NDArray[np.bool_]) -> FloatArray:
    """The least of each family's candidates, shape [F, 1]."""
    return np.asarray(np.where(there, values, np.inf).min(axis=1, keepdims=True))


def _placed(choices: Choices, tables: CandidateTables, operators: list[int]) -> dict[str, FloatArray]:
    """What follows from degrees and devices; ``devices`` is still their number."""
    problem, shape = choices.problem, tables.alone.variant.shape
    names = ("factors_split", "uneven", "nodes", "devices_per_node", "bandwidth", "speed", "is_whole")
    columns = {name: np.zeros(shape) for name in (*names, "consecutive")}
    columns["devices"] = np.ones(shape)
    columns |= {f"{kind.value}_degree": np.zeros(shape) for kind in FactorKind}
    unit = np.log(max(2, problem.cluster.num_devices))
    places = _Places(tables)
    for f, o in enumerate(operators):
        factors = problem.graph.operators[o].factors
        for c, config in enumerate(choices.configs[o]):
            for factor, degree in zip(factors, config.degrees, strict=True):
                columns[f"{factor.kind.value}_degree"][f, c] += np.log(degree) / unit
                columns["factors_split"][f, c] += (degree > 1) / 4
                columns["uneven"][f, c] = max(columns["uneven"][f, c], factor.extent % degree > 0)
            columns["is_whole"][f, c] = config.num_tasks == 1
            for name, value in places.of(config.devices).items():
                columns[name][f, c] = value
    return columns


class _Places:
    """Features of lists of devices, each computed once."""

    def __init__(self, tables: CandidateTables) -> None:
        cluster = tables.cluster
        self._cluster = cluster
        sizes = np.bincount(cluster.device_node)
        self._unit_nodes, self._unit_inside = np.log(max(2, len(sizes))), np.log(max(2, sizes.max()))
        between = cluster.route_bandwidth_bytes_per_s.reshape(cluster.num_devices, -1)
        self._bandwidth = between
        self._widest = float(between[np.isfinite(between)].max(initial=1.0))
        speed = tables.alone.task_s[:, 0, :].sum(axis=0)
        self._speed = speed / max(1e-12, float(speed.min()))
        self._known: dict[tuple[int, ...], dict[str, float]] = {}

    def of(self, devices: tuple[int, ...]) -> dict[str, float]:
        if devices not in self._known:
            self._known[devices] = self._computed(devices)
        return self._known[devices]

    def _computed(self, devices: tuple[int, ...]) -> dict[str, float]:
        used = np.unique(devices)
        counts = np.bincount(self._cluster.device_node[used])
        narrowest = float(self._bandwidth[np.ix_(used, used)].min())
        return {
            "devices": float(len(used)),
            "nodes": float(np.log((counts > 0).sum()) / self._unit_nodes),
            "devices_per_node": float(np.log(counts.max()) / self._unit_inside),
            "bandwidth": 0.0 if len(used) == 1 else float(np.log(narrowest / self._widest)) / 2,
            "speed": float(np.log(self._speed[self._cluster.device_type[used]].max())),
            "consecutive": float(devices == tuple(range(devices[0], devices[0] + len(devices)))),
        }
