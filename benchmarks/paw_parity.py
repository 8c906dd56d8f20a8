"""Exchange with PAW in GPAW beside that of the same density, rebuilt for all electrons.

The pseudo density of a calculation is interpolated to the atom-centred grid of PySCF, where
partial waves and cores come on top of it; there the code for molecules evaluates the functional.
PBE and SCAN are evaluated by GPAW's own code: what they differ by is not of learned functionals.

Features on the line through a bond are drawn from both: as GPAW has them, and as sums over the
atom-centred grid by their definition.
"""

import argparse
from pathlib import Path
from typing import Any

import harness
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.units import Bohr
from gpaw import GPAW, PW
from gpaw.new.xc import GGAFunctional, MGGAFunctional
from gpaw.sphere.spherical_harmonics import Y, nablarlYL
from gpaw.utilities import pack_density, unpack_density
from gpaw.xc.gga import GGA
from gpaw.xc.libxc import LibXC
from gpaw.xc.mgga import MGGA
from matplotlib.figure import Figure
from pyscf import dft, gto
from scipy.interpolate import make_interp_spline
from scipy.ndimage import map_coordinates

from cider import CiderFunctional
from cider.density import Density
from cider.features.nldf import Nldf, NldfExponent
from cider.features.spectral_gradient import spectral_gradient
from cider.plugins.gpaw.functional import learned_functional
from cider.plugins.gpaw.learned_energy import LearnedEnergy
from cider.plugins.gpaw.semilocal import semilocal_functional
from cider.plugins.pyscf.grids import becke_convolution

UNPAIRED = {"H": 1, "He": 0, "N": 3, "O": 2, "Ne": 0, "Mg": 0, "Si": 2, "Ar": 0}
"""Electrons of atoms."""

MOLECULES = {"N2": molecule("N2"), "H2O": molecule("H2O"), "SiH4": molecule("SiH4")}
MOLECULES |= {"MgO": Atoms("MgO", [(0, 0, 0), (0, 0, 1.749)])}
SYSTEMS = {symbol: Atoms(symbol) for symbol in UNPAIRED} | MOLECULES

DENSITY = harness.without_learned_part(CiderFunctional("x-sl-gga"))
"""What makes the density: PBE, on the grids of learned functionals."""

LIBXC = ("GGA_X_PBE", "MGGA_X_SCAN")
LEARNED = ("x-sl-mgga", "x-nldf")


def main() -> None:
    parser = harness.options(__doc__, SYSTEMS)
    parser.add_argument("--cutoff", type=float, default=600.0, help="of plane waves, eV")
    parser.add_argument("--box", type=float, default=9.0, help="length of the cubic cell, angstrom")
    parser.add_argument(
        "--features", type=Path, help="image of features of N2 or MgO along the bond, nothing else"
    )
    settings = parser.parse_args()
    if settings.features:
        if len(settings.systems) > 1 or settings.systems[0] not in ("N2", "MgO"):
            parser.error("--features needs --systems N2 or --systems MgO")
        return draw_features(settings, settings.systems[0])
    for system in settings.systems:
        for name, in_gpaw, rebuilt in compared(settings, system):
            print(
                f"{system:4} {settings.cutoff:.0f} eV {name:12} {in_gpaw:.6f} {rebuilt:.6f} Ha "
                f"{1e3 * (in_gpaw - rebuilt):+.3f} mHa",
                flush=True,
            )


def compared(settings: argparse.Namespace, system: str) -> list[tuple[str, float, float]]:
    """Name of each functional, and its exchange energy (Ha) in GPAW and of the rebuilt density."""
    present = Present(settings, system)
    grids = becke_grids(present.atoms)
    density = present.all_electrons(np.asarray(grids.coords))
    columns = density.rho[:, None], density.grad_rho, density.tau[:, None]
    ingredients = np.concatenate(columns, axis=1)
    results = []
    for name in LIBXC:
        level = "MGGA" if name.startswith("MGGA") else "GGA"
        rows = ingredients if level == "MGGA" else ingredients[:, :4]
        per_electron = dft.numint.NumInt().eval_xc_eff(
            name, rows[0] if len(rows) == 1 else rows, deriv=0, xctype=level
        )[0]
        rebuilt = float(per_electron @ (density.rho.sum(axis=0) * grids.weights))
        results.append((name, present.libxc_energy(name), rebuilt))
    for name in LEARNED:
        functional = CiderFunctional(name)
        nldf = functional.learned.descriptors.nldf
        convolution = None if nldf is None else becke_convolution(grids.mol, grids, nldf)
        rebuilt = functional.learned_energy(density, grids.weights, convolution)
        results.append((name, present.learned_energy(functional), rebuilt))
    return results


