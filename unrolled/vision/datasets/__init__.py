"""Readers with checks, whose errors name the file: arrays, pictures and collections of pictures."""

from unrolled.vision.datasets._arrays import (
    crop_and_flip,
    entries,
    from_patches,
    open_array,
    photographs,
    read_array,
    read_image,
    read_images,
    read_rows,
    to_patches,
)
from unrolled.vision.datasets._collections import Images, cifar10, digits, locate, mnist, shapes
from unrolled.vision.datasets._folders import Masks, class_folders, is_class_folders, masks

__all__ = [
    "Images",
    "Masks",
    "cifar10",
    "class_folders",
    "crop_and_flip",
    "digits",
    "entries",
    "from_patches",
    "is_class_folders",
    "locate",
    "masks",
    "mnist",
    "open_array",
    "photographs",
    "read_array",
    "read_image",
    "read_images",
    "read_rows",
    "to_patches",
]


def __dir__() -> list[str]:
    return __all__
