"""Densities of crystals to train on: of all electrons by PAW, with their exact exchange."""

from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.units import Bohr, Hartree
from gpaw import GPAW, PW, KohnShamConvergenceError
from gpaw.new.pw.hybrids import non_self_consistent_hybrid_xc_energy
from gpaw.utilities import pack_density
from jaxtyping import Float

from cider.density import Density
from cider.features.spectral_gradient import spectral_gradient
from cider.features.spherical_shells import SphericalShells
from cider.plugins.gpaw.augmentation import augmentation_spheres
from cider.plugins.gpaw.hook import require_supported_gpaw
from cider.plugins.gpaw.paw_density import PawDensity

_PARTLY = 1e-3
"""Occupation, and lack of one, that an insulator's states do not have."""

_SYMMETRIC = 1e-5
"""Distance (angstrom) from a symmetric place: coordinates of files are rounded."""


class CrystalDensity(NamedTuple):
    """A closed-shell density at the points of ``AugmentedConvolution``, and energies (Ha) of it.

    ``mesh`` are the points along each lattice vector, ``shells`` those of each atom; atoms of one
    data set share one object. ``weights`` (bohr^3) of pseudo densities in spheres are negative.
    """

    density: Density
    weights: Float[np.ndarray, " grid"]
    mesh: tuple[int, ...]
    shells: tuple[SphericalShells, ...]
    exact_exchange: float
    total_energy: float


def crystal_density(
    atoms: Atoms, functional: str, cutoff: float, kpts: tuple[int, int, int], tolerance: float
) -> CrystalDensity:
    """The density of GPAW's ``functional``, and the exact exchange energy of its orbitals.

    Cores are frozen and scalar-relativistic: of exact exchange, differences of energies count. The
    Coulomb interaction is cut off at the Wigner-Seitz cell of the supercell that ``kpts`` stand
    for, about the zone's centre. ``cutoff`` of the plane waves in eV, ``tolerance`` of the density
    in electrons per valence electron.

    Raises:
        ImportError: This version of GPAW is not supported.
        ValueError: The functional is unknown to GPAW, or the crystal is a metal with it.
        RuntimeError: The self-consistent field does not converge.
    """
    require_supported_gpaw()
    calculator = GPAW(
        mode=PW(cutoff),
        xc=functional,
        kpts={"size": kpts, "gamma": True},
        occupations={"name": "fermi-dirac", "width": 0.01},
        symmetry={"tolerance": _SYMMETRIC},
        convergence={"density": tolerance},
        txt=None,
    )
    atoms = atoms.copy()
    atoms.calc = calculator
    try:
        total_energy = atoms.get_potential_energy() / Hartree
    except NameError as error:
        raise ValueError(f"GPAW has no functional {functional!r}: {error}") from None
    except KohnShamConvergenceError as error:
        raise RuntimeError("GPAW's self-consistent field does not converge") from error
    state = calculator.dft
    _, occupations = state.ibzwfs.get_all_eigs_and_occs()
    if np.any((occupations > _PARTLY) & (occupations < 1 - _PARTLY)):
        raise ValueError(
            f"{atoms.get_chemical_formula()} is a metal with {functional}: exact exchange of "
            "partly filled bands converges too slowly with k-points to train on"
        )
    exchange = non_self_consistent_hybrid_xc_energy(state, "EXX", log=None)[3:]

    state.density.update_ked(state.ibzwfs)
    pseudo_rho, _ = state.pot_calc._interpolate_density(state.density.nt_sR)
    grid = pseudo_rho.desc
    rho = pseudo_rho.data.reshape(1, -1)
    tau = state.pot_calc.interpolate(state.density.taut_sR).data.reshape(1, -1)
    pseudo = Density(rho, spectral_gradient(grid.cell, grid.size).apply(rho), tau)
    spheres = augmentation_spheres(state.setups, needs_tau=True)
    all_electrons = PawDensity(grid, spheres, atoms.positions / Bohr)
    matrices = {
        atom: np.array([pack_density(own.real) for own in state.density.D_asii[atom]])
        for atom in spheres
    }
    return CrystalDensity(
        all_electrons.apply(pseudo, matrices),
        all_electrons.weights,
        tuple(int(count) for count in grid.size),
        tuple(sphere.shells for sphere in spheres.values()),
        float(sum(exchange)) / Hartree,
        float(total_energy),
    )
