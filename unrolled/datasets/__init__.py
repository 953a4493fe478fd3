"""Readers with checks, whose errors name the file: arrays, pictures and collections of pictures."""

from unrolled.datasets._arrays import entries, open_array, read_array, read_rows
from unrolled.datasets._cifar10 import cifar10
from unrolled.datasets._class_folders import class_folders, is_class_folders
from unrolled.datasets._images import Images, digits
from unrolled.datasets._locate import locate
from unrolled.datasets._masks import Masks, masks
from unrolled.datasets._mnist import mnist
from unrolled.datasets._patches import crop_and_flip, from_patches, to_patches
from unrolled.datasets._pictures import photographs, read_image, read_images

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
