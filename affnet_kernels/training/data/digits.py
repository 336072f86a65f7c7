"""scikit-learn's 1,797 handwritten digits, of 8 x 8 pixels, enlarged."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from affnet_kernels.training.data import needs
from affnet_kernels.training.sampling import Draw

CLASSES = [str(digit) for digit in range(10)]
HELD_OUT = 0.3  # of every class, always the same ones
SHIFT, ANGLE, SCALE = 1 / 8, 10.0, 0.1  # augmentation: parts of the side, degrees, part of the size


class Digits(Dataset[tuple[Tensor, int]]):
    """The training or the held-out digits, as grey images of three equal channels.

    In training each is shifted, turned and scaled a little. (Mirrored digits are not digits.)

    Raises:
        ImportError: scikit-learn is not installed.
    """

    def __init__(self, train: bool) -> None:
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise needs("Digits", "scikit-learn", error) from error
        digits = load_digits()
        rows = train_test_split(range(len(digits.target)), test_size=HELD_OUT, stratify=digits.target, random_state=0)
        kept = rows[0 if train else 1]
        self.train = train
        self.images = torch.from_numpy(digits.images[kept]).float()[:, None] / 16  # [N, 1, 8, 8]
        self.labels = digits.target[kept].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        image = self.images[draw.index][None]
        if self.train:
            image = warped(image, draw.size, draw.seed)
        else:
            image = F.interpolate(image, size=draw.size, mode="bilinear")
        return image[0].expand(3, -1, -1), self.labels[draw.index]


def warped(
    image: Tensor,  # [1, C, h, w]
    size: tuple[int, int],  # H, W
    seed: int,
) -> Tensor:  # [1, C, H, W]
    """The image, enlarged, after a small random shift, turn and scaling; black beyond its border."""
    generator = torch.Generator().manual_seed(seed)
    x, y, angle, scale = (2 * torch.rand(4, generator=generator) - 1).tolist()
    turn = torch.tensor(angle * ANGLE).deg2rad()
    cosine, sine = turn.cos() * (1 + scale * SCALE), turn.sin() * (1 + scale * SCALE)
    row_x = torch.stack((cosine, -sine, torch.tensor(2 * x * SHIFT)))
    row_y = torch.stack((sine, cosine, torch.tensor(2 * y * SHIFT)))
    grid = F.affine_grid(torch.stack((row_x, row_y))[None].to(image), [1, 1, *size], align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
