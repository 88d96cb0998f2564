"""Random toy graphs, clusters and strategies."""

import random
from dataclasses import replace

from soaprl.cluster.cluster import Cluster, Overheads
from soaprl.cost.compression import compression_names
from soaprl.graph.micro_batch import micro_batch
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator.problem import Problem, SimulationOptions
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy
from tests.toys import TableCost, ToyBuilder, bus_cluster, node_cluster, toy_type, uniform_cluster


def random_graph(rng: random.Random, *, num_operators: int) -> OperatorGraph:
    builder = ToyBuilder(sample=rng.choice([3, 4, 6]))
    channel = rng.choice([2, 4, 5])
    made = [builder.input("x", channel=channel)]
    weights = [builder.parameter("tied.weight", channel, channel)]
    frozen = builder.parameter("frozen.weight", channel, channel)
    builder.tensors[frozen] = replace(builder.tensors[frozen], requires_grad=False)
    for i in range(num_operators):
        kind = rng.choice(["linear", "linear", "tied", "frozen", "add", "window"])
        x = rng.choice(made[-3:])
        if kind == "linear":
            made.append(builder.linear(f"op{i}", x, channel))
        elif kind == "tied":
            made.append(builder.linear(f"op{i}", x, channel, weight=weights[0]))
        elif kind == "frozen":
            made.append(builder.linear(f"op{i}", x, channel, weight=frozen))
        elif kind == "window":
            made.append(builder.window(f"op{i}", x, kernel=rng.choice([1, 2, 3])))
        else:
            made.append(builder.add(f"op{i}", x, rng.choice(made[-3:])))
    builder.mean("loss", made[-1], has_backward=rng.random() < 0.9)
    return builder.build()


def random_cluster(rng: random.Random) -> Cluster:
    """Of a random shape; half of them with a bandwidth of its own for every link, also along a route."""
    cluster = replace(shaped_cluster(rng), overheads=random_overheads(rng))
    if rng.random() < 0.5:
        return cluster
    links = tuple(
        replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * rng.choice([0.5, 1.0, 3.0]))
        for link in cluster.links
    )
    return replace(cluster, links=links)


def random_overheads(rng: random.Random) -> Overheads:
    """Of all kinds, or none."""
    if rng.random() < 0.6:
        return Overheads()
    values = [rng.choice([0.0, 0.25, 1.0 / 3.0]) for _ in range(8)]
    return Overheads(
        task_s=values[0],
        iteration_s=values[1],
        message_s=values[2],
        message_s_per_byte=values[3] / 8,
        collective_s=values[4],
        collective_s_per_byte=values[5] / 8,
        carry_s_per_byte=values[6] / 8,
        reduced_s_per_byte=values[7] / 8,
    )


def shaped_cluster(rng: random.Random) -> Cluster:
    bandwidth, latency = rng.choice([1.0, 3.0, 7.0]), rng.choice([0.0, 0.5, 1.0 / 3.0])
    types = (toy_type("fast"), toy_type("slow", memory_bytes=1 << 12))
    shape = rng.choice(["uniform", "bus", "nodes"])
    if shape == "bus":
        return bus_cluster(3, bandwidth=bandwidth, latency=latency)
    if shape == "uniform":
        return uniform_cluster(
            4, bandwidth=bandwidth, latency=latency, device_types=types, types=tuple(rng.choices([0, 1], k=4))
        )
    return node_cluster(2, 2, bandwidth=bandwidth, latency=latency, device_types=types, types=(0, 1, 0, 0))


def random_config(rng: random.Random, graph: OperatorGraph, operator: int, num_devices: int) -> OpConfig:
    factors = graph.operators[operator].factors
    degrees = tuple(rng.randint(1, min(3, f.max_degree)) for f in factors)
    count = 1
    for degree in degrees:
        count *= degree
    style = rng.random()
    if style < 0.3:
        devices = (rng.randrange(num_devices),) * count
    elif style < 0.6:
        devices = tuple(i % num_devices for i in range(count))
    else:
        devices = tuple(rng.randrange(num_devices) for _ in range(count))
    return OpConfig(degrees, devices)


def random_strategy(rng: random.Random, graph: OperatorGraph, num_devices: int) -> Strategy:
    return Strategy(tuple(random_config(rng, graph, o, num_devices) for o in range(len(graph.operators))))


def random_sharding(rng: random.Random, problem: Problem) -> Sharding:
    """Any; none under the paper's assumptions, which know no collectives."""
    return Sharding.NONE if problem.options.paper else rng.choice(list(Sharding))


def random_micro_batches(rng: random.Random, problem: Problem) -> Strategy:
    """A random strategy with micro-batches, and with stages that have nothing to do with devices."""
    graph = problem.graph
    number = rng.choice([m for m in range(1, graph.batch_size + 1) if graph.batch_size % m == 0])
    schedule = rng.choice(list(Schedule)) if number > 1 else rng.choice(list(Schedule)[1:])
    stages, stage = [0], 0
    for _ in graph.operators[1:]:
        stage += rng.random() < 0.4
        stages.append(stage)
    # Degrees must be legal for a micro-batch.
    configs = random_strategy(rng, micro_batch(graph, number), problem.cluster.num_devices).configs
    staged = schedule is not Schedule.NONE and rng.random() < 0.8
    return Strategy(configs, random_sharding(rng, problem), number, schedule, tuple(stages) if staged else ())


def random_problem(rng: random.Random, *, num_operators: int) -> Problem:
    graph = random_graph(rng, num_operators=num_operators)
    # Thirds make rounding errors, whole numbers make ties.
    unit = rng.choice([1.0, 1.0 / 3.0])
    forward = {op.name: rng.choice([0.0, 1.0, 2.0, 5.0]) * unit for op in graph.operators}
    backward = {op.name: rng.choice([0.0, 1.0, 3.0]) * unit for op in graph.operators}
    cost = TableCost(
        forward=forward, backward=backward, update_s_per_byte=rng.choice([0.0, 0.25]), slowness={"slow": 2.5}
    )
    options = SimulationOptions(
        optimizer=rng.choice(["adam", "momentum", "sgd"]),
        paper=rng.random() < 0.3,
        overlap_synchronization=rng.random() < 0.7,
    )
    compression = rng.choice(["none", "none", *compression_names()])
    options = replace(
        options, gradient_compression="none" if options.paper else compression, prefetch=rng.randint(1, 3)
    )
    return Problem(graph=graph, cluster=random_cluster(rng), cost=cost, options=options)
