"""Model cards of trained policies: what the files tell; how good a policy is, its maker must add."""

from collections.abc import Sequence

import yaml

from soaprl_agents.checkpoints import CONFIG, WEIGHTS, Checkpoint


def checkpoint_card(checkpoint: Checkpoint) -> str:
    """The card of one trained policy: its size, how it was trained, how it is used (Markdown)."""
    weights = sum(tensor.numel() for tensor in checkpoint.network.state_dict().values())
    parts = [
        f"# {checkpoint.name}",
        f"A graph policy of soaprl with {weights:,} weights. It proposes a configuration for each operator\n"
        "of any model on any cluster. `--policy` with this folder uses it:",
        "    soaprl search nmt --cluster p100-4x4 --method guided --policy DIR",
    ]
    stage, recipe = checkpoint.training.get("stage"), checkpoint.training.get("recipe")
    if stage:
        parts.append(f"Weights of {stage}.")
    if recipe:
        listed = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=110)
        parts += ["## Recipe", f"```yaml\n{listed}```"]
    parts.append(f"Loading executes nothing: `{WEIGHTS}` is checked against the SHA-256 in `{CONFIG}`.")
    return "\n\n".join(parts) + "\n"


def ensemble_card(name: str, members: Sequence[str]) -> str:
    """The card of an ensemble of the checkpoints in the folders `members` beside it (Markdown)."""
    parts = [
        f"# {name}",
        "An ensemble of trained policies of soaprl. They decide by the mean of their log-probabilities:",
        "\n".join(f"- [{member}]({member}/README.md)" for member in members),
        "`--policy` with this folder uses all of them, with a member's folder that one alone.",
    ]
    return "\n\n".join(parts) + "\n"
