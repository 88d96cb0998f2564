"""What a run of an evaluation leaves: a file."""

import json
from math import inf
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from soaprl.errors import PolicyError


class Record(BaseModel):
    """A run, in a file.

    Attributes:
        problem: The problem's name.
        method: The method.
        seed: The seed.
        policy: The policy's digest; empty for a method without one.
        budget: Evaluations that it was allowed.
        evaluations: Numbers of the evaluations that brought something better.
        seconds: Search time at them.
        best_s: Iteration time after them; nothing in these three lists if nothing fitted in memory.
        search_time_s: In all.
        skipped: Why the method does not apply; empty if it does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: str
    method: str
    seed: int
    policy: str
    budget: int
    evaluations: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    best_s: tuple[float, ...] = ()
    search_time_s: float = 0.0
    skipped: str = ""

    def best_at(self, evaluations: int) -> float:
        """Iteration time of the best strategy after so many evaluations; infinite if none fitted."""
        known = [t for number, t in zip(self.evaluations, self.best_s, strict=True) if number <= evaluations]
        return known[-1] if known else inf

    def found_at(self, evaluations: int) -> float:
        """Search time at which the best strategy after so many evaluations was found; infinite if none."""
        known = [s for number, s in zip(self.evaluations, self.seconds, strict=True) if number <= evaluations]
        return known[-1] if known else inf

    def best_after(self, seconds: float) -> float:
        """Iteration time of the best strategy after so much search time; infinite if none fitted."""
        known = [t for now, t in zip(self.seconds, self.best_s, strict=True) if now <= seconds]
        return known[-1] if known else inf


def load_record(path: Path) -> Record:
    """The run in the file at `path`; raises `PolicyError` if it is damaged."""
    try:
        return Record.model_validate(json.loads(path.read_text()))
    except (ValueError, ValidationError) as error:
        raise PolicyError(f"{path}: expected a run: {error}. Delete it; it is run again.") from error
