"""Crops of the two photographs that scikit-learn ships: which part of which photograph is it?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from affnet_kernels.training.data import needs
from affnet_kernels.training.sampling import Draw, seed_of

ROWS, COLUMNS = 3, 4  # the tiles of each photograph
AREA, RATIO = (0.25, 1.0), (3 / 4, 4 / 3)  # of a crop: part of its tile's area, width over height against the tile's
BRIGHTNESS, CONTRAST = 0.3, 0.3


class Photos(Dataset[tuple[Tensor, int]]):
    """Random crops of 24 tiles, mirrored, and changed in brightness and contrast. The class is the tile.

    Args:
        count: images, shared equally among the tiles.
        train: each draw is another crop; otherwise every index has one crop for good, which training does not make.

    Raises:
        ImportError: scikit-learn or Pillow is not installed.
    """

    def __init__(self, count: int, train: bool) -> None:
        try:
            from sklearn.datasets import load_sample_images

            photographs = load_sample_images()
        except ImportError as error:
            raise needs("Photos", "scikit-learn and Pillow", error) from error
        self.count, self.train = count, train
        self.classes: list[str] = []
        self.tiles: list[Tensor] = []  # [3, height, width] each
        for path, pixels in zip(photographs.filenames, photographs.images, strict=True):
            name = path.replace("\\", "/").rpartition("/")[2].partition(".")[0]
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
            for row, band in enumerate(image.tensor_split(ROWS, dim=1)):
                for column, tile in enumerate(band.tensor_split(COLUMNS, dim=2)):
                    self.classes.append(f"{name}, row {row + 1}, column {column + 1}")
                    self.tiles.append(tile.contiguous())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        label = draw.index % len(self.tiles)
        seed = draw.seed if self.train else seed_of("photos", draw.index)
        return changed(self.tiles[label], draw.size, seed), label


def changed(
    tile: Tensor,  # [3, h, w]
    size: tuple[int, int],  # H, W
    seed: int,
) -> Tensor:  # [3, H, W]
    """A random crop of a tile, resized, perhaps mirrored, in another brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    area, ratio, x, y, mirror, brightness, contrast = torch.rand(7, generator=generator).tolist()
    area = AREA[0] + area * (AREA[1] - AREA[0])
    stretch = (RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio) ** 0.5
    height, width = (
        max(2, min(whole, round(whole * area**0.5 * factor)))
        for whole, factor in zip(tile.shape[1:], (1 / stretch, stretch), strict=True)
    )
    top, left = round(y * (tile.shape[1] - height)), round(x * (tile.shape[2] - width))
    crop = tile[None, :, top : top + height, left : left + width]
    image = F.interpolate(crop, size=size, mode="bilinear", antialias=True)[0]
    if mirror < 0.5:
        image = image.flip(2)
    image = image * (1 + BRIGHTNESS * (2 * brightness - 1))
    middle = image.mean()
    return (middle + (image - middle) * (1 + CONTRAST * (2 * contrast - 1))).clamp(0, 1)