def draw_features(settings: argparse.Namespace, system: str) -> None:
    """Nonlocal features of a molecule along z on the line through its atoms, from both."""
    present = Present(settings, system)
    functional = CiderFunctional("x-nldf")
    nldf = functional.learned.descriptors.nldf
    along, in_gpaw = present.features_along_z(functional)
    places = np.tile(present.atoms.positions[0] / Bohr, (len(along), 1))
    places[:, 2] = along
    by_definition = features_by_definition(present, nldf, places)
    error = np.abs(in_gpaw / by_definition - 1)
    print(f"{system}: features differ by {error.max():.1e} at most, {np.median(error):.1e} median")
    figure = Figure(layout="constrained")
    axes = figure.subplots(2, sharex=True)
    for name, own, expected, differs in zip(nldf.names, in_gpaw, by_definition, error, strict=True):
        line = axes[0].plot(along * Bohr, expected, label=name)[0]
        axes[0].plot(along * Bohr, own, ".", color=line.get_color(), markersize=3)
        axes[1].semilogy(along * Bohr, differs, ".", color=line.get_color(), markersize=3)
    axes[0].set(ylabel="feature", title=f"{system}: GPAW (dots), sums over Becke's grid (lines)")
    axes[0].legend(fontsize="small")
    axes[1].set(xlabel="z (angstrom)", ylabel="relative difference")
    figure.savefig(settings.features, dpi=120)


def features_by_definition(present: "Present", nldf: Nldf, places: np.ndarray) -> np.ndarray:
    """Sums over Becke's grid for each feature, at places (bohr)."""
    grids = becke_grids(present.atoms)

    def exponents(points: np.ndarray, of: tuple[NldfExponent, ...]) -> tuple[np.ndarray, list]:
        density = present.all_electrons(points)
        rho, tau = density.rho[0], density.tau[0]
        sigma = np.sum(density.grad_rho[0] ** 2, axis=0)
        return rho, [np.asarray(own(np.maximum(rho, 1e-10), sigma, tau)) for own in of]

    coords = np.asarray(grids.coords)
    rho, (sources,) = exponents(coords, (nldf.source_exponent,))
    _, targets = exponents(places, nldf.exponents)
    features = np.empty((len(targets), len(places)))
    for index, place in enumerate(places):
        squares = np.sum((coords - place) ** 2, axis=1)
        for row, own in enumerate(targets):
            kernel = np.exp(-(own[index] + sources) * squares)
            features[row, index] = np.sum(grids.weights * rho * kernel)
    return features


def becke_grids(atoms: Atoms) -> Any:
    """PySCF's grid of level 3 about the same positions."""
    places = zip(atoms.get_chemical_symbols(), atoms.positions / Bohr, strict=True)
    mol = gto.M(atom=list(places), unit="Bohr", basis="sto-3g", spin=None, verbose=0)
    grids = dft.RKS(mol, xc=CiderFunctional("x-nldf")).grids
    grids.build()
    return grids


