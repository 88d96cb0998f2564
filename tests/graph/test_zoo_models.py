import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from soaprl.graph.zoo import Option, build
from soaprl.graph.zoo.llama import rotary_angles, rotate
from soaprl.graph.zoo.moe import MixtureOfExperts

SMALL_DECODER: dict[str, Option] = {
    "num_layers": 2,
    "width": 16,
    "num_heads": 2,
    "vocabulary": 500,
    "sequence": 6,
}


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in module.modules())


@pytest.mark.parametrize(
    ("name", "num_convolutions", "num_linear"),
    [
        ("lenet", 2, 3),
        ("alexnet", 5, 3),
        ("vgg-16", 13, 3),
        # 102 layers as the paper counts; poolings are among them
        ("inception-v3", 94, 1),
        # 101 weighted layers, and a projection at the start of each of the 4 stages
        ("resnet-101", 100 + 4, 1),
    ],
)
def test_convolutional_models_have_the_papers_layers(
    name: str, num_convolutions: int, num_linear: int
) -> None:
    with FakeTensorMode():
        module, _, _ = build(name, 2)
    assert count(module, nn.Conv2d) == num_convolutions
    assert count(module, nn.Linear) == num_linear


@pytest.mark.parametrize("name", ["rnntc", "rnnlm", "nmt"])
@pytest.mark.parametrize("chunk", [1, 3, 6, 7, 9])
def test_chunk_size_changes_neither_loss_nor_gradients(name: str, chunk: int) -> None:
    options = {"vocabulary": 20, "hidden": 8, "steps": 7}
    torch.manual_seed(0)
    whole, args, _ = build(name, 3, **options, chunk=7)
    torch.manual_seed(0)
    chunked, _, _ = build(name, 3, **options, chunk=chunk)
    expected, found = whole(*args), chunked(*args)
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    for a, b in zip(chunked.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning")
@pytest.mark.parametrize(
    ("name", "chunk", "num_calls"),
    [
        ("rnntc", 10, 4 * 4),
        ("rnnlm", 10, 2 * 4),
        ("rnnlm", 15, 2 * 3),
        ("rnnlm-2step", 1, 2 * 2),
        ("nmt", 20, 4 * 2),
    ],
)
def test_each_layer_and_chunk_is_one_call_that_shares_the_layers_weights(
    name: str, chunk: int, num_calls: int
) -> None:
    with FakeTensorMode():
        module, args, _ = build(name, 2, chunk=chunk)
        graph = torch.export.export(module, args, strict=False).graph
    calls = [n for n in graph.nodes if n.target is torch.ops.aten.lstm.input]
    assert len(calls) == num_calls
    assert len({tuple(n.args[2]) for n in calls}) == count(module, nn.LSTM)


@pytest.mark.parametrize("name", ["gpt2", "llama-7b", "moe", "bert-large"])
def test_untrained_language_model_guesses_all_words_alike(name: str) -> None:
    torch.manual_seed(0)
    module, args, _ = build(name, 4, **SMALL_DECODER)
    assert abs(module(*args).item() - math.log(500)) < 0.05


def losses_of_first_word(name: str) -> tuple[float, float]:
    """The first word's loss before and after all words but the first are exchanged for others."""
    torch.manual_seed(0)
    dropout = {} if name == "llama-7b" else {"dropout": 0.0}
    module, (words, *others, targets), _ = build(name, 2, **SMALL_DECODER, **dropout)
    targets[:, 1:] = -100
    exchanged = words.clone()
    exchanged[:, 1:] = (words[:, 1:] + 1) % 500
    return module(words, *others, targets).item(), module(exchanged, *others, targets).item()


@pytest.mark.parametrize("name", ["gpt2", "llama-7b", "moe"])
def test_decoders_do_not_see_later_words(name: str) -> None:
    before, after = losses_of_first_word(name)
    assert before == after


def test_encoder_sees_later_words() -> None:
    before, after = losses_of_first_word("bert-large")
    assert before != after


def test_gpt2_has_one_matrix_for_embedding_and_output() -> None:
    module, _, _ = build("gpt2", 2, **SMALL_DECODER)
    assert module.output.weight is module.embedding.weight


def rotated_product(query: Tensor, key: Tensor, positions: tuple[int, int]) -> Tensor:
    angles = rotary_angles(20, query.shape[-1])
    m, n = positions
    at_m = rotate(query, angles[m].cos(), angles[m].sin())
    return at_m @ rotate(key, angles[n].cos(), angles[n].sin())


def test_rotary_positions_act_through_their_distance_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 8)
    near = [rotated_product(query, key, (m, m - 3)) for m in (3, 9, 19)]
    torch.testing.assert_close(near[1:], near[:1] * 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rotated_product(query, key, (5, 5)), query @ key, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rotated_product(query, key, (9, 2)), near[0])


def test_mixture_is_the_weighted_sum_of_a_tokens_best_experts() -> None:
    torch.manual_seed(0)
    mixture = MixtureOfExperts(8, 16, num_experts=4, num_chosen=2)
    x = torch.randn(3, 5, 8)
    mixed = mixture(x)
    for token, found in zip(x.view(-1, 8), mixed.view(-1, 8), strict=True):
        weights = mixture.router(token).softmax(dim=-1)
        best = weights.argsort(descending=True)[:2].tolist()
        total = sum(weights[e] for e in best)
        expected = sum(weights[e] / total * mixture.experts[e](token) for e in best)
        torch.testing.assert_close(found, expected)


def test_dlrm_scores_the_products_of_all_pairs_of_vectors() -> None:
    torch.manual_seed(0)
    module, (dense, categories, clicks), _ = build("dlrm", 3, width=4, max_rows=50)
    loss = module(dense, categories, clicks)
    losses = []
    for sample in range(3):
        bottom = module.bottom(dense[sample])
        embedded = [t.weight[categories[sample, i]] for i, t in enumerate(module.tables)]
        vectors = [bottom, *embedded]
        products = [vectors[i] @ vectors[j] for i in range(27) for j in range(i)]
        probability = module.click(module.top(torch.cat((bottom, torch.stack(products))))).sigmoid()[0]
        losses.append(functional.binary_cross_entropy(probability, clicks[sample]))
    torch.testing.assert_close(loss, torch.stack(losses).mean())
