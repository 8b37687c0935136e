import pytest
import torch
from scipy.stats import rankdata, spearmanr

from lightning_callbacks.rank_correlation import average_ranks, rank_correlation


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_agrees_with_scipy(levels):
    generator = torch.Generator().manual_seed(levels)
    a = torch.randint(levels, (20, 30), generator=generator).float()
    b = a + torch.randint(levels, (20, 30), generator=generator)
    torch.testing.assert_close(
        average_ranks(a), torch.from_numpy(rankdata(a.numpy().ravel(), method="average"))
    )
    expected = spearmanr(a.numpy().ravel(), b.numpy().ravel()).statistic
    assert rank_correlation(a, b).item() == pytest.approx(expected, abs=1e-12)


def test_bounds():
    a = torch.randn(1000)
    assert rank_correlation(a, a.exp()).item() == pytest.approx(1)
    assert rank_correlation(a, -a).item() == pytest.approx(-1)
    assert rank_correlation(a, a) <= 1


def test_a_constant_has_no_rank():
    assert rank_correlation(torch.ones(5), torch.arange(5)).isnan()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        rank_correlation(torch.ones(2), torch.ones(3))
