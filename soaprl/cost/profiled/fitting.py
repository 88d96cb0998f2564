"""Fits of what software takes, to what was measured."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from soaprl.cluster.tables import FloatArray


def not_negative(features: FloatArray, target: FloatArray) -> FloatArray:
    """The least-squares coefficients of which none is below 0: the best of all choices of those above 0.

    Args:
        features: Shape [rows, coefficients].
        target: Shape [rows].
    """
    scale = np.maximum(np.abs(features).max(axis=0), 1e-300)
    count = features.shape[1]
    best, best_rest = np.zeros(count), float(target @ target)
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            columns = (features / scale)[:, chosen]
            found = np.linalg.lstsq(columns, target, rcond=None)[0]
            rest = float(np.square(columns @ found - target).sum())
            if (found >= 0).all() and rest < best_rest:
                best, best_rest = np.zeros(count), rest
                best[list(chosen)] = found
    return np.asarray(best / scale, np.float64)


def fit_collective(
    sizes: Sequence[int], times_s: Sequence[float], modelled_s: Sequence[float]
) -> tuple[float, float]:
    """Seconds of a collective, and seconds for each byte of it, beyond what links take.

    With the least squared relative error of modelled + base + s_per_byte * size against the measured times;
    neither below 0.

    Args:
        sizes: Bytes of the collectives.
        times_s: What they took.
        modelled_s: What they take by the links alone.
    """
    measured = np.array(times_s, np.float64)
    features = np.stack([np.ones(len(measured)), np.array(sizes, np.float64)], axis=1)
    beyond = measured - np.array(modelled_s, np.float64)
    base_s, s_per_byte = not_negative(features / measured[:, None], beyond / measured).tolist()
    return base_s, s_per_byte
