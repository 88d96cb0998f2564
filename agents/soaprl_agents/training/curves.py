"""TensorBoard curves of a training."""

from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from soaprl_agents.training.imitation import RowLosses, Rows
from soaprl_agents.training.judging import Verdict
from soaprl_agents.training.learner import Kept
from soaprl_agents.training.teacher import REFINING, SEQUENTIAL
from torch.utils.tensorboard import SummaryWriter


class Curves:
    """Writes curves into `folder`; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> "Curves":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of a curve."""
        self._writer.add_scalar(name, value, step)

    def verdict(self, verdict: Verdict, step: int) -> None:
        """Points of the curves of decoding; see `soaprl_agents.training.judging`."""
        for metric, value in verdict._asdict().items():
            self.scalar(f"valid/decoded/{metric}", value, step)

    def kept(self, kept: Kept, step: int) -> None:
        """Points of the curves of what is kept as the best."""
        self.scalar("valid/kept/best_excess", kept.excess, step)
        self.scalar("valid/kept/step", kept.step, step)

    def rows(self, name: str, losses: RowLosses, rows: Rows, step: int) -> None:
        """Points of the curves of imitation, by kind of rows; see `soaprl_agents.training.imitation`."""
        kinds = torch.from_numpy(
            np.concatenate(
                [one.kinds[rows.row[rows.problem == index]] for index, one in enumerate(rows.lessons)]
            )
        )
        for kind, kind_name in ((REFINING, "refining"), (SEQUENTIAL, "sequential")):
            chosen = kinds == kind
            if not chosen.any():
                continue
            for metric, values in losses._asdict().items():
                self.scalar(f"{name}/{kind_name}/{metric}", values[chosen].mean().item(), step)
