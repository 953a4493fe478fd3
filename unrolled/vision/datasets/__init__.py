"""Readers with checks, whose errors name the file: arrays, pictures and collections of pictures."""

from unrolled._base import offer as _offer
from unrolled.vision.datasets._arrays import *
from unrolled.vision.datasets._collections import *
from unrolled.vision.datasets._collections import shapes
from unrolled.vision.datasets._folders import *

_offer(__name__)
