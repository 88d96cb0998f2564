"""Random models without torch, for a curriculum: any number of them, each from a seed alone.

Four shapes, drawn with equal probability; sizes are powers of two times 1 or 3, drawn log-uniformly:

- *funnel*: windows and linear layers whose activations shrink as their weights grow, as in image
  classifiers;
- *residual*: equal blocks of two linear layers around a sum, as in transformers;
- *towers*: parallel branches of tables and linear layers that are joined, as in recommenders;
- *steps*: layers that several steps share (tied weights) with sums between neighbours, as in unrolled
  recurrent models.
"""

import numpy as np

from soaprl.graph.operators import OperatorGraph
from soaprl_envs.problems.blocks import BlockBuilder

SMALLEST, LARGEST = 6, 160


def synthetic_graph(seed: int, batch_size: int, *, max_operators: int = 64) -> OperatorGraph:
    """The random model of `seed`: its shape and sizes do not depend on the batch.

    Args:
        seed: Which model.
        batch_size: Global batch size.
        max_operators: About how many operators it has at most, from 6 on.
    """
    rng = np.random.default_rng((seed, 977))
    shapes = (_funnel, _residual, _towers, _steps)
    shape = shapes[int(rng.integers(len(shapes)))]
    builder = BlockBuilder(sample=batch_size, position=_size(rng, 4, 256))
    target = int(np.exp(rng.uniform(np.log(SMALLEST), np.log(max(SMALLEST + 1, max_operators)))))
    out = shape(builder, rng, target)
    builder.loss(builder.linear(out, _size(rng, 8, 4096)))
    return builder.build(f"synthetic-{seed}")


def _size(rng: np.random.Generator, least: int, most: int) -> int:
    """A size between `least` and `most`, log-uniform, that many degrees divide."""
    drawn = np.exp(rng.uniform(np.log(least), np.log(most)))
    odd = int(rng.choice([1, 1, 1, 3]))
    return int(min(most, max(least, odd * 2 ** round(float(np.log2(drawn / odd))))))


def _funnel(builder: BlockBuilder, rng: np.random.Generator, target: int) -> int:
    channel = _size(rng, 16, 128)
    x = builder.linear(builder.input(_size(rng, 4, 16)), channel)
    while target > 3:
        if rng.random() < 0.5:
            x = builder.window(x, width=int(rng.choice([3, 5, 7])))
        else:
            channel = min(4096, channel * int(rng.choice([1, 2, 4])))
            x = builder.linear(x, channel)
        target -= 1
    return x


def _residual(builder: BlockBuilder, rng: np.random.Generator, target: int) -> int:
    channel, wider = _size(rng, 64, 1024), int(rng.choice([1, 2, 4]))
    x = builder.table(builder.input(1), _size(rng, 512, 65_536), channel)
    while target > 4:
        inner = builder.window(x, width=3) if rng.random() < 0.3 else x
        x = builder.add(x, builder.linear(builder.linear(inner, wider * channel), channel))
        target -= 3
    return x


def _towers(builder: BlockBuilder, rng: np.random.Generator, target: int) -> int:
    channel, count = _size(rng, 32, 512), int(rng.integers(2, max(3, min(12, target // 3))))
    tops = []
    for _ in range(count):
        x = builder.input(_size(rng, 4, 64))
        if rng.random() < 0.6:
            x = builder.table(x, _size(rng, 1024, 262_144), channel)
        for _ in range(max(1, (target - 3) // count - 1)):
            x = builder.linear(x, channel)
        tops.append(x)
    return builder.add(*tops)


def _steps(builder: BlockBuilder, rng: np.random.Generator, target: int) -> int:
    channel, num_layers = _size(rng, 64, 1024), int(rng.integers(1, 4))
    weights = [builder.weight(channel, channel) for _ in range(num_layers)]
    num_steps = max(2, target // (2 * num_layers))
    before: list[int] = []
    tops = []
    for _ in range(num_steps):
        x = builder.linear(builder.input(8), channel)
        here = []
        for layer, weight in enumerate(weights):
            x = builder.linear(x, channel, weight=weight)
            if before:
                x = builder.add(x, before[layer])
            here.append(x)
        before = here
        tops.append(x)
    return builder.add(*tops)