class Present:
    """The converged density of a system in a box."""

    def __init__(self, settings: argparse.Namespace, system: str):
        self.atoms = SYSTEMS[system].copy()
        self.atoms.set_cell([settings.box] * 3)
        self.atoms.pbc = True
        self.atoms.center()
        unpaired = UNPAIRED.get(system, 0)
        parameters: dict[str, Any] = {"convergence": {"density": 1e-6}, "txt": None}
        if unpaired:
            self.atoms.set_initial_magnetic_moments([unpaired])
            levels = {"name": "fermi-dirac", "width": 0.01, "fixmagmom": True}
            parameters |= {"occupations": levels, "nbands": 4}
        self.atoms.calc = GPAW(mode=PW(settings.cutoff), xc=DENSITY, **parameters)
        self.atoms.get_potential_energy()
        state = self.atoms.calc.dft
        state.density.update_ked(state.ibzwfs)
        self.setups = state.setups
        self.nt_sr, _ = state.pot_calc._interpolate_density(state.density.nt_sR)
        self.taut_sr = state.pot_calc.interpolate(state.density.taut_sR)
        self.matrices = {
            atom: np.array([pack_density(D_ii) for D_ii in D_sii])
            for atom, D_sii in state.density.D_asii.items()
        }

    def libxc_energy(self, name: str) -> float:
        """Exchange energy (Ha) as GPAW has it."""
        kernel = LibXC(name)
        if kernel.type == "MGGA":
            functional = MGGAFunctional(MGGA(kernel), self.nt_sr.desc)
        else:
            functional = GGAFunctional(GGA(kernel), self.nt_sr.desc)
        energy = functional.calculate(self.nt_sr, self.taut_sr)[0]
        for atom, setup in enumerate(self.setups):
            own = self.matrices[atom]
            energy += functional.calculate_paw_correction(setup, own, np.zeros_like(own), atom)
            energy += setup.xc_correction.e_xc0
        return float(energy)

    def learned_energy(self, functional: CiderFunctional) -> float:
        """Exchange energy (Ha) of a learned functional with PAW."""
        return float(self._whole(functional).calculate(self.nt_sr, self.taut_sr)[0])

    def _whole(self, functional: CiderFunctional) -> Any:
        """GPAW's object of a learned functional, for this density."""
        positions = self.atoms.get_scaled_positions()
        learned = LearnedEnergy(functional, self.nt_sr.desc, self.setups, positions)
        whole = learned_functional(semilocal_functional(functional), learned)
        whole.matrices = self.matrices
        return whole

    def features_along_z(self, functional: CiderFunctional) -> tuple[np.ndarray, np.ndarray]:
        """Places (bohr) along z through the first atom, and features of all electrons there."""
        whole = self._whole(functional)
        learned = whole.learned
        pseudo = whole._density(self.nt_sr, self.taut_sr)
        density = learned.all_electrons.apply(pseudo, self.matrices)
        nldf = functional.learned.descriptors.nldf
        rho, tau = np.maximum(density.rho[0], 1e-10), density.tau[0]
        sigma = np.sum(density.grad_rho[0] ** 2, axis=0)
        fields = learned.convolution.apply(np.asarray(nldf.sources(rho, sigma, tau)))
        features = np.asarray(nldf.features(rho, sigma, tau, fields))

        grid, centers = self.nt_sr.desc, self.atoms.positions / Bohr
        points = [grid.xyz().reshape(-1, 3)]
        wanted = [np.ones(len(points[0]), dtype=bool)]
        for center, sphere in zip(centers, learned.all_electrons.spheres.values(), strict=True):
            distances = np.linalg.norm(points[0] - center, axis=1)
            wanted[0] &= distances > sphere.shells.radii[-1]
            points += [center + sphere.shells.points] * 2
            wanted += [np.full(sphere.shells.num_points, own) for own in (True, False)]
        points, wanted = np.concatenate(points), np.concatenate(wanted)
        wanted &= np.all(np.abs(points[:, :2] - centers[0, :2]) < 1e-6, axis=1)
        chosen = np.flatnonzero(wanted)[np.argsort(points[wanted, 2], kind="stable")]
        return points[chosen, 2], features[:, chosen]

    def all_electrons(self, points: np.ndarray) -> Density:
        """The density of all electrons at points (bohr); none outside of the box."""
        grid = self.nt_sr.desc
        num_spins = len(self.nt_sr.data)
        rho = self.nt_sr.data.reshape(num_spins, 1, -1)
        gradients = spectral_gradient(grid.cell, grid.size).apply(rho[:, 0])
        tau = self.taut_sr.data.reshape(num_spins, 1, -1)
        on_grid = np.concatenate([rho, gradients, tau], axis=1)
        places = points @ np.linalg.inv(grid.cell)
        inside = np.all((places >= 0) & (places <= 1), axis=1)
        values = np.zeros((num_spins, 5, len(points)))
        indices = (places[inside] * grid.size).T
        for spin, row in np.ndindex(num_spins, 5):
            by_mesh = on_grid[spin, row].reshape(grid.size)
            values[spin, row, inside] = map_coordinates(by_mesh, indices, order=5, mode="grid-wrap")
        for atom, center in enumerate(self.atoms.positions / Bohr):
            correction = self.setups[atom].xc_correction
            near = np.linalg.norm(points - center, axis=1) < correction.rgd.r_g[correction.ng - 1]
            values[:, :, near] += added_by_sphere(
                correction, unpack_density(self.matrices[atom]), points[near] - center
            )
        return Density(values[:, 0], values[:, 1:4], values[:, 4])


def added_by_sphere(correction: Any, matrices: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Density, gradient and tau of each spin: all-electron less pseudo, at offsets (bohr)."""
    kinds = (
        (1, correction.phi_jg, correction.nc_g, correction.tauc_g),
        (-1, correction.phit_jg, correction.nct_g, correction.tauct_g),
    )
    radii = np.linalg.norm(offsets, axis=1)
    directions = offsets / radii[:, None]
    added = np.zeros((len(matrices), 5, len(offsets)))
    for sign, waves, core, core_tau in kinds:
        radial = [with_slope(correction.rgd, wave, radii) for wave in waves]
        core_rho, core_slope = with_slope(correction.rgd, core, radii)
        values, gradients = [], []
        for index, l, lm in correction.jlL:
            harmonic = Y(lm, *directions.T)
            along = np.array([nablarlYL(lm, direction) for direction in directions])
            across = along - l * directions * harmonic[:, None]
            value, slope = radial[index]
            values.append(harmonic * value)
            gradients.append((harmonic * slope) * directions.T + across.T * value / radii)
        products = np.einsum("ip,jp,sij->sp", values, values, matrices, optimize=True)
        slopes = 2 * np.einsum("ip,jvp,sij->svp", values, gradients, matrices, optimize=True)
        tau = np.einsum("ivp,jvp,sij->sp", gradients, gradients, matrices, optimize=True) / 2
        share = 1 / len(matrices)
        added[:, 0] += sign * (products + share * core_rho)
        added[:, 1:4] += sign * (slopes + share * core_slope * directions.T)
        core_part = with_slope(correction.rgd, core_tau, radii)[0] / np.sqrt(4 * np.pi)
        added[:, 4] += sign * (tau + share * core_part)
    return added


def with_slope(grid: Any, values: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A function of the radius and its derivative, from values on the grid r = a g / (1 - b g)."""
    spline = make_interp_spline(np.arange(len(values)), values, k=5)
    places = radii / (grid.a + grid.b * radii)
    slopes = spline.derivative()(places) * (1 - grid.b * places) ** 2 / grid.a
    return spline(places), slopes


if __name__ == "__main__":
    main()
