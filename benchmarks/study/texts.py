"""Explains texts with every method, and asks how good the maps are."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from torch import Tensor, nn

from benchmarks.study.bootstrap import Score
from benchmarks.study.data.texts import padded
from benchmarks.study.methods import CAPTUM, INTEGRATION_STEPS, OF_STATES, RANDOM, STATES, TEXT
from benchmarks.study.order import DIRECTIONS, untied
from benchmarks.study.store import SCATTER, Maps, Measured
from captum_transformer.metrics import (
    Conservation,
    activation_curve,
    conservation,
    pruning_curve,
    rank_correlation,
    rationale_auprc,
    rationale_scores,
    token_removal,
)

# Methods whose relevance is meant to sum up to the score, or is compared with it in the paper.
SUMMING = {
    *("ConservativeLRP", "ConservativeLRP, AH only", "AttnLRP", "AttnLRP, gamma", "LibraGrad"),
    *("InputXGradient", "IntegratedGradients"),
}


class _AsGiven(nn.Module):
    """Stands for a model's embeddings where what they would compute is the input."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Tensor:
        return inputs_embeds


class Texts:
    """Texts as the model takes them, and what may be asked about each.

    Args:
        model: a model of Transformers that takes ``input_ids`` or ``inputs_embeds``, and an
            ``attention_mask``.
        texts: the ids of each, with its special tokens.
        special: which of them are special tokens.
        targets: by name, which output of each text is explained: ``(samples,)``, or
            ``(samples, indices)`` where an output has several axes.
        unknown: the id that stands for a word that was taken away.
        device: where to compute.
        batch: how many texts to explain at a time.
        methods: all of them by default.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[Tensor],
        special: Sequence[Tensor],
        targets: Mapping[str, Tensor],
        unknown: int,
        device: torch.device,
        batch: int = 32,
    ) -> None:
        self.model = model.to(device).eval()
        self.targets, self.unknown, self.device, self.batch = dict(targets), unknown, device, batch
        self.ids, self.mask = padded(texts)
        fixed = [F.pad(s, (0, self.ids.shape[1] - len(s)), value=True) for s in special]
        self.special = torch.stack(fixed)

    def methods(self) -> dict[str, Callable[[], Maps]]:
        """What computes the maps of each method, by its name."""
        found: dict[str, Callable[[], Maps]] = {
            name: partial(self._maps, partial(self._explain, name)) for name in (*TEXT, *CAPTUM)
        }
        if hasattr(self.model.base_model, "embeddings"):
            found |= {name + STATES: partial(self.of_first_state, name) for name in OF_STATES}
        return found | {RANDOM: self._random}

    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What the model says of some texts."""
        found: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return found

    def _chosen(self, ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """The score that is explained of each text."""
        scores = self.scores(ids, mask)
        indices = (torch.arange(len(ids), device=ids.device), *target.view(len(ids), -1).T)
        return scores[indices]

    def batches(self) -> list[slice]:
        """Texts that are explained together."""
        return [slice(i, i + self.batch) for i in range(0, len(self.ids), self.batch)]

    def _part(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Some texts, no longer than the longest of them."""
        longest = int(self.mask[rows].sum(1).max())
        ids, mask = self.ids[rows, :longest], self.mask[rows, :longest]
        return ids.to(self.device), mask.to(self.device)

    def _maps(self, explain: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Maps:
        maps = {}
        for name, targets in self.targets.items():
            parts = []
            for rows in self.batches():
                relevance = explain(*self._part(rows), targets[rows].to(self.device)).detach().cpu()
                parts.append(F.pad(relevance, (0, self.ids.shape[1] - relevance.shape[1])))
            maps[name] = torch.cat(parts)
        return maps

    def _explain(self, name: str, ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        wanted = _as_target(target)
        if name in TEXT:
            further = {"attention_mask": mask}
            method = TEXT[name](self.model)
            return method.attribute(ids, target=wanted, additional_forward_kwargs=further)
        gradient_method = CAPTUM[name](self._of_embeddings)
        embedded = self.model.get_input_embeddings()(ids).detach()
        relevance: Tensor = gradient_method.attribute(
            embedded, target=wanted, additional_forward_args=(mask,), **self._settings(name)
        )
        return relevance.sum(-1) * mask

    def of_first_state(self, name: str) -> Maps:
        """A method's maps of what enters the first layer: words, places and types together."""
        make: Callable[[Any], Attribution] = {**TEXT, **CAPTUM}[name]
        model = copy.deepcopy(self.model)
        model.base_model.embeddings = _AsGiven()

        def of_states(states: Tensor, mask: Tensor) -> Tensor:
            scores: Tensor = model(inputs_embeds=states, attention_mask=mask).logits
            return scores

        def explain(ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
            states = self.model.base_model.embeddings(ids).detach()
            relevance = make(of_states).attribute(
                states,
                target=_as_target(target),
                additional_forward_args=(mask,),
                **self._settings(name),
            )
            return relevance.sum(-1) * mask

        return self._maps(explain)

    def _settings(self, name: str) -> dict[str, int]:
        if name != "IntegratedGradients":
            return {}
        return {"n_steps": INTEGRATION_STEPS, "internal_batch_size": 2 * self.batch}

    def _of_embeddings(self, embedded: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.model(inputs_embeds=embedded, attention_mask=mask).logits
        return found

    def _random(self) -> Maps:
        generator = torch.Generator().manual_seed(0)
        return {name: torch.rand(self.ids.shape, generator=generator) for name in self.targets}

    def activation(self, relevance: Tensor, labels: Tensor) -> Measured:
        """ICML 2022: the label's probability as words come back, the distance as they go."""
        gone = self.mask == 0  # the authors cover special tokens, too
        order = untied(relevance)
        covered = {"baselines": self.unknown, "perturbations_per_eval": 11}
        auac, mse, rising, falling = [], [], [], []
        for rows in self.batches():
            ids, mask = self._part(rows)
            kept = gone[rows, : ids.shape[1]].to(self.device)
            ranks = order[rows, : ids.shape[1]].to(self.device)
            up = activation_curve(
                self.scores, ids, ranks, labels[rows].to(self.device), mask, keep=kept, **covered
            )
            # Pruned are words of small relevance, whatever its sign.
            size = untied(relevance[rows, : ids.shape[1]].abs()).to(self.device)
            down = pruning_curve(self.scores, ids, size, mask, keep=kept, **covered)
            auac += up.area().tolist()
            mse += down.area().tolist()
            rising.append(up.scores)
            falling.append(down.scores)
        shares = up.fractions.tolist()
        return Measured(
            {"AUAC": Score.of(auac), "AU-MSE": Score.of(mse, "low")},
            {
                "activation": (shares, torch.cat(rising).mean(0).tolist()),
                "pruning": (shares, torch.cat(falling).mean(0).tolist()),
            },
        )

    def removal(self, relevance: Tensor, labels: Tensor) -> Measured:
        """ICCV 2021: accuracy while words are taken out, the most or the least relevant first."""
        order = untied(relevance)
        scores, curves = {}, {}
        for direction, better in DIRECTIONS:
            # All texts at once: those that have become equally long go through the model together.
            hits = token_removal(
                self.model,
                {
                    "input_ids": self.ids.to(self.device),
                    "attention_mask": self.mask.to(self.device),
                },
                order.to(self.device),
                labels.to(self.device),
                keep=self.special.to(self.device),
                order=direction,
            ).hits(labels.to(self.device))
            name = f"removal, {direction}"
            scores[name] = Score.of((100 * hits.area().double()).tolist(), better)
            curves[name] = (hits.fractions.tolist(), hits.mean().tolist())
        return Measured(scores, curves)

    def rationales(self, relevance: Tensor, rationale: Tensor) -> Measured:
        """ERASER: whether the most relevant words are those that people marked."""
        words = ~self.special
        chosen = (rationale & words).any(1)
        relevance, rationale, words = relevance[chosen], rationale[chosen], words[chosen]
        f1 = rationale_scores(relevance, rationale & words, attention_mask=words).f1
        # In steps: with straight lines between the points, maps of few values are overrated.
        area = rationale_auprc(
            relevance, rationale & words, attention_mask=words, interpolation="step"
        )
        return Measured(
            {
                "token F1": Score.of((100 * f1).tolist()),
                "average precision": Score.of((100 * area).tolist()),
            },
            {},
        )

    def conservation(self, relevance: Tensor, target: str) -> Measured:
        """ICML 2022: whether relevance sums up to the score."""
        parts = []
        for rows in self.batches():
            ids, mask = self._part(rows)
            chosen = self.targets[target][rows].to(self.device)
            part = relevance[rows, : ids.shape[1]].to(self.device)
            parts.append(conservation(self._chosen, ids, part, None, (mask, chosen)))
        found = Conservation.cat(parts)
        x, y = found.outputs.cpu().double(), found.relevance.cpu().double()
        moments = torch.stack([x, y, x * x, y * y, x * y], 1).tolist()
        off = torch.stack([(y - x).abs(), x.abs()], 1).tolist()
        return Measured(
            {
                "correlation": Score(moments, "correlation"),
                "slope": Score(moments, "slope", "none"),
                "relative difference": Score(off, "ratios", "low"),
            },
            {SCATTER: (x.tolist(), y.tolist())},
        )


def _as_target(target: Tensor) -> Any:
    return target if target.ndim == 1 else [tuple(row) for row in target.tolist()]


def agreement(relevance: Sequence[Tensor], labels: Sequence[Tensor]) -> Score:
    """Spearman's correlation within each text whose labels vary; zero for a map that does not."""
    chosen = [i for i, label in enumerate(labels) if len(label.unique()) > 1]
    if not chosen:
        raise ValueError("No text has parts with different labels: take more --samples.")
    found = [
        rank_correlation(relevance[i][None].double(), labels[i][None].double()).nan_to_num(0).item()
        for i in chosen
    ]
    return Score.of(found)
