from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from soaprl_agents.checkpoints import Checkpoint, feature_config, load_checkpoint, save_checkpoint
from soaprl_agents.network import PolicyNetwork
from soaprl_agents.training.folder import keep_beginning
from soaprl_agents.training.imitation import draw_rows, row_losses, targets
from soaprl_agents.training.judging import examination, judge
from soaprl_agents.training.learner import new_learner, seeded
from soaprl_agents.training.lessons import load_lessons
from soaprl_agents.training.recipe import NetworkSection, Recipe, load_recipe, parse_recipe, recipe_names
from soaprl_agents.training.run import Training, planned, train
from soaprl_envs.problems import FixedProblems

from soaprl.errors import PolicyError, UnknownNameError
from tests.agents.networks import decided_network, larger_problem, small_problem

RECIPE = """
name: toy
network: {hidden: 16, rounds: 1, device_rounds: 1}
teaching: {evaluations: 400}
rounds:
  - {problems: 1, validation: 1, steps: 60}
  - {problems: 1, validation: 1, steps: 50}
imitation: {rate: 0.003, problems: 2, rows: 32}
ppo: {timesteps: 150, problems: 1, samples: 2, only: []}
"""


def training(
    folder: Path,
    recipe: Recipe | None = None,
    *,
    policy: Path | None = None,
    said: list[str] | None = None,
) -> Training:
    if recipe is None and not (folder / "recipe.json").is_file():
        recipe = parse_recipe(RECIPE, "here")
    begun = keep_beginning(folder, recipe, policy)
    return Training(
        recipe=begun.recipe,
        begun_with=begun.policy,
        folder=folder,
        problems=FixedProblems([larger_problem(), small_problem()]),
        validation=FixedProblems([small_problem(), larger_problem()]),
        say=lambda what, done, status: said.append(what) if said is not None else None,
    )


def test_a_target_prefers_the_best_shares_among_equals_and_leaves_nothing_to_the_hopeless() -> None:
    found = targets(torch.tensor([[0.0, 0.0, 0.5, torch.inf], [0.3, 0.0, 0.4, 0.5]]))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    assert found[0, 0] == found[0, 1] == pytest.approx(0.5, abs=1e-4)
    assert found[0, 3] == 0.0
    assert found[1].argmax() == 1
    assert found[1, 1] > 0.99


def test_a_row_of_tiny_differences_is_taught_as_sharply_as_one_of_large_ones() -> None:
    large = torch.tensor([[0.0, 0.1, 0.2, 0.3]])
    torch.testing.assert_close(targets(large / 5), targets(large / 2), rtol=1e-3, atol=1e-3)


def test_a_whole_training_learns_and_writes_a_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    folder = train(training(tmp_path, said=said))
    assert {"lessons 1", "imitation 1", "lessons 2", "imitation 2", "reinforcement"} <= set(said)
    found = load_checkpoint(folder)
    assert found.name == "toy"
    assert found.training["recipe"]["teaching"]["evaluations"] == 400
    assert sorted(path.name for path in (folder / "lessons").iterdir()) == [
        f"{number}-{index:03d}.npz" for number in (0, 1) for index in (0, 1)
    ]
    assert any((folder / "curves").iterdir())


def test_a_training_that_is_run_again_changes_nothing(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE.replace("timesteps: 150", "timesteps: 0"), "here")
    first = load_checkpoint(train(training(tmp_path, recipe))).network.state_dict()
    again = load_checkpoint(train(training(tmp_path, recipe))).network.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])


# Large steps: what is decoded is soon as good as it gets, and the last weights are not the first of those.
KEEPING = (
    RECIPE.replace("timesteps: 150", "timesteps: 0")
    .replace("rate: 0.003", "rate: 0.03")
    .replace("steps: 50", "steps: 150, keep: best, judge_every: 10")
)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_checkpoint(folder).network.state_dict()
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_round_that_keeps_the_best_hands_on_those_weights_and_not_the_last(tmp_path: Path) -> None:
    folder = train(training(tmp_path, parse_recipe(KEEPING, "here")))
    state = torch.load(folder / "1" / "learner.pt", weights_only=True)
    best = state["best"]
    assert best["step"] < state["step"] == 150, (
        "in this toy the last weights are not better than earlier ones"
    )
    assert equal(weights_of(folder), best["weights"])
    assert not equal(weights_of(folder), state["average"])
    assert f"step {best['step']} of round 2, the best of" in load_checkpoint(folder).training["stage"]
    plan = training(folder, None)
    shown = []
    for number in (0, 1):
        name, make = planned(plan, number, 0)
        lessons = load_lessons(folder / "lessons" / f"{number}-000.npz", name)
        shown.append(examination(make, lessons))
    with torch.inference_mode():
        assert judge(load_checkpoint(folder).network, shown).best_excess == pytest.approx(best["excess"])


