"""Sums the relevance of pixels by the patches that a model cuts its input into."""

from torch import Tensor

BY_PATCH = "summed by patch"
"""The note in pictures of such maps."""


def by_patch(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Gives each pixel the sum of its patch.

    Within a patch, relevance propagated to pixels mostly shows the weights of the convolution that
    cuts the patches: a pattern like a checkerboard. The sums are what the model's tokens receive.

    Args:
        values: A map ``(H, W)``.
        grid: The numbers of rows and columns of patches, such as those in
            :attr:`Description.grids <captum_transformer.Description>`.

    Returns:
        The sums, ``(H, W)``.

    Raises:
        ValueError: If the map can't be cut into that many equal patches.

    Example:
        >>> import torch
        >>> by_patch(torch.tensor([[1.0, 2.0, 0.0, -1.0]]), (1, 2))
        tensor([[ 3.,  3., -1., -1.]])
    """
    (height, width), (rows, columns) = values.shape, grid
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ValueError(
            f"grid must be the numbers of rows and columns of equal patches; {height} x {width} "
            f"pixels can't be cut into {rows} x {columns}."
        )
    tall, wide = height // rows, width // columns
    sums = values.reshape(rows, tall, columns, wide).sum((1, 3))
    return sums.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
