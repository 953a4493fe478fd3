"""The command line: `unrolled compare`, `certify` and `doctor` (also `python -m unrolled`)."""

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

# What a user can cause and mend: shown as one line, without a traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 for wrong arguments or input, with one line on stderr."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 2
    try:
        arguments.run(arguments)
    except _USER_ERRORS as error:
        print(f"unrolled: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("unrolled: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unrolled", description="Unrolled sparse-coding solvers: analytic and learned."
    )
    commands = parser.add_subparsers(title="commands", metavar="{compare,certify,doctor}")
    plain = argparse.RawDescriptionHelpFormatter

    compare = commands.add_parser(
        "compare",
        formatter_class=plain,
        help="analytic beside learned weights, as a report",
        description="Compare weights set by theory with learned ones and write a report with tables and figures.\n"
        "Without arguments: the standard benchmark, patches of real photographs, and a certified chain.",
        epilog="examples:\n  unrolled compare --quick\n"
        "  unrolled compare --dictionary D.npy --sparsity 5 --snr 30 --depth 20 --output report\n"
        "  unrolled compare --dictionary D.npy --signals Y.npy --method ista,lista_cp\n"
        "  unrolled compare --signals one.png two.png",
    )
    compare.add_argument("--dictionary", type=Path, metavar="FILE", help="own D, (m, d), as .npy or .npz (entry D)")
    compare.add_argument(
        "--signals",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="own signals: one .npy or .npz (Y, (signals, m), and X if codes are known), or pictures; the last is tested",
    )
    compare.add_argument(
        "--method",
        default=None,
        metavar="NAMES",
        help="comma-separated, of ista, fista, lista, lista_cp, alista, alista_ss",
    )
    compare.add_argument("--depth", type=int, default=16, help="steps K (default 16)")
    compare.add_argument("--sparsity", type=int, help="expected nonzeros of planted codes (default d / 10)")
    compare.add_argument("--snr", type=float, default=math.inf, help="of planted signals, dB (default: no noise)")
    compare.add_argument("--lam", type=float, help="LASSO weight (default: chosen on the data)")
    compare.add_argument("--steps", type=int, help="training steps (default 400; 60 with --quick)")
    compare.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    compare.add_argument(
        "--output", type=Path, default=Path("unrolled-report"), metavar="DIR", help="(default unrolled-report)"
    )
    compare.set_defaults(run=_compare)

    certify = commands.add_parser(
        "certify",
        formatter_class=plain,
        help="what the theory certifies for a dictionary",
        description="Coherence, admissible sparsity, rate and steps to a tolerance, for W = D and the closed-form W.",
        epilog="example:\n  unrolled certify D.npy --sparsity 3 --tolerance 1e-3",
    )
    certify.add_argument("dictionary", type=Path, metavar="FILE", help="D, (m, d), as .npy or .npz (entry D)")
    certify.add_argument("--sparsity", type=int, help="nonzeros s (default: the largest admissible)")
    certify.add_argument("--bound", type=float, default=1.0, help="B, of the entries (default 1)")
    certify.add_argument("--noise", type=float, default=0.0, help="l1 budget of the noise (default 0)")
    certify.add_argument("--tolerance", type=float, default=1e-6, help="l1 error to reach (default 1e-6)")
    certify.add_argument("--normalize", action="store_true", help="scale the atoms to norm 1 first")
    certify.set_defaults(run=_certify)

    doctor = commands.add_parser(
        "doctor",
        formatter_class=plain,
        help="versions, devices and a write check",
        description="Print versions, devices and settings, and run one small certified check.",
        epilog="example:\n  unrolled doctor --json",
    )
    doctor.add_argument("--output", type=Path, metavar="DIR", help="a folder that must be writable")
    doctor.set_defaults(run=_doctor)
    for command in (compare, certify, doctor):
        command.add_argument("--json", action="store_true", help="print JSON on standard output")
        command.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    return parser


class _Progress:
    """Lines on stderr with the seconds since the start."""

    def __init__(self):
        self.began = time.perf_counter()

    def __call__(self, message: str) -> None:
        print(f"[{time.perf_counter() - self.began:5.1f} s] {message}", file=sys.stderr, flush=True)


def _compare(arguments) -> None:
    from unrolled import _experiments

    _experiments.check_folder(arguments.output)  # before any work
    settings, say = _settings(arguments), _Progress()
    sections = _sections(arguments, settings, say)
    say("writing the report")
    shown = {k: str(v) for k, v in vars(arguments).items() if k not in ("run", "json") and v not in (None, False)}
    summary = (
        "How close do weights that theory sets come to weights that were learned? *Analytic* params come from the theory "
        "alone (weights in closed form, thresholds from Theorem 12), *calibrated* ones keep those weights and choose "
        "thresholds and step sizes on a sample without gradients, *learned* ones start there and are trained end to end."
    )
    report = _experiments.write(arguments.output, "Analytic and learned sparse coding", summary, sections, shown)
    if arguments.json:
        print((arguments.output / "results.json").read_text())
    else:
        for section in sections:
            print(f"\n# {section.title}\n\n{section.text.strip()}")
        print(f"\nReport: {report}")
    say("done")


