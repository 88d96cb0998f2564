"""`soaprl train`, `evaluate` and searches with `--policy`."""

import json
from pathlib import Path

import pytest
from soaprl_agents.checkpoints import CARD, Checkpoint, save_checkpoint

from soaprl.cli import run
from tests.agents.networks import decided_network

RECIPE = """
name: toy
suite: small
validation: small
network: {hidden: 16, rounds: 1, device_rounds: 1}
teaching: {evaluations: 200}
rounds:
  - {problems: 1, validation: 1, steps: 20, only: [synthetic-]}
imitation: {rate: 0.003, problems: 1, rows: 16}
ppo: {timesteps: 100, problems: 1, samples: 2}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    save_checkpoint(folder, Checkpoint(network=decided_network(), name="toy"))
    return folder


def test_a_policy_is_trained_gone_on_with_evaluated_and_compared(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder, report = tmp_path / "toy.yaml", tmp_path / "trained", tmp_path / "report"
    recipe.write_text(RECIPE)
    assert run(["train", "--recipe", str(recipe), "--timesteps", "0", "--out", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["ppo"]["timesteps"] == 0
    assert "seed: 0" in (folder / CARD).read_text()
    other = ["train", "--recipe", str(recipe), "--timesteps", "0", "--out", str(folder), "--seed", "3"]
    assert run(other) == 2
    assert "expected the recipe" in capsys.readouterr().err
    assert run(["train", "--resume", str(folder)]) == 0
    words = ["evaluate", "--policy", str(folder), "--policy", str(policy), "--workers", "2"]
    words += ["--suite", "small", "--only", "synthetic-0,synthetic-1"]
    words += ["--methods", "data-parallel,mcmc,policy", "--budgets", "1,8", "--seeds", "1"]
    capsys.readouterr()
    assert run([*words, "--out", str(report), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {cell["method"] for cell in found["cells"]} == {"data-parallel", "mcmc", "policy"}
    assert len(found["problems"]) == 2
    assert [label["seed"] for label in found["policies"]] == [0, None]
    assert (report / "summary.md").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--recipe", "generalists"], "Did you mean 'generalist'"),
        (
            ["train", "--resume", "nowhere", "--out", "x"],
            "leave --recipe, --policy, --out, --seed and --timesteps out",
        ),
        (["train", "--resume", "nowhere", "--seed", "1"], "leave --recipe, --policy, --out, --seed"),
        (["train", "--resume", "nowhere"], "expected a training to resume"),
        (["train", "--policy", "nowhere"], "Name the folder of a trained policy"),
        (
            ["train", "--recipe", "tiny", "--policy", "generalist", "--out", "x"],
            "Give the recipe the network",
        ),
        (["evaluate", "--policy", "nowhere"], "Name the folder of a trained policy"),
        (["evaluate", "--methods", "mcmcc"], "Did you mean 'mcmc'"),
        (["evaluate", "--workers", "0"], "'--workers'"),
        (["search", "lenet", "-c", "p100-1x2", "-m", "polic"], "Did you mean 'policy'"),
    ],
)
def test_mistakes_are_said_in_one_message(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_search_takes_the_policy_that_is_named(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "lenet", "-c", "p100-1x2", "--budget-evals", "20", "--policy", str(policy), "--json"]
    for method in ("policy", "guided", "finetune"):
        assert run([*words, "--method", method]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["method"] == method
        assert found["num_evaluations"] == 20
