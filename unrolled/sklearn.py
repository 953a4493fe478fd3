"""Transformers of scikit-learn: codes of samples, in a given or a learned dictionary."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import numpy as np

from unrolled import dictionary_learning, problems, pursuit
from unrolled._base import checks
from unrolled._base.numbers import held_back, mean_norm
from unrolled._base.packages import absent
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    as_chain,
    as_dictionary,
    known_part,
    signal_axes,
)
from unrolled.layers import FAMILIES, Layer
from unrolled.networks import Network
from unrolled.theory import CodeCertificate, LassoCertificate, certify_code, certify_lasso
from unrolled.training import has_recipe, unsupervised

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise absent("unrolled.sklearn", "sklearn") from error

_NAME = "SparseCoder"
_DTYPES = [np.float64, np.float32]
_OPTIONS = (  # arguments that a pursuit or a family may have
    *("lam", "ratio", "l2", "nonnegative", "sparsity", "selection", "eps", "theta", "radius"),
    *("p", "lams", "thetas", "zeros", "step", "tol", "max_steps"),
)
_CHUNK = 1000  # samples whose intermediate arrays are in memory together


def __dir__() -> list[str]:
    return ["DictionaryLearner", "SparseCoder"]


class _Coder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What both transformers have."""

    def restore(self, X: Any) -> np.ndarray:
        """The samples D x, denoised and without missing entries: (n_samples, n_features)."""
        return self.inverse_transform(self.transform(X))

    @property
    def _n_features_out(self) -> int:
        return self.n_components_ * (2 if self.split_sign_ else 1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


@dataclass(eq=False, repr=False)
class SparseCoder(_Coder):
    r"""Sparse codes as features: y = D x for every sample y, by a pursuit, a layer or a network.

    Rows are samples: X is (n_samples, n_features), the codes of X are (n_samples, n_components),
    and `inverse_transform` multiplies codes by D'. **Atoms are columns here**, as everywhere in
    this library; `sklearn.decomposition.SparseCoder` has atoms in rows, so its dictionary is D'.

    Data frames are accepted, and with `set_output` the codes are data frames. Three features of
    scikit-learn are missing: sparse matrices (pass `X.toarray()`); `n_jobs` (one compiled program
    codes all samples, with the threads of the processor); `transform` before `fit` (`fit` checks
    the options, and solves nothing for a pursuit).

    The option `positive_code` is named `nonnegative` here.

    Codes are computed in the dtype of X, float32 or float64, and have this dtype.

    NaN in X marks a missing entry. The codes then fit the known entries, with
    `dictionaries.Masked(D, mask)` instead of D for each sample; OMP for a given sparsity gives
    missing entries the weight 0, as in `omp_batch`. `restore` fills in the missing entries, and
    `np.where(np.isnan(X), coder.restore(X), X)` keeps the known ones. Pursuits that need a `Conv`
    refuse missing entries.

    Samples are real numbers: complex X is refused, as scikit-learn requires of estimators. With a
    `dictionaries.Complex` D, samples and codes are pairs of real numbers: if C are the codes of
    `X = to_pairs(Z)`, then `from_pairs(C)` are the codes of the complex Z. With a `Joint` of g
    measurements, samples are flat, of shape (n_samples, m g).

    Args:
        dictionary: D, an array or a structured dictionary of shape (n_features, n_components); a
            tuple (D_1, ..., D_J) for deep pursuits and networks, whose features are the last codes.
            If None, D is the identity, a placeholder with one atom per feature.
        method: the name of a pursuit; the name of a family of layers, together with `depth`; or a
            layer or a network.
        depth: number of steps; if given, `method` is the name of a family of layers.
        params: params of the layer or the network. If None, `fit` takes the params from `init`, but
            trains a `bcd`, a `lfista_cp` or a family of your own with rates (`layers.Recipe`) on
            the samples, by `training.unsupervised`, if lam is its only option.
        random_state: the seed of `init`, for families that draw their params, and of the training:
            an int, a RandomState that draws the seed, or None for a new seed at each `fit`.
        split_sign: if True, a code x becomes the features max(x, 0) and max(-x, 0), twice as many,
            to which a linear classifier can give different weights.
        lam, ratio, l2, nonnegative: options of `lasso`, of `lasso_batch` (faster for many samples),
            and of other pursuits and families that have them.
        sparsity: option of `omp`, `project` and `holistic`. For OMP with neither sparsity nor tol,
            the sparsity is a tenth of the number of features, at least 1, as in scikit-learn.
        selection: option of `omp` and `omp_batch`.
        eps, theta, radius, p: options of `bpdn`, `threshold`, `local_error` and `half_quadratic`.
        lams, thetas, zeros, step: options of deep pursuits; see the pursuit.
        tol, max_steps: options of the pursuit.

    An option that is None has the default of the pursuit.

    Attributes:
        dictionary_: the dictionary, as a tuple with one entry per layer.
        method_: the name of the pursuit, or the layer or network.
        options_: the given options of the pursuit or the family.
        params_: the params of the layer or network, None for a pursuit.
        n_components_: the number of atoms.
        components_: D', of shape (n_components, n_features), if there is a single dictionary.
        split_sign_: the value of `split_sign` at `fit`.

    Warns:
        ConvergenceWarning: some codes miss their tolerance; the warning has their number.
        UserWarning: some samples are negligible next to the largest sample, to the rounding of
            their dtype, and get the code 0; the warning has their number.

    Raises:
        ValueError: X is complex or infinite. `fit` raises if the dictionary does not fit X, the
            method is unknown, or an option is missing or belongs to another method. `transform`
            raises if the pursuit refuses its arguments. `certify` raises if entries are missing.
        ArithmeticError: codes are not finite in `transform`.

    Example:
        >>> from unrolled.sklearn import SparseCoder
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> Y = np.asarray((D[:, 3:5] - 0.5 * D[:, 20:22]).T)  # two samples of 16 features
        >>> coder = SparseCoder(D, "omp", sparsity=2).fit(Y)
        >>> codes = coder.transform(Y)
        >>> codes.shape, np.allclose(coder.inverse_transform(codes), Y, atol=1e-6)
        ((2, 32), True)
        >>> np.allclose(coder.restore(Y), Y, atol=1e-6)  # both in one call
        True
        >>> torn = np.where(np.arange(16) == 9, np.nan, Y)
        >>> np.allclose(coder.restore(torn), Y, atol=1e-6)
        True
    """

    dictionary: Any = None
    method: str | Layer | Network = "omp"
    _: KW_ONLY
    depth: int | None = None
    params: Any = None
    random_state: Any = 0
    split_sign: bool = False
    lam: Any = None
    ratio: Any = None
    l2: float | None = None
    nonnegative: bool | None = None
    sparsity: int | None = None
    selection: str | None = None
    eps: float | None = None
    theta: Any = None
    radius: float | None = None
    p: float | None = None
    lams: Any = None
    thetas: Any = None
    zeros: Any = None
    step: float | None = None
    tol: float | None = None
    max_steps: int | None = None

    def fit(self, X: Any, y: Any = None) -> "SparseCoder":
        """Check the dictionary, the method and its options against X.

        If `params` is None, also make the params of a layer or a network, see `params`.
        """
        X = _samples(self, X, reset=True)
        with jax.enable_x64(True):
            Ds = self._dictionaries(X)
            self.n_components_ = Ds[-1].shape[1]
            self.split_sign_ = checks.as_bool(self.split_sign, "split_sign", _NAME)
            self.method_, self.options_, params = self._method(), self._options(), None
            if isinstance(self.method_, str):
                pursuit.check_options(self.method_, self.options_, _NAME)
                pursuit.check_dictionaries(self.method_, len(Ds), _NAME)
            else:
                params = self._params(Ds, X)
            # A pickle would return arrays of JAX in float32.
            self.dictionary_, self.params_ = jax.tree.map(np.asarray, (Ds, params))
        return self

    @property
    def components_(self) -> np.ndarray:
        """The atoms in the rows of an array (n_components, n_features), as in scikit-learn."""
        if len(self.dictionary_) > 1:
            raise AttributeError(
                f"{_NAME}: components_ is for one dictionary, got {len(self.dictionary_)}"
            )
        return np.asarray(self.dictionary_[0]).T

    def transform(self, X: Any) -> np.ndarray:
        """The codes of the samples, of shape (n_samples, n_components); see `split_sign`."""
        codes = self._codes_of(X)
        return _split(codes) if self.split_sign_ else codes

    def _codes_of(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "dictionary_")  # a fit that failed has set other attributes
        X = self._without_rounding(_samples(self, X, reset=False))
        missed, codes = 0, np.empty((len(X), self.n_components_), X.dtype)
        with jax.enable_x64(True):
            Ds, params = checks.cast((self.dictionary_, self.params_), X.dtype)
            for first in range(0, len(X), _CHUNK):
                rows = slice(first, first + _CHUNK)
                codes[rows], more = self._codes(Ds, params, X[rows])
                missed += more
        if bad := int((~np.isfinite(codes).all(1)).sum()):
            raise ArithmeticError(f"{_NAME}: {bad} codes are not finite")
        if missed:
            message = f"{_NAME}: {missed} of {len(X)} codes miss the tolerance of {self.method_}"
            checks.warn(f"{message}; try a larger tol or max_steps", ConvergenceWarning)
        return codes

    def certify(
        self, X: Any, *, finish: int = 3, lam: Any = None
    ) -> CodeCertificate | LassoCertificate:
        """Compute the codes of the samples, and certify them, for a single dictionary.

        If lam is given, or the method is a LASSO pursuit, which has a penalty,
        `theory.certify_lasso` certifies the codes. `theory.certify_code` certifies all other codes.
        In its result, `x` has the codes after least squares on their supports and at most `finish`
        steps of subspace pursuit, and `certified(X)` says which codes are proved to be the only
        codes of least l1 norm. `certify` raises the errors of these two functions, for example for
        codes in parts.
        """
        codes, X = self._codes_of(X), np.asarray(X)
        if missing := int(np.isnan(X.astype(float)).any(1).sum()):
            raise ValueError(
                f"{_NAME}: certify needs samples without missing entries, got {missing} with NaN; "
                "try certify on the other samples"
            )
        if len(self.dictionary_) > 1:
            raise ValueError(f"{_NAME}: certify is for one dictionary, got {len(self.dictionary_)}")
        D, problem = self.dictionary_[0], None if lam is None else {"lam": lam}
        if isinstance(self.method_, str) and problem is None:
            problem = pursuit.lasso_problem(self.method_, self.options_, D, X)
        if problem is not None:
            return certify_lasso(D, X, codes, **problem)
        return certify_code(D, X, codes, finish=finish)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The signals D x of codes, of shape (n_samples, n_features)."""
        check_is_fitted(self, "dictionary_")
        X = _joined(X, self.n_components_, self.split_sign_, _NAME)
        with jax.enable_x64(True):
            signals = X
            for D in reversed(checks.cast(self.dictionary_, X.dtype)):
                signals = problems.synthesize(D, signals)
            return np.asarray(signals)

    def _without_rounding(self, X: np.ndarray) -> np.ndarray:
        """Set samples that are negligible next to the largest sample to 0, and warn."""
        if not isinstance(self.method_, str) or not pursuit.is_relative(
            self.method_, self.options_
        ):
            return X
        with jax.enable_x64(True):
            faint = pursuit.negligible(np.nan_to_num(X))
        if not faint.any():
            return X
        checks.warn(
            f"{_NAME}: {faint.sum()} of {len(X)} samples are negligible next to the largest, to "
            f"the rounding of {X.dtype}; their codes are 0"
        )
        return np.where(faint[:, None], 0, X).astype(X.dtype)

    def _dictionaries(self, X: np.ndarray) -> tuple[Operator, ...]:
        D, m = self.dictionary, X.shape[1]
        if D is None:
            return (as_dictionary(np.eye(m), _NAME),)
        Ds = as_chain(D, _NAME) if isinstance(D, tuple) else (as_dictionary(D, _NAME),)
        if Ds[0].shape[0] != m:
            hint = "; atoms are columns here, try dictionary.T" if m in Ds[0].shape else ""
            raise ValueError(
                f"{_NAME}: dictionary has shape {Ds[0].shape}; expected ({m}, n_components), since "
                f"X has {m} features{hint}"
            )
        return Ds

    def _options(self) -> dict[str, Any]:
        """The options that are given, by name."""
        parameters = {name: getattr(self, name) for name in _OPTIONS}
        options = {name: value for name, value in parameters.items() if value is not None}
        if self.method == "omp" and not {"sparsity", "tol"} & set(options):
            options["sparsity"] = max(1, self.n_features_in_ // 10)
        return options

    def _method(self) -> str | Layer | Network:
        """The name of the pursuit, or the layer or network."""
        method, options = self.method, self._options()
        if isinstance(method, str) and self.depth is None:
            if method in FAMILIES and method not in pursuit.PURSUITS:
                raise ValueError(f"{_NAME}: {method} is a family of layers; give its depth")
            if self.params is not None:
                raise ValueError(f"{_NAME}: params are for layers, {method} is a pursuit")
            return method
        if isinstance(method, str) and self.depth is not None:
            checks.one_of(method, FAMILIES, "family", _NAME)
            return FAMILIES[method](self.depth, **options)
        if not isinstance(method, Layer | Network):
            raise TypeError(
                f"{_NAME}: method is a {type(method).__name__}; expected the name of a pursuit or "
                "of a family, a layer or a network"
            )
        if self.depth is not None or options:
            idle = ", ".join([*(["depth"] if self.depth is not None else []), *options])
            raise ValueError(f"{_NAME}: {idle} does not go with a layer, which has its own")
        return method

    def _params(self, Ds: tuple[Dictionary, ...], X: np.ndarray) -> Any:
        """The params after checks: given, trained on the samples, or from `init`."""
        layer: Any = self.method_
        if isinstance(layer, Layer) and len(Ds) > 1:
            raise ValueError(f"{_NAME}: a layer has one dictionary, got {len(Ds)}")
        D: Any = Ds[0] if isinstance(layer, Layer) else Ds
        key = checks.as_key(_seed(self.random_state), _NAME)
        if self.params is None and has_recipe(layer):
            options: dict[str, Any] = dict(mask=_known(X), key=key, progress=False)
            return unsupervised(D, X, layer.lam, layer.depth, family=layer.family, **options).best
        params = layer.init(key, D) if self.params is None else self.params
        layer.check(params, D)
        return params

    def _codes(self, Ds: Any, params: Any, Y: Any) -> tuple[Any, int]:
        """The last codes, and how many of these codes miss their tolerance."""
        known, Y = _known(Y), np.nan_to_num(Y)
        if isinstance(self.method_, str):
            pursued = pursuit.pursue(self.method_, Ds, Y, self.options_, known)
            return pursued.codes[-1], pursued.missed
        layer: Any = self.method_
        own, Y = known_part(Ds[0], Y, known)
        D = own if isinstance(layer, Layer) else (own, *Ds[1:])
        codes = jax.vmap(layer.apply, (None, signal_axes(D), 0))(params, D, Y)
        return codes if isinstance(layer, Layer) else codes[-1], 0


def _samples(coder: BaseEstimator, X: Any, reset: bool) -> np.ndarray:
    """The samples; missing entries are NaN."""
    return validate_data(coder, X, dtype=_DTYPES, reset=reset, ensure_all_finite="allow-nan")


def _known(X: np.ndarray) -> np.ndarray | None:
    """Bools that mark the known entries; None if no entry is missing."""
    known = ~np.isnan(X)
    return None if known.all() else known


def _batch(X: np.ndarray) -> Any:
    """A batch of `online`: the samples, with their known entries if an entry is missing."""
    known = _known(X)
    return X if known is None else (X, known)


def _split(codes: np.ndarray) -> np.ndarray:
    """The positive parts of codes, then the negative parts."""
    return np.hstack([np.maximum(codes, 0), np.maximum(-codes, 0)])


def _joined(X: Any, d: int, split: bool, where: str) -> np.ndarray:
    """Codes as they were before `_split`."""
    X = check_array(X, dtype=_DTYPES, input_name="X")
    width = 2 * d if split else d
    if X.shape[1] != width:
        raise ValueError(f"{where}: codes have shape {X.shape}; expected (n_samples, {width})")
    return X[:, :d] - X[:, d:] if split else X


def _seed(random_state: Any) -> Any:
    """The seed or key; for a RandomState, or None (the global RandomState), a drawn seed."""
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return random_state


# The options of each method that are None if not given, and that not all methods have.
_STOP = {"patience", "evaluate_every"}
_METHODS = {
    "online": {"lam", "sparsity", *_STOP},
    "recover": {"lam", *_STOP},
    "ksvd": {"sparsity"},
    "mod": {"sparsity"},
}
_BATCH, _PERIOD = 256, 50  # samples in a batch of "online", most batches between two evaluations


def _is_online(learner: "DictionaryLearner") -> bool:
    return learner.method == "online"


@dataclass(eq=False, repr=False)
class DictionaryLearner(_Coder):
    r"""A dictionary learned from samples, and the codes of samples as features.

    NaN in X marks a missing entry: atoms and codes fit the known entries, and `restore` fills in
    the others.

    Data frames are accepted, and with `set_output` the codes are data frames. `SparseCoder` lists
    the features of scikit-learn that are missing. The option `positive_code` is named `nonnegative`
    here; `positive_dict` is missing.

    Rows are samples and **atoms are columns**, as in `SparseCoder`; `components_` has the atoms in
    rows, as in `sklearn.decomposition.DictionaryLearning`. Samples are real numbers: complex X is
    refused, and from pairs of real numbers the methods would learn real atoms, which do not form a
    complex D.

    Args:
        n_components: the number of atoms; if None, the smaller of the numbers of features and
            samples.
        method: "online", "recover", "ksvd" or "mod", of `dictionary_learning`.
        lam: for "online" and "recover", the penalty weight, also in `transform`, which uses
            `lasso_batch`. If None, lam is a tenth of the mean norm of the samples, with 0 for
            missing entries.
        sparsity: for "ksvd", "mod", and "online" in place of lam: the most nonzeros of a code, also
            in `transform`, which uses `omp`. If None, the sparsity of "ksvd" and "mod" is a tenth
            of the number of features, at least 1.
        nonnegative: whether codes are non-negative, also in `transform`. The entries of atoms may
            have either sign.
        sweeps: number of sweeps of "ksvd" and "mod", or of passes of "online" over the samples.
        steps: number of batches of "recover".
        batch_size: number of samples in a batch; None for 256 with "online" and for as many as
            atoms with "recover".
        patience: for "online" and "recover": `fit` holds back a random tenth of the samples, at
            most 1,000, keeps the atoms that represent these samples best, and stops when these
            atoms are `patience` batches old, as the function does. None learns from all samples.
        evaluate_every: with `patience`, the number of batches between two evaluations. If None, 50,
            or the batches of a pass of "online" if these are fewer.
        start: "data", "dct", or a dictionary of shape (n_features, n_components).
        random_state: the seed: an int, a RandomState that draws the seed, or None for a new seed at
            each `fit`.
        split_sign: if True, a code x becomes the features max(x, 0) and max(-x, 0), twice as many.

    Attributes:
        dictionary_: D, of shape (n_features, n_components).
        components_: D', of shape (n_components, n_features).
        learned_: the `dictionary_learning.Learned`, with the history.
        n_components_: the number of atoms.
        lam_, sparsity_: the values in use; None for methods without this option.
        nonnegative_: the value of `nonnegative` at `fit`.
        split_sign_: the value of `split_sign` at `fit`.

    Raises:
        ValueError: X is complex. `fit` raises if the method is unknown, an option belongs to
            another method, or the method refuses an argument, such as more atoms than samples.
            `partial_fit` raises if another method has learned the dictionary, or with `patience`.

    Example:
        >>> from unrolled.sklearn import DictionaryLearner
        >>> D = np.asarray(ur.dictionaries.gaussian(jax.random.key(0), 8, 12))
        >>> X = np.asarray(ur.problems.exact_sparse(jax.random.key(1), (300, 12), 2)) @ D.T
        >>> learner = DictionaryLearner(12, "ksvd", sparsity=2, sweeps=10)
        >>> codes = learner.fit_transform(X)
        >>> codes.shape, learner.dictionary_.shape, int((codes != 0).sum(1).max())
        ((300, 12), (8, 12), 2)
    """

    n_components: int | None = None
    method: str = "online"
    _: KW_ONLY
    lam: float | None = None
    sparsity: int | None = None
    nonnegative: bool = False
    sweeps: int = 10
    steps: int = 750
    batch_size: int | None = None
    patience: int | None = None
    evaluate_every: int | None = None
    start: Any = "data"
    random_state: Any = 0
    split_sign: bool = False

    def fit(self, X: Any, y: Any = None) -> "DictionaryLearner":
        """Learn the dictionary."""
        X = _samples(self, X, reset=True)
        seed = self._integer_seed()
        X, stop = self._held_back(X, seed)
        self._choose(X)
        if (d := self.n_components_) > len(X):  # `online` itself would accept several passes
            raise ValueError(
                f"DictionaryLearner: {d} atoms for {len(X)} samples; expected at most as many"
            )
        options = stop | dict(key=seed, start=self.start, nonnegative=self.nonnegative_)
        signals: Any = X
        if self.method == "online":
            signals = self._batches(X, seed)
            options |= dict(lam=self.lam_, sparsity=self.sparsity_)
        elif self.method == "recover":
            options |= dict(lam=self.lam_, steps=self.steps, batch=self.batch_size, mask=_known(X))
        else:
            options |= dict(sparsity=self.sparsity_, sweeps=self.sweeps, mask=_known(X))
        with jax.enable_x64(True):
            learn = getattr(dictionary_learning, self.method)
            self._keep(learn(signals, self.n_components_, **options))
        return self

    @available_if(_is_online)
    def partial_fit(self, X: Any, y: Any = None) -> "DictionaryLearner":
        """Continue with one batch of samples; the first needs at least `n_components` samples."""
        first = not hasattr(self, "learned_")
        if not first and self.learned_.state is None:
            raise ValueError("DictionaryLearner: learned by another method; expected fit first")
        if self.patience is not None:
            raise ValueError("DictionaryLearner: partial_fit holds back no samples; try fit")
        X = _samples(self, X, reset=first)
        if first:
            self._choose(X)
        before = None if first else self.learned_
        options: dict[str, Any] = dict(key=self._integer_seed(), start=self.start)
        options |= dict(lam=self.lam_, sparsity=self.sparsity_, nonnegative=self.nonnegative_)
        with jax.enable_x64(True):
            learned = dictionary_learning.online(
                [_batch(X)], self.n_components_, resume=before, **options
            )
            self._keep(learned)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The codes of the samples, of shape (n_samples, n_components); see `split_sign`."""
        check_is_fitted(self, "dictionary_")
        codes = self._codes_of(_samples(self, X, reset=False))
        return _split(codes) if self.split_sign_ else codes

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The signals D x of codes, of shape (n_samples, n_features)."""
        check_is_fitted(self, "dictionary_")
        X = _joined(X, self.n_components_, self.split_sign_, "DictionaryLearner")
        return X @ self.components_.astype(X.dtype)

    def _integer_seed(self) -> int:
        return checks.as_index(_seed(self.random_state), "random_state", "DictionaryLearner")

    def _choose(self, X: np.ndarray) -> None:
        """Choose values, which depend on X, for the options that are None."""
        where = "DictionaryLearner"
        checks.one_of(self.method, _METHODS, "method", where)
        self.split_sign_ = checks.as_bool(self.split_sign, "split_sign", where)
        self.nonnegative_ = checks.as_bool(self.nonnegative, "nonnegative", where)
        own = _METHODS[self.method]
        for other in sorted(set.union(*_METHODS.values()) - own):
            if getattr(self, other) is not None:
                raise ValueError(f"{where}: {self.method} has no {other}")
        if self.evaluate_every is not None and self.patience is None:
            raise ValueError(f"{where}: evaluate_every needs patience")
        n, m = X.shape
        d = min(n, m) if self.n_components is None else self.n_components
        self.n_components_ = checks.as_index(d, "n_components", where, least=1)
        self.lam_, self.sparsity_ = self.lam, self.sparsity
        if "lam" not in own:
            self.sparsity_ = max(1, m // 10) if self.sparsity is None else self.sparsity
        elif self.lam is None and self.sparsity is None:
            self.lam_ = mean_norm(np.nan_to_num(X)) / 10 or 1.0

    def _held_back(self, X: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The samples to learn from, and the options of a stop by the other samples."""
        if self.patience is None:
            return X, {}
        order = np.random.default_rng(seed).permutation(len(X))
        held, rest = np.split(order, [held_back(len(X))])
        every = _PERIOD if self.method != "online" else min(_PERIOD, -(-len(rest) // self._size()))
        every = every if self.evaluate_every is None else self.evaluate_every
        stop = dict(validation=_batch(X[held]), evaluate_every=every, patience=self.patience)
        return X[np.sort(rest)], stop

    def _size(self) -> int:
        """The number of samples in a batch of "online"."""
        given = _BATCH if self.batch_size is None else self.batch_size
        return checks.as_index(given, "batch_size", "DictionaryLearner", least=1)

    def _batches(self, X: np.ndarray, seed: int) -> Iterator[Any]:
        """The samples in random order, once for every sweep."""
        size, rng = self._size(), np.random.default_rng(seed)
        for _ in range(checks.as_index(self.sweeps, "sweeps", "DictionaryLearner", least=1)):
            order = rng.permutation(len(X))
            for first in range(0, len(X), size):
                yield _batch(X[order[first : first + size]])

    def _keep(self, learned: dictionary_learning.Learned) -> None:
        # A pickle would return arrays of JAX in float32.
        arrays = dict(D=learned.D, X=learned.X, state=learned.state)
        self.learned_ = learned.replace(**jax.tree.map(np.asarray, arrays))
        self.dictionary_ = np.asarray(learned.D)
        self.components_ = self.dictionary_.T

    def _codes_of(self, X: np.ndarray) -> np.ndarray:
        coder = SparseCoder(
            self.dictionary_,
            "omp" if self.lam_ is None else "lasso_batch",
            lam=self.lam_,
            sparsity=self.sparsity_,
            nonnegative=self.nonnegative_,
        )
        return coder.fit(X)._codes_of(X)  # an array, also under a global `set_output`