def _settings(arguments):
    from unrolled import _experiments

    names = _experiments.METHODS
    methods = names if arguments.method is None else tuple(name.strip() for name in arguments.method.split(","))
    unknown = [name for name in methods if name not in names]
    if unknown or not methods:
        raise ValueError(f"compare: unknown method {', '.join(unknown)}; expected some of {', '.join(names)}")
    if arguments.method is None:
        # LISTA's two free matrices per step are slow to train; it is there when it is asked for.
        methods = tuple(name for name in names if name != "lista")
    steps = arguments.steps if arguments.steps is not None else (60 if arguments.quick else 400)
    for name, value, least in (("depth", arguments.depth, 1), ("steps", steps, 0)):
        if value < least:
            raise ValueError(f"compare: {name} must be at least {least}, got {value}")
    if arguments.lam is not None and not arguments.lam > 0:
        raise ValueError(f"compare: lam must be positive, got {arguments.lam}")
    return _experiments.Settings(
        methods,
        arguments.depth,
        arguments.sparsity,
        arguments.snr,
        arguments.lam,
        steps,
        arguments.seed,
        arguments.quick,
    )


def _sections(arguments, settings, say) -> list:
    """The sections that the arguments ask for: the main job if there are none."""
    import jax.numpy as jnp

    from unrolled import _experiments as experiments
    from unrolled import datasets, dictionaries, problems

    D = _dictionary(arguments.dictionary)
    if arguments.signals is not None:
        D, Y, X, pictures = _signals(arguments.signals, D)
        if X is not None:
            problem = experiments.given_problem(D, Y, X)
            return [experiments.known_codes(problem, settings, say, "Own signals with known codes", "signals")]
        return [experiments.unknown_codes(D, pictures, settings, say, "Own signals", "signals")]
    if D is not None:
        problem = experiments.planted_problem(D, settings)
        sections = [experiments.known_codes(problem, settings, say, "Planted codes of the dictionary", "planted")]
        certified = experiments.certified_regime(D, settings, say)
        return sections + ([certified] if certified else [])
    say("the standard benchmark, 250 x 500")
    D = problems.standard_benchmark(settings.key).D
    problem = experiments.planted_problem(D, settings)
    sections = [experiments.known_codes(problem, settings, say, "The standard benchmark", "benchmark")]
    sections.append(experiments.certified_regime(D, settings, say))
    say("patches of photographs, 64 x 256")
    pictures = experiments.photograph_patches(datasets.photographs())
    cosines = jnp.asarray(dictionaries.dct((8, 8), (16, 16)))
    if settings.lam is None:
        settings = dataclasses.replace(settings, lam=0.05)  # grey values are in [0, 1]
    sections.append(
        experiments.unknown_codes(cosines, pictures, settings, say, "Patches of real photographs", "patches")
    )
    sections.append(experiments.chain(settings, say))
    return sections


def _dictionary(path: Path | None):
    if path is None:
        return None
    import jax.numpy as jnp

    from unrolled import datasets
    from unrolled.dictionaries._base import as_dictionary

    return as_dictionary(jnp.asarray(datasets.read_array(path, "D"), jnp.float32), str(path))


def _signals(paths: list[Path], D):
    """D, Y, X (or None) and `Pictures`, from arrays or image files."""
    import jax.numpy as jnp
    import numpy as np

    from unrolled import _experiments, datasets, dictionaries

    if paths[0].suffix not in (".npy", ".npz"):
        images = {str(path): datasets.read_image(path) for path in paths}
        pictures = _experiments.photograph_patches(images)
        D = jnp.asarray(dictionaries.dct((8, 8), (16, 16))) if D is None else D
        _check_length(paths[0], pictures.test, D)
        return D, pictures.test, None, pictures
    if len(paths) > 1:
        raise ValueError(f"compare: expected one array file with signals, got {len(paths)}")
    if D is None:
        raise ValueError("compare: signals in an array need --dictionary")
    Y = datasets.read_array(paths[0], "Y").astype(np.float32)
    _check_length(paths[0], Y, D)
    if paths[0].suffix == ".npz" and "X" in np.load(paths[0], allow_pickle=False).files:
        X = datasets.read_array(paths[0], "X").astype(np.float32)
        if X.shape != (len(Y), D.shape[1]):
            raise ValueError(f"{paths[0]}: codes have shape {X.shape}; expected {(len(Y), D.shape[1])}")
        return D, Y, X, None
    if len(Y) < 2:
        raise ValueError(f"{paths[0]}: expected at least 2 signals, got {len(Y)}")
    cut = len(Y) * 4 // 5
    return D, Y, None, _experiments.Pictures(Y[:cut], Y[cut:], None, None)


