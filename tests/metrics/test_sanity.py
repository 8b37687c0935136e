import copy

import pytest
import timm
import torch
from captum.attr import IntegratedGradients
from scipy.stats import spearmanr
from torch import nn

from captum_transformer import (
    AttentionRollout,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
)
from captum_transformer.metrics import class_sensitivity, completeness, model_randomisation
from captum_transformer.metrics.randomisation import randomise


class UpsideDown(nn.Module):
    """Registers its layers the other way round than it calls them; one is never called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.unused = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.embed = nn.Linear(6, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        x = x + self.attention(x, x, x)[0]
        return self.head(x[:, 0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UpsideDown().double().eval()


@pytest.fixture
def inputs():
    return torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)).double()


def explainer(inputs):
    return lambda model: AttnLRP(model).attribute(inputs, target=1)


def test_layers_are_randomised_from_the_last_called_to_the_first(model, inputs):
    correlations = model_randomisation(model, explainer(inputs))
    names = ["head", "attention.out_proj", "attention", "embed", ""]
    assert list(correlations) == names
    assert all(c.shape == (3,) and c.dtype == torch.float64 for c in correlations.values())


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_it_is_the_rank_correlation_with_maps_of_randomised_copies(model, inputs, order):
    layers, explain = ["head", "attention", "embed"], explainer(inputs)
    correlations = model_randomisation(model, explain, order=order, layers=layers, seed=3)
    numbers = [name for name, _ in model.named_modules()]
    own, changed = explain(model), copy.deepcopy(model)
    for layer in layers:
        if order == "independent":
            changed = copy.deepcopy(model)
        randomise(changed.get_submodule(layer), seed=3 + numbers.index(layer))
        pairs = zip(own, explain(changed), strict=True)
        expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in pairs]
        assert correlations[layer].tolist() == pytest.approx(expected, abs=1e-12)


def test_only_what_a_map_depends_on_changes_it(model, inputs):
    def weights_of_the_head(model):
        model(inputs)
        return model.head.weight[1].expand(3, 6)

    def the_input_itself(model):
        model(inputs)
        return inputs

    alone = model_randomisation(model, weights_of_the_head, order="independent")
    assert (alone.pop("head") < 0.99).all()
    assert all((c > 1 - 1e-12).all() for c in alone.values())
    cascading = model_randomisation(model, weights_of_the_head)
    assert all((c < 0.99).all() for c in cascading.values())
    edge_detector = model_randomisation(model, the_input_itself)
    assert all((c > 1 - 1e-12).all() for c in edge_detector.values())


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_the_model_and_the_random_state_stay_as_they_are(model, inputs, order):
    before = copy.deepcopy(model.state_dict())
    model.train()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = model_randomisation(model, explainer(inputs), order=order)
    assert torch.get_rng_state().equal(state)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.rand(1)
    again = model_randomisation(model, explainer(inputs), order=order)
    assert all(again[layer].equal(first[layer]) for layer in first)
    other = model_randomisation(model, explainer(inputs), order=order, seed=1)
    assert any(not other[layer].equal(first[layer]) for layer in first)


def test_the_model_stays_as_it_is_if_explaining_fails(model, inputs):
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def explain(given):
        if given.head.weight.equal(before["head.weight"]):
            return explainer(inputs)(given)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        model_randomisation(model, explain)
    assert torch.get_rng_state().equal(state)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_is_initialised_anew_where_it_can_be_and_permuted_elsewhere(model):
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.head.weight.mul_(100)
    changed = copy.deepcopy(trained)
    randomise(changed, seed=0)
    assert changed.head.weight.abs().max() <= 6**-0.5  # nn.Linear's own bound
    for name in ("token", "attention.in_proj_weight"):
        old, new = trained.get_parameter(name), changed.get_parameter(name)
        assert not new.equal(old)
        assert new.flatten().sort().values.equal(old.flatten().sort().values)


def test_layers_share_no_random_weights(model):
    same = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    names = [name for name, _ in same.named_modules()]
    weights = []
    for name in "01":
        randomise(same.get_submodule(name), seed=names.index(name))
        weights.append(same.get_submodule(name).weight)
    assert not weights[0].equal(weights[1])


def test_blocks_of_a_vision_transformer():
    model = timm.create_model("test_vit", img_size=32, num_classes=4).eval()
    images = torch.rand(2, 3, 32, 32)
    names = model_randomisation(model, lambda m: AttnLRP(m).attribute_tokens(images, target=1))
    assert [*names][:2] == ["head", "norm"]
    assert [*names][-2:] == ["", "patch_embed.proj"]  # the class token and the positions are of ""
    blocks = model_randomisation(
        model,
        lambda m: GenericAttentionRelevance(m).attribute_tokens(images, target=1),
        layers=["blocks.1", "blocks.0"],
        absolute=True,
    )
    assert list(blocks) == ["blocks.1", "blocks.0"]


def test_a_constant_map_is_said_to_have_no_correlation(model, inputs):
    def vanishing(given):
        maps = explainer(inputs)(given)
        same = given.head.weight.equal(model.head.weight)
        return maps if same else maps * torch.tensor([1, 0, 1])[:, None, None]

    with pytest.warns(UserWarning, match=r"'head' randomised .* 1 of 3 samples \(1\)"):
        correlations = model_randomisation(model, vanishing, layers=["head"])
    assert correlations["head"].isnan().tolist() == [False, True, False]


def test_models_that_cannot_be_randomised_are_refused(model, inputs):
    method = AttnLRP(model)
    with pytest.raises(ValueError, match="did not use the parameters"):
        model_randomisation(model, lambda _: method.attribute(inputs, target=1))
    with pytest.raises(ValueError, match=r"no layer 'tail' .*'head'"):
        model_randomisation(model, explainer(inputs), layers=["tail"])
    with pytest.raises(ValueError, match="'cascading' or 'independent', got 'down'"):
        model_randomisation(model, explainer(inputs), order="down")
    with pytest.raises(ValueError, match="must return one tensor of maps"):
        model_randomisation(model, lambda m: (explainer(inputs)(m),))


def test_class_sensitivity_of_methods_that_see_the_class_and_of_one_that_does_not(model, inputs):
    rollout = AttentionRollout(model).attribute_targets(inputs, [0, 1])
    torch.testing.assert_close(class_sensitivity(*rollout), torch.ones(3, dtype=torch.float64))

    opposed = copy.deepcopy(model)
    with torch.no_grad():
        opposed.head.weight[1] = -opposed.head.weight[0]
    maps = ConservativeLRP(opposed).attribute_targets(inputs, [0, 1])
    torch.testing.assert_close(class_sensitivity(*maps), -torch.ones(3, dtype=torch.float64))
    absolute = class_sensitivity(*maps, absolute=True)
    torch.testing.assert_close(absolute, torch.ones(3, dtype=torch.float64))


def test_class_sensitivity_warns_of_constant_maps():
    with pytest.warns(UserWarning, match=r"two classes .* 1 of 2 samples \(0\)"):
        result = class_sensitivity(
            torch.tensor([[0, 0, 0], [1, 2, 3]]), torch.tensor([[1, 2, 3], [3, 2, 1]])
        )
    assert result[1] == pytest.approx(-1)


def test_completeness_is_captums_delta_relative_to_the_difference(model, inputs):
    baseline = torch.zeros_like(inputs)
    method = IntegratedGradients(model)
    attributions, delta = method.attribute(
        inputs, baseline, target=1, n_steps=3, method="riemann_left", return_convergence_delta=True
    )
    score, at_baseline = model(inputs)[:, 1].detach(), model(baseline)[:, 1]
    error = completeness(attributions, score, baseline_output=at_baseline)
    torch.testing.assert_close(error, (delta / (score - at_baseline)).abs().detach())
    assert error.max() > 1e-4  # three steps are few


def test_completeness_is_conservatives_own_delta_relative_to_the_score(model, inputs):
    maps, delta = ConservativeLRP(model).attribute(inputs, 1, return_convergence_delta=True)
    score = model(inputs)[:, 1].detach()
    expected = (delta / score).abs()
    torch.testing.assert_close(completeness(maps, score), expected)
    halves = maps[:, :2], maps[:, 2:]
    torch.testing.assert_close(completeness(halves, score), expected)
    by_name = {"left": halves[0], "right": halves[1]}
    torch.testing.assert_close(completeness(by_name, score), expected)


def test_completeness_of_a_score_of_zero():
    maps = torch.tensor([[1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    score = torch.tensor([0.0, 0.0, 5.0])
    assert completeness(maps, score).tolist() == [0.0, torch.inf, 1.0]
    with pytest.raises(ValueError, match=r"each of the 3 samples, got shape \(3, 5\)"):
        completeness(maps, torch.ones(3, 5))
