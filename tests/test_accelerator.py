"""What runs on a GPU, compiled for whatever the tests run on, beside the processor's code."""

import jax
import numpy as np
import pytest
from molecules import from_ase
from pyscf import dft, gto

from cider import CiderFunctional
from cider.features.accelerator import has_accelerator, smaller_where_memory_is_short
from cider.features.device_convolution import TILES_TOGETHER, DeviceConvolution, device_convolution
from cider.features.molecular_convolution import MolecularConvolution
from cider.features.rings import NARROW
from cider.plugins.pyscf import numint
from cider.plugins.pyscf.device_orbitals import gaussian_basis
from cider.plugins.pyscf.grids import becke_convolution
from cider.plugins.pyscf.numint import CiderNumInt


def becke_grids(mol, level=0):
    return dft.Grids(mol).set(level=level).build(with_non0tab=True)


def both_convolutions(functional: CiderFunctional, mol) -> tuple:
    """For the processor and for the device, and their numbers of points, sources and targets."""
    nldf = functional.learned.descriptors.nldf
    host = becke_convolution(mol, becke_grids(mol), nldf)
    sizes = len(host.weights), len(nldf.source_ladder.exponents), len(nldf.target_ladder.exponents)
    return host, device_convolution(host), sizes


@pytest.mark.parametrize(
    "atoms",
    (from_ase("H2O"), "O", "H 0 0 0; H 0 0 6"),
    ids=("water", "atom", "points in the outer rings alone"),
)
def test_convolution(toy_functional, atoms):
    """The processor's code takes fewer powers of the radius where points lie close together."""
    host, device, (points, sources, targets) = both_convolutions(
        toy_functional, gto.M(atom=atoms, verbose=0)
    )
    rng = np.random.default_rng(0)
    for mine, expected, columns in (
        (device.apply, host.apply, sources),
        (device.transpose, host.transpose, targets),
    ):
        values = rng.normal(size=(points, columns))
        reference = expected(values)
        np.testing.assert_allclose(
            mine(values), reference, rtol=0, atol=NARROW / 100 * abs(reference).max()
        )


def test_convolution_with_little_memory(toy_functional, x64):
    """As many tiles at a time as the memory holds: the fields are the same."""
    _, device, (points, sources, _) = both_convolutions(toy_functional, gto.M(atom="O", verbose=0))
    values = np.random.default_rng(1).normal(size=(points, sources))
    expected = device.apply(values)
    few = device.traced.apply(jax.numpy.asarray(values), TILES_TOGETHER // 32)
    np.testing.assert_allclose(few, expected, rtol=0, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize(
    "settings",
    [
        dict(atom="N 0 0 0.1; F 0.3 1.1 -0.7", basis="def2-qzvp"),
        dict(atom="C", basis="cc-pvtz", spin=2, cart=True),
        dict(atom="S 0 0 0; H 0 1 1", basis="ano", spin=1),
    ],
    ids=["up to g", "Cartesian", "general contraction"],
)
def test_orbitals(x64, settings):
    mol = gto.M(**settings, verbose=0)
    coords = np.random.default_rng(2).normal(size=(60, 3)) * 3
    expected = mol.eval_gto("GTOval_cart_deriv1" if mol.cart else "GTOval_sph_deriv1", coords)
    own = gaussian_basis(mol)(jax.numpy.asarray(coords))
    np.testing.assert_allclose(own, expected.transpose(0, 2, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unrestricted", (False, True))
def test_energy_and_potential(toy_functional, monkeypatch, unrestricted):
    """Of a molecule whose last block of points and of orbitals is filled up."""
    atoms = from_ase("H2O") if unrestricted else "H 0 0 0; H 0 0 0.8"
    mol = gto.M(atom=atoms, basis="6-31g", verbose=0)
    grids = becke_grids(mol)
    dm = dft.RKS(mol).get_init_guess()
    if unrestricted:
        dm = np.stack([0.6 * dm, 0.4 * dm])
    method = CiderNumInt.nr_uks if unrestricted else CiderNumInt.nr_rks
    expected = method(CiderNumInt(), mol, grids, toy_functional, dm)
    monkeypatch.setattr(numint, "has_accelerator", lambda: True)
    integrator = CiderNumInt()
    electrons, energy, matrix = method(integrator, mol, grids, toy_functional, dm)
    assert isinstance(integrator._convolution[1], DeviceConvolution)
    np.testing.assert_allclose(electrons, expected[0], rtol=1e-12)
    assert energy == pytest.approx(expected[1], abs=1e-11)
    np.testing.assert_allclose(matrix, expected[2], rtol=0, atol=1e-10)


def test_forces_come_from_the_host(toy_functional, monkeypatch):
    mol = gto.M(atom="H 0 0 0; H 0 0 0.8", basis="sto-3g", verbose=0)

    def gradient():
        mf = dft.RKS(mol, xc=toy_functional).set(max_cycle=0, conv_tol=1e-9)
        mf.grids.level = 0
        mf.kernel(dm0=mf.get_init_guess())
        return mf.nuc_grad_method().set(grid_response=True).kernel()

    expected = gradient()
    monkeypatch.setattr(numint, "has_accelerator", lambda: True)
    np.testing.assert_allclose(gradient(), expected, rtol=0, atol=1e-10)


def test_response(toy_functional, monkeypatch):
    """The change of a potential, by parts of the program that are not one."""
    mol = gto.M(atom="H 0 0 0; H 0 0 0.8", basis="6-31g", verbose=0)
    grids, dm = becke_grids(mol), dft.RKS(mol).get_init_guess()
    change = np.diag(np.arange(1.0, 5.0))

    def response():
        integrator = CiderNumInt()
        kernel = integrator.cache_xc_kernel1(mol, grids, toy_functional, dm)
        return integrator.nr_rks_fxc(mol, grids, toy_functional, dm, change, fxc=kernel[2])

    expected = response()
    monkeypatch.setattr(numint, "has_accelerator", lambda: True)
    np.testing.assert_allclose(response(), expected, rtol=0, atol=1e-10)


def test_smaller_where_memory_is_short():
    tried = []

    def run(together: int) -> int:
        tried.append(together)
        if together > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return together

    assert smaller_where_memory_is_short(run, 16) == 4
    assert tried == [16, 8, 4]


@pytest.mark.parametrize("message, tries", [("INTERNAL: broken", 1), ("RESOURCE_EXHAUSTED", 3)])
def test_what_fewer_points_do_not_cure_is_raised(message, tries):
    tried = []

    def run(together: int) -> None:
        tried.append(together)
        raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        smaller_where_memory_is_short(run, 4)
    assert len(tried) == tries


@pytest.mark.skipif(not has_accelerator(), reason="JAX has no GPU here")
def test_gpu_and_processor_agree(monkeypatch):
    mol = gto.M(atom=from_ase("C6H6"), basis="def2-tzvp", verbose=0)
    grids, dm = becke_grids(mol, level=3), dft.RKS(mol).get_init_guess()
    functional = CiderFunctional("pbe0-x-nldf")
    _, energy, matrix = CiderNumInt().nr_rks(mol, grids, functional, dm)
    monkeypatch.setattr(numint, "has_accelerator", lambda: False)
    with jax.default_device(jax.devices("cpu")[0]):
        integrator = CiderNumInt()
        _, expected, expected_matrix = integrator.nr_rks(mol, grids, functional, dm)
    assert isinstance(integrator._convolution[1], MolecularConvolution)
    assert energy == pytest.approx(expected, abs=1e-8)
    np.testing.assert_allclose(matrix, expected_matrix, rtol=0, atol=1e-8)
