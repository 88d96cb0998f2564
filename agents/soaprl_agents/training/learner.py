"""A network being trained, and its state on disk."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from soaprl_agents.network import PolicyNetwork
from torch import Tensor, nn

from soaprl.atomic import write_bytes_atomic
from soaprl.errors import PolicyError

STATE = "learner.pt"
_AVERAGING = 0.999
_CLIP = 1.0


@dataclass(kw_only=True)
class Learner:
    """A network, the moving average of its weights, and its optimizer.

    Attributes:
        network: What is trained.
        average: Its moving average, which is what is used and saved as a checkpoint.
        optimizer: AdamW.
        step: Steps made.
        num_steps: Steps to make; the learning rate falls to a tenth over them.
        rate: The first learning rate.
    """

    network: PolicyNetwork
    average: PolicyNetwork
    optimizer: torch.optim.Optimizer
    num_steps: int
    rate: float
    step: int = 0

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
