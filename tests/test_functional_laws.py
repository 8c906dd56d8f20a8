"""Laws that every shipped functional obeys, and toy ones with a larger learned part."""

import functools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from molecules import molecule_density
from pyscf import dft, gto
from scipy.linalg import block_diag
from toy_functionals import (
    toy_exchange,
    toy_network_exchange,
    toy_nldf,
    toy_spline_exchange,
    toy_xc,
)

from cider import CiderFunctional
from cider.density import Density
from cider.features.convolution import DirectConvolution
from cider.plugins.pyscf.grids import becke_convolution
from cider.plugins.pyscf.numint import CiderNumInt
from cider.registry import registered_names, resolve

pytestmark = pytest.mark.usefixtures("x64")

SHIPPED = [
    name
    for name in registered_names()
    if not resolve(name).is_composed and not CiderFunctional(name).reads_density_matrix
]
"""Laws of functionals of the density matrix are in ``test_pyscf_sdmx.py``."""

TOYS = {
    "toy gga": lambda: toy_exchange("GGA"),
    "toy mgga": lambda: toy_exchange("MGGA"),
    "toy nldf": lambda: toy_exchange("MGGA", toy_nldf()),
    "toy spline": lambda: toy_spline_exchange("MGGA", toy_nldf()),
    "toy networks": lambda: toy_network_exchange(),
}
XC = {"toy xc": lambda: toy_xc(), "toy nldf xc": lambda: toy_xc(toy_nldf())}
# "x-nldf" has the same features and the same kind of model.
EXCHANGES = [
    pytest.param(name, marks=pytest.mark.slow if name == "toy nldf" else ())
    for name in (*TOYS, *SHIPPED)
]
EXCHANGE = pytest.mark.parametrize("name", EXCHANGES)
EVERY = pytest.mark.parametrize("name", [*EXCHANGES, *XC])
CORRELATION = pytest.mark.parametrize("name", XC)


@functools.cache
def functional(name):
    made = TOYS | XC
    return CiderFunctional(made[name]() if name in made else name)


def direct(exchange, coords, weights):
    """The exact sum over pairs of points, where the functional needs one."""
    nldf = exchange.descriptors.nldf
    if nldf is None:
        return None
    return DirectConvolution(
        coords, weights, nldf.source_ladder.exponents, nldf.target_ladder.exponents
    )


def becke(exchange, mol, grids):
    nldf = exchange.descriptors.nldf
    return None if nldf is None else becke_convolution(mol, grids, nldf)


def own_density(exchange, density):
    """Without the tau that the functional does not read."""
    tau = density.tau if exchange.descriptors.needs_tau else None
    return Density(density.rho, density.grad_rho, tau)


def on_points(name, coords, weights, density):
    """Energy and potential on points alone, by direct sums."""
    own = functional(name)
    convolution = direct(own.learned, coords, weights)
    return own.learned_energy_and_potential(own_density(own.learned, density), weights, convolution)


NO_ROTATION, NO_SHIFT = np.eye(3), np.zeros(3)


def of_molecule(name, mol, grids, density):
    """Energy on the atom-centred grids of a molecule."""
    own = functional(name)
    return own.learned_energy(
        own_density(own.learned, density), grids.weights, becke(own.learned, mol, grids)
    )


def tree_max(difference):
    return max(np.abs(x).max() for x in jax.tree.leaves(difference))


@functools.cache
def polarised():
    """Coordinates, weights and density of lithium hydride, an electron short, on few points."""
    mol = gto.M(atom="Li 0 0 0; H 0.2 0.3 1.6", charge=1, spin=1, basis="6-31g", verbose=0)
    grids = dft.Grids(mol)
    grids.atom_grid, grids.prune = (8, 26), None
    mf = dft.UKS(mol, xc="PBE").set(grids=grids, max_cycle=2)
    mf.kernel()
    ao = dft.numint.eval_ao(mol, grids.coords, deriv=1)
    rho = np.stack(
        [
            dft.numint.eval_rho(mol, ao, dm, xctype="MGGA", hermi=1, with_lapl=False)
            for dm in mf.make_rdm1()
        ]
    )
    return grids.coords, grids.weights, Density(rho[:, 0], rho[:, 1:4], rho[:, 4])


