"""Files of programs: what `save` writes and `load` reads."""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import activations
from unrolled._base import checks, text
from unrolled._base.arguments import checked
from unrolled._base.checks import ArrayLike
from unrolled._base.files import CheckpointError, write_whole
from unrolled._base.packages import require
from unrolled._base.results import Result
from unrolled.dictionaries import Dictionary, as_dictionary, as_flat, block_of, to_pairs
from unrolled.export._proved import proof_of
from unrolled.layers import Layer
from unrolled.networks import Network
from unrolled.pursuit import PURSUITS
from unrolled.training import digest, versions

__all__ = ["Exported", "PLATFORMS", "load", "save"]


# The platforms for which a file holds programs.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_FORMAT = 1  # `load` refuses a newer format
# What JAX raises while tracing if a function asks for the value of an array.
_ON_HOST = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_ADVICE = "no program in a file can; try `pursuit.lasso`, or a layer"


class Exported(Result):
    """A solver read from a file."""

    # signals (n, m) -> codes (n, d), or a tuple of codes; codes of a complex D are complex. With a
    # tolerance -> (codes, gaps, steps)
    run: Callable[[ArrayLike], Any]
    manifest: dict[str, Any]  # the description in the file: model, shapes, hashes, versions


@checked
def save(
    path: str | Path,
    model: Layer | Network | Callable[..., Any] | Any,
    params: Any,
    D: Dictionary | Sequence[Dictionary],
    *,
    platforms: Sequence[str] | str = PLATFORMS,
    tol: float | None = None,
    lam: float | None = None,
    max_steps: int = 1000,
    held_out: ArrayLike | Any = None,
) -> Path:
    """Write a solver with its params and dictionary as one program, for any number of signals.

    The file is an uncompressed zip of `program`, which `jax.export` reads, and `manifest.json`. The
    manifest has the code that creates the model, shapes and dtype, platforms, versions, and the
    sha256 of the program, of D and of the params. To run the program elsewhere, install only jax
    and flatbuffers:

        program = zipfile.ZipFile(path).read("program")
        X = jax.export.deserialize(bytearray(program)).call(Y)

    The program takes and returns real numbers, which every runtime supports. For a complex D,
    signals and codes are pairs of real numbers, as from `dictionaries.to_pairs`: pass
    `Y.view("float32")` to the program, and convert its result X to complex codes by
    `np.asarray(X).view("complex64")`. For a `Joint`, signals and codes are flat: pass
    `Y.reshape(n, -1)`. A solver from `load` takes and returns both forms.

    With `tol`, the program proves its codes: it returns (X, gap, steps). It runs the K steps of the
    layer. From the codes of those signals whose gap is above tol, it then takes steps of
    `pursuit.lasso`, until each gap is at most tol or `max_steps` steps were taken. `gap` is an
    upper bound on F(x) - F* of the LASSO, relative to norm(y)^2 / 2, for x as it is returned, and
    for y in the dtype of the program. The bound includes all rounding errors. If gap > tol, the
    steps ended without a proof. A signal that is not finite has the code 0 and the gap inf.

    Args:
        path: the file to write; an existing file is replaced in one move.
        model: a layer, a network, or a pursuit `f(D, y, **options)` whose result has a field `x` or
            `xs`.
        params: params of the model; for a pursuit its options as a dict, or None.
        D: the dictionary, of shape (m, d), plain or structured; a tuple for a network or a
            multi-layer pursuit.
        platforms: platforms of jax on which the program should run.
        tol: the largest gap, for a layer in one dictionary; None for codes alone. In float32, gaps
            below 4 m 2^-24 norm(r) norm(x, 1) / norm(y)^2 cannot be proved.
        lam: the weight of the LASSO; None takes the option `lam` of the layer. The manifest has the
            lam of the program, which is rounded to its dtype.
        max_steps: the largest number of steps after the K steps of the layer.
        held_out: signals that played no part in training, (n, m). With the confidence 1 - 1e-6 over
            independent draws of such signals, the share of signals that need more than K steps is
            at most `share` in the manifest (`theory.exceedance`).

    Returns:
        The absolute path.

    Raises:
        ImportError: flatbuffers is not installed.
        TypeError: model is not a layer, a network or a pursuit; arguments are traced; an activation
            is a function without a name (see `activations.describe`); or a pursuit computes on the
            host (`basis_pursuit`, `lasso_batch`, `omp_batch`).
        ValueError: path ends with .onnx, params do not fit, a platform lacks an operation of the
            program, tol, lam or held_out is given without tol or for another model than a layer,
            or D is not a sum of products, so that its rounding is not known.
        OSError: the file cannot be written.

    Not claimed: equal bits on other platforms or under other versions of jax. jax guarantees that a
    program runs for six months after it was written.

    Example:
        >>> import tempfile, pathlib
        >>> layer, D = ur.alista(3), ur.dictionaries.dct(4, 6)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "net.stablehlo"
        >>> path = ur.export.save(path, layer, layer.init(None, D), D)
        >>> ur.export.load(path).run(D.T).shape
        (6, 6)
        >>> layer = ur.layers.bcd(3, lam=0.1)
        >>> path = ur.export.save(path, layer, layer.init(None, D), D, tol=1e-4)
        >>> X, gap, steps = ur.export.load(path).run(D.T)
        >>> X.shape, bool((gap <= 1e-4).all())
        ((6, 6), True)
    """
    path, where = Path(path).absolute(), "export.save"
    if path.suffix == ".onnx":
        raise ValueError(
            f"{where}: writes StableHLO, not ONNX, got {path.name}; try another ending, or convert "
            "the layer with jax2onnx, which does not convert a program with tol"
        )
    checks.on_host((params, D), where, "params or D")
    checks.arrays(params, "params", where)
    platforms = _checked_platforms(platforms, where)
    is_net, is_chain = isinstance(model, Layer | Network), isinstance(D, (tuple, list))
    dictionaries: Any = D if is_chain else (D,)
    Ds = tuple(as_dictionary(A, where) for A in dictionaries)
    D, m, dtype = Ds if is_chain else Ds[0], Ds[0].shape[0], checks.common_dtype(params, Ds)
    options: dict[str, Any] = {"tol": tol, "max_steps": max_steps, "lam": lam, "held_out": held_out}
    proof = proof_of(model, D, dtype, where, **options)
    with jax.enable_x64(dtype == np.float64 or jax.config.values["jax_enable_x64"]):
        solve = _solver(model, params, D, where) if proof is None else proof.solver(params)
        program, codes = _program(solve, m, dtype, platforms, where)
    manifest = {
        "format": _FORMAT,
        "model": _description(model),
        "options": None if is_net else repr(params or {}),
        "signals": ["n", m],
        "codes": codes,
        "form": None if is_chain else _form(D),
        "proof": proof and proof.description(params, held_out, where),
        "dtype": np.dtype(dtype).name,
        "platforms": list(platforms),
        "program sha256": hashlib.sha256(program).hexdigest(),
        "params sha256": digest(params),
        "D sha256": digest(D),
        "versions": versions(),
    }
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("manifest.json", json.dumps(text.sealed(manifest), indent=1))
        archive.writestr("program", program)
    write_whole(path, blob.getbuffer())
    return path


