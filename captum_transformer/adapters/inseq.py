"""The methods as attribution methods of inseq."""

from functools import cache
from typing import Any

from captum_transformer import (
    GIM,
    AttnLRP,
    ConservativeLRP,
    GenericAttentionRelevance,
    LibraGrad,
    TransformerAttribution,
)

__all__ = ["METHODS", "register"]

METHODS = {
    "attn_lrp": AttnLRP,
    "conservative_lrp": ConservativeLRP,
    "gim": GIM,
    "libra_grad": LibraGrad,
    "generic_attention_relevance": GenericAttentionRelevance,
    "transformer_attribution": TransformerAttribution,
}
"""The methods by their names in inseq."""


@cache
def register() -> list[type]:
    """Registers `METHODS` in inseq: ``inseq.load_model(model, "attn_lrp")``.

    inseq explains its ``attributed_fn``; the rules are designed for ``attributed_fn="logit"``.
    A token's relevance is the signed sum over its embedding's features, so no further
    aggregation is needed. Pass options of a method to ``load_model``.

    Returns:
        The classes, which inseq finds as long as they exist.

    Raises:
        ImportError: if inseq is not installed.
    """
    from inseq.attr.feat.attribution_utils import get_source_target_attributions
    from inseq.attr.feat.gradient_attribution import GradientAttributionRegistry
    from inseq.data import CoarseFeatureAttributionStepOutput
    from inseq.utils import Registry

    class Registered(GradientAttributionRegistry, Registry):  # type: ignore[misc]
        method_class: Any

        def __init__(self, attribution_model: Any, **options: Any) -> None:
            super().__init__(attribution_model)
            self.method = self.method_class(self.attribution_model, **options)

        def attribute_step(
            self,
            attribute_fn_main_args: dict[str, Any],
            attribution_args: dict[str, Any] | None = None,
        ) -> Any:
            """Returns the relevance of the tokens before the explained one."""
            found = self.method.attribute(**attribute_fn_main_args, **(attribution_args or {}))
            of_source, of_target = get_source_target_attributions(
                tuple(relevance.sum(-1) for relevance in found),
                self.attribution_model.is_encoder_decoder,
            )
            return CoarseFeatureAttributionStepOutput(
                source_attributions=of_source, target_attributions=of_target
            )

    # inseq finds the subclasses of its registry, so creating them registers them.
    return [
        type(
            f"{method.__name__}Attribution",
            (Registered,),
            {"method_name": name, "method_class": method, "__doc__": method.__doc__},
        )
        for name, method in METHODS.items()
    ]
