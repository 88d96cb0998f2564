"""A network being trained, and its state on disk."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from soaprl_agents.network import PolicyNetwork
from torch import Tensor, nn

from soaprl.atomic import write_bytes_atomic
from soaprl.errors import PolicyError

STATE = "learner.pt"
_AVERAGING = 0.999
_CLIP = 1.0


class Kept(NamedTuple):
    """The best weights so far.

    Attributes:
        step: After which they were judged.
        excess: What they were judged by; less is better.
        weights: The moving average, by name.
    """

    step: int
    excess: float
    weights: dict[str, Tensor]


@dataclass(kw_only=True)
class Learner:
    """A network, the moving average of its weights, and its optimizer.

    Attributes:
        network: What is trained.
        average: Its moving average, which is what is judged, used and saved as a checkpoint.
        optimizer: AdamW.
        step: Steps made.
        num_steps: Steps to make; the learning rate falls to a tenth over them.
        rate: The first learning rate.
        best: The best average so far, if the round keeps the best.
    """

    network: PolicyNetwork
    average: PolicyNetwork
    optimizer: torch.optim.Optimizer
    num_steps: int
    rate: float
    step: int = 0
    best: Kept | None = None

    @property
    def kept(self) -> PolicyNetwork:
        """What the round hands on: the best average if one was kept, otherwise the last."""
        if self.best is None:
            return self.average
        network = PolicyNetwork(self.network.config)
        network.load_state_dict(self.best.weights)
        return network.eval()

    def consider(self, excess: float) -> None:
        """Keep the average as it is now, unless one that is as good has been kept before.

        Args:
            excess: What it was judged by; less is better.
        """
        if self.best is None or excess < self.best.excess:
            weights = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
            self.best = Kept(self.step, excess, weights)

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`."""
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate_now()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch annotates only a part
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self.optimizer.step()
        self._follow()

    def save(self, folder: Path) -> None:
        """Write the state into `folder`."""
        stream = io.BytesIO()
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": None if self.best is None else self.best._asdict(),
        }
        torch.save(state, stream)
        write_bytes_atomic(folder / STATE, stream.getvalue())

    def restore(self, folder: Path) -> bool:
        """Go on from the state in `folder`; whether there is one.

        Raises:
            PolicyError: It is damaged or belongs to a network of another shape.
        """
        path = folder / STATE
        if not path.is_file():
            return False
        try:
            state = torch.load(path, weights_only=True)
            self.step = int(state["step"])
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best = None if state.get("best") is None else Kept(**state["best"])
        except Exception as error:
            raise PolicyError(
                f"{path}: expected the state of this training: {error}. Name another folder, or delete it."
            ) from error
        return True

    def _rate_now(self) -> float:
        warm = min(1.0, self.step / 100)
        left = max(0.0, 1.0 - self.step / self.num_steps)
        return self.rate * warm * (0.1 + 0.9 * left)

    @torch.no_grad()
    def _follow(self) -> None:
        weight = min(_AVERAGING, self.step / (self.step + 10))
        for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(new, 1.0 - weight)


def new_learner(network: PolicyNetwork, *, num_steps: int, rate: float) -> Learner:
    """A learner that begins with `network`."""
    average = PolicyNetwork(network.config)
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
    return Learner(
        network=network, average=average.eval(), optimizer=optimizer, num_steps=num_steps, rate=rate
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from `seed`; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
