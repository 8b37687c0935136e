"""All families, and those that stand for a kind of structure."""

from __future__ import annotations

import timm
import transformers

from benchmarks.model_matrix.family import Family
from benchmarks.model_matrix.timm_families import TIMM
from benchmarks.model_matrix.timm_hybrids import HYBRIDS
from benchmarks.model_matrix.torch_families import TORCH, TORCHVISION
from benchmarks.model_matrix.transformers_hearing import HEARING
from benchmarks.model_matrix.transformers_multimodal import MULTIMODAL
from benchmarks.model_matrix.transformers_pairs import PAIRS
from benchmarks.model_matrix.transformers_readers import READERS
from benchmarks.model_matrix.transformers_senses import SENSES
from benchmarks.model_matrix.transformers_vision import VISION_FAMILIES
from benchmarks.model_matrix.transformers_writers import WRITERS

_TEXT = [*READERS, *WRITERS, *PAIRS]
_SENSES = [*SENSES, *VISION_FAMILIES, *HEARING, *MULTIMODAL]
FAMILIES: list[Family] = [*TIMM, *HYBRIDS, *_TEXT, *_SENSES, *TORCHVISION, *TORCH]


def is_installed(family: Family) -> bool:
    """Whether the installed version of the library has the family."""
    if family.needs is None:
        return True
    if family.library == "timm":
        return family.needs in timm.list_models()
    return hasattr(transformers, family.needs)


def representatives() -> list[Family]:
    """One family of each structural kind, as far as it is installed."""
    return [family for family in FAMILIES if family.kind and is_installed(family)]
