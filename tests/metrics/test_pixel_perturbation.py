import pytest
import torch
from captum.attr import FeatureAblation
from torch import nn

from captum_transformer.errors import AmbiguousOutputError, InvalidInputError, InvalidTargetError
from captum_transformer.metrics import black, pixel_perturbation
from tests.metrics.by_hand import down, in_order

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BLACK = [-2.0, -1.0, -0.5]


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(3 * 3 * 5, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 4)
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(5, 3, 3, 5, dtype=torch.float64)


@pytest.fixture
def relevance():
    torch.manual_seed(2)
    return torch.randn(5, 3, 5).round(decimals=1)  # some pixels are equally relevant


@pytest.mark.parametrize("order", ["positive", "negative"])
@pytest.mark.parametrize("perturbations_per_eval", [1, 3, 100])
def test_scores_and_predictions_are_those_by_hand(
    model, images, relevance, order, perturbations_per_eval
):
    target = torch.tensor([0, 1, 2, 3, 0])
    curve = pixel_perturbation(
        model,
        images,
        relevance,
        target,
        baselines=BLACK,
        order=order,
        perturbations_per_eval=perturbations_per_eval,
    )
    assert curve.scores.shape == curve.predictions.shape == (5, 10)
    for sample in range(5):
        places = in_order(relevance[sample].flatten(), order)
        for step, fraction in enumerate(FRACTIONS):
            x = images[sample].clone()
            for place in places[: down(fraction, 15)]:
                x[:, place // 5, place % 5] = torch.tensor(BLACK, dtype=torch.float64)
            scores = model(x[None])[0].detach()
            expected = scores.softmax(0)[target[sample]]
            torch.testing.assert_close(curve.scores[sample, step], expected, rtol=0, atol=1e-12)
            assert curve.predictions[sample, step] == scores.argmax()


def test_it_is_pixel_flipping_of_quantus():
    quantus = pytest.importorskip("quantus")
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    images, relevance = torch.rand(4, 1, 6, 6), torch.randn(4, 1, 6, 6)
    labels = torch.tensor([0, 1, 2, 1])
    for softmax in (True, False):
        flipping = quantus.PixelFlipping(
            features_in_step=9, perturb_baseline=0.25, normalise=False, disable_warnings=True
        )
        expected = flipping(
            model=model,
            x_batch=images.numpy(),
            y_batch=labels.numpy(),
            a_batch=relevance.numpy(),
            softmax=softmax,
            channel_first=True,
        )
        curve = pixel_perturbation(
            model,
            images,
            relevance,
            labels,
            baselines=0.25,
            fractions=(0.25, 0.5, 0.75, 1.0),
            softmax=softmax,
        )
        torch.testing.assert_close(curve.scores, torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_first_pixel_to_go_costs_what_captums_ablation_says(model, images, relevance):
    mask = torch.arange(15).reshape(1, 1, 3, 5)
    baselines = torch.tensor(BLACK).double()[:, None, None].expand(1, 3, 3, 5)
    ablation = FeatureAblation(model).attribute(
        images, baselines=baselines, target=2, feature_mask=mask
    )
    for order, first in (("positive", relevance.flatten(1).argmax(1)), ("negative", None)):
        first = relevance.flatten(1).argmin(1) if first is None else first
        curve = pixel_perturbation(
            model,
            images,
            relevance,
            2,
            baselines=BLACK,
            order=order,
            fractions=(0, 1 / 15),
            softmax=False,
        )
        cost = ablation[:, 0].flatten(1).gather(1, first[:, None])[:, 0]
        torch.testing.assert_close(curve.scores[:, 0] - curve.scores[:, 1], cost)


def test_a_batch_equals_its_samples(model, images, relevance):
    def scaled(x, scale, *, shift):
        return model(x) * scale[:, None] + shift["shift"]

    scale, shift = torch.rand(5).double(), {"shift": torch.rand(5, 4).double()}
    labels = torch.arange(5) % 4

    def run(rows):
        return pixel_perturbation(
            scaled,
            images[rows],
            relevance[rows],
            labels[rows],
            scale[rows],
            additional_forward_kwargs={"shift": {"shift": shift["shift"][rows]}},
            baselines=BLACK,
            perturbations_per_eval=4,
        )

    together = run(slice(None))
    for sample in range(5):
        alone = run(slice(sample, sample + 1))
        torch.testing.assert_close(alone.scores[0], together.scores[sample], rtol=0, atol=1e-12)
        assert torch.equal(alone.predictions[0], together.predictions[sample])


def test_a_right_map_has_a_small_positive_and_a_large_negative_area():
    images = torch.rand(3, 1, 6, 6, dtype=torch.float64) + 1
    weight = torch.randn(1, 1, 6, 6, dtype=torch.float64)

    def model(x):
        score = (x * weight).flatten(1).sum(1)
        return torch.stack([score, -score], 1)

    def areas(relevance, **options):
        return [
            pixel_perturbation(
                model, images, relevance, 0, baselines=0, order=order, softmax=False
            ).area()
            for order in ("positive", "negative")
        ]

    right, random = areas(images * weight), areas(torch.rand_like(images))
    assert (right[0] < random[0]).all()
    assert (right[1] > random[1]).all()


def test_model_and_inputs_are_left_as_they_were(model, images, relevance):
    model.train()
    kept = images.clone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = pixel_perturbation(model, images, relevance, 1, baselines=0)
    assert all(module.training for module in model.modules())
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not first.scores.requires_grad
    # Dropout has not run.
    second = pixel_perturbation(model.eval(), images, relevance, 1, baselines=0)
    assert torch.equal(first.scores, second.scores)


def test_a_model_that_fails_is_restored(images, relevance):
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    model = Failing()
    with pytest.raises(RuntimeError, match="no"):
        pixel_perturbation(model, images, relevance, 1, baselines=0)
    assert model.training


def test_low_precision_is_summed_up_in_single(model, images, relevance):
    model.bfloat16()
    curve = pixel_perturbation(model, images.bfloat16(), relevance, 1, baselines=0)
    assert curve.scores.dtype == curve.area().dtype == torch.float32
    exact = pixel_perturbation(model.float(), images.bfloat16().float(), relevance, 1, baselines=0)
    torch.testing.assert_close(curve.area(), exact.area(), rtol=0.02, atol=0.01)


def test_it_runs_in_inference_mode(model, images, relevance):
    expected = pixel_perturbation(model, images, relevance, 1, baselines=0)
    with torch.inference_mode():
        found = pixel_perturbation(model, images.clone(), relevance.clone(), 1, baselines=0)
    assert torch.equal(found.scores, expected.scores)


def test_progress_is_shown_where_it_is_wanted(model, images, relevance, capsys):
    pixel_perturbation(model, images, relevance, 1, baselines=0)
    assert not capsys.readouterr().err
    pixel_perturbation(model, images, relevance, 1, baselines=0, show_progress=True)
    assert "pixel_perturbation, positive: 100%" in capsys.readouterr().err


def test_black_is_what_normalisation_makes_of_it():
    mean, std = torch.rand(3), torch.rand(3)
    black_image = ((torch.zeros(3) - mean) / std).double()
    torch.testing.assert_close(black(mean, std), black_image, rtol=1e-6, atol=0)
    assert black([0.5, 0.1], [0.5, 0.3]).tolist() == [-1, -0.1 / 0.3]


def test_invalid_arguments_are_refused(model, images, relevance):
    with pytest.raises(InvalidInputError, match=r"images \(B, C, H, W\) alone"):
        pixel_perturbation(model, images.flatten(1), relevance, 1, baselines=0)
    with pytest.raises(InvalidInputError, match="interpolate"):
        pixel_perturbation(model, images, relevance[:, :2], 1, baselines=0)
    with pytest.raises(InvalidInputError, match="at least 1"):
        pixel_perturbation(model, images, relevance, 1, baselines=0, perturbations_per_eval=0)
    with pytest.raises(InvalidTargetError):
        pixel_perturbation(model, images, relevance, 7, baselines=0)
    with pytest.raises(InvalidTargetError, match="Give a"):
        pixel_perturbation(model, images, relevance, baselines=0)
    with pytest.raises(InvalidInputError, match="softmax=False"):
        pixel_perturbation(lambda x: x.flatten(1).sum(1), images, relevance, baselines=0)
    with pytest.raises(AmbiguousOutputError, match=r"\.logits"):
        pixel_perturbation(lambda x: (model(x), x), images, relevance, 1, baselines=0)
    with pytest.raises(InvalidInputError, match="give each once"):
        pixel_perturbation(
            model,
            {"x": images},
            relevance,
            1,
            baselines=0,
            additional_forward_kwargs={"x": images},
        )
    scores = pixel_perturbation(
        lambda x: x.flatten(1).sum(1), {"x": images}, relevance, baselines=0, softmax=False
    )
    assert scores.predictions is None
