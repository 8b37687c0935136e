"""The token flow: every token's share of the output, carried back through the attention calls."""

from captum_transformer.rules.flow.maps import attend_with
from captum_transformer.rules.flow.token_flow import KEEP, TokenFlow

__all__ = ["KEEP", "TokenFlow", "attend_with"]