def test_a_training_that_is_ended_and_goes_on_keeps_the_same_weights(tmp_path: Path) -> None:
    recipe = parse_recipe(KEEPING.replace("steps: 150", "steps: 450").replace("y: 10", "y: 150"), "here")

    def end(what: str, done: float, status: str) -> None:
        if (what, done) == ("imitation 2", 350 / 450):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(training(tmp_path / "halves", recipe), say=end))
    folders = [train(training(tmp_path / name, recipe)) for name in ("halves", "whole")]
    states = [torch.load(folder / "1" / "learner.pt", weights_only=True) for folder in folders]
    assert states[0]["best"]["step"] == states[1]["best"]["step"]
    assert states[0]["best"]["excess"] == states[1]["best"]["excess"]
    assert equal(*(weights_of(folder) for folder in folders))


def test_of_equally_good_weights_the_first_are_kept() -> None:
    with seeded(0):
        learner = new_learner(PolicyNetwork(feature_config(hidden=16)), num_steps=9, rate=1e-2)
    for step, excess in ((1, 0.5), (2, 0.2), (3, 0.2), (4, 0.3)):
        learner.step = step
        with torch.no_grad():
            learner.average.score.weight.fill_(float(step))
        learner.consider(excess)
    assert learner.best is not None
    assert (learner.best.step, learner.best.excess) == (2, 0.2)
    assert (learner.kept.score.weight == 2.0).all()


def test_imitation_learns_the_rows(tmp_path: Path) -> None:
    from soaprl_agents.training.collect import teach
    from soaprl_agents.training.recipe import TeachingSection

    lessons = [teach(larger_problem(), TeachingSection(evaluations=1000), 0)]
    with seeded(0):
        learner = new_learner(PolicyNetwork(feature_config(hidden=16)), num_steps=150, rate=5e-3)
    rng = np.random.default_rng(0)
    rows = draw_rows(lessons, rng, num_problems=1, rows_each=128)
    with torch.inference_mode():
        before = row_losses(learner.network, rows)
    for _ in range(150):
        losses = row_losses(learner.network, draw_rows(lessons, rng, num_problems=1, rows_each=64))
        learner.update(losses.loss.mean())
    with torch.inference_mode():
        after = row_losses(learner.average, rows)
    assert after.loss.mean() < 0.6 * before.loss.mean()
    assert after.regret.mean() < 0.3 * before.regret.mean()


def test_a_learner_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    def learned(steps: int, folder: Path) -> PolicyNetwork:
        with seeded(0):
            learner = new_learner(PolicyNetwork(feature_config(hidden=16)), num_steps=8, rate=1e-2)
        learner.restore(folder)
        while learner.step < steps:
            weight = learner.network.score.weight
            learner.update(((weight - learner.step) ** 2).sum())
        learner.save(folder)
        return learner.average

    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    whole = learned(8, tmp_path / "whole")
    learned(4, tmp_path / "halves")
    halves = learned(8, tmp_path / "halves")
    assert torch.equal(whole.score.weight, halves.score.weight)


def test_problems_take_turns_and_rounds_of_a_curriculum_choose_theirs(tmp_path: Path) -> None:
    plan = training(tmp_path)
    names = [planned(plan, number, 1)[0] for number in (0, 1)]
    assert len(set(names)) == 2, "each problem comes once before any comes twice"
    only = parse_recipe(RECIPE.replace("steps: 60}", "steps: 60, only: ['9:']}"), "here")
    with pytest.raises(PolicyError, match="expected problems whose names begin with"):
        planned(training(tmp_path / "other", only), 0, 1)


def test_trainings_with_other_seeds_validate_on_the_same_problems(tmp_path: Path) -> None:
    taught, validated = set(), set()
    for seed in range(8):
        recipe = parse_recipe(RECIPE + f"seed: {seed}\n", "here")
        plan = training(tmp_path / str(seed), recipe)
        assert plan.recipe.seed == seed
        validated.add(planned(plan, 0, 0)[0])
        taught.add(planned(plan, 0, plan.recipe.rounds[0].validation)[0])
    assert len(validated) == 1
    assert len(taught) > 1


