"""What builds a plane-wave calculation with a learned functional."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gpaw.core import UGDesc
from gpaw.dft import MSR1
from gpaw.fftw import get_efficient_fft_size
from gpaw.new.builder import create_uniform_grid
from gpaw.new.pw.builder import PWDFTComponentsBuilder
from gpaw.new.pw.hamiltonian import PWHamiltonian
from gpaw.new.pw.pot_calc import PlaneWavePotentialCalculator
from gpaw.new.scf import SCFLoop
from gpaw.new.xc import create_functional
from gpaw.utilities import pack_density

from cider.functional import CiderFunctional
from cider.plugins.gpaw.functional import learned_functional
from cider.plugins.gpaw.hamiltonian import ProductRuleHamiltonian
from cider.plugins.gpaw.learned_energy import LearnedEnergy

FINER = 1.2
"""Points of the grid of the energy for each of that of wave functions, along a vector.

With 1.1, fewer Gaussians are smooth on it (N2 at 400 eV is off by 4 mHa); with 1.4, which is GPAW's
finer grid, energies of crystals and molecules change by 0.1 to 0.3 mHa, most of it PBE's own.
"""

FIRST_STEP = 0.25
"""Of the density, as a share of the way to that of the first orbitals; GPAW's own is 0.05."""


def cider_builder(
    functional: CiderFunctional, atoms: Any, params: Any, *, comm: Any, log: Any
) -> "CiderBuilder":
    """The builder of a calculation.

    Raises ``NotImplementedError`` for modes and settings that are not available.
    """
    if functional.reads_density_matrix:
        raise NotImplementedError(
            f"{functional} reads the density matrix (SDMX features), which is not available in "
            "GPAW: choose a functional of the density, such as 'x-nldf'"
        )
    if params.mode.name != "pw":
        raise NotImplementedError(
            f"{functional} is not available in mode {params.mode.name!r}: use mode=PW(ecut)"
        )
    if functional.learned.dispersion:
        raise NotImplementedError(
            f"{functional} was trained beside the dispersion correction "
            f"{functional.learned.dispersion}, which is available with PySCF only"
        )
    if params.mode.dtype != "double":
        raise NotImplementedError(f"{functional} needs double precision: PW(ecut, dtype='double')")
    return CiderBuilder(functional, atoms, params, comm=comm, log=log)


class CiderBuilder(PWDFTComponentsBuilder):
    """GPAW's, with a learned part of the functional."""

    xc: Any

    def __init__(
        self, functional: CiderFunctional, atoms: Any, params: Any, *, comm: Any, log: Any
    ):
        super().__init__(atoms, params, comm=comm, log=log)
        if self.gpu:
            raise NotImplementedError(
                f"{functional} is not available on GPUs: parallel={{'gpu': False}}"
            )
        if self.xc.type == "MGGA" and any(setup.tauct is None for setup in self.setups):
            raise NotImplementedError(
                f"{functional} reads the kinetic energy density, which a data set or "
                "pseudopotential here does not have of its core: use setups='paw', or a "
                "functional of GGA level"
            )
        learned = LearnedEnergy(functional, self.fine_grid, self.setups, self.relpos_ac)
        self.xc = learned_functional(self.xc.xc, learned)

    def create_uniform_grids(self) -> tuple[UGDesc, UGDesc]:
        """That of wave functions, which holds their products unless told, and that of the energy.

        GPAW's holds half of their kinetic energies, and twice as many points along each vector are
        what its energy takes. What is folded back makes densities negative and tau less than that
        of one orbital: in vacuum, potentials followed that noise.
        """
        grid = create_uniform_grid(
            "pw",
            self.params.gpts,
            self.atoms.cell,
            self.atoms.pbc,
            self.ibz.symmetries,
            h=self.params.h,
            ecut=2 * self.ecut,
            comm=self.communicators["d"],
        )
        sizes = [get_efficient_fft_size(round(FINER * size)) for size in grid.size_c]
        return grid, grid.new(size=sizes)

    def create_mixer(self) -> Any:
        """GPAW's, but where none is asked for its first step is longer.

        After GPAW's short one, the next goes up to fifty times as far: in N2 to densities below
        zero, of which nothing converged.
        """
        if "mixer" not in self.params.todict():
            self.params.mixer = MSR1(beta=FIRST_STEP)
        return super().create_mixer()

    def create_scf_loop(self) -> "CiderScfLoop":
        """GPAW's, which begins with the orbitals' kinetic energy density."""
        loop = super().create_scf_loop()
        own = CiderScfLoop(
            loop.hamiltonian,
            loop.occ_calc,
            loop.eigensolver,
            loop.mixer,
            loop.comm,
            {},
            loop.maxiter,
        )
        own.convergence = loop.convergence
        return own

    def create_hamiltonian_operator(self, blocksize: int = 10) -> PWHamiltonian:
        """GPAW's, or that of grids like ours."""
        if self.grid.ekin_max() < 4 * self.ecut:
            return super().create_hamiltonian_operator(blocksize)
        return ProductRuleHamiltonian(self.grid, self.dtype)

    def create_potential_calculator(self) -> "CiderPotentialCalculator":
        """GPAW's, which passes density matrices on to the functional."""
        extensions = self.get_extensions()
        return CiderPotentialCalculator(
            self.grid,
            self.fine_grid,
            self.interpolation_desc,
            self.setups,
            self.xc,
            self.create_poisson_solver(extensions),
            relpos_ac=self.relpos_ac,
            atomdist=self.atomdist,
            soc=self.soc,
            xp=self.xp,
            extensions=extensions,
        )


