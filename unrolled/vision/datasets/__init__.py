"""Checked readers of arrays, pictures and collections of pictures; each error names the file."""

from unrolled._base import offer as _offer
from unrolled.vision.datasets._arrays import *
from unrolled.vision.datasets._arrays import entries, open_array, read_rows
from unrolled.vision.datasets._collections import *
from unrolled.vision.datasets._collections import locate, shapes
from unrolled.vision.datasets._folders import *
from unrolled.vision.datasets._folders import is_class_folders

_offer(
    __name__,
    results="Images Masks",
    own="READERS",
)