@checked
def load(path: str | Path) -> Exported:
    """Read a file that `save` wrote, after checking its hashes.

    Returns:
        Exported(run, manifest). `run` takes signals (n, m) of any real dtype, and computes in the
        dtype of the manifest. If D is complex, `run` takes complex signals and returns complex
        codes; if D is a `Joint`, `run` takes signals (n, m, g) and returns codes (n, d, g). If the
        file was saved with `tol`, `run` returns (X, gap, steps). `run` raises ValueError for
        another shape, and TypeError for complex signals of a real D.

    Raises:
        FileNotFoundError: no such file.
        ImportError: flatbuffers is not installed.
        CheckpointError: the file is damaged, truncated, of a newer format, or not from `save`.

    Example:
        >>> import tempfile, pathlib
        >>> path, D = pathlib.Path(tempfile.mkdtemp()) / "omp.stablehlo", ur.dictionaries.dct(4, 6)
        >>> path = ur.export.save(path, ur.pursuit.omp, {"sparsity": 1}, D)
        >>> solver = ur.export.load(path)
        >>> solver.run(2 * D[:, :1].T).round(3).tolist(), solver.manifest["model"]
        ([[2.0, 0.0, 0.0, 0.0, 0.0, 0.0]], 'omp')
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"export.load: {path}: no such file")
    require("export.load", "flatbuffers")  # `jax.export` writes and reads with it
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read("manifest.json"))
            program = archive.read("program")
        if not isinstance(manifest, dict) or "sha256" not in manifest:
            raise ValueError("its manifest is not one of unrolled")
        manifest = text.unsealed(manifest)
        if manifest["format"] > _FORMAT:
            raise ValueError(f"it has format {manifest['format']}, newer than {_FORMAT}")
        if hashlib.sha256(program).hexdigest() != manifest["program sha256"]:
            raise ValueError("its program has changed since it was written: its sha256 differs")
        call = jax.jit(jax.export.deserialize(bytearray(program)).call)
    except Exception as error:  # whatever a reader of foreign bytes raises
        raise CheckpointError(f"export.load: {path}: {error}") from error
    flat = partial(_codes, call, manifest["signals"][1], manifest["dtype"])
    form = manifest.get("form")  # older files have only real numbers
    return Exported(flat if form is None else partial(_codes_of_structured, flat, form), manifest)


def _form(D: Any) -> dict[str, Any] | None:
    """The form of signals and codes of D if it is not flat; None if D has only flat codes.

    Example:
        >>> D = ur.dictionaries.Complex.of(jnp.ones((3, 4)))
        >>> from unrolled.export._file import _form
        >>> _form(ur.dictionaries.Joint(D, 5))
        {'complex': True, 'signals': [3, 5], 'codes': [4, 5]}
    """
    (m, d), block = D.shape, block_of(D)
    for kind, *each in ((complex,), (float, block), (complex, block // 2)) if block > 1 else ():
        numbers = math.prod(each) * (2 if kind is complex else 1)
        signals, codes = ([n // numbers, *each] for n in (m, d))
        if as_flat(D, np.zeros((1, *signals), kind), 1)[1] is not None:
            return {"complex": kind is complex, "signals": signals, "codes": codes}
    return None


def _codes_of_structured(run: Callable[[Any], Any], form: dict[str, Any], Y: ArrayLike) -> Any:
    """Codes by `run`: flat for flat signals, else in the form of the signals."""
    is_complex, (m, *each) = form["complex"], form["signals"]
    if np.iscomplexobj(Y) != is_complex or np.shape(Y)[1:] != (m, *each):
        return run(Y)
    rows: Any = Y if isinstance(Y, jax.Array) else np.asarray(Y)
    if is_complex:
        rows = to_pairs(rows.swapaxes(1, -1)).swapaxes(1, -1)
    codes = run(rows.reshape(len(rows), math.prod(rows.shape[1:])))
    x, *proof = codes if isinstance(codes, (tuple, list)) else (codes,)
    d, *each = form["codes"]
    pairs = x.reshape(len(x), d, *([2] if is_complex else []), *each)
    x = jax.lax.complex(pairs[:, :, 0], pairs[:, :, 1]) if is_complex else pairs
    return (x, *proof) if proof else x


def _codes(call: Callable[[Any], Any], m: int, dtype: str, Y: ArrayLike) -> Any:
    """Codes of signals (n, m), in the dtype of the program."""
    if np.ndim(Y) != 2 or np.shape(Y)[1] != m:
        raise ValueError(f"run: Y has shape {np.shape(Y)}; expected (n, {m})")
    rows: Any = Y if isinstance(Y, jax.Array) else checks.host_floats(Y, "Y", "run")
    if np.iscomplexobj(rows):
        raise TypeError(f"run: Y is {rows.dtype}; expected real numbers")
    with jax.enable_x64(True) if dtype == "float64" else nullcontext():
        # The call puts arrays of the host on the device, faster than a copy here.
        rows = (jnp if isinstance(Y, jax.Array) else np).asarray(rows, jnp.dtype(dtype))
        if not len(rows):  # the program requires that n is at least 1
            return jax.tree.map(lambda x: x[:0], call(np.zeros((1, m), rows.dtype)))
        return call(rows)


def _solver(model: Any, params: Any, D: Any, where: str) -> Callable[[Any], Any]:
    """Signals (n, m) -> their codes; for a chain a tuple of codes."""
    if isinstance(model, Layer | Network):
        return jax.vmap(lambda y: model.apply(params, D, y))
    if not callable(model) or not (params is None or isinstance(params, dict)):
        raise TypeError(
            f"{where}: expected a layer or a network with its params, or a pursuit f(D, y) with a "
            f"dict of options, got {type(model).__name__} and {type(params).__name__}"
        )

    if any(p.solve is model and p.takes == "batch" for p in PURSUITS.values()):
        raise TypeError(f"{where}: {model.__name__} takes batches, on the host; {_ADVICE}")

    def code(y):
        result = model(D, y, **(params or {}))
        return result.xs if hasattr(result, "xs") else result.x

    return jax.vmap(code)


def _description(model: Any) -> str:
    """The expression that creates a model, with the names of its functions; the name of a pursuit.

    Raises:
        TypeError: an activation is a function without a name.
    """
    text = repr(model)
    if not isinstance(model, Layer | Network):
        return getattr(model, "__name__", text)
    for layer in getattr(model, "layers", ()) or (model,):
        activation = layer.options.get("activation")
        if activation is not None and not isinstance(activation, activations.Activation):
            text = text.replace(repr(activation), str(activations.describe(activation)))
    return text


def _program(
    solve: Callable[[Any], Any], m: int, dtype: Any, platforms: tuple[str, ...], where: str
) -> tuple[bytes, list[list[int | str]]]:
    """The program of a solver for n signals, where n is a symbol, and the shapes of the codes."""
    require(where, "flatbuffers")  # `jax.export` writes and reads with it
    (n,) = jax.export.symbolic_shape("n")
    signals, compiled = jax.ShapeDtypeStruct((n, m), dtype), jax.jit(solve)
    try:
        if "callback" in str(compiled.trace(signals).jaxpr):
            raise TypeError(f"{where}: the solver calls back to the host; {_ADVICE}")
        exported = jax.export.export(compiled, platforms=platforms)(signals)
    except _ON_HOST as error:
        raise TypeError(f"{where}: the solver works on the host; {_ADVICE}") from error
    except NotImplementedError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{where}: {reason}; try platforms=('cpu',)") from error
    sizes = [[n if isinstance(n, int) else str(n) for n in a.shape] for a in exported.out_avals]
    return bytes(exported.serialize()), sizes


def _checked_platforms(platforms: Sequence[str], where: str) -> tuple[str, ...]:
    """The platforms as a tuple; raise ValueError if a platform is unknown."""
    names = (platforms,) if isinstance(platforms, str) else tuple(platforms)
    if not names or set(names) - set(PLATFORMS):
        raise ValueError(
            f"{where}: platforms must be some of {', '.join(PLATFORMS)}, got {platforms!r}"
        )
    return names