class CiderScfLoop(SCFLoop):
    """Begins with the functional itself as soon as there are orbitals: one to three steps less."""

    def iterate(
        self,
        ibzwfs: Any,
        density: Any,
        potential: Any,
        energies: Any,
        pot_calc: "CiderPotentialCalculator",
        **options: Any,
    ) -> Iterator[Any]:
        """Steps of the iteration, as those of GPAW's."""
        lacks_tau = density.taut_sR is not None and potential.dedtaut_sR is None
        if lacks_tau and all(wfs.has_occs for wfs in ibzwfs):
            density.update_ked(ibzwfs)
            potential, energies, _ = pot_calc.calculate(density, ibzwfs)
        yield from super().iterate(ibzwfs, density, potential, energies, pot_calc, **options)


class CiderPotentialCalculator(PlaneWavePotentialCalculator):
    """Tells the functional of the atoms before it is evaluated on the grid."""

    xc: Any

    def calculate(self, density: Any, *arguments: Any, **more: Any) -> Any:
        """Potential, energies and corrections; without orbitals where a new cell has none yet."""
        if self.xc.type == "MGGA" and not density.taut_sR.data.any():
            return self.calculate_without_orbitals(density, *arguments, **more)
        return super().calculate(density, *arguments, **more)

    def calculate_without_orbitals(self, *arguments: Any, **more: Any) -> Any:
        """PBE's, as for GPAW's hybrids, where the functional reads the kinetic energy density."""
        if self.xc.type != "MGGA":
            return super().calculate_without_orbitals(*arguments, **more)
        learned, self.xc = self.xc, create_functional("PBE", self.fine_grid)
        try:
            return super().calculate_without_orbitals(*arguments, **more)
        finally:
            self.xc = learned

    def calculate_pseudo_potential(self, density: Any, ibzwfs: Any, vHt_h: Any = None) -> Any:
        """Potential on the grid, from the density there and inside the spheres."""
        self._pass_matrices(density)
        return super().calculate_pseudo_potential(density, ibzwfs, vHt_h)

    def move(self, relpos_ac: np.ndarray, atomdist: Any) -> None:
        """New positions of the atoms, in units of the lattice vectors."""
        super().move(relpos_ac, atomdist)
        self.xc.learned.move(relpos_ac)

    def force_contributions(self, Q_aL: Any, density: Any, potential: Any) -> Any:
        """GPAW's, with what moving spheres make of nonlocal features (Ha/bohr) in the last."""
        *contributions, of_extensions = super().force_contributions(Q_aL, density, potential)
        self._pass_matrices(density)
        nt_sr, _ = self._interpolate_density(density.nt_sR)
        taut_sr = None if density.taut_sR is None else self.interpolate(density.taut_sR)
        return *contributions, of_extensions + self.xc.forces(nt_sr, taut_sr)

    def stress(self, ibzwfs: Any, density: Any, potential: Any) -> np.ndarray:
        """Stress (Ha/bohr^3)."""
        self._pass_matrices(density)
        return super().stress(ibzwfs, density, potential)

    def _pass_matrices(self, density: Any) -> None:
        gathered = density.D_asii.gather(broadcast=True)
        self.xc.matrices = {
            atom: np.array([pack_density(D_ii.real) for D_ii in D_sii])
            for atom, D_sii in gathered.items()
        }
