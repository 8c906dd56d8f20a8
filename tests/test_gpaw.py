"""Learned functionals in GPAW: PAW energies, potentials, forces and stress."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gpaw", reason="GPAW is not installed: pip install 'cider-xc[gpaw]'")

import gpaw
from ase import Atoms
from ase.build import bulk
from gpaw import GPAW, PW
from gpaw.dft import XC
from gpaw.new.pw.hamiltonian import PWHamiltonian
from gpaw.setup import create_setup
from gpaw.utilities import pack_density
from gpaw.xc.gga import GGA
from gpaw.xc.libxc import LibXC
from pyscf import dft, gto
from toy_functionals import toy_exchange, toy_nldf, toy_sdmx

from cider import CiderFunctional
from cider.density import Density
from cider.features.nldf import Nldf, NldfExponent
from cider.plugins.ase import Cider
from cider.plugins.gpaw.augmentation import augmentation_sphere
from cider.plugins.gpaw.functional import learned_functional
from cider.plugins.gpaw.hamiltonian import ProductRuleHamiltonian
from cider.plugins.gpaw.learned_energy import LearnedEnergy
from cider.plugins.gpaw.parameter import CiderXC
from cider.plugins.gpaw.radial_gga import RadialGGA
from cider.plugins.gpaw.semilocal import LibxcTerms, semilocal_functional

CUTOFF = 150.0
TIGHT = {"energy": 1e-7, "density": 1e-7, "eigenstates": 1e-9}
FIRST_STEPS = {"energy": 1e3, "density": 1e3, "eigenstates": 1e3}


def mixed(level: str, nldf: Nldf | None = None, size: float = 1e-2) -> CiderFunctional:
    return CiderFunctional(toy_exchange(level, nldf, size), x_mix=0.25, semilocal="PBE")


def nonlocal_without_tau() -> CiderFunctional:
    exponents = tuple(NldfExponent(A, A / 32) for A in (0.5, 2.0))
    return mixed("GGA", Nldf(exponents[0], exponents))


def hydrogen(xc, **settings) -> Atoms:
    """A stretched molecule in a small skew cell without symmetry."""
    atoms = Atoms("H2", [(0.1, 0.0, 0.05), (1.0, 0.1, 0.0)], pbc=True)
    atoms.cell = [(2.3, 0.0, 0.1), (0.0, 1.8, 0.0), (0.2, 0.1, 1.8)]
    defaults = {"mode": PW(CUTOFF), "gpts": (8, 8, 8), "symmetry": "off", "txt": None}
    atoms.calc = GPAW(xc=xc, **{**defaults, "convergence": TIGHT, **settings})
    return atoms


def energy_of(atoms: Atoms) -> float:
    return atoms.get_potential_energy(force_consistent=True)


class LibxcPBE(XC):
    """GPAW's native PBE has rounded constants; those of libxc are ours."""

    def functional(self, *, collinear, atoms=None):
        return GGA(LibXC("PBE"))


@pytest.mark.parametrize("num_spins", [1, 2])
def test_spheres_of_a_gga_are_those_of_gpaw(num_spins):
    kernel = LibxcTerms(CiderFunctional(toy_exchange("GGA"), x_mix=0.25, semilocal="PBE"))
    setup = create_setup("O", "PBE")
    orbitals = 0.5 * np.random.default_rng(0).normal(size=(num_spins, setup.ni, setup.ni))
    matrices = np.array([pack_density(own @ own.T) for own in orbitals])
    energies, derivatives = [], []
    for semilocal in (RadialGGA(kernel), GGA(kernel)):
        derivatives.append(np.ones_like(matrices))
        energy = semilocal.calculate_paw_correction(setup, matrices, derivatives[-1])
        energies.append(energy)
    assert abs(energies[0]) > 1e-3
    assert abs(energies[0] - energies[1]) < 1e-11
    np.testing.assert_allclose(*derivatives, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("level", "spinpol", "setups", "bounds"),
    [("GGA", False, "hgh", (1e-5, 1e-4, 1e-5)), ("MGGA", True, "paw", (1e-3, 5e-4, 2e-4))],
    ids=["pseudopotentials", "PAW"],
)
def test_zero_learned_part_is_pbe(level, spinpol, setups, bounds):
    """On the grid, and in spheres as far as partial waves make the pseudo density there.

    Gradients of GPAW's PBE are finite differences, on a finer grid than ours.
    """
    settings = {"spinpol": spinpol, "magmoms": [0.0, 1.0] if spinpol else None}
    settings |= {"gpts": (24, 24, 24), "setups": setups}
    settings["occupations"] = {"name": "fermi-dirac", "width": 0.1}
    ours = hydrogen(mixed(level, size=0.0), **settings)
    pbe = hydrogen(LibxcPBE("PBE"), **settings)
    # libxc cuts small densities and spin polarisations off elsewhere.
    assert abs(energy_of(ours) - energy_of(pbe)) < bounds[0]
    assert np.max(np.abs(ours.get_forces() - pbe.get_forces())) < bounds[1]
    assert np.max(np.abs(ours.get_stress() - pbe.get_stress())) < bounds[2]


