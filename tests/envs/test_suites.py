import pytest
from soaprl_envs.problems import load_suite, suite_names
from soaprl_envs.problems.clusters import RANDOM_KINDS, find_cluster

from soaprl.errors import SimulationError, UnknownNameError
from soaprl.graph.zoo import zoo_models

TRAINED_MODELS = {"alexnet", "vgg-16", "resnet-101", "bert-large", "vit-b-16"}


def specs(name):
    problems = load_suite(name).problems
    return [problems.spec(number) for number in range(len(problems.names))]


def test_the_package_has_its_suites():
    assert set(suite_names()) == {
        "training",
        "validation",
        "held-out",
        "held-out-families",
        "held-out-clusters",
        "small",
        "optimum",
    }


@pytest.mark.parametrize("name", ["training", "validation", "held-out", "small", "optimum"])
def test_every_problem_of_a_suite_names_a_model_and_a_cluster_that_exist(name):
    for spec in specs(name):
        assert spec.model in zoo_models() or spec.model.startswith("synthetic-")
        assert find_cluster(spec.cluster, bandwidth=spec.bandwidth).num_devices > 1


def test_training_has_no_model_of_a_held_out_family():
    trained = {spec.model for spec in specs("training") if not spec.model.startswith("synthetic-")}
    assert trained == TRAINED_MODELS
    held_out = {spec.model for spec in specs("held-out-families")}
    assert not held_out & trained
    # The catalogue's families; transformers are encoders in training, and decoders held out.
    families = {zoo_models()[model].family for model in trained}
    others = {zoo_models()[model].family for model in held_out}
    assert families & others == {"transformer"}
    assert {m for m in held_out if zoo_models()[m].family == "transformer"} == {"gpt2", "gpt2-medium"}


def test_training_has_no_cluster_like_the_held_out_ones():
    def facts(spec):
        kind = spec.cluster.split("-")[0]
        return kind, find_cluster(spec.cluster).num_devices

    trained = {facts(spec) for spec in specs("training")}
    kinds, counts = {kind for kind, _ in trained} - {"random"}, {count for _, count in trained}
    assert kinds <= set(RANDOM_KINDS)
    for spec in specs("held-out-clusters"):
        kind, count = facts(spec)
        assert kind not in kinds or count not in counts or spec.bandwidth in (0.1, 10.0), spec.name


def test_no_problem_is_in_two_of_training_validation_held_out_and_optimum():
    names = [
        name
        for suite in ("training", "validation", "held-out", "optimum")
        for name in load_suite(suite).problems.names
    ]
    assert len(set(names)) == len(names)


def test_the_held_out_suite_includes_both_parts():
    held_out = set(load_suite("held-out").problems.names)
    for part in ("held-out-families", "held-out-clusters"):
        assert set(load_suite(part).problems.names) < held_out


def test_ranges_products_and_pairs(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "description: mine\n"
        "limits: {operators: 9, edges: 9}\n"
        "problems:\n"
        "  - {models: [synthetic-3..5], clusters: [random-7..9], pairing: zip}\n"
        "  - {models: [lenet], clusters: [p100-1x2, p100-1x4], bandwidths: [1.0, 2.0]}\n"
    )
    assert load_suite(path).problems.names == (
        "synthetic-3@random-7",
        "synthetic-4@random-8",
        "synthetic-5@random-9",
        "lenet@p100-1x2",
        "lenet@p100-1x2[bandwidth=2]",
        "lenet@p100-1x4",
        "lenet@p100-1x4[bandwidth=2]",
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("description: x", "at limits: Field required"),
        ("description: x\nlimits: {operators: 1, edges: 1}", "at least one problem"),
        ("description: [", "expected YAML"),
        (
            "description: x\nlimits: {operators: 1, edges: 1}\n"
            "problems: [{models: [a, b], clusters: [c], pairing: zip}]",
            "2 models and 1 clusters",
        ),
        ("description: x\nlimits: {operators: 1, edges: 1}\ncolour: red", "at colour"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, text, complaint):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(SimulationError, match=complaint):
        load_suite(path)


def test_a_suite_that_includes_itself_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(f"description: x\nlimits: {{operators: 1, edges: 1}}\nincludes: ['{path}']\n")
    with pytest.raises(SimulationError, match="includes itself"):
        load_suite(path)


def test_unknown_suites_are_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'held-out'"):
        load_suite("heldout")
    with pytest.raises(SimulationError, match="cannot read suite"):
        load_suite("nowhere.yaml")
