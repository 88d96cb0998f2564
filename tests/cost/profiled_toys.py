"""A measurer with times in closed form, and a process that measures with it, for tests of profiles."""

import os
import sys
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

from soaprl.cost.profiled import (
    Measurement,
    Profile,
    Setting,
    UnmeasurableError,
    measure_missing,
    plan_anchors,
)
from soaprl.graph.operators import Operator, OperatorGraph
from tests.toys import chain

SETTING = Setting(device_type="cpu", device_name="a processor", threads=1, torch_version="2.13.0")
TAKES_S = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedForm:
    """Forward 1 ns for each index of the task, backward twice that.

    Attributes:
        setting: Any.
        log: Gets a line for each measurement; None for none.
        takes_s: How long each measurement takes.
        refuses: Kinds of operators that cannot be measured.
    """

    setting: Setting = SETTING
    log: Path | None = None
    takes_s: float = 0.0
    refuses: tuple[str, ...] = ()

    def measure_task(self, graph: OperatorGraph, operator: Operator, extents: tuple[int, ...]) -> Measurement:
        if operator.kind in self.refuses:
            raise UnmeasurableError("no such kernel")
        time.sleep(self.takes_s)
        self._note(f"{operator.kind} {extents}")
        return Measurement(forward_s=1e-9 * prod(extents), backward_s=2e-9 * prod(extents))

    def measure_update(self, optimizer: str, num_bytes: int) -> Measurement:
        time.sleep(self.takes_s)
        self._note(f"{optimizer} {num_bytes}")
        return Measurement(forward_s=1e-9 * num_bytes, backward_s=0.0)

    def _note(self, line: str) -> None:
        if self.log is not None:
            # One write to a file opened for appending is whole, whoever else writes.
            descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{os.getpid()} {line}\n".encode())
            os.close(descriptor)


def toy_graph() -> OperatorGraph:
    """Three linear operators, of which the last two are of one family."""
    return chain(num_operators=3, sample=64, channel=32)


@dataclass(kw_only=True)
class Stalling:
    """The closed form, which stops for ever when it is to measure once more than it may."""

    closed_form: ClosedForm
    left: int

    @property
    def setting(self) -> Setting:
        return self.closed_form.setting

    def measure_task(self, graph: OperatorGraph, operator: Operator, extents: tuple[int, ...]) -> Measurement:
        self._count()
        return self.closed_form.measure_task(graph, operator, extents)

    def measure_update(self, optimizer: str, num_bytes: int) -> Measurement:
        self._count()
        return self.closed_form.measure_update(optimizer, num_bytes)

    def _count(self) -> None:
        if self.left == 0:
            print("stalled", flush=True)
        while self.left == 0:
            time.sleep(60)
        self.left -= 1


def main(profile: Path, log: Path, most: int, rounds: int) -> None:
    """Measures all of the toy graph for 16 devices in so many rounds, once standard input says so."""
    graph = toy_graph()
    print("ready", flush=True)
    sys.stdin.readline()
    with Profile(profile, create=True) as opened:
        measure_missing(
            opened,
            Stalling(closed_form=ClosedForm(log=log, takes_s=TAKES_S), left=most),
            graph,
            plan_anchors(graph, 16),
            "adam",
            [1024, 8192],
            lambda progress: None,
            rounds=rounds,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