@functools.cache
def becke_grids(mol, level):
    grids = dft.Grids(mol).set(level=level)
    grids.build(with_non0tab=True)
    return grids


@functools.cache
def neon():
    """Molecule, grids and density of an atom whose energy lies well within the bounds."""
    mol = gto.M(atom="Ne", basis="def2-svp", verbose=0)
    mf = dft.RKS(mol, xc="PBE").set(grids=becke_grids(mol, 1), max_cycle=3)
    mf.kernel()
    ao = dft.numint.eval_ao(mol, mf.grids.coords, deriv=1)
    dm = mf.make_rdm1()
    rho = dft.numint.eval_rho(mol, ao, dm, xctype="MGGA", hermi=1, with_lapl=False)
    return mol, mf.grids, Density(rho[None, 0], rho[None, 1:4], rho[None, 4])


def of_spins(density, spins):
    return Density(density.rho[spins], density.grad_rho[spins], density.tau[spins])


def times(factor, density):
    return jax.tree.map(lambda x: factor * x, density)


@EXCHANGE
def test_uniform_gas(name):
    """The learned part vanishes, whatever the density, and the whole is that of the baseline."""
    exchange = functional(name).learned
    assert abs(exchange.terms[0].uniform_gas_correction(exchange.descriptors)) < 1e-10
    rho = np.array([[3.0, 10.0, 50.0]])
    density = Density(rho, np.zeros((1, 3, 3)), 0.3 * (3 * np.pi**2) ** (2 / 3) * rho ** (5 / 3))
    fields = None
    nldf = exchange.descriptors.nldf
    if nldf is not None:
        overlaps = np.add.outer(nldf.source_ladder.exponents, nldf.target_ladder.exponents)
        fields = exchange.sources(density) @ jnp.asarray((np.pi / overlaps) ** 1.5)
    energies = np.asarray(exchange.energy_density(density, (fields,)))
    expected = -0.75 * (3 / np.pi) ** (1 / 3) * rho[0] ** (4 / 3)
    # Nonlocal features have the ladders' error of 3e-8; towards low densities the floors of the
    # exponents take over, which is why none is here.
    np.testing.assert_allclose(energies, expected, rtol=1e-12 if nldf is None else 5e-8)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@EXCHANGE
def test_uniform_scaling(name, gamma):
    r""":math:`E_x[\rho_\gamma] = \gamma E_x[\rho]`, with the grid scaled along.

    Exact for semilocal features; nonlocal ones have the ladders' error, and in the tails the
    floors of the exponents.
    """
    mol, grids, density = neon()
    scaled_mol = SimpleNamespace(
        natm=1, atom_coord=lambda i: mol.atom_coord(i) / gamma, atom_symbol=mol.atom_symbol
    )
    scaled_grids = SimpleNamespace(
        coords=grids.coords / gamma,
        weights=grids.weights / gamma**3,
        quadrature_weights=grids.quadrature_weights / gamma**3,
        atm_idx=grids.atm_idx,
    )
    stretched = Density(gamma**3 * density.rho, gamma**4 * density.grad_rho, gamma**5 * density.tau)
    found = of_molecule(name, scaled_mol, scaled_grids, stretched)
    tolerance = 1e-5 if functional(name).is_nonlocal else 1e-12
    assert found == pytest.approx(gamma * of_molecule(name, mol, grids, density), rel=tolerance)


