"""A small model to account for, and the check that the parts of an account add up."""

import torch
from torch import Tensor, nn

from captum_transformer.account import INPUTS, Account


class Small(nn.Module):
    """A class token beside projected tokens, positions, one attention layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.project(x)], 1)
        x = x + self.position
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(nn.functional.gelu(x[:, 0] + x[:, 1:].mean(1)))


def small_model() -> tuple[Small, Tensor]:
    """The model with three samples."""
    torch.manual_seed(0)
    model = Small().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model, torch.randn(3, 4, 6, dtype=torch.float64)


def parts_add_up(account: Account) -> None:
    added = sum(part.amount for part in account.parts)
    torch.testing.assert_close(added, account.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(account.of(INPUTS) - account.total, account.delta)
