"""Seconds of nr_rks, nr_uks and of the nonlocal part in growing clusters of water, and a curve."""

import argparse
import json
import statistics
from pathlib import Path

import harness
from geometries import water_cluster

SHAPES = {4: (1, 2, 2), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
"""Molecules along each edge of a cluster, by their number."""

UNRESTRICTED = 8
"""Most molecules for which both spins are timed."""


def main() -> None:
    parser = harness.options(__doc__, ())
    parser.set_defaults(basis="def2-svp", repeats=3)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--plot", type=Path, help="PNG of the curve")
    settings = parser.parse_args()
    rows = [measure(settings, size) for size in settings.sizes]
    print("\n".join(harness.table(rows)))
    for name in ("learned", "PBE", "R2SCAN", "nonlocal part"):
        print(f"exponent of {name}: {exponent(rows, name):.2f}")
    print(json.dumps(harness.machine()))
    if settings.plot:
        plot(rows, settings.plot)


def measure(settings: argparse.Namespace, size: int) -> dict:
    """Medians of a cluster, in seconds; the nonlocal part is the convolution and its transpose."""
    import numpy as np
    from pyscf import dft

    from cider.plugins.pyscf.grids import becke_convolution
    from cider.plugins.pyscf.numint import CiderNumInt

    functional = harness.learned(settings.functional)
    mol, grids, dm = harness.prepared(settings, water_cluster(*SHAPES[size]))
    integrator, semilocal = CiderNumInt(), dft.numint.NumInt()
    nldf = functional.learned.descriptors.nldf
    convolution = becke_convolution(mol, grids, nldf)
    fields = np.ones((len(grids.weights), len(nldf.target_ladder.exponents)))
    sources = convolution.transpose(fields)
    stages = {
        "learned": lambda: integrator.nr_rks(mol, grids, functional, dm),
        "PBE": lambda: semilocal.nr_rks(mol, grids, "PBE", dm),
        "R2SCAN": lambda: semilocal.nr_rks(mol, grids, "R2SCAN", dm),
        "nonlocal part": lambda: (convolution.apply(sources), convolution.transpose(fields)),
    }
    if size <= UNRESTRICTED:
        both = np.stack([dm, dm]) / 2
        stages["learned, both spins"] = lambda: integrator.nr_uks(mol, grids, functional, both)
    for stage in stages.values():
        stage()
    times = harness.interleaved(stages, settings.repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    facts = {"molecules": size, "orbitals": mol.nao, "points": len(grids.weights)}
    return {**facts, "learned, both spins": None, **medians}


def exponent(rows: list[dict], name: str) -> float:
    """Slope of the logarithm of the times by that of the number of molecules."""
    import numpy as np

    sizes, times = ([row[key] for row in rows] for key in ("molecules", name))
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def plot(rows: list[dict], path: Path) -> None:
    """Both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    sizes = [row["molecules"] for row in rows]
    styles = {"learned": "o-", "nonlocal part": "o--", "R2SCAN": "s-", "PBE": "^-"}
    for name, style in styles.items():
        label = f"{name}, exponent {exponent(rows, name):.2f}"
        axes.loglog(sizes, [row[name] for row in rows], style, label=label)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="water molecules", ylabel="seconds")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
