"""The digits that come with scikit-learn."""

import numpy as np

from unrolled.datasets._images import Images

_N_TRAIN = 1437


def digits() -> Images:
    """Handwritten digits, 8 x 8 x 1, that come with scikit-learn: no file is needed.

    Grey values 0..16 are stored as 0..255, rounded. The first 1,437 pictures in the order of
    scikit-learn are for training, the last 360 for testing.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: the test part of "Optical recognition of handwritten digits", Alpaydin and Kaynak, UCI
    repository, 1998.

    Example:
        >>> digits = ur.datasets.digits()
        >>> digits.train[0].shape, digits.test[0].shape, digits.test[1][:5].tolist()
        ((1437, 8, 8, 1), (360, 8, 8, 1), [2, 3, 4, 5, 6])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits need scikit-learn; install unrolled[data]") from error
    bundle = load_digits()
    X = np.round(bundle.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = bundle.target.astype(np.int32)
    train, test = (X[:_N_TRAIN], labels[:_N_TRAIN]), (X[_N_TRAIN:], labels[_N_TRAIN:])
    return Images("digits", train, test, tuple(map(str, range(10))))
