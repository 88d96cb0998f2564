"""Trained policies on disk: weights (safetensors), what they are (JSON), and a model card.

A checkpoint is a folder:

    model.safetensors   tensors by name; the format holds numbers only
    config.json         format, version, the network's shape, the features it reads, the weights' SHA-256,
                        and how it was trained
    README.md           the model card

Loading executes nothing from these files: JSON and safetensors are parsed, and every tensor must have the
name, shape and type that the network of this configuration has.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from soaprl.atomic import make_folder, write_bytes_atomic, write_text_atomic
from soaprl.errors import PolicyError
from soaprl_agents.feature_widths import FEATURE_VERSION, FEATURE_WIDTHS
from soaprl_agents.network import NetworkConfig, PolicyNetwork

FORMAT = "soaprl-policy"
VERSION = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A network and what is known about it.

    Attributes:
        network: The network, in evaluation mode.
        name: What to call it.
        training: How it was trained: recipe, seeds, amounts; JSON.
    """

    network: PolicyNetwork
    name: str
    training: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, card: str | None = None) -> None:
    """Write the checkpoint into `folder`, which is made if it is not there.

    Args:
        folder: Where.
        checkpoint: What.
        card: The text of the model card; None leaves the card as it is.

    Raises:
        OutputError: A file cannot be written.
    """
    weights = save_tensors(
        {name: tensor.contiguous() for name, tensor in checkpoint.network.state_dict().items()}
    )
    config = {
        "format": FORMAT,
        "version": VERSION,
        "name": checkpoint.name,
        "features": FEATURE_VERSION,
        "network": asdict(checkpoint.network.config),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "training": dict(checkpoint.training),
    }
    make_folder(folder)
    write_bytes_atomic(folder / WEIGHTS, weights)
    write_text_atomic(folder / CONFIG, json.dumps(config, indent=2, allow_nan=False) + "\n")
    if card is not None:
        write_text_atomic(folder / CARD, card)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`.

    Raises:
        PolicyError: It is missing, damaged, changed, or made for other features than this version computes.
    """
    config = _config(folder)
    weights = _bytes(folder / WEIGHTS)
    found = hashlib.sha256(weights).hexdigest()
    if found != config["sha256"]:
        raise PolicyError(
            f"{folder / WEIGHTS}: expected the SHA-256 {config['sha256']} that {CONFIG} names, found {found}."
            " The weights were damaged or changed; fetch the checkpoint again."
        )
    network = PolicyNetwork(_network_config(folder, config["network"]))
    _fill(network, weights, folder / WEIGHTS)
    return Checkpoint(network=network.eval(), name=config["name"], training=config["training"])


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights in `folder`.

    Raises:
        PolicyError: There are none.
    """
    return hashlib.sha256(_bytes(folder / WEIGHTS)).hexdigest()


def feature_config(**choices: Any) -> NetworkConfig:
    """A network's configuration for the features of this version; `choices` are its other fields."""
    fields_by_name: dict[str, Any] = {**FEATURE_WIDTHS, **choices}
    return NetworkConfig(**fields_by_name)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    # Outside of the try: errors of this program are values' errors, too.
    content = _bytes(path)
    try:
        config = json.loads(content)
    except ValueError as error:
        raise PolicyError(f"{path}: expected JSON: {error}. Fetch the checkpoint again.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise PolicyError(f"{path}: expected a file of the format {FORMAT!r}. Name a checkpoint's folder.")
    if config.get("version") != VERSION:
        raise PolicyError(
            f"{path}: expected version {VERSION}, found {config.get('version')!r}."
            " Use the soaprl it came with."
        )
    expected = {"name": str, "features": str, "network": dict, "sha256": str, "training": dict}
    for key, kind in expected.items():
        if not isinstance(config.get(key), kind):
            raise PolicyError(f"{path}, {key}: expected {kind.__name__}, found {config.get(key)!r}.")
    if config["features"] != FEATURE_VERSION:
        raise PolicyError(
            f"{path}: expected the features {FEATURE_VERSION!r} that this version of soaprl computes, found"
            f" {config['features']!r}. Train the policy again, or use the soaprl it came with."
        )
    return config


def _network_config(folder: Path, content: dict[str, Any]) -> NetworkConfig:
    known = {entry.name for entry in fields(NetworkConfig)}
    if set(content) != known:
        wrong = ", ".join(sorted(known ^ set(content)))
        raise PolicyError(
            f"{folder / CONFIG}, network: expected the fields of this version; differing: {wrong}."
        )
    config = NetworkConfig(**content)
    for name, width in FEATURE_WIDTHS.items():
        if content[name] != width:
            raise PolicyError(
                f"{folder / CONFIG}, {name}: expected {width}, as this version computes, found"
                f" {content[name]}. Train the policy again, or use the soaprl it came with."
            )
    return config


def _fill(network: PolicyNetwork, weights: bytes, path: Path) -> None:
    try:
        tensors = load_tensors(weights)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise PolicyError(f"{path}: expected safetensors: {error}. Fetch the checkpoint again.") from error
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        found = tensors.get(name)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise PolicyError(
                f"{path}: expected a tensor {name!r} of {tensor.dtype} {tuple(tensor.shape)}, found"
                f" {'none' if found is None else f'{found.dtype} {tuple(found.shape)}'}."
            )
        if not torch.isfinite(found).all():
            raise PolicyError(f"{path}: expected finite numbers in {name!r}, found others. Train it again.")
    if unknown := sorted(set(tensors) - set(wanted)):
        raise PolicyError(f"{path}: expected no tensors beside the network's, found {', '.join(unknown)}.")
    network.load_state_dict(tensors)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PolicyError(
            f"{path}: expected a checkpoint: {error.strerror}. Name the folder of a trained policy."
        ) from error