def test_silicon_keeps_its_energy():
    """PBE's, evaluated as all of a learned functional.

    With the density of the grid up to the nuclei, it is 0.07 eV lower.
    """

    def energy(xc):
        atoms = bulk("Si", "diamond", 5.43)
        levels = {"name": "fermi-dirac", "width": 0.1}
        atoms.calc = GPAW(mode=PW(250), xc=xc, occupations=levels, txt=None)
        return energy_of(atoms)

    all_of_it = CiderFunctional(toy_exchange("GGA", size=0.0), correlation="GGA_C_PBE")
    assert abs(energy(all_of_it) - energy("PBE")) < 0.02


def test_all_electrons_are_counted():
    """The density that the functional reads integrates to those of the atom, core included."""
    atoms = Atoms("Ne", cell=(3.0, 3.0, 3.0), pbc=True)
    atoms.calc = GPAW(mode=PW(300), xc="PBE", txt=None)
    atoms.get_potential_energy()
    whole, nt_sr, taut_sr = evaluated_in_gpaw(atoms, CiderFunctional("x-sl-mgga"))
    density, weights = whole.learned._points(whole._density(nt_sr, taut_sr), whole.matrices)
    assert abs(density.rho.sum(axis=0) @ weights - 10) < 1e-4


def test_core_densities_are_seen():
    """Of an element with a core: PBE's energy in the first steps, tau of the core included."""

    def first_energy(xc):
        atoms = Atoms("Li", cell=(2.8, 2.8, 2.8), pbc=True)
        settings = {"gpts": (12, 12, 12), "txt": None, "convergence": FIRST_STEPS}
        atoms.calc = GPAW(mode=PW(CUTOFF), xc=xc, mixer={"beta": 0.05}, **settings)
        return energy_of(atoms)

    difference = first_energy(mixed("MGGA", size=0.0)) - first_energy(LibxcPBE("PBE"))
    # GPAW's derivatives by the radius are differences of neighbours: 3e-4 eV on any grid. As much
    # is what partial waves lack of the pseudo density.
    assert abs(difference) < 1e-3


def test_one_orbital_has_the_least_tau_of_its_density():
    """On the grid and in the sphere of helium: exchange, which reads it, is that of the least tau.

    The coarse grid holds all waves of the density, which is then that of an orbital; in the sphere
    it is so as far as partial waves make it.
    """
    functional = CiderFunctional("x-sl-mgga")
    atoms = Atoms("He", cell=(4.0, 4.0, 4.0), pbc=True)
    settings = {"gpts": (24, 24, 24), "convergence": {"density": 1e-6}, "txt": None}
    atoms.calc = GPAW(mode=PW(300), xc="PBE", **settings)
    atoms.get_potential_energy()
    whole, nt_sr, taut_sr = evaluated_in_gpaw(atoms, functional)
    density, weights = whole.learned._points(whole._density(nt_sr, taut_sr), whole.matrices)
    least = Density(density.rho, density.grad_rho, least_tau(density))
    energies = [functional.learned_energy(own, weights) for own in (density, least)]
    assert abs(energies[0] - energies[1]) < 2e-4


def least_tau(density: Density) -> np.ndarray:
    """Of all orbitals that make a density, Ha/bohr^3."""
    return np.sum(density.grad_rho**2, axis=1) / (8 * np.maximum(density.rho, 1e-12))


