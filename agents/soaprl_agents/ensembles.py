"""Policies on disk that methods use: a checkpoint, or an ensemble of several.

An ensemble is a folder with a checkpoint in each of some folders, and a file that names them:

    config.json         format, version, name, and the SHA-256 of each member's weights, by its folder
    README.md           the model card
    MEMBER/             a checkpoint (`soaprl_agents.checkpoints`), which can be used by itself, too
"""

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from soaprl.atomic import make_folder, write_bytes_atomic, write_text_atomic
from soaprl.errors import PolicyError
from soaprl.strategy.files import describe_validation_error
from soaprl_agents.cards import checkpoint_card, ensemble_card
from soaprl_agents.checkpoints import CARD, CONFIG, WEIGHTS, Checkpoint, load_checkpoint, weights_digest
from soaprl_agents.network import Decider, Ensemble

FORMAT = "soaprl-ensemble"
VERSION = 1

# What the policy that comes with soaprl is called.
SHIPPED = "generalist"

# Names of folders: nothing that leads out of the ensemble's own.
_MEMBER = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_Member = Annotated[str, Field(pattern=f"^{_MEMBER}$")]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Policy(NamedTuple):
    """What a method needs to know of a policy.

    Attributes:
        network: Decides.
        name: What to call it.
        digest: SHA-256 that tells its weights from others.
        seed: Of its training; None for an ensemble, and where that is not known.
    """

    network: Decider
    name: str
    digest: str
    seed: int | None

    @property
    def num_members(self) -> int:
        """How many networks decide."""
        return len(self.network.members) if isinstance(self.network, Ensemble) else 1


class _Config(BaseModel):
    """The file of an ensemble."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["soaprl-ensemble"]
    version: Literal[1]
    name: str
    members: Annotated[dict[_Member, _Digest], Field(min_length=2)]


def load_policy(folder: Path) -> Policy:
    """The checkpoint or the ensemble in `folder`.

    Raises:
        PolicyError: It is missing, damaged, changed, or made for other features than this version computes.
    """
    if not is_ensemble(folder):
        checkpoint = load_checkpoint(folder)
        seed = dict(checkpoint.training.get("recipe") or {}).get("seed")
        known = seed if isinstance(seed, int) else None
        return Policy(checkpoint.network, checkpoint.name, weights_digest(folder), known)
    config = _read_config(folder)
    members = []
    for name, digest in config.members.items():
        members.append(load_checkpoint(folder / name).network)
        if (found := weights_digest(folder / name)) != digest:
            raise PolicyError(
                f"{folder / name}: expected the weights {digest} that {folder / CONFIG} names, found {found}."
                " The member was changed; join them anew with `soaprl ensemble`, or fetch the ensemble again."
            )
    return Policy(Ensemble(members).eval(), config.name, _joined(list(config.members.values())), None)


def is_ensemble(folder: Path) -> bool:
    """Whether the configuration in `folder` says that it is an ensemble's; False where there is none."""
    try:
        content = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def save_ensemble(folder: Path, name: str, members: Sequence[Path]) -> None:
    """Join checkpoints to an ensemble: copy them into `folder`, each under the name of its own folder.

    Args:
        folder: Where; there must be no policy.
        name: What to call the ensemble.
        members: Folders of at least two checkpoints with different weights.

    Raises:
        PolicyError: A member is no checkpoint or has the weights or the name of another, or there is a policy
            in `folder`.
        OutputError: A file cannot be written.
    """
    if (folder / CONFIG).exists():
        raise PolicyError(f"{folder}: expected no policy, found one. Name another folder.")
    if len(members) < 2:
        raise PolicyError(f"expected at least two policies to join, found {len(members)}. Name more of them.")
    digests: dict[str, str] = {}
    for member in members:
        label = member.resolve().name
        _check_member(member, label, digests)
        digests[label] = weights_digest(member)
    for member in members:
        own = folder / member.resolve().name
        make_folder(own)
        for file in (WEIGHTS, CONFIG):
            write_bytes_atomic(own / file, (member / file).read_bytes())
        card = member / CARD
        text = (
            card.read_text(encoding="utf-8") if card.is_file() else checkpoint_card(load_checkpoint(member))
        )
        write_text_atomic(own / CARD, text)
    write_text_atomic(folder / CARD, ensemble_card(name, list(digests)))
    content = {"format": FORMAT, "version": VERSION, "name": name, "members": digests}
    write_text_atomic(folder / CONFIG, json.dumps(content, indent=2) + "\n")


def member_folders(folder: Path) -> list[Path]:
    """The folders of the checkpoints in the policy in `folder`: of an ensemble's members, or `folder` itself.

    Raises:
        PolicyError: An ensemble's file is damaged.
    """
    if not is_ensemble(folder):
        return [folder]
    return [folder / name for name in _read_config(folder).members]


def shipped_policy() -> Path:
    """The folder of the policy that comes with soaprl, an ensemble.

    Raises:
        PolicyError: There is none in this installation.
    """
    beside = Path(__file__).resolve().parents[2] / "checkpoints" / SHIPPED
    with as_file(files("soaprl_agents")) as package:
        for folder in (package / "checkpoints" / SHIPPED, beside):
            if (folder / CONFIG).is_file():
                return folder
    raise PolicyError(
        f"no trained policy {SHIPPED!r} comes with this installation. Train one with `soaprl train`, and"
        " name its folder with --policy."
    )


def load_member(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, for what needs one network.

    Raises:
        PolicyError: As `load_checkpoint`, and there is an ensemble.
    """
    if is_ensemble(folder):
        names = ", ".join(str(member) for member in member_folders(folder))
        raise PolicyError(
            f"{folder}: expected one trained policy, found an ensemble of several. Name a member: {names}."
        )
    return load_checkpoint(folder)


def _read_config(folder: Path) -> _Config:
    path = folder / CONFIG
    try:
        return _Config.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise PolicyError(
            f"{path}: damaged ensemble: {describe_validation_error(error)} Fetch it again."
        ) from error


def _check_member(member: Path, label: str, known: dict[str, str]) -> None:
    load_member(member)
    digest = weights_digest(member)
    if not re.fullmatch(_MEMBER, label):
        raise PolicyError(
            f"{member}: expected a folder's name of letters, digits, '.', '_' and '-'. Rename it."
        )
    if label in known:
        raise PolicyError(
            f"{member}: expected folders with different names, found {label!r} twice. Rename one."
        )
    if digest in known.values():
        raise PolicyError(f"{member}: expected policies with different weights, found the same twice.")


def _joined(digests: list[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
