import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from soaprl_agents.checkpoints import (
    CARD,
    CONFIG,
    WEIGHTS,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)

from soaprl.errors import PolicyError
from tests.agents.networks import decided_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(
        tmp_path, Checkpoint(network=decided_network(), name="toy", training={"seed": 1}), "# Card\n"
    )
    return tmp_path


def changed(folder: Path, **entries: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_checkpoint_comes_back_as_it_was(folder: Path) -> None:
    found = load_checkpoint(folder)
    assert (found.name, found.training) == ("toy", {"seed": 1})
    assert found.network.config == decided_network().config
    for name, tensor in decided_network().state_dict().items():
        assert torch.equal(found.network.state_dict()[name], tensor)
    assert (folder / CARD).read_text() == "# Card\n"


def test_changed_weights_are_an_error(folder: Path) -> None:
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PolicyError, match=r"expected the SHA-256 .* damaged or changed"):
        load_checkpoint(folder)


def test_weights_of_another_network_are_an_error_even_with_a_matching_hash(folder: Path) -> None:
    import hashlib

    tensors = decided_network().state_dict()
    save_file({**tensors, "score.weight": torch.zeros(1, 3)}, folder / WEIGHTS)
    changed(folder, sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(PolicyError, match=r"expected a tensor 'score.weight' of torch.float32 \(1, 16\)"):
        load_checkpoint(folder)
    save_file({**tensors, "more": torch.zeros(1)}, folder / WEIGHTS)
    changed(folder, sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(PolicyError, match="no tensors beside the network's, found more"):
        load_checkpoint(folder)


def test_a_pickle_is_not_even_opened(folder: Path) -> None:
    import hashlib

    torch.save({"a": torch.zeros(1)}, folder / WEIGHTS)
    changed(folder, sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())
    with pytest.raises(PolicyError, match="expected safetensors"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"features": "0-old"}, "expected the features .* found '0-old'"),
        ({"version": 9}, "expected version 1, found 9"),
        ({"format": "other"}, "expected a file of the format 'soaprl-policy'"),
        ({"sha256": 3}, "sha256: expected str, found 3"),
        ({"network": {"hidden": 16}}, "network: expected the fields of this version"),
    ],
)
def test_a_configuration_that_does_not_match_is_an_error(
    folder: Path, entries: dict[str, object], message: str
) -> None:
    changed(folder, **entries)
    with pytest.raises(PolicyError, match=message):
        load_checkpoint(folder)


def test_features_of_another_width_are_an_error(folder: Path) -> None:
    network = json.loads((folder / CONFIG).read_text())["network"]
    changed(folder, network={**network, "context_width": network["context_width"] + 1})
    with pytest.raises(PolicyError, match=r"context_width: expected .* as this version computes"):
        load_checkpoint(folder)


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere/config\.json: expected a checkpoint: [^:]*$"):
        load_checkpoint(tmp_path / "nowhere")
