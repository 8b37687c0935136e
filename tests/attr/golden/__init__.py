"""What the authors' code computes, and which call of this library computes the same.

``python -m tests.attr.golden`` prints the table of deviations. A further family of cases is a
module that loads them (``cases.loads``) and lists them as ``GOLDEN``; it is added here.
"""

from tests.attr.golden import (
    attnlrp,
    bilrp,
    co_attention,
    cvpr21,
    gamma,
    gim,
    iccv21,
    icml22,
    inner,
)
from tests.attr.golden.cases import CASES, Case, load_case
from tests.attr.golden.comparison import Golden, deviation

GOLDEN: tuple[Golden, ...] = (
    *attnlrp.GOLDEN,
    *bilrp.GOLDEN,
    *cvpr21.GOLDEN,
    *iccv21.GOLDEN,
    *co_attention.GOLDEN,
    *icml22.GOLDEN,
    *gamma.GOLDEN,
    *gim.GOLDEN,
    *inner.GOLDEN,
)

NOT_REPRODUCED = co_attention.NOT_REPRODUCED

__all__ = ["CASES", "GOLDEN", "NOT_REPRODUCED", "Case", "Golden", "deviation", "load_case"]