@EXCHANGE
def test_spin(name):
    """Spin scaling and spin swap; one spin or two for a closed shell: all to rounding."""
    coords, weights, density = polarised()
    energy, potential = on_points(name, coords, weights, density)
    parts = [on_points(name, coords, weights, times(2, of_spins(density, [s]))) for s in (0, 1)]
    assert energy == pytest.approx((parts[0][0] + parts[1][0]) / 2, rel=1e-12)
    for spin in (0, 1):
        own = of_spins(potential, [spin]) if potential.tau is not None else None
        np.testing.assert_allclose(potential.rho[spin], parts[spin][1].rho[0], atol=1e-12)
        assert own is None or tree_max(jax.tree.map(np.subtract, own, parts[spin][1])) < 1e-12

    swapped, swapped_potential = on_points(name, coords, weights, of_spins(density, [1, 0]))
    assert swapped == pytest.approx(energy, rel=1e-14)
    np.testing.assert_array_equal(swapped_potential.rho[::-1], potential.rho)

    total = times(2, of_spins(density, [0]))
    one, by_one = parts[0]
    two, by_two = on_points(name, coords, weights, times(0.5, of_spins(total, [0, 0])))
    assert two == pytest.approx(one, abs=1e-10)
    np.testing.assert_allclose(by_two.rho, np.tile(by_one.rho, (2, 1)), atol=1e-10)


@CORRELATION
def test_spin_with_correlation(name):
    """Spin swap, and one spin or two for a closed shell: all to rounding."""
    coords, weights, density = polarised()
    energy, potential = on_points(name, coords, weights, density)
    swapped, swapped_potential = on_points(name, coords, weights, of_spins(density, [1, 0]))
    assert swapped == pytest.approx(energy, rel=1e-14)
    np.testing.assert_allclose(swapped_potential.rho[::-1], potential.rho, atol=1e-12)

    total = times(2, of_spins(density, [0]))
    one, by_one = on_points(name, coords, weights, total)
    two, by_two = on_points(name, coords, weights, times(0.5, of_spins(total, [0, 0])))
    assert two == pytest.approx(one, abs=1e-10)
    np.testing.assert_allclose(by_two.rho, np.tile(by_one.rho, (2, 1)), atol=1e-10)


@CORRELATION
def test_correlation_is_not_that_of_each_spin_alone(name):
    """The energy is not the mean of those of the spin-scaled densities, and its exchange is."""
    coords, weights, density = polarised()
    parts = [on_points(name, coords, weights, times(2, of_spins(density, [s])))[0] for s in (0, 1)]
    energy, _ = on_points(name, coords, weights, density)
    assert abs(energy - sum(parts) / 2) > 1e-3
    learned = functional(name).learned.exchange
    convolution = direct(learned, coords, weights)
    separate = CiderFunctional(learned).learned_energy(density, weights, convolution)
    scaled = [times(2, of_spins(density, [s])) for s in (0, 1)]
    means = [CiderFunctional(learned).learned_energy(d, weights, convolution) for d in scaled]
    assert separate == pytest.approx(sum(means) / 2, rel=1e-12)


@EVERY
def test_evaluation_in_stages_is_the_automatic_derivative(name):
    coords, weights, density = polarised()
    exchange = functional(name).learned
    energy, potential = on_points(name, coords, weights, density)
    convolution = direct(exchange, coords, weights)

    @eqx.filter_jit
    def automatic(exchange, density):
        return jax.value_and_grad(lambda d: exchange.energy(d, weights, convolution))(density)

    expected, by_density = automatic(exchange, own_density(exchange, density))
    assert energy == pytest.approx(float(expected), rel=1e-13)
    for ours, theirs in zip(jax.tree.leaves(potential), jax.tree.leaves(by_density), strict=True):
        # Far out, weights of 300 bohr^3 meet large derivatives by the exponents.
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-10)


# On the atom-centred grids of molecules


def integrate(name, mol, grids, dms):
    """Energy and potential matrix of a density matrix, with one spin or two."""
    method = CiderNumInt().nr_rks if np.ndim(dms) == 2 else CiderNumInt().nr_uks
    _, energy, vmat = method(mol, grids, functional(name), dms)
    return energy, vmat