def test_trainings_with_one_teacher_share_the_lessons_of_the_first_round(tmp_path: Path) -> None:
    text = RECIPE.replace("timesteps: 150", "timesteps: 0").replace("400}", "400, seed: 5}")
    folders = []
    for seed in (1, 2):
        recipe = parse_recipe(text + f"seed: {seed}\n", "here")
        folders.append(train(training(tmp_path / str(seed), recipe)))
    for index in (0, 1):
        name, _ = planned(training(folders[0]), 0, index)
        one, other = (load_lessons(folder / "lessons" / f"0-00{index}.npz", name) for folder in folders)
        assert len(one.operators)
        for field in ("operators", "kinds", "contexts", "excess", "winner", "times_s"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    first, second = (load_checkpoint(folder).network.state_dict() for folder in folders)
    assert not all(torch.equal(first[key], second[key]) for key in first)


def test_a_folder_keeps_its_recipe(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE, "here")
    assert keep_beginning(tmp_path, recipe) == keep_beginning(tmp_path, None) == (recipe, None)
    with pytest.raises(PolicyError, match="Name another folder"):
        keep_beginning(tmp_path, recipe.model_copy(update={"seed": 5}))
    with pytest.raises(PolicyError, match="expected a training to resume"):
        keep_beginning(tmp_path / "empty", None)


def test_a_policy_learns_further_and_nothing_worse_is_kept(tmp_path: Path) -> None:
    first = train(training(tmp_path / "first", parse_recipe(KEEPING, "here")))
    # One step, so long that what it leads to is worse.
    one = KEEPING.replace("  - {problems: 1, validation: 1, steps: 60}\n", "").replace(
        "steps: 150", "steps: 1"
    )
    recipe = parse_recipe(one.replace("rate: 0.03", "rate: 300.0"), "here").model_copy(update={"seed": 7})
    further = train(training(tmp_path / "further", recipe, policy=first))
    assert equal(weights_of(further), weights_of(first))
    again = train(training(tmp_path / "further"))
    found = load_checkpoint(again)
    assert found.training["begun_with"]["recipe"]["seed"] == 0
    assert "step 0 of round 1" in found.training["stage"]
    assert not equal(weights_of(train(training(tmp_path / "anew", recipe))), weights_of(first))


def test_a_folder_keeps_the_policy_that_it_began_with(tmp_path: Path) -> None:
    recipe = parse_recipe(KEEPING, "here").model_copy(
        update={"network": NetworkSection(hidden=16, rounds=2, device_rounds=1)}
    )
    for seed, name in enumerate(("one", "other")):
        save_checkpoint(tmp_path / name, Checkpoint(network=decided_network(seed), name=name))
    begun = keep_beginning(tmp_path / "own", recipe, tmp_path / "one")
    kept = keep_beginning(tmp_path / "own", None)
    assert begun.policy is not None
    assert kept.policy is not None
    assert kept.policy.name == "one"
    assert equal(kept.policy.network.state_dict(), begun.policy.network.state_dict())
    assert keep_beginning(tmp_path / "own", recipe, tmp_path / "one").recipe == recipe
    with pytest.raises(PolicyError, match="expected the policy that the training here began with"):
        keep_beginning(tmp_path / "own", recipe, tmp_path / "other")
    # What was begun with a policy and killed before there was a recipe.
    (tmp_path / "own" / "recipe.json").rename(tmp_path / "recipe.json")
    assert keep_beginning(tmp_path / "own", recipe).policy is None
    assert keep_beginning(tmp_path / "own", None).policy is None
    keep_beginning(tmp_path / "untrained", recipe)
    with pytest.raises(PolicyError, match="expected the policy that the training here began with"):
        keep_beginning(tmp_path / "untrained", recipe, tmp_path / "one")
    with pytest.raises(PolicyError, match="hidden 64, found 16; rounds 3, found 2; device_rounds 2, found 1"):
        keep_beginning(
            tmp_path / "wide", recipe.model_copy(update={"network": NetworkSection()}), tmp_path / "one"
        )
    assert not (tmp_path / "wide").exists()


def test_a_policy_that_a_training_began_with_and_that_is_gone_or_changed_is_an_error(tmp_path: Path) -> None:
    recipe = parse_recipe(KEEPING, "here").model_copy(
        update={"network": NetworkSection(hidden=16, rounds=2, device_rounds=1)}
    )
    one, other = (
        Checkpoint(network=decided_network(seed), name=name) for seed, name in enumerate(("one", "other"))
    )
    save_checkpoint(tmp_path / "one", one)
    own = tmp_path / "own"
    keep_beginning(own, recipe, tmp_path / "one")
    save_checkpoint(own / "begun-with", other)
    with pytest.raises(PolicyError, match="began with, found another"):
        keep_beginning(own, None)
    (own / "begun-with" / "model.safetensors").unlink()
    with pytest.raises(PolicyError, match="Put it back, or begin in another folder"):
        keep_beginning(own, recipe, tmp_path / "one")
    (own / "recipe.json").write_text('{"name": 5}')
    with pytest.raises(PolicyError, match=r"damaged recipe: .*name.* Begin in another folder"):
        keep_beginning(own, None)


@pytest.mark.parametrize("name", recipe_names())
def test_the_recipes_that_come_with_soaprl_are_valid(name: str) -> None:
    assert load_recipe(name).rounds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x", "expected rounds, or ppo with timesteps"),
        (RECIPE + "more: 1", "more: Extra inputs"),
        (RECIPE.replace("hidden: 16", "hidden: 0"), "network.hidden: .* found 0"),
        ("a: [", "expected YAML"),
    ],
)
def test_a_wrong_recipe_is_an_error_that_says_where(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_recipe(text, "recipe.yaml")


def test_an_unknown_recipe_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'generalist'"):
        load_recipe("generalists")
