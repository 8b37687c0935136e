"""Checksums, which detect damaged files."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import torch
from torch import Tensor


def checksum_of(parts: Iterable[str | Tensor]) -> int:
    """Returns the checksum of some texts and tensors.

    Args:
        parts: Texts, and tensors on any device, whose type and shape are included.

    Returns:
        A number that fits into int64.

    Example:
        >>> checksum_of(["a", torch.zeros(2)]) == checksum_of(["a", torch.zeros(2)])
        True
        >>> checksum_of([torch.zeros(2)]) == checksum_of([torch.zeros(1, 2)])
        False
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, str):
            content = memoryview(part.encode())
            head = f"text {len(content)};"
        else:
            content = _bytes_of(part)
            head = f"{part.dtype} {tuple(part.shape)};"
        digest.update(head.encode())
        digest.update(content)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _bytes_of(tensor: Tensor) -> memoryview:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return values.numpy().data