def test_one_orbital_in_a_sphere():
    """Any sum of partial waves, squared: its tau is exactly the least."""
    atoms = hydrogen("PBE", convergence=FIRST_STEPS)
    energy_of(atoms)
    correction = atoms.calc.dft.setups[0].xc_correction
    orbital = np.random.default_rng(0).normal(size=correction.ni)
    matrices = pack_density(np.outer(orbital, orbital))[None]
    density = augmentation_sphere(correction, needs_tau=True).all_electron.apply(matrices)
    sigma = np.sum(density.grad_rho**2, axis=1)
    # Not tau less sigma / (8 rho), which rounding makes anything where the orbital has a node.
    assert np.max(np.abs(8 * density.rho * density.tau - sigma)) < 1e-12 * np.max(sigma)


def test_exchange_of_neon_is_that_of_all_electrons():
    """As in PySCF: the core, which has more than half of it, is seen by nonlocal features.

    The rest is GPAW's relativistic core and the neighbours in a small cell, 0.2 % each.
    """
    functional = CiderFunctional("x-nldf")
    atoms = Atoms("Ne", cell=(3.0, 3.0, 3.0), pbc=True)
    atoms.calc = GPAW(mode=PW(300), xc="PBE", txt=None)
    atoms.get_potential_energy()
    mf = dft.RKS(gto.M(atom="Ne", basis="def2-tzvp", verbose=0), xc="PBE")
    mf.grids.level = 2
    mf.kernel()
    integrator = dft.RKS(mf.mol, xc=functional)._numint
    exchange = integrator.nr_rks(mf.mol, mf.grids, functional, mf.make_rdm1())[1]
    assert abs(exchange_in_gpaw(atoms, functional) / exchange - 1) < 0.01


def exchange_in_gpaw(atoms: Atoms, functional: CiderFunctional) -> float:
    """Exchange energy (Ha) of the present density."""
    whole, nt_sr, taut_sr = evaluated_in_gpaw(atoms, functional)
    return whole.calculate(nt_sr, taut_sr)[0]


def evaluated_in_gpaw(atoms: Atoms, functional: CiderFunctional):
    """A functional for the present density, and what GPAW evaluates it with on the grid."""
    state = atoms.calc.dft
    density, grids = state.density, state.pot_calc
    density.update_ked(state.ibzwfs)
    positions = atoms.get_scaled_positions()
    learned = LearnedEnergy(functional, grids.fine_grid, state.setups, positions)
    whole = learned_functional(semilocal_functional(functional), learned)
    whole.matrices = {
        atom: np.array([pack_density(D_ii) for D_ii in D_sii])
        for atom, D_sii in density.D_asii.items()
    }
    nt_sr, _ = grids._interpolate_density(density.nt_sR)
    return whole, nt_sr, grids.interpolate(density.taut_sR)


def test_calculations_start_with_the_potential_of_pbe():
    """Without orbitals there is no kinetic energy density that a functional could read."""
    atoms = hydrogen(mixed("MGGA", toy_nldf()))
    atoms.calc.create_new_calculation(atoms)
    dft = atoms.calc.dft
    assert dft.potential.dedtaut_sR is None
    assert not hasattr(dft.pot_calc.xc, "matrices")
    first_step = next(dft.iconverge())
    assert first_step.potential.dedtaut_sR is not None


def test_mixing_is_that_asked_for():
    def first_step(**settings):
        atoms = hydrogen(mixed("GGA"), **settings)
        atoms.calc.create_new_calculation(atoms)
        return atoms.calc.dft.scf_loop.mixer.beta

    assert first_step() == 0.25
    assert first_step(mixer={"beta": 0.05}) == 0.05


def test_pseudo_densities_are_those_of_orbitals():
    """On the grid of the energy, by default: of one orbital here, and nowhere negative."""
    atoms = hydrogen(mixed("MGGA", toy_nldf()), gpts=None)
    energy_of(atoms)
    density, grids = atoms.calc.dft.density, atoms.calc.dft.pot_calc
    nt_sr, _ = grids._interpolate_density(density.nt_sR)
    own = grids.xc._density(nt_sr, grids.interpolate(density.taut_sR))
    assert own.rho.min() > 0
    of_one_orbital = np.sum(own.grad_rho**2, axis=1) / (8 * own.rho)
    assert np.max(np.abs(own.tau - of_one_orbital)) < 1e-5 * np.max(own.tau)