@EXCHANGE
def test_hydrogen_atom(name):
    """No electron of one spin: finite, and half the energy of twice the other."""
    mol = gto.M(atom="H", spin=1, basis="def2-svp", verbose=0)
    grids = becke_grids(mol, 0)
    occupied = np.linalg.eigh(mol.intor("int1e_ovlp"))[1][:, -1]
    occupied /= np.sqrt(occupied @ mol.intor("int1e_ovlp") @ occupied)
    dm = np.outer(occupied, occupied)
    energy, vmat = integrate(name, mol, grids, np.stack([dm, 0 * dm]))
    assert np.isfinite(vmat).all() and energy < 0
    closed, by_closed = integrate(name, mol, grids, 2 * dm)
    assert energy == pytest.approx(closed / 2, rel=1e-12)
    np.testing.assert_allclose(vmat[0], by_closed, atol=1e-11)
    assert not vmat[1].any()


@CORRELATION
def test_hydrogen_atom_with_correlation(name):
    """No electron of one spin: finite; without a learned part, PBE's energy and both potentials."""
    mol = gto.M(atom="H", spin=1, basis="def2-svp", verbose=0)
    grids = becke_grids(mol, 0)
    occupied = np.linalg.eigh(mol.intor("int1e_ovlp"))[1][:, -1]
    occupied /= np.sqrt(occupied @ mol.intor("int1e_ovlp") @ occupied)
    dms = np.stack([np.outer(occupied, occupied), np.zeros((mol.nao, mol.nao))])
    energy, vmat = integrate(name, mol, grids, dms)
    assert np.isfinite(vmat).all() and energy < 0
    nothing = CiderFunctional(toy_xc(functional(name).learned.descriptors.nldf, size=0.0))
    _, zero, by_zero = CiderNumInt().nr_uks(mol, grids, nothing, dms)
    _, expected, by_expected = dft.numint.NumInt().nr_uks(mol, grids, "PBE", dms)
    assert zero == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(by_zero[0], by_expected[0], atol=1e-9)
    assert energy != pytest.approx(zero, abs=1e-4)


@CORRELATION
def test_closed_shell_is_the_same_with_one_spin_or_two(name):
    mol = gto.M(atom="He 0 0 0; H 0 0.3 1.1", charge=1, basis="6-31g", verbose=0)
    dm = dft.RKS(mol).get_init_guess()
    energy, vmat = integrate(name, mol, becke_grids(mol, 0), dm)
    polarised_energy, vmats = integrate(name, mol, becke_grids(mol, 0), np.stack([dm, dm]) / 2)
    assert polarised_energy == pytest.approx(energy, abs=1e-9)
    for own in vmats:
        np.testing.assert_allclose(own, vmat, atol=1e-9)


@pytest.fixture(scope="module")
def hydroxyl():
    """A molecule, its coarse grid, and spin density matrices and a change of them."""
    mol = gto.M(atom="O 0 0 0; H 0 0.3 0.92", spin=1, basis="6-31g", verbose=0)
    mf = dft.UKS(mol, xc="PBE").set(grids=becke_grids(mol, 0), max_cycle=3)
    mf.kernel()
    dms = mf.make_rdm1()
    rotation = 0.1 * np.random.default_rng(5).normal(size=(2, mol.nao, mol.nao))
    return mol, mf.grids, dms, rotation @ dms + dms @ rotation.swapaxes(1, 2)


@pytest.mark.parametrize("spins", [1, 2])
@EVERY
def test_potential_is_the_derivative_of_the_energy(hydroxyl, name, spins):
    """In the density matrix, through PySCF's interface."""
    mol, grids, dms, change = hydroxyl
    if spins == 1:
        dms, change = dms.sum(axis=0), change.sum(axis=0)
    _, vmat = integrate(name, mol, grids, dms)
    integrator = CiderNumInt()  # keeps the map of the grid
    method = integrator.nr_rks if spins == 1 else integrator.nr_uks

    def energy(step):
        return method(mol, grids, functional(name), dms + step * change)[1]

    h = 4e-3  # fourth order: error h^4, rounding 1e-13/h
    slope = (8 * (energy(h) - energy(-h)) - (energy(2 * h) - energy(-2 * h))) / (12 * h)
    assert np.sum(vmat * change) == pytest.approx(slope, rel=1e-6)


