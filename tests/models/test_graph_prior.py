"""A prior over keys for deep stages: what it is made of, beside DAGL, PANet and its own definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import randomised

from lib import insights
from lib.models import ModelError, build
from lib.models.blocks import Attention
from lib.models.graph_prior import GATE_STEP, PRIORS, BlockStage, GraphStage
from lib.models.graph_prior.mutual_information import mutual_information, normal_scores

SMALL = {"width": 8, "blocks": 2, "stages": 2, "stage_blocks": 1, "heads": 2, "patch": 5, "stride": 3}
SIDES = (13, 11)


def made(prior: str, attention: str = "graph") -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return randomised(build("graph_prior", attention=attention, prior=prior, **SMALL)).double(), torch.rand(
        2, 1, *SIDES, dtype=torch.float64
    )


def stages(network: torch.nn.Module, x: torch.Tensor) -> list[tuple[Attention, torch.Tensor, torch.Tensor]]:
    """Each stage with its features and weights."""
    calls = []
    with insights.hooked(insights.attentions(network), lambda name, stage, inputs, y: calls.append((stage, *inputs))):
        network(x)
    return calls


def test_without_a_prior_it_is_dagl():
    network, x = made("none")
    dagl = build("dagl", **SMALL).double()
    ours = {name.replace(".graph.", "."): tensor for name, tensor in network.state_dict().items()}
    missing = dagl.load_state_dict(ours, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) == {"add_mean.weight", "add_mean.bias"}
    torch.testing.assert_close(network(x), dagl(x))


def test_the_queries_of_blocks_are_panets_on_a_grid():
    torch.manual_seed(0)
    stage, x = randomised(BlockStage(8)).double(), torch.randn(1, 8, *SIDES, dtype=torch.float64)
    weights, _ = stage.find(x)
    whole = insights.weights(stage.attention, x)
    torch.testing.assert_close(weights[0], whole[:, stage.centres(*SIDES)])
    own = F.one_hot(stage.centres(*SIDES), SIDES[0] * SIDES[1]).double()[None, None]
    torch.testing.assert_close(stage.gather(x, own), stage.attention.f(x))  # a pixel that attends to itself alone


@pytest.mark.parametrize("attention", ["graph", "blocks"])
@pytest.mark.parametrize("prior", PRIORS)
def test_the_second_stage_has_the_weights_of_the_definition(prior, attention):
    network, x = made(prior, attention)
    (first, before, weights), (second, after, found) = stages(network, x)
    logits, edge = first.evidence(before)
    torch.testing.assert_close(weights, logits.softmax(3) * (1 if edge is None else edge))
    if prior == "reuse":
        assert torch.equal(found, weights) and len(set(second.state_dict())) < len(set(first.state_dict()))
        return
    own, edge = second.evidence(after)
    pi = logits.softmax(3)
    if prior == "random":
        order = torch.randperm(pi.shape[3], generator=torch.Generator().manual_seed(0))
        pi = pi[..., order]
    if prior in ("most", "least"):
        standard = (before - before.mean((2, 3), keepdim=True)) / before.std((2, 3), correction=0, keepdim=True)
        scores = normal_scores(F.unfold(F.pad(standard, (1, 1, 1, 1), mode="replicate"), 3).mT)
        for image in range(len(x)):
            for query, pixel in enumerate(first.centres(*SIDES)):
                rho = (scores[image] @ scores[image, pixel] / scores.shape[2]).clamp(-0.9999995, 0.9999995)
                nats = -0.5 * torch.log(1 - rho**2)
                for head in range(pi.shape[1]):
                    of_query = weights[image, head, query].clone()
                    of_query[pixel] = 0
                    mean = (of_query * nats).sum() / of_query.sum()
                    dropped = nats < mean if prior == "most" else nats > mean
                    pi[image, head, query, dropped] = pi[image, head, query].min()
    gate = GATE_STEP * second.gate if second.gate is not None else 0.0
    expected = (own + gate * pi.log()).softmax(3) * (1 if edge is None else edge)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("attention", ["graph", "blocks"])
@pytest.mark.parametrize("prior", PRIORS)
def test_gradients_are_those_of_finite_differences(prior, attention):
    network, _ = made(prior, attention)
    stages = network.get_submodule("body.1")
    x = torch.randn(1, 8, 7, 6, dtype=torch.float64, requires_grad=True)
    trained = [p for p in stages.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda x, *_: stages(x), (x, *trained), atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("prior", ["gate", "most", "least", "random"])
def test_the_first_stage_and_the_gate_learn_through_the_prior(prior):
    for attention, names in (("graph", ("query", "key", "edge")), ("blocks", ("theta", "g"))):
        network = made(prior, attention)[0]
        first, later = network.get_submodule("body.1").stages
        _, logits = first.find(torch.rand(1, 8, *SIDES, dtype=torch.float64))
        found, _ = later.find(torch.rand(1, 8, *SIDES, dtype=torch.float64), logits)
        found.square().sum().backward()
        assert abs(later.gate.grad) > 0
        for name, p in first.named_parameters():
            if name.split(".")[1] in names and name.endswith("0.weight" if attention == "blocks" else "weight"):
                assert p.grad.norm() > 0, name


def test_a_query_lies_where_its_patch_is_cut():
    stage = randomised(GraphStage(8, heads=1, patch=5, stride=3)).double()
    x = torch.zeros(1, 8, *SIDES, dtype=torch.float64)
    rows, columns = (stage.centres(*SIDES) // SIDES[1], stage.centres(*SIDES) % SIDES[1])
    query = torch.zeros(len(rows), requires_grad=False)
    for place, (row, column) in enumerate(zip(rows, columns, strict=True)):
        bright = x.clone()
        bright[:, :, row, column] = 1.0
        features = [stage.graph.match(image, *next(stage.graph.layers(image, 1)))[0] for image in (bright, x)]
        moved = (features[0] - features[1]).abs().sum(3).flatten()
        query[place] = moved[place] / moved.max()
    assert (query > 0.2).all()  # the centre of a patch moves its query, and no other one by far more


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_mutual_information_of_normal_pairs_is_found(rho):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 20000, generator=generator, dtype=torch.float64)
    both = rho * first + math.sqrt(1 - rho**2) * second
    scores = [normal_scores(values[None]) for values in (first, both, both**3)]
    found = mutual_information(scores[0], scores[1]).item()
    assert found == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.02)
    assert mutual_information(scores[0], scores[2]).item() == pytest.approx(found)  # of a monotone function too


def test_a_dependence_without_correlation_is_not_seen():
    x = torch.randn(1, 20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert mutual_information(normal_scores(x), normal_scores(x.square())).item() < 0.001


def test_insights_show_both_stages():
    for prior in ("none", "gate", "reuse"):
        network, x = made(prior)
        shown = insights.mechanism(network.float(), x[:1].float(), [(2, 3), (9, 9)])
        assert shown["first"].shape == shown["last"].shape == (2, *SIDES)
        assert len(shown["gates"]) == (prior == "gate") and (shown["shared"] <= 1 + 1e-6).all()
    assert isinstance(network.get_submodule("body.1.stages.0"), GraphStage)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prior": "deep"}, "prior 'deep' is not one of none, reuse, gate, most, least, random"),
        ({"attention": "nl"}, "attention 'nl' is not one of graph, blocks"),
        ({"stages": 0}, "stages 0 is not above 0"),
    ],
)
def test_options_outside_their_range_are_named(options, said):
    with pytest.raises(ModelError, match=said):
        build("graph_prior", **options)
