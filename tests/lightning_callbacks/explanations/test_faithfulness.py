from itertools import pairwise

import pytest
import torch
from captum.attr import Saliency
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_callbacks import AttributionMonitor
from lightning_callbacks.explanations.faithfulness import Faithfulness
from lightning_callbacks.samples.batch import Samples
from lightning_callbacks.shared.flavors import MisconfigurationException
from tests.lightning_callbacks.runs import METHODS, fit, read


def by_hand(x, values, class_id, steps, baseline, probabilities):
    """Deletion and insertion of one image, place by place."""
    order = values.flatten().sort(descending=True, stable=True).indices
    curves = []
    for deleting in (True, False):
        points = []
        for step in range(steps + 1):
            first = order[: round(step * len(order) / steps)].tolist()
            changed = x.clone()
            for place in range(len(order)):
                if (place in first) == deleting:
                    row, column = divmod(place, x.shape[2])
                    changed[:, row, column] = baseline
            points.append(probabilities(changed))
        curves.append([float(point[class_id]) for point in points])
    return [sum((left + right) / 2 for left, right in pairwise(curve)) / steps for curve in curves]


@pytest.mark.parametrize("baseline", ["mean", 0.5])
@pytest.mark.parametrize("steps", [1, 3, 16])
def test_areas_are_those_by_hand(steps, baseline):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 3)).double()
    x, maps = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(3, 4, 4).round(decimals=1)
    pairs = [(0, 1), (1, 2), (1, 0)]
    areas = Faithfulness(steps, baseline).areas(
        Samples((x,), None), pairs, list(maps), lambda s: s.run(model).softmax(1)
    )
    for number, (row, class_id) in enumerate(pairs):
        value = x[row].mean((1, 2)) if baseline == "mean" else baseline
        expected = by_hand(
            x[row],
            maps[number],
            class_id,
            steps,
            value,
            lambda v: model(v[None]).softmax(1)[0].detach(),
        )
        assert [float(area[number]) for area in areas] == pytest.approx(expected, abs=1e-12)


def test_a_better_map_has_less_deletion_and_more_insertion():
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64) + 1
    weight = torch.randn(36, dtype=torch.float64).reshape(1, 1, 6, 6)

    def probabilities(samples):
        score = (samples.inputs[0] * weight).flatten(1).sum(1)
        return torch.stack([score.sigmoid(), (-score).sigmoid()], 1)

    right = (x * weight)[0, 0]
    areas = [
        Faithfulness(baseline=0).areas(Samples((x,), None), [(0, 0)], [values], probabilities)
        for values in (right, -right)
    ]
    assert areas[0][0] < areas[1][0]
    assert areas[0][1] > areas[1][1]


def test_tokens_are_replaced_by_a_token():
    ids = torch.tensor([[5, 6, 7]])
    seen = []

    def probabilities(samples):
        seen.append(samples.inputs[0].tolist())
        return torch.ones(1, 2) / 2

    Faithfulness(3, baseline=9).areas(
        Samples((ids,), None), [(0, 0)], [torch.tensor([0.1, 0.3, 0.2])], probabilities
    )
    assert seen[:4] == [[[5, 6, 7]], [[5, 9, 7]], [[5, 9, 9]], [[9, 9, 9]]]
    assert seen[4:] == [[[9, 9, 9]], [[9, 6, 9]], [[9, 6, 7]], [[5, 6, 7]]]
    with pytest.raises(ValueError, match="id of a neutral token"):
        Faithfulness().areas(Samples((ids,), None), [(0, 0)], [torch.ones(3)], probabilities)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"baseline": "blur"}])
def test_arguments_without_meaning_are_refused(wrong):
    with pytest.raises(MisconfigurationException):
        Faithfulness(**wrong)


def test_it_is_logged_where_it_is_wanted(pl, trainer_options):
    calls = []

    class Counted(Saliency):
        def attribute(self, *args, **options):
            calls.append(1)
            return super().attribute(*args, **options)

    monitor = AttributionMonitor(
        {"counted": Counted, **METHODS},
        num_samples=3,
        faithfulness=Faithfulness(steps=4),
        internal_batch_size=2,
        on_error="raise",
    )
    trainer = fit(pl, trainer_options, monitor, max_epochs=1)
    events = read(trainer)
    for kind in ("deletion_auc", "insertion_auc"):
        values = [events.Scalars(f"attribution/{kind}/{name}")[0].value for name in METHODS]
        assert all(0 <= value <= 1 for value in values)
    charts = EventAccumulator(f"{trainer.logger.log_dir}/attribution_charts").Reload()
    layout = charts.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"deletion auc" in layout
