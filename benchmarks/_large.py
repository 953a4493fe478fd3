"""The time and the memory of functions of theory and analytic on large dictionaries."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

ATOMS, PICTURE = 100_000, 512

# Each call takes the library, D, the closed-form W of D, a code with one nonzero, and its signal.
CLASS = {"sparsity": 1, "bound": 1.0}
CALLS: dict[str, Callable] = {
    "column_norms": lambda ur, D, W, x, y: ur.dictionaries.column_norms(D),
    "spectral_norm": lambda ur, D, W, x, y: ur.dictionaries.spectral_norm(D),
    "frobenius_weights": lambda ur, D, W, x, y: ur.theory.frobenius_weights(D),
    "spectral_radius": lambda ur, D, W, x, y: ur.theory.spectral_radius(W, D),
    "mutual_coherence": lambda ur, D, W, x, y: ur.theory.mutual_coherence(D),
    "coherence": lambda ur, D, W, x, y: ur.theory.coherence(W, D),
    "weights_coherence": lambda ur, D, W, x, y: ur.theory.weights_coherence(W, D),
    "atom_coherence": lambda ur, D, W, x, y: ur.theory.atom_coherence(W, D),
    "diagonal": lambda ur, D, W, x, y: ur.theory.diagonal(W, D),
    "babel": lambda ur, D, W, x, y: ur.theory.babel(D, 10),
    "rounding_guard": lambda ur, D, W, x, y: ur.theory.rounding_guard(W, D, **CLASS),
    "error_gain": lambda ur, D, W, x, y: ur.theory.error_gain(W, sparsity=10),
    "noise_gain": lambda ur, D, W, x, y: ur.theory.noise_gain(W),
    "support_rate": lambda ur, D, W, x, y: ur.theory.support_rate(W, D, [*range(0, 5000, 500)]),
    "certify": lambda ur, D, W, x, y: ur.theory.certify(
        ur.alista(8), ur.alista(8).init(None, D), D, **CLASS
    ),
    "uniqueness": lambda ur, D, W, x, y: ur.theory.uniqueness([D], [1]),
    "oracle_errors": lambda ur, D, W, x, y: ur.theory.oracle_errors([D], [[1, 500, 4000]]),
    "recover_on_supports": lambda ur, D, W, x, y: ur.theory.recover_on_supports(y, [D], [[3, 9]]),
    "stability": lambda ur, D, W, x, y: ur.theory.stability([D], [1], 0.0, 0.1),
    "noise_stability": lambda ur, D, W, x, y: ur.theory.noise_stability([D], [1], 0.1),
    "model_stability": lambda ur, D, W, x, y: ur.theory.model_stability([D], [1], 0.1),
    "product_stability": lambda ur, D, W, x, y: ur.theory.product_stability([D], 1, 0.0, 0.1),
    "holistic_stability": lambda ur, D, W, x, y: ur.theory.holistic_stability([D], [[3]], 0.0, 0.1),
    "perturbed_eps": lambda ur, D, W, x, y: ur.theory.perturbed_eps([D], [W], [x]),
    "is_feasible": lambda ur, D, W, x, y: ur.theory.is_feasible(y, [D], [x], [1], 0.0),
    "objective_bound": lambda ur, D, W, x, y: ur.theory.objective_bound(
        D, 0.1, sparsity=2, gamma=0.5
    ),
    "code_bound": lambda ur, D, W, x, y: ur.theory.code_bound(W, D, y, sparsity=1),
    "error_bar": lambda ur, D, W, x, y: ur.theory.error_bar(W, D, x, y, sparsity=1),
    "certify_code": lambda ur, D, W, x, y: ur.theory.certify_code(D, y, x),
    "sequence_bound": lambda ur, D, W, x, y: ur.theory.sequence_bound(W, D, 4),
    "layered_thresholds": lambda ur, D, W, x, y: ur.theory.layered_thresholds(
        [D], sparsities=[1], bounds=1.0
    ),
    "layered_penalties": lambda ur, D, W, x, y: ur.theory.layered_penalties(
        [D], sparsities=[1], noise=0.1
    ),
    "local_rate": lambda ur, D, W, x, y: ur.theory.local_rate(*D.shape, 2),
    "gaussian_conditioning": lambda ur, D, W, x, y: ur.theory.gaussian_conditioning(*D.shape, 4),
    "generalized_coherence, 4 atoms": lambda ur, D, W, x, y: ur.theory.generalized_coherence(
        D, atoms=[0, 1, 2, 3]
    ),
    "in_float64": lambda ur, D, W, x, y: ur.theory.in_float64(D, "float32"),
    "pseudo_inverse": lambda ur, D, W, x, y: ur.theory.pseudo_inverse(D),
    "state_evolution": lambda ur, D, W, x, y: ur.theory.state_evolution(
        ur.layers.lamp(4), D, probability=1e-4
    ),
    "inner_products": lambda ur, D, W, x, y: ur.theory.inner_products(W, D),
    "stripe_norm": lambda ur, D, W, x, y: ur.theory.stripe_norm(D.unflatten_code(x), 7),
    "is_csc_feasible": lambda ur, D, W, x, y: ur.theory.is_csc_feasible(y, [D], [x], [1]),
    "analytic.ista": lambda ur, D, W, x, y: ur.analytic.ista(D, 0.1, 8),
    "analytic.certified_weights": lambda ur, D, W, x, y: ur.analytic.certified_weights(D),
    "analytic.lista_cp": lambda ur, D, W, x, y: ur.analytic.lista_cp(D, depth=8, W=W, **CLASS),
    "analytic.alista": lambda ur, D, W, x, y: ur.analytic.alista(D, depth=8, W=W, **CLASS),
    "analytic.alista, per atom": lambda ur, D, W, x, y: ur.analytic.alista(
        D, depth=8, W=W, per_atom=True, **CLASS
    ),
    "analytic.hyperlista": lambda ur, D, W, x, y: ur.analytic.hyperlista(D),
    "analytic.block_schedule": lambda ur, D, W, x, y: ur.analytic.block_schedule(
        D, W, depth=8, **CLASS
    ),
    "analytic.chain_schedules": lambda ur, D, W, x, y: ur.analytic.chain_schedules(
        [D], depths=[8], sparsities=[1], bounds=[1.0], Ws=[W]
    ),
    "analytic.dsc": lambda ur, D, W, x, y: ur.analytic.dsc(
        [D], depths=[8], sparsities=[1], bounds=[1.0]
    ),
    "analytic.plan": lambda ur, D, W, x, y: ur.analytic.plan(
        [D], sparsities=[1], bounds=[1.0], Ws=[W], tol=1e-3
    ),
    "analytic.alista_at": lambda ur, D, W, x, y: ur.analytic.alista_at(D, 8, probability=1e-4),
    "analytic.lamp": lambda ur, D, W, x, y: ur.analytic.lamp(D, 8, probability=1e-4),
    "analytic.calibrate": lambda ur, D, W, x, y: ur.analytic.calibrate(
        ur.alista(4), ur.alista(4).init(None, D), D, y[None], x[None]
    ),
}
# OF_MATRICES need a matrix or convert filters to a matrix; OF_FILTERS need filters.
OF_MATRICES = {"pseudo_inverse", "state_evolution", "sequence_bound", "analytic.lamp"}
OF_MATRICES |= {"generalized_coherence, 4 atoms", "in_float64", "analytic.alista_at"}
OF_FILTERS = {"inner_products", "stripe_norm", "is_csc_feasible"}


def large(name: str) -> dict:
    """Measure one call of theory or analytic in this process."""
    import warnings

    import jax

    import unrolled as ur

    warnings.simplefilter("ignore")
    function, _, of = name.rpartition(" on ")
    if of == "filters":
        filters = jax.random.normal(jax.random.key(0), (16, 1, 7, 7))
        D = ur.dictionaries.normalize(ur.dictionaries.Conv(filters, (PICTURE, PICTURE)))[0]
    else:
        D = ur.dictionaries.gaussian(0, 64, ATOMS)
    W = ur.theory.frobenius_weights(D)
    x = jax.numpy.zeros(D.shape[1]).at[3].set(2.0)
    given = ur, D, W, x, D @ x
    return measured(lambda: jax.block_until_ready(CALLS[function](*given)))


def measured(call: Callable) -> dict:
    """The seconds of a call, and the peak memory of this process while the call runs."""
    peak, over = [_anonymous()], threading.Event()

    def watch():
        while not over.wait(0.02):
            peak[0] = max(peak[0], _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, spent = time.perf_counter(), time.process_time()
    try:
        call()
    finally:
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        over.set()
        watcher.join()
    return {"wall s": round(seconds, 1), "cpu s": round(cpu, 1), "GB": round(peak[0] / 1e6, 2)}


def _anonymous() -> int:
    """RssAnon of this process, in kB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])
