"""How a curve looks: colour, dashes and marker, by the name of its method."""

from collections.abc import Iterable
from typing import Any

from unrolled._arguments import checked

# Safe for the colour-blind (Okabe and Ito; Tol).
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F7F7F",
    "#000000",
    "#8C564B",
    "#882255",
    "#999933",
    "#332288",
)
# What matplotlib draws with in every figure: of the library, the notebooks and the benchmarks.
STYLE: Any = {
    "font.size": 11,  # 13 pixels where a panel of 5.2 inches has 740
    "axes.titlesize": 12,
    "axes.labelcolor": "#404040",
    "axes.edgecolor": "#808080",
    "xtick.color": "#606060",
    "ytick.color": "#606060",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "unrolled",  # the same drawing gives the same file
}
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
# All pairs, such that neighbours differ in both.
_PAIRS = tuple((_DASHES[(i + i // 12) % 4], _MARKERS[i % 12]) for i in range(48))
# The dashes of a variant, and which of the four markers of its family it has.
_VARIANTS = {"": ("-", 0), "analytic": (":", 1), "calibrated": ("--", 2), "learned": ("-", 3)}
# These look the same in every figure. The first twelve have a colour of their own, the others share
# it with the family twelve places before and have four other markers.
_FAMILIES = (
    *("ista", "fista", "lista_cp", "alista", "alista_ss", "lista", "lista_cpss", "na_alista"),
    *("hyperlista", "lamp_bg", "lamp", "lfista", "lista_ss", "tilista", "step_lista", "glista"),
    *("tista", "ada_lista", "robust_alista", "liht", "alista_at", "vamp_bg", "lfista_cp"),
)

_Look = tuple[str, str, str]  # colour, dashes, marker


@checked
def styles(names: Iterable[str]) -> dict[str, dict]:
    """Line styles by name, "family, variant": no two names share colour, dashes and marker.

    The family gives the colour; the variant ("analytic", "calibrated", "learned" or none) gives
    dashes and marker. Of a family of the library these variants look the same whatever is drawn
    beside them; other families take the colours that are left, in their order.

    Args:
        names: of the curves of a figure.

    Returns:
        Options of `plot` of matplotlib, by name.

    Raises:
        ValueError: more names than there are looks, 576.

    Example:
        >>> looks = ur.plots.styles(["lista", "alista", "alista, analytic"])
        >>> looks["alista, analytic"]
        {'color': '#CC79A7', 'linestyle': ':', 'marker': 's', 'markersize': 4}
    """
    names = list(dict.fromkeys(names))
    most = len(COLOURS) * len(_PAIRS)
    if len(names) > most:
        raise ValueError(f"styles: expected at most {most} names, got {len(names)}")
    pinned = [name for name in names if _family(name) in _FAMILIES]
    pinned.sort(key=lambda name: _variant(name) not in _VARIANTS)  # what has its own look, first
    others = [name for name in names if _family(name) not in _FAMILIES]
    wanted = {name: _pinned(_family(name), _variant(name)) for name in pinned}
    used = {colour for colour, _, _ in wanted.values()}
    free = [colour for colour in COLOURS if colour not in used] or COLOURS
    families = list(dict.fromkeys(map(_family, others)))
    for name in others:
        dash, marker = _VARIANTS.get(_variant(name), ("-", 0))
        colour = free[families.index(_family(name)) % len(free)]
        wanted[name] = colour, dash, _MARKERS[marker]
    taken: dict[_Look, str] = {}
    for name, look in wanted.items():
        taken[next(other for other in _alternatives(look) if other not in taken)] = name
    looks = {name: look for look, name in taken.items()}
    return {name: _options(*looks[name]) for name in names}


def _family(name: str) -> str:
    return name.split(",")[0].strip().lower().replace("-", "_").replace(" ", "_")


def _variant(name: str) -> str:
    """One of `_VARIANTS`, or another word."""
    last = name.split(",")[-1].strip().lower()
    return last if "," in name or last in _VARIANTS else ""


def _pinned(family: str, variant: str) -> _Look:
    """The look of a family of the library."""
    group, place = divmod(_FAMILIES.index(family), len(COLOURS))
    dash, marker = _VARIANTS.get(variant, ("-", 0))
    return COLOURS[place], dash, _MARKERS[4 * group + marker]


def _alternatives(look: _Look) -> Iterable[_Look]:
    """The look, then the others of its colour, then all."""
    yield look
    for colour in (look[0], *COLOURS):
        for dash, marker in _PAIRS:
            yield colour, dash, marker


def _options(colour: str, dash: str, marker: str) -> dict:
    return dict(color=colour, linestyle=dash, marker=marker, markersize=4)