def _check_length(path: Path, Y, D) -> None:
    if Y.ndim != 2 or Y.shape[1] != D.shape[0]:
        hint = " The signals seem to be in columns: transpose them." if Y.ndim == 2 and len(Y) == D.shape[0] else ""
        raise ValueError(
            f"{path}: signals have shape {Y.shape}; D is {D.shape}, expected (signals, {D.shape[0]}).{hint}"
        )


def _certify(arguments) -> None:
    import warnings

    import jax
    import jax.numpy as jnp

    from unrolled import analytic, datasets, dictionaries, theory
    from unrolled.dictionaries._base import as_dictionary

    with jax.enable_x64(True):
        D = as_dictionary(jnp.asarray(datasets.read_array(arguments.dictionary, "D"), float), str(arguments.dictionary))
        if arguments.normalize:
            D, _ = dictionaries.normalize(D)
        m, d = D.shape
        mu = float(theory.mutual_coherence(D))
        result = {"m": m, "d": d, "mutual_coherence": mu, "welch_bound": theory.welch_bound(m, d), "weights": {}}
        for name, W in (("W = D", D), ("closed form", theory.frobenius_weights(D))):
            certified = analytic.certify(D, W)
            largest = theory.max_sparsity(certified.mu_W, d)
            s = largest if arguments.sparsity is None else arguments.sparsity
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", analytic.HypothesisWarning)
                _, found = analytic.block_schedule(
                    D, certified.W, depth=1, sparsity=s, bound=arguments.bound, noise=arguments.noise
                )
            result["weights"][name] = {
                "mu_W": certified.mu_W,
                "C_W": certified.C_W,
                "norm_W": float(dictionaries.spectral_norm(certified.W)),
                "largest_sparsity": largest,
                "sparsity": s,
                "holds": found.holds,
                "contraction": found.contraction,
                "rate": found.rate,
                "floor": found.floor,
                "steps": found.steps_for(arguments.tolerance),
            }
    if arguments.json:
        finite = lambda v: None if isinstance(v, float) and not math.isfinite(v) else v  # noqa: E731
        result["weights"] = {n: {k: finite(v) for k, v in row.items()} for n, row in result["weights"].items()}
        print(json.dumps(result, indent=1))
        return
    print(f"{arguments.dictionary}: {m} x {d}, mutual coherence {mu:.6f}, Welch bound {result['welch_bound']:.6f}")
    print(
        f"codes: at most s nonzeros of magnitude at most {arguments.bound:g}, noise of l1 norm at most {arguments.noise:g}\n"
    )
    names = ("mu_W", "C_W", "norm_W", "largest_sparsity", "sparsity", "holds", "contraction", "rate", "floor", "steps")
    print(f"{'':24}" + "".join(f"{name:>16}" for name in result["weights"]))
    for name in names:
        label = f"steps to {arguments.tolerance:g}" if name == "steps" else name.replace("_", " ")
        cells = (row[name] for row in result["weights"].values())
        print(f"{label:24}" + "".join(f"{c:>16.6g}" if isinstance(c, float) else f"{c!s:>16}" for c in cells))


def _doctor(arguments) -> None:
    import jax
    import jax.numpy as jnp

    from unrolled import _experiments, analytic, dictionaries, layers

    found = _experiments.environment()
    found["default device"] = str(jax.devices()[0])
    found["float64"] = "on" if jax.config.jax_enable_x64 else "off"
    found["cores"] = str(os.cpu_count())
    found["compilation cache"] = str(jax.config.jax_compilation_cache_dir)
    if arguments.output is not None:
        _experiments.check_folder(arguments.output)
    with tempfile.TemporaryDirectory() as folder:
        _experiments.check_folder(Path(folder) / "check")
    found["write check"] = f"{arguments.output or tempfile.gettempdir()} is writable"
    D = dictionaries.identity_hadamard(64)
    x = jnp.zeros(128).at[jnp.asarray([3, 70])].set(jnp.asarray([1.0, -0.5]))
    params = analytic.lista_cp(D, depth=40, sparsity=2, bound=1.0)
    error = float(jnp.abs(jax.jit(layers.lista_cp(40).apply)(params, D, D @ x) - x).sum())
    found["certified check"] = f"{'passed' if error < 1e-4 else 'FAILED'} (l1 error {error:.1e} after 40 steps)"
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(f"{k:18} {v}" for k, v in found.items()))
    if error >= 1e-4:
        raise ValueError(
            "doctor: the certified check failed: this device does not compute float32 products to rounding"
        )