@EVERY
def test_fragments_add_up(name):
    """Helium and hydrogen 30 Angstrom apart, each on its own grid and together."""
    fragments = ["He 0 0 0", "H 0 0 30; H 0 0 30.74"]
    molecules = [
        gto.M(atom=atoms, basis="def2-svp", verbose=0)
        for atoms in (*fragments, "; ".join(fragments))
    ]
    dms = [dft.RKS(mol).get_init_guess() for mol in molecules[:2]]
    dms.append(block_diag(*dms))
    energies = [
        integrate(name, mol, becke_grids(mol, 0), dm)[0]
        for mol, dm in zip(molecules, dms, strict=True)
    ]
    assert energies[2] == pytest.approx(energies[0] + energies[1], abs=1e-7)


def moved_water(level, rotation=NO_ROTATION, shift=NO_SHIFT, order=(0, 1, 2)):
    """Water after a rotation, a shift and a new order: molecule, grids and density there."""
    water = molecule_density("water")
    rotation, shift = np.array(rotation, dtype=float), np.array(shift)
    positions = water.mol.atom_coords() @ rotation.T + shift
    mol = gto.M(
        atom=[(water.mol.atom_symbol(i), positions[i]) for i in order],
        unit="Bohr",
        basis="def2-svp",
        verbose=0,
    )
    grids = becke_grids(mol, level)
    density = water.at((grids.coords - shift) @ rotation)
    grad_rho = np.einsum("xy,syg->sxg", rotation, density.grad_rho)
    return mol, grids, Density(density.rho, grad_rho, density.tau)


@pytest.fixture(scope="module")
def waters():
    """Water in its place, and moved."""
    any_rotation = np.linalg.qr([[1.0, 2, 3], [0, 1, 4], [5, 6, 0]])[0]
    return {
        "in place": moved_water(1),
        "translated": moved_water(1, shift=[1.0, -20.0, 0.3]),
        "permuted": moved_water(1, order=(1, 0, 2)),
        "turned by quarters": moved_water(1, [[0, -1, 0], [0, 0, -1], [1, 0, 0]]),
        "in place, fine": moved_water(3),
        "turned, fine": moved_water(3, any_rotation),
    }


@EVERY
def test_translation_permutation_and_quarter_turns(name, waters):
    """To rounding where the grid moves along: Lebedev grids have the symmetry of the cube."""
    energies = {how: of_molecule(name, *waters[how]) for how in waters if "fine" not in how}
    reference = energies.pop("in place")
    for how, energy in energies.items():
        assert energy == pytest.approx(reference, abs=1e-9), how


@EVERY
def test_rotation(name, waters):
    """Within the error of the quadrature (PBE: 4e-9, r2SCAN: 8e-7 Ha)."""
    fine, turned = (of_molecule(name, *waters[how]) for how in ("in place, fine", "turned, fine"))
    assert turned == pytest.approx(fine, abs=1e-5)


# Precision

ENERGIES = """
import json, os, sys
import jax
sys.path.insert(0, {tests!r})
import test_functional_laws as laws
before = jax.config.jax_enable_x64
energies = {{name: laws.on_points(name, *laws.polarised())[0] for name in {names!r}}}
assert jax.config.jax_enable_x64 == before == bool(int(os.environ["JAX_ENABLE_X64"]))
print(json.dumps(energies))
"""


def test_double_precision_whatever_the_process_set_for_jax():
    """Equal energies; the user's own setting is left as it was."""
    script = ENERGIES.format(tests=os.path.dirname(__file__), names=["toy spline", "x-nldf"])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "JAX_ENABLE_X64": setting},
            stdout=subprocess.PIPE,
            text=True,
        )
        for setting in "01"
    ]
    single, double = (process.communicate()[0].splitlines()[-1] for process in processes)
    assert not any(process.returncode for process in processes)
    assert json.loads(single) == pytest.approx(json.loads(double), rel=1e-12)
