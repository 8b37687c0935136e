"""Whether a map points at the object: pointing game, energy inside, grid pointing game."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from captum_transformer.calling.precision import widened
from captum_transformer.errors import InvalidInputError
from captum_transformer.metrics.maps import relevance_map, require_truth, share, truth_mask


def pointing_game(relevance: Tensor, mask: Tensor, *, tolerance: float = 0.0) -> Tensor:
    """Whether the most relevant place is on the object.

    If several places have the same maximum, such as all pixels of a patch, the score is the
    fraction of them that hit. A constant map gets the chance level.

    Args:
        relevance: ``(samples, height, width)``, ``(samples, channels, height, width)``, whose
            channels are summed, or ``(samples, tokens)``.
        mask: Where the object is: booleans, or zeros and ones, of the same shape without channels.
        tolerance: The largest distance in pixels between a hit and the object (15 in the paper).

    Returns:
        One for a hit, zero for a miss, ``(samples,)``, float64. The paper averages over the samples
        of each class, then over classes.

    Raises:
        InvalidInputError: If the shapes don't fit, a mask is empty, or a value is not finite.

    Reference:
        `Top-down Neural Attention by Excitation Backprop <https://arxiv.org/abs/1608.00507>`_.

    Example:
        >>> relevance = torch.tensor([[[0.1, 0.9, 0.3]], [[0.5, 0.5, 0.1]]])
        >>> mask = torch.tensor([[[False, True, True]], [[True, False, False]]])
        >>> pointing_game(relevance, mask)
        tensor([1.0000, 0.5000], dtype=torch.float64)
        >>> pointing_game(relevance, mask, tolerance=1)
        tensor([1., 1.], dtype=torch.float64)
    """
    values = relevance_map(relevance)
    target = truth_mask(mask, values)
    require_truth(target)
    if tolerance < 0:
        raise InvalidInputError(f"`tolerance` must not be negative, got {tolerance}.")
    if tolerance > 0:
        if values.dim() != 3:
            raise InvalidInputError(
                "`tolerance` is a distance in pixels, but the relevance is of tokens: "
                f"{tuple(relevance.shape)}. Leave it out."
            )
        target = _within(target, tolerance)
    values, target = values.flatten(1), target.flatten(1)
    peaks = values == values.amax(1, keepdim=True)
    return widened((peaks & target).sum(1)) / peaks.sum(1)


def energy_inside(relevance: Tensor, mask: Tensor) -> Tensor:
    """The share of the positive relevance that lies inside a box or mask.

    It is also known as energy-based pointing game, relevance mass accuracy and attribution
    localisation. The score of a map without positive relevance is zero.

    Args:
        relevance: ``(samples, height, width)``, ``(samples, channels, height, width)``, whose
            channels are summed, or ``(samples, tokens)``.
        mask: Where the object is: booleans, or zeros and ones, of the same shape without channels;
            :func:`boxes_to_masks` creates them from boxes. The chance level is the mask's share of
            all places.

    Returns:
        Shares in [0, 1], ``(samples,)``, float64.

    Raises:
        InvalidInputError: If the shapes don't fit, a mask is empty, or a value is not finite.

    Reference:
        `Score-CAM <https://arxiv.org/abs/1910.01279>`_.

    Example:
        >>> relevance = torch.tensor([[[3.0, -5.0], [1.0, 0.0]]])
        >>> energy_inside(relevance, torch.tensor([[[True, True], [False, False]]]))
        tensor([0.7500], dtype=torch.float64)
    """
    values = relevance_map(relevance)
    target = truth_mask(mask, values)
    require_truth(target)
    positive = values.clamp(min=0).flatten(1)
    return share((positive * target.flatten(1)).sum(1), positive.sum(1))


def grid_pointing_game(
    relevance: Tensor, cells: Tensor | int, *, grid: tuple[int, int] = (2, 2)
) -> Tensor:
    """The share of the positive relevance that lies in the class's cell of a mosaic.

    Images of different classes form a grid, and each class is explained: all evidence for it is in
    its own cell. The score of a map without positive relevance is zero; that of a constant map is
    the chance level, one over the number of cells.

    Args:
        relevance: ``(samples, height, width)``, or ``(samples, channels, height, width)``, whose
            channels are summed. The map may have one value per patch.
        cells: The cell of the explained class, counted row by row from zero: ``(samples,)``, or
            one number for all samples.
        grid: The numbers of rows and columns of cells.

    Returns:
        Shares in [0, 1], ``(samples,)``, float64.

    Raises:
        InvalidInputError: If the grid doesn't divide the map, a cell doesn't exist, or a value is
            not finite.

    Reference:
        `Convolutional Dynamic Alignment Networks for Interpretable Classifications
        <https://arxiv.org/abs/2104.00032>`_.

    Example:
        >>> relevance = torch.tensor([[[4.0, 1.0], [0.0, -9.0]]])
        >>> grid_pointing_game(relevance, torch.tensor([0])), grid_pointing_game(relevance, 1)
        (tensor([0.8000], dtype=torch.float64), tensor([0.2000], dtype=torch.float64))
    """
    values = relevance_map(relevance)
    rows, columns = grid
    if values.dim() != 3 or min(grid) < 1 or values.shape[1] % rows or values.shape[2] % columns:
        raise InvalidInputError(
            f"A grid of {rows} x {columns} cells doesn't divide relevance of shape "
            f"{tuple(relevance.shape)}. Relevance of tokens needs its patches' rows and columns "
            "first: relevance.reshape(samples, height, width)."
        )
    cell_width = values.shape[2] // columns
    chosen = torch.as_tensor(cells, device=values.device).expand(len(values))
    if ((chosen < 0) | (chosen >= rows * columns)).any():
        raise InvalidInputError(
            f"The cells of a grid of {rows} x {columns} are numbered from 0 to "
            f"{rows * columns - 1}, got {chosen.tolist()}."
        )
    positive = values.clamp(min=0).reshape(len(values), rows, -1, columns, cell_width)
    of_cells = positive.sum((2, 4)).flatten(1)
    inside = of_cells.gather(1, chosen[:, None].long())[:, 0]
    return share(inside, of_cells.sum(1))


def boxes_to_masks(boxes: Tensor | Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Draws boxes as masks; several boxes of a sample make one mask.

    Args:
        boxes: Corners ``(left, top, right, bottom)`` in pixels, right and bottom outside the box as
            in torchvision: ``(samples, 4)``, ``(samples, boxes, 4)``, or a list with the boxes
            ``(boxes, 4)`` of each sample. Add one to right and bottom if they are inside, as in
            Tiny ImageNet and PASCAL VOC. A pixel is in the box if its centre is. A box of size
            zero has no pixels.
        size: Height and width of the image.

    Returns:
        Booleans ``(samples, height, width)``, on the boxes' device.

    Raises:
        InvalidInputError: If the shape is a different one, or a box ends before it begins.

    Example:
        >>> boxes_to_masks(torch.tensor([[1, 0, 3, 1]]), (2, 3)).int()
        tensor([[[0, 1, 1],
                 [0, 0, 0]]], dtype=torch.int32)
    """
    if not isinstance(boxes, Tensor):
        boxes = pad_sequence([each.reshape(-1, 4) for each in boxes], batch_first=True)
    if boxes.dim() == 2:
        boxes = boxes[:, None]
    if boxes.dim() != 3 or boxes.shape[2] != 4:
        raise InvalidInputError(
            "Boxes must have the shape (samples, 4) or (samples, boxes, 4), or be a list of "
            f"(boxes, 4), got {tuple(boxes.shape)}."
        )
    left, top, right, bottom = boxes[..., None, None].unbind(2)
    if ((right < left) | (bottom < top)).any():
        raise InvalidInputError(
            "A box ends before it begins. Boxes are (left, top, right, bottom); convert (left, "
            "top, width, height) with torchvision.ops.box_convert(boxes, 'xywh', 'xyxy')."
        )
    y = torch.arange(size[0], device=boxes.device)[:, None] + 0.5
    x = torch.arange(size[1], device=boxes.device) + 0.5
    return ((left <= x) & (x < right) & (top <= y) & (y < bottom)).any(1)


def _within(mask: Tensor, distance: float) -> Tensor:
    """Returns the pixels within a Euclidean distance of the mask."""
    reach = int(distance)
    steps = torch.arange(-reach, reach + 1, device=mask.device)
    disc = (steps[:, None] ** 2 + steps**2 <= distance**2).float()
    return F.conv2d(mask[:, None].float(), disc[None, None], padding=reach)[:, 0] > 0.5
