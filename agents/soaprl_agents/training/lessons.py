"""Lessons of one problem on disk: what the network reads of it, the teacher's rows, and the winner."""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from soaprl_agents.feature_widths import FEATURE_VERSION
from soaprl_agents.training.teacher import Row
from soaprl_envs.context import NUM_CONTEXT
from soaprl_envs.features import ProblemFeatures

from soaprl.atomic import write_bytes_atomic
from soaprl.errors import PolicyError


class Lessons(NamedTuple):
    """R rows of one problem.

    Attributes:
        features: Of the problem.
        operators: i64 [R].
        kinds: i64 [R], as in `soaprl_agents.training.teacher`.
        contexts: f16 [R, K, features].
        excess: f32 [R, K].
        winner: i64 [N], the best choices that the teacher found.
        times_s: f64 [2], the iteration times of data parallelism and of the winner.
    """

    features: ProblemFeatures
    operators: NDArray[np.int64]
    kinds: NDArray[np.int64]
    contexts: NDArray[np.float16]
    excess: NDArray[np.float32]
    winner: NDArray[np.int64]
    times_s: NDArray[np.float64]


def make_lessons(
    features: ProblemFeatures, rows: list[Row], winner: NDArray[np.int64], times_s: tuple[float, float]
) -> Lessons:
    """The rows as arrays; none where nothing that was tried fits in memory."""
    width = features.mask.shape[1]
    return Lessons(
        features=features,
        operators=np.array([row.operator for row in rows], np.int64),
        kinds=np.array([row.kind for row in rows], np.int64),
        contexts=np.array([row.context for row in rows], np.float16).reshape(-1, width, NUM_CONTEXT),
        excess=np.array([row.excess for row in rows], np.float32).reshape(-1, width),
        winner=winner,
        times_s=np.array(times_s),
    )


def save_lessons(path: Path, problem: str, lessons: Lessons) -> None:
    """Write `lessons` of the problem of that name to `path`; raises `OutputError` if it cannot be written."""
    arrays = lessons._asdict()
    features = arrays.pop("features")._asdict()
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        version=np.array(FEATURE_VERSION),
        problem=np.array(problem),
        **arrays,
        **{f"features.{name}": array for name, array in features.items()},
    )
    write_bytes_atomic(path, stream.getvalue())


def load_lessons(path: Path, problem: str) -> Lessons:
    """The lessons of the problem of that name in the file at `path`.

    Raises:
        PolicyError: It is missing or damaged, of another problem, or for the features of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            version = str(found["version"])
            if version != FEATURE_VERSION:
                raise PolicyError(
                    f"{path}: expected lessons with the features {FEATURE_VERSION!r}, found {version!r}."
                    " Delete the folder and collect them again."
                )
            if str(found["problem"]) != problem:
                raise PolicyError(
                    f"{path}: expected lessons of {problem}, found lessons of {found['problem']}: the suite"
                    " has changed since this training began. Begin another one in another folder."
                )
            features = ProblemFeatures(**{n: found[f"features.{n}"] for n in ProblemFeatures._fields})
            names = [name for name in Lessons._fields if name != "features"]
            return Lessons(features=features, **{name: found[name] for name in names})
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"{path}: expected lessons: {error}. Delete it; it is collected again.") from error