@pytest.mark.parametrize("kpts", [(1, 1, 1), (2, 1, 1)], ids=["real waves", "complex waves"])
def test_hamiltonian_by_the_product_rule(kpts):
    """As GPAW's, term by term, on the grid that holds products of waves; not on coarser ones."""
    atoms = hydrogen(mixed("MGGA", toy_nldf()), gpts=None, kpts=kpts, convergence=FIRST_STEPS)
    energy_of(atoms)
    dft = atoms.calc.dft
    own, waves = dft.scf_loop.hamiltonian, dft.ibzwfs._wfs_u[-1].psit_nX
    assert isinstance(own, ProductRuleHamiltonian)
    (vt_R,), (dedtaut_R,) = dft.potential.vt_sR, dft.potential.dedtaut_sR
    applied, expected = waves.new(), waves.new()
    own._apply_with_tau(vt_R, dedtaut_R, waves, applied)
    gpaws = PWHamiltonian(vt_R.desc, waves.desc.dtype)
    gpaws.apply_local_potential(vt_R, waves, expected)
    gpaws.apply_mgga(dedtaut_R, waves, expected)
    largest = np.max(np.abs(expected.data))
    assert np.max(np.abs(applied.data - expected.data)) < 1e-13 * largest
    coarse = hydrogen(mixed("MGGA", toy_nldf()))
    coarse.calc.create_new_calculation(coarse)
    assert type(coarse.calc.dft.scf_loop.hamiltonian) is PWHamiltonian


@pytest.mark.parametrize(
    ("functional", "setups"),
    [(mixed("MGGA", toy_nldf()), "paw"), (nonlocal_without_tau(), "hgh")],
    ids=["PAW with tau", "pseudopotentials"],
)
def test_forces_and_stress_are_derivatives(functional, setups):
    """Along a path that moves an atom and strains the cell at once."""
    settings = {"setups": setups, "kpts": (2, 1, 1)}
    atoms = hydrogen(functional, **settings)
    energy_of(atoms)
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    direction = np.array([(0.3, -0.2, 0.1), (1.0, 0.4, -0.5)])
    step, strain = 0.005, 0.002

    def moved(sign):
        """Cutoff and grid follow the cell: no Pulay stress."""
        scale = 1 + sign * strain
        other = hydrogen(functional, **settings, mode=PW(CUTOFF / scale**2))
        other.set_cell(other.cell * scale, scale_atoms=True)
        other.positions += sign * step * direction
        return energy_of(other)

    change = (moved(1) - moved(-1)) / 2
    expected = strain * atoms.get_volume() * np.trace(stress) - step * np.vdot(forces, direction)
    # Forces of PBE alone agree to 3e-4 eV/angstrom.
    assert abs(change - expected) < 1e-3 * step


def test_a_crystal_moves_against_the_grid():
    """By half a grid point's distance; 40 meV where the grid sees the fields of carbon's core."""

    def diamond(shift):
        atoms = bulk("C", "diamond", 3.57)
        functional = CiderFunctional("pbe0-x-nldf")
        atoms.calc = GPAW(mode=PW(300), gpts=(16, 16, 16), xc=functional, txt=None)
        atoms.positions += shift / 16 * atoms.cell.sum(axis=0)
        return energy_of(atoms)

    assert abs(diamond(0.5) - diamond(0.0)) < 1e-3


def test_closed_shell_with_one_and_two_spins():
    """Converged: first steps begin with GPAW's PBE, which is not the same for one spin and two."""
    functional = mixed("MGGA", toy_nldf())
    one, two = hydrogen(functional), hydrogen(functional, spinpol=True)
    assert abs(energy_of(one) - energy_of(two)) < 1e-8


