import pytest
import torch
from scipy.stats import rankdata, spearmanr

from captum_transformer.metrics import average_ranks, rank_correlation


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_agrees_with_scipy(levels):
    generator = torch.Generator().manual_seed(levels)
    a = torch.randint(levels, (4, 20, 30), generator=generator).float()
    b = a + torch.randint(levels, (4, 20, 30), generator=generator)
    expected_ranks = rankdata(a.flatten(1).numpy(), method="average", axis=1)
    torch.testing.assert_close(average_ranks(a), torch.from_numpy(expected_ranks).double())
    pairs = zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True)
    expected = torch.tensor([spearmanr(*pair).statistic for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(rank_correlation(a, b), expected, rtol=0, atol=1e-12)


def test_bounds():
    a = torch.randn(3, 1000)
    torch.testing.assert_close(rank_correlation(a, a.exp()), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(rank_correlation(a, -a), -torch.ones(3, dtype=torch.float64))
    assert (rank_correlation(a, a) <= 1).all()


def test_a_constant_has_no_rank():
    first, second = torch.tensor([[1, 1, 1], [1, 2, 3]]), torch.tensor([[1, 2, 3], [1, 2, 3]])
    constant, same = rank_correlation(first, second)
    assert constant.isnan()
    assert same == pytest.approx(1)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 3\)"):
        rank_correlation(torch.ones(1, 2), torch.ones(1, 3))
