"""The published exchange models here and in ciderpress, in one process and on the same grids.

Exchange energies at one density matrix, self-consistent energies, seconds and memory. Where
exchange energies differ by more than 1e-6 Ha, features by direct sums (of the density matrix: by
converged integrals) decide which is nearer: the exponents and the model are then those of
ciderpress, so that nothing of ours is in that energy.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import harness
from geometries import from_ase
from scf import steps

SYSTEMS = {
    "H2O": (from_ase("H2O"), 0),
    "O2": (from_ase("O2"), 2),
    "Fe": ("Fe", 4),
    "SO2": (from_ase("SO2"), 0),
    "benzene": (from_ase("C6H6"), 0),
}
"""Atoms, as PySCF reads them, and the number of unpaired electrons."""

MODELS = (
    *("SL_GGA", "SL_MGGA", "NL_GGA", "NL_MGGA", "NL_MGGA_PBE", "NL_MGGA_DTR"),
    *("CIDER24Xne", "CIDER24Xe"),
)
"""Those whose names begin with CIDER23X, which is left out, and those with SDMX features."""

CODES = ("cider", "ciderpress")
PARTS = ("energies", "scf", "times")
CORRELATION = "GGA_C_PBE"
"""Beside the learned exchange, in self-consistent energies and times."""

NEGLIGIBLE = 36.0
"""Direct sums leave out Gaussians below e to minus this, 2e-16."""

RADII_PER_OCTAVE = 8
SMALLEST_RADIUS, LARGEST_RADIUS = 1e-8, 1e3
"""Of converged integrals over R (bohr)."""

LEAST_DIFFERENCE = 1e-6
"""Exchange energies (Ha) further apart than this are compared with direct sums."""


def main() -> None:
    parser = harness.options(__doc__, SYSTEMS)
    parser.set_defaults(functional="published models")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    settings = parser.parse_args()
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="ciderpress")  # 0/0 at p = 0
    if settings.measure:
        print(json.dumps(measure(settings, settings.systems[0])))
        return
    results = [run(settings, system) for system in settings.systems]
    packages = (*harness.PACKAGES, "ciderpress")
    harness.report(settings, "Parity with ciderpress", results, packages)


def run(settings: argparse.Namespace, system: str) -> dict:
    """All of one system; each time and each peak of memory in a process of its own."""
    results = []
    for part in settings.parts:
        groups = [[m] for m in settings.models] if part == "times" else [settings.models]
        for group in groups:
            name = " ".join([part, *group])
            results.append(harness.in_fresh_process(settings, name, system))
    if "times" in settings.parts:
        rows = []
        for model in settings.models:
            peaks = {
                code: harness.in_fresh_process(settings, f"memory {model} {code}", system)
                for code in CODES
            }
            rows += [
                {"fitted SCF": f"{model}, {code}", "peak memory (GB)": peak}
                for code, peak in peaks.items()
            ]
        results.append({**results[-1], "tables": {"memory": rows}})
    checks = list(dict.fromkeys(check for result in results for check in result["checks"]))
    tables = {name: rows for result in results for name, rows in result["tables"].items()}
    return {**results[0], "checks": checks, "tables": tables}


def measure(settings: argparse.Namespace, system: str) -> Any:
    """One part: ``energies``, ``scf`` or ``times`` of models, or ``memory`` of one in one code."""
    kind, *names = settings.measure.split()
    mol, dm = molecule(settings, system)
    level = settings.grid_level
    if kind == "memory":
        model, code = names
        mf = mean_field(mol, model, code, level).density_fit()
        step = steps(mf, dm)
        for _ in range(3):
            step()
        return harness.peak_memory()
    grids = mean_field(mol, names[0], "cider", level).grids
    checks = [check_grids(mol, name, level) for name in names]
    if kind == "energies":
        energies = exchange_energies(mol, dm, names, level)
        tables = {"energies": [energy_row(name, *found) for name, found in energies.items()]}
    elif kind == "scf":
        tables = {"scf": [self_consistent(mol, dm, name, level) for name in names]}
    else:
        tables = times(mol, dm, names[0], level, settings.repeats)
    return harness.result(system, mol, grids, checks, tables)


def molecule(settings: argparse.Namespace, system: str) -> tuple[Any, Any]:
    """A molecule, and its density matrix of PBE: with a spin axis for open shells."""
    from pyscf import dft, gto

    atom, spin = SYSTEMS[system]
    mol = gto.M(atom=atom, spin=spin, basis=settings.basis, verbose=0)
    mf = dft.KS(mol, xc="PBE").density_fit()
    mf.grids.level = settings.grid_level
    mf.kernel()
    if not mf.converged:
        mf = mf.newton()
        mf.kernel(mf.mo_coeff, mf.mo_occ)
    return mol, mf.make_rdm1()


def mean_field(mol: Any, model: str, code: str, level: int) -> Any:
    """A Kohn-Sham calculation of one of the codes, with built grids."""
    from ciderpress.pyscf.dft import make_cider_calc
    from pyscf import dft

    from cider import CiderFunctional
    from cider.ciderpress_model import installed_models

    mf = dft.KS(mol)
    mf.grids.level = level
    name = model if model.startswith("CIDER") else f"CIDER23X_{model}"
    if code == "cider":
        (path,) = (path for path in installed_models() if path.stem == name)
        mf.xc = CiderFunctional.from_ciderpress(path, correlation=CORRELATION)
    else:
        mf = make_cider_calc(mf, name, ckernel=CORRELATION)
        mf._numint.build(mol)
    mf.grids.build(with_non0tab=True)
    return mf


def check_grids(mol: Any, model: str, level: int) -> str:
    """That both codes have the same points, in whatever order; in words.

    Raises:
        RuntimeError: They differ.
    """
    import numpy as np

    tables = []
    for code in CODES:
        grids = mean_field(mol, model, code, level).grids
        table = np.column_stack([grids.coords, grids.weights])
        tables.append(table[np.lexsort(table.round(8).T)])
    if tables[0].shape != tables[1].shape or abs(tables[0] - tables[1]).max() > 1e-10:
        raise RuntimeError(f"{model}: the grids of the two codes differ")
    return "the same points and weights in both codes"


# Energies.


def exchange_energies(
    mol: Any, dm: Any, models: Sequence[str], level: int
) -> dict[str, tuple[float, float, float | None]]:
    """Exchange energy (Ha) of one density matrix: ours, theirs, and by direct sums.

    Direct sums stand only where the others differ by more than ``LEAST_DIFFERENCE``.
    """
    found: dict[str, tuple[float, float, float | None]] = {}
    kept: dict[str, Any] = {}  # models that have the same features
    for model in models:
        ours, theirs = (exchange_energy(mol, dm, model, code, level) for code in CODES)
        direct = None
        if abs(ours - theirs) > LEAST_DIFFERENCE:
            integrator, grids = direct_setting(mol, model, level)
            settings = integrator.settings
            key = f"{vars(settings.nldf_settings)} {vars(settings.sdmx_settings)}"
            if key not in kept:
                of_density_matrix = settings.nldf_settings.is_empty
                make = converged_features if of_density_matrix else direct_features
                kept[key] = make(integrator, mol, grids, dm)
            direct = energy_of_features(integrator, mol, grids, dm, kept[key])
        found[model] = ours, theirs, direct
    return found


def exchange_energy(mol: Any, dm: Any, model: str, code: str, level: int) -> float:
    """Of one of the codes, without correlation."""
    from cider import CiderFunctional

    mf = mean_field(mol, model, code, level)
    if code == "cider":
        xc: Any = CiderFunctional(mf.xc.learned.exchange)
    else:
        mf._numint.slxc, xc = "", mf.xc
    evaluate = mf._numint.nr_rks if dm.ndim == 2 else mf._numint.nr_uks
    return float(evaluate(mol, mf.grids, xc, dm)[1])


def direct_setting(mol: Any, model: str, level: int) -> tuple[Any, Any]:
    """The integrator of ciderpress, without correlation and with its features set up; its grids."""
    mf = mean_field(mol, model, "ciderpress", level)
    integrator = mf._numint
    integrator.slxc = ""
    integrator.initialize_feature_generators(mol, mf.grids, 1 if mol.spin == 0 else 2)
    return integrator, mf.grids


def direct_features(integrator: Any, mol: Any, grids: Any, dm: Any) -> Any:
    """Features by their definition at the points of ``grids``, with the exponents of ciderpress.

    Sums over grids of the same level that are not pruned: shape (spin, feature, grid). Zero where
    the density is below the cutoff of ciderpress.
    """
    import numpy as np
    from pyscf import dft

    plan = integrator.nldfgen.plan
    sources = dft.Grids(mol).set(level=grids.level, prune=None)
    sources.build()
    summed = direct_sums()

    def exponent(rho: Any, number: int) -> Any:
        # A plan of two spins scales the density itself.
        return plan.eval_feat_exp(plan.get_rho_tuple(rho / plan.nspin), i=number)[0]

    num_features = integrator.settings.nldf_settings.nfeat
    features = []
    for own in spin_scaled(dm):
        rho, rho_of_sources = ingredients(mol, own, grids), ingredients(mol, own, sources)
        inside, dense = (r[0] > plan.nspin * plan.rhocut for r in (rho, rho_of_sources))
        exponents = [exponent(rho[:, inside], i) for i in range(num_features)]
        values = np.zeros((num_features, len(inside)))
        values[:, inside] = summed(
            sources.coords[dense],
            (sources.weights * rho_of_sources[0])[dense],
            exponent(rho_of_sources[:, dense], -1),
            grids.coords[inside],
            np.stack(exponents, axis=1),
        ).T
        features.append(values)
    return np.stack(features)


def direct_sums() -> Callable[..., Any]:
    r"""Sums :math:`\sum_s q_s e^{-(a_s + b_{ti}) |r_s - r_t|^2}` at each target, in threads.

    Arguments: r_s, q_s, a_s of the sources, r_t and b_ti of the targets.
    """
    import numba
    import numpy as np

    @numba.njit(parallel=True, error_model="numpy")
    def summed(coords: Any, charges: Any, exponents: Any, targets: Any, own: Any) -> Any:
        sums = np.zeros(own.shape)
        for t in numba.prange(len(targets)):
            for s in range(len(coords)):
                dx = coords[s, 0] - targets[t, 0]
                dy = coords[s, 1] - targets[t, 1]
                dz = coords[s, 2] - targets[t, 2]
                squared = dx * dx + dy * dy + dz * dz
                for i in range(own.shape[1]):
                    argument = (exponents[s] + own[t, i]) * squared
                    if argument < NEGLIGIBLE:
                        sums[t, i] += charges[s] * np.exp(-argument)
        return sums

    return summed


def converged_features(integrator: Any, mol: Any, grids: Any, dm: Any) -> Any:
    r"""Features of the density matrix by their definition, at the points of ``grids``.

    With :math:`\rho^0` and :math:`\rho^1` of the paper (J. Chem. Theory Comput. 20, 7516), those
    that ciderpress calls 1d are of :math:`\partial_R(R\rho^1)`. Shape (spin, feature, grid); zero
    where the density is below the cutoff of ciderpress.
    """
    import numpy as np

    settings = integrator.settings.sdmx_settings
    terms = [(3, n, slope) for n, slope in settings.iterate_l0_terms(1.0)]
    terms += [(5, n, slope) for n, slope in settings.iterate_l1_terms(1.0)]
    step = math.log(2) / RADII_PER_OCTAVE
    log_radii = np.arange(math.log(SMALLEST_RADIUS), math.log(LARGEST_RADIUS), step)
    smoothed = [smoothed_orbitals(mol, 2 * math.exp(-2 * x)) for x in log_radii]
    features = []
    for own in spin_scaled(dm):
        inside = ingredients(mol, own, grids)[0] > integrator.rhocut
        values = np.zeros((len(terms), len(inside)))
        for block in np.array_split(np.flatnonzero(inside), 1 + sum(inside) // 2000):
            fields = smoothed_density_matrix(mol, own, grids.coords[block], smoothed, step)
            radii = np.exp(log_radii[-fields.shape[1] - 4 : -4])
            for row, (power, n, slope) in zip(values, terms, strict=True):
                value, by_log = (f[:, :1] if power == 3 else f[:, 1:] for f in fields)
                read = value if not slope else by_log if power == 3 else value + by_log
                squares = np.sum(read**2, axis=1)
                row[block] = -math.pi * step * radii ** (power - n) @ squares
        features.append(values)
    return np.stack(features)


def smoothed_orbitals(mol: Any, exponent: float) -> Any:
    """The molecule with its orbitals convolved with a Gaussian of unit integral."""
    import numpy as np
    from pyscf import gto

    smoothed = mol.copy(deep=False)
    smoothed._env = mol._env.copy()
    shells = {(row[gto.PTR_EXP], row[gto.PTR_COEFF]): row for row in mol._bas}
    for (start, first), row in shells.items():
        size, contracted = row[[gto.NPRIM_OF, gto.NCTR_OF]]
        own = slice(start, start + size)
        coefficients = slice(first, first + size * contracted)
        share = exponent / (mol._env[own] + exponent)
        smoothed._env[own] *= share
        smoothed._env[coefficients] *= np.tile(share ** (row[gto.ANG_OF] + 1.5), contracted)
    return smoothed


def smoothed_density_matrix(mol: Any, dm: Any, coords: Any, smoothed: Any, step: float) -> Any:
    """The density matrix smoothed by h, its gradient, and the slopes of both by ln R.

    Shape (value or slope, radius, component, grid); without four radii at each end, for the second
    Gaussian of h and for differences of the eighth order.
    """
    import numpy as np
    from pyscf import dft

    coefficients = dft.numint.eval_ao(mol, coords) @ dm
    single = np.stack(
        [
            np.einsum("xgi,gi->xg", dft.numint.eval_ao(own, coords, deriv=1), coefficients)
            for own in smoothed
        ]
    )
    # The second Gaussian, of twice the exponent, is that of a smaller radius by half an octave.
    shift = RADII_PER_OCTAVE // 2
    values = (single[shift:] - 2**-1.5 * single[:-shift]) / (1 - 2**-1.5)
    weights = np.array([1 / 280, -4 / 105, 1 / 5, -4 / 5, 0, 4 / 5, -1 / 5, 4 / 105, -1 / 280])
    windows = (values[i : len(values) - 8 + i] for i in range(9))
    slopes = sum(weight * own for weight, own in zip(weights, windows, strict=True)) / step
    return np.stack([values[4:-4], slopes])


def energy_of_features(integrator: Any, mol: Any, grids: Any, dm: Any, features: Any) -> float:
    """Exchange energy (Ha) that ciderpress makes of given features (spin, feature, grid)."""
    import numpy as np

    num_ingredients = 5 if integrator.settings.sl_settings.level == "MGGA" else 4
    rho = np.stack([ingredients(mol, own, grids) for own in spin_scaled(dm)])
    rho = rho[:, :num_ingredients] / len(rho)
    if len(rho) == 1:
        rho, features = rho[0], features[0]
    given = (None, features) if integrator.settings.nldf_settings.is_empty else (features, None)
    energy_per_electron = integrator.eval_xc_cider(None, rho, *given)[0]
    density = rho[0] if dm.ndim == 2 else rho[:, 0].sum(axis=0)
    return float(np.sum(grids.weights * density * energy_per_electron))


def spin_scaled(dm: Any) -> Any:
    """Density matrices (spin, ao, ao), of each spin twice itself."""
    return dm[None] if dm.ndim == 2 else 2 * dm


def ingredients(mol: Any, dm: Any, grids: Any) -> Any:
    """rho, its gradient, and tau: shape (5, grid)."""
    import numpy as np
    from pyscf import dft

    blocks = (grids.coords[i : i + 20000] for i in range(0, len(grids.coords), 20000))
    parts = [
        dft.numint.eval_rho(
            mol, dft.numint.eval_ao(mol, block, deriv=1), dm, xctype="MGGA", with_lapl=False
        )
        for block in blocks
    ]
    return np.hstack(parts)


def energy_row(model: str, ours: float, theirs: float, direct: float | None) -> dict[str, Any]:
    """Energies as text, in Ha; differences in micro-Ha."""
    differences = {"cider − ciderpress": ours - theirs}
    if direct is not None:
        differences |= {"cider − direct": ours - direct, "ciderpress − direct": theirs - direct}
    columns = ("cider − ciderpress", "cider − direct", "ciderpress − direct")
    return {
        "exchange at one density": model,
        "cider (Ha)": f"{ours:.7f}",
        **{
            f"{name} (µHa)": f"{1e6 * differences[name]:+.2f}" if name in differences else ""
            for name in columns
        },
    }


def self_consistent(mol: Any, dm: Any, model: str, level: int) -> dict[str, Any]:
    """Total energies of both codes, from the same start."""
    energies, cycles = {}, {}
    for code in CODES:
        mf = mean_field(mol, model, code, level).density_fit()
        mf.conv_tol = 1e-9
        mf.kernel(dm)
        energies[code] = mf.e_tot
        cycles[code] = f"{mf.cycles}" + ("" if mf.converged else ", not converged")
    return {
        "self-consistent": model,
        "cider (Ha)": f"{energies['cider']:.7f}",
        "cider − ciderpress (µHa)": f"{1e6 * (energies['cider'] - energies['ciderpress']):+.2f}",
        **{f"cycles, {code}": cycles[code] for code in CODES},
    }


# Times.


def times(mol: Any, dm: Any, model: str, level: int, repeats: int) -> dict[str, list[dict]]:
    """Seconds of an SCF iteration and of the first cycle, with density fitting, beside PBE."""
    from pyscf import dft

    functions: dict[str, Callable] = {}
    for code in CODES:
        functions[f"{model}, {code}"] = steps(mean_field(mol, model, code, level).density_fit(), dm)
    semilocal = dft.KS(mol, xc="PBE").density_fit()
    semilocal.grids.level = level
    functions[f"{model}: PBE"] = steps(semilocal, dm)
    first = {name: [harness.seconds(function)] for name, function in functions.items()}
    repeated = harness.interleaved(functions, repeats)
    references = [f"{model}: PBE"]
    return {
        f"times {model}": harness.rows_of(repeated, references),
        f"first cycle {model}": harness.rows_of(
            {f"first cycle, {name}": values for name, values in first.items()},
            [f"first cycle, {name}" for name in references],
        ),
    }


if __name__ == "__main__":
    main()