PARALLEL = """
from gpaw.mpi import world
from test_gpaw import (
    FIRST_STEPS, TIGHT, energy_of, hydrogen, mixed, nonlocal_without_tau, toy_nldf
)

# The solver for eigenstates takes other steps where bands are shared out: to their end.
local, with_tau = nonlocal_without_tau(), mixed("MGGA", toy_nldf())
for key, convergence, functional, gpts in (
    ("domain", FIRST_STEPS, local, (8, 8, 8)),
    ("domain", FIRST_STEPS, with_tau, None),
    ("kpt", FIRST_STEPS, local, (8, 8, 8)),
    ("band", TIGHT, local, (8, 8, 8)),
):
    parallel = {key: world.size} if world.size > 1 else {}
    settings = dict(convergence=convergence, kpts=(2, 1, 1), nbands=2, parallel=parallel)
    atoms = hydrogen(functional, gpts=gpts, **settings)
    values = [energy_of(atoms), *atoms.get_forces().ravel(), *atoms.get_stress()]
    if world.rank == 0:
        print(*values)
"""


@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="no mpiexec")
def test_ranks_share_the_work(tmp_path):
    """Two domains, two k-points or two bands give what one rank does: to rounding, or converged."""
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = ("ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_mpi_yield_when_idle")
    open_mpi = {f"OMPI_{setting}": "1" for setting in settings}
    environment = os.environ | open_mpi | {"PYTHONPATH": os.pathsep.join(paths)}

    def lines(*command):
        command = [*command, str(script)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return np.array([line.split() for line in result.stdout.splitlines()], dtype=float)

    launch = ["mpiexec", "--oversubscribe", "-n", "2", sys.executable, "-m", "gpaw", "python"]
    shared, serial = lines(*launch), lines(sys.executable)
    assert np.max(np.abs(shared[:, 0] - serial[:, 0])) < 1e-8
    *to_rounding, bands = np.max(np.abs(shared - serial), axis=1)
    assert max(to_rounding) < 1e-7
    # Forces of PBE differ by 6e-8 eV/angstrom.
    assert bands < 1e-6


def test_calculator_of_ase_is_that_of_gpaw():
    """It takes a name for the functional, and GPAW's parameters: the same first energy."""
    atoms = hydrogen(CiderFunctional("x-sl-gga"), convergence=FIRST_STEPS)
    energy = energy_of(atoms)
    settings = {"gpts": (8, 8, 8), "symmetry": "off", "convergence": FIRST_STEPS, "txt": None}
    atoms.calc = Cider("x-sl-gga", host="gpaw", mode=PW(CUTOFF), **settings)
    assert energy_of(atoms) == energy


def test_description_makes_the_same_functional():
    functional = CiderFunctional("x-sl-gga", x_mix=0.25, semilocal="PBE")
    written = CiderXC(functional).todict()
    assert repr(XC.from_param(written).cider_functional) == repr(functional)
    with pytest.raises(ValueError, match="another functional"):
        XC.from_param(written | {"digest": "0"})
    with pytest.raises(ValueError, match="which functional"):
        XC.from_param("cider")
    assert XC.from_param("PBE").name == "PBE"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "lcao", "basis": "sz(dzp)"}, "mode 'lcao'"),
        ({"mode": "fd"}, "mode 'fd'"),
        ({"mode": {"name": "pw", "ecut": CUTOFF, "dtype": "single"}}, "double precision"),
        ({"magmoms": [(0, 0, 1), (1, 0, 0)]}, "noncollinear"),
        ({"setups": "hgh"}, "kinetic energy density"),
    ],
)
def test_what_is_not_available(settings, message):
    with pytest.raises(NotImplementedError, match=message):
        hydrogen(mixed("MGGA"), **settings).get_potential_energy()


def test_features_of_the_density_matrix_are_not_available():
    xc = CiderFunctional(toy_exchange("GGA", sdmx=toy_sdmx()), x_mix=0.25, semilocal="PBE")
    with pytest.raises(NotImplementedError, match="reads the density matrix"):
        hydrogen(xc).get_potential_energy()


def test_other_versions_are_refused(monkeypatch):
    monkeypatch.setattr(gpaw, "__version__", "27.1.0")
    with pytest.raises(ImportError, match="up to, but not including, 27"):
        hydrogen(mixed("GGA"))


@pytest.mark.parametrize("imports", ["import cider, gpaw.dft", "import gpaw.dft, cider"])
def test_import_alone_installs_the_hook_in_either_order(imports):
    code = f"{imports}; print(hasattr(gpaw.dft.XC.from_param, 'before_cider'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "True", result.stderr


def test_importing_cider_does_not_import_gpaw():
    code = "import cider, sys; print('gpaw' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
