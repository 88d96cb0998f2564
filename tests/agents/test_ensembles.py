"""Several networks that decide together, and how they are kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from soaprl_agents.checkpoints import CARD, CONFIG, WEIGHTS, Checkpoint, load_checkpoint, save_checkpoint
from soaprl_agents.decoding import ProblemPolicy, ready_policy, sweep
from soaprl_agents.ensembles import load_policy, member_folders, save_ensemble, shipped_policy
from soaprl_agents.network import Ensemble, collate, log_probabilities
from soaprl_agents.training.folder import keep_beginning
from soaprl_agents.training.recipe import load_recipe
from soaprl_envs.context import NUM_CONTEXT

from soaprl.cli import run
from soaprl.errors import PolicyError
from tests.agents.networks import decided_network, features_of, larger_problem, random_context


@pytest.fixture
def members(tmp_path: Path) -> list[Path]:
    """Two policies of different widths."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        network = decided_network(seed, hidden=16 + 8 * seed)
        training = {"recipe": {"seed": seed}}
        save_checkpoint(folder, Checkpoint(network=network, name="toy", training=training), f"# {seed}\n")
    return folders


def test_the_distribution_is_the_normalized_geometric_mean_of_the_members() -> None:
    networks = [decided_network(seed, hidden=16 + 8 * seed) for seed in range(3)]
    features = features_of(larger_problem())
    context = random_context(features, NUM_CONTEXT)
    rows = torch.arange(len(context))
    found = []
    with torch.inference_mode():
        for network in (*networks, Ensemble(networks)):
            decision = network.decide(network.encode(collate([features])), rows, context)
            found.append((log_probabilities(decision.scores, decision.mask), decision.values))
    *alone, (together, values) = found
    mean = torch.stack([one for one, _ in alone]).mean(dim=0)
    torch.testing.assert_close(together, torch.log_softmax(mean, dim=-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, torch.stack([one for _, one in alone]).mean(dim=0))
    mask = torch.from_numpy(features.mask)
    assert torch.equal(together.exp() == 0, ~mask)
    assert not torch.allclose(together[mask], alone[0][0][mask])


def test_members_that_are_equal_decide_as_one() -> None:
    problem = larger_problem()
    chosen = []
    for network in (decided_network(), Ensemble([decided_network(), decided_network()])):
        policy = ready_policy(network, problem)
        chosen.append(sweep(policy, policy.contexts(4), np.random.default_rng(0)).chosen)
    np.testing.assert_array_equal(*chosen)


def test_an_ensemble_comes_back_as_its_members_were(tmp_path: Path, members: list[Path]) -> None:
    save_ensemble(tmp_path / "both", "pair", members)
    found = load_policy(tmp_path / "both")
    assert (found.name, found.seed) == ("pair", None)
    assert isinstance(found.network, Ensemble)
    for member, folder in zip(found.network.members, members, strict=True):
        own = load_policy(tmp_path / "both" / folder.name)
        assert own.digest == load_policy(folder).digest != found.digest
        assert (tmp_path / "both" / folder.name / CARD).read_text() == (folder / CARD).read_text()
        assert torch.equal(member.score.weight, load_checkpoint(folder).network.score.weight)
    assert [load_policy(folder).seed for folder in members] == [0, 1]
    card = (tmp_path / "both" / CARD).read_text()
    assert card.startswith("# pair\n")
    assert all(f"]({folder.name}/{CARD})" in card for folder in members)


def test_a_member_without_a_card_gets_one(tmp_path: Path, members: list[Path]) -> None:
    (members[0] / CARD).unlink()
    save_ensemble(tmp_path / "both", "pair", members)
    assert (tmp_path / "both" / members[0].name / CARD).read_text().startswith("# toy\n")


def test_wrong_members_are_errors_and_nothing_is_written(tmp_path: Path, members: list[Path]) -> None:
    first, second = members
    twin, twice = tmp_path / "twin", tmp_path / "deeper" / "first"
    save_checkpoint(twin, load_checkpoint(first))
    save_checkpoint(twice, load_checkpoint(second))
    spaced = tmp_path / "a policy"
    save_checkpoint(spaced, load_checkpoint(second))
    save_ensemble(tmp_path / "both", "pair", members)
    for wrong, message in [
        ([first], "at least two policies to join, found 1"),
        ([first, tmp_path / "nowhere"], "nowhere/config.json: expected a checkpoint"),
        ([first, twin], "twin: expected policies with different weights"),
        ([first, twice], "different names, found 'first' twice"),
        ([first, spaced], "a folder's name of letters"),
        ([first, tmp_path / "both"], "both: expected one trained policy, found an ensemble"),
    ]:
        with pytest.raises(PolicyError, match=message):
            save_ensemble(tmp_path / "wrong", "pair", wrong)
        assert not (tmp_path / "wrong").exists()
    with pytest.raises(PolicyError, match="both: expected no policy, found one"):
        save_ensemble(tmp_path / "both", "pair", members)


def test_a_changed_member_or_file_is_an_error(tmp_path: Path, members: list[Path]) -> None:
    folder = tmp_path / "both"
    save_ensemble(folder, "pair", members)
    save_checkpoint(folder / "second", Checkpoint(network=decided_network(7), name="toy"))
    with pytest.raises(PolicyError, match=r"second: expected the weights [0-9a-f]{64} that .* was changed"):
        load_policy(folder)
    (folder / "second" / WEIGHTS).unlink()
    with pytest.raises(PolicyError, match=r"second/model.safetensors: expected a checkpoint"):
        load_policy(folder)
    content = json.loads((folder / CONFIG).read_text())
    for change in ({"version": 2}, {"members": {"../first": "0" * 64, "second": "0" * 64}}, {"members": {}}):
        (folder / CONFIG).write_text(json.dumps({**content, **change}))
        with pytest.raises(PolicyError, match=r"config.json: damaged ensemble"):
            load_policy(folder)


def test_a_training_does_not_begin_with_an_ensemble(tmp_path: Path, members: list[Path]) -> None:
    save_ensemble(tmp_path / "both", "pair", members)
    with pytest.raises(PolicyError, match=r"both: expected one trained policy, .* Name a member"):
        keep_beginning(tmp_path / "training", load_recipe("tiny"), tmp_path / "both")
    assert not (tmp_path / "training").exists()


def test_the_command_joins_and_every_method_searches_with_what_it_wrote(
    tmp_path: Path, members: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "both"
    assert run(["ensemble", *map(str, members), "--out", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "both"
    for method in ("policy", "guided", "finetune"):
        words = ["search", "lenet", "--cluster", "p100-1x2", "--method", method, "--policy", str(folder)]
        assert run([*words, "--budget-evals", "20", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["num_evaluations"] == 20
    report = tmp_path / "report"
    words = ["evaluate", "--policy", str(folder), "--policy", str(folder / "first"), "--suite", "small"]
    words += ["--only", "synthetic-0", "--methods", "mcmc,policy", "--budgets", "8", "--seeds", "1"]
    assert run([*words, "--out", str(report), "--json"]) == 0
    labels = json.loads(capsys.readouterr().out)["policies"]
    assert [(label["seed"], label["members"]) for label in labels] == [(None, 2), (0, 1)]
    assert "2 policies (both, toy; training seed 0, ensemble of 2)" in (report / "summary.md").read_text()
    assert run(["ensemble", str(members[0]), "--out", str(tmp_path / "one")]) == 2
    assert "at least two policies" in capsys.readouterr().err


def test_a_problem_is_encoded_once_for_all_members() -> None:
    networks = [decided_network(seed) for seed in range(2)]
    features = features_of(larger_problem())
    from soaprl_envs.choices import choices

    policy = ProblemPolicy(Ensemble(networks), choices(larger_problem()), features)
    assert policy.encoding.candidates.shape == (*features.mask.shape, 32)


def test_the_policy_that_comes_with_soaprl_fits_the_features_and_is_small() -> None:
    folder = shipped_policy()
    assert load_policy(folder).name == "generalist"
    members = member_folders(folder)
    seeds = [load_policy(member).seed for member in members]
    assert seeds == [0, 1, 2]
    assert all((own / CARD).is_file() for own in (folder, *members))
    assert sum((member / WEIGHTS).stat().st_size for member in members) < 20_000_000
    recipe = load_recipe("generalist")
    for seed, member in zip(seeds, members, strict=True):
        found = load_checkpoint(member).training["recipe"]
        assert found == recipe.model_copy(update={"seed": seed}).model_dump(mode="json")
