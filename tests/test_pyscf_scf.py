"""Self-consistent calculations: every way PySCF runs, copies and converts them."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import toy_functionals
from pyscf import dft, gto, scf
from toy_functionals import toy_exchange

from cider import CiderFunctional
from cider.plugins.pyscf.numint import CiderNumInt

ZERO = CiderFunctional(toy_exchange("GGA", size=0.0), correlation="GGA_C_PBE")
"""PBE by another way."""

TOY = CiderFunctional(toy_exchange("MGGA"), correlation="GGA_C_PBE")
OTHER = CiderFunctional(toy_exchange("GGA", name="other"), x_mix=0.25, semilocal="PBE")

H2 = "H 0 0 0; H 0 0 1.4"
PBE_TOLERANCE = 1e-8  # Ha; the SCF is converged to 1e-10, libxc drops densities below 1e-11


def molecule(atom, **kwargs):
    return gto.M(atom=atom, **{"basis": "6-31g", "unit": "bohr", "verbose": 0, **kwargs})


def solve(method, mol, xc, **kwargs):
    mf = method(mol, xc=xc).set(conv_tol=1e-10, **kwargs)
    mf.grids.level = 0
    mf.kernel()
    assert mf.converged
    return mf


SYSTEMS = {
    "closed shell": (dft.RKS, molecule(H2)),
    "unrestricted": (dft.UKS, molecule("Li 0 0 0", spin=1)),
    "restricted open shell": (dft.ROKS, molecule("Li 0 0 0", spin=1)),
    "symmetry": (dft.RKS, molecule("He 0 0 0; H 0 0 1.5", charge=1, symmetry=True)),
    "symmetry, open shell": (dft.UKS, molecule("H 0 0 0; H 0 0 2", spin=2, symmetry=True)),
    "symmetry, restricted open shell": (dft.ROKS, molecule("Li 0 0 0", spin=1, symmetry=True)),
    "anion": (dft.RKS, molecule("H 0 0 0", charge=-1, basis="6-31++g")),
    "one electron": (dft.UKS, molecule("H 0 0 0", spin=1)),
    "effective core potential": (
        dft.UKS,
        molecule("Na 0 0 0", spin=1, basis="lanl2dz", ecp="lanl2dz"),
    ),
    "cartesian": (dft.RKS, molecule("Be 0 0 0", basis="6-31g*", cart=True)),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_learned_part_zero_is_its_libxc_baseline(system):
    method, mol = SYSTEMS[system]
    expected = solve(method, mol, "PBE")
    found = solve(method, mol, ZERO)
    assert abs(found.e_tot - expected.e_tot) < PBE_TOLERANCE
    assert abs(found.cycles - expected.cycles) <= 1
    occupied = np.asarray(expected.mo_occ) > 0
    np.testing.assert_allclose(
        np.asarray(found.mo_energy)[occupied], np.asarray(expected.mo_energy)[occupied], atol=1e-7
    )


@pytest.mark.parametrize("semilocal", ["PBE", "pbe"])
def test_surrogate_hybrid_of_zero_learned_part(semilocal):
    mol = molecule(H2)
    exchange = toy_exchange("MGGA", size=0.0)
    hybrid = CiderFunctional(exchange, x_mix=0.25, semilocal=semilocal)
    assert abs(solve(dft.RKS, mol, hybrid).e_tot - solve(dft.RKS, mol, "PBE").e_tot) < 1e-8
    hybrid = CiderFunctional(exchange, x_mix=0.25, semilocal="R2SCAN")
    mixed = "0.25*GGA_X_PBE + 0.75*MGGA_X_R2SCAN + MGGA_C_R2SCAN"
    assert abs(solve(dft.RKS, mol, hybrid).e_tot - solve(dft.RKS, mol, mixed).e_tot) < 1e-8


def test_exchange_alone():
    mol = molecule(H2)
    exchange = CiderFunctional(toy_exchange("GGA", size=0.0))
    difference = solve(dft.RKS, mol, exchange).e_tot - solve(dft.RKS, mol, "GGA_X_PBE").e_tot
    assert abs(difference) < PBE_TOLERANCE


def test_density_fitting_before_and_after_assignment():
    mol = molecule(H2, basis="def2-svp")
    fitted = {}
    for name, xc in {"pyscf": "PBE", "cider": ZERO}.items():
        after = dft.RKS(mol, xc=xc).density_fit()
        before = dft.RKS(mol).density_fit()
        before.xc = xc
        function = scf.density_fit(dft.RKS(mol, xc=xc))
        unrestricted = dft.UKS(mol, xc=xc).density_fit(auxbasis="weigend")
        for mf in (after, before, function, unrestricted):
            mf.grids.level = 0
            mf.run(conv_tol=1e-10)
        assert after.with_df.auxbasis == dft.RKS(mol, xc="PBE").density_fit().with_df.auxbasis
        fitted[name] = [mf.e_tot for mf in (after, before, function, unrestricted)]
    np.testing.assert_allclose(fitted["cider"], fitted["pyscf"], atol=PBE_TOLERANCE)

    mf = dft.RKS(mol, xc=ZERO).density_fit()
    undone = mf.undo_df()
    assert type(undone) is type(dft.RKS(mol, xc=ZERO))
    mf.xc = "PBE"
    assert type(mf) is type(dft.RKS(mol).density_fit())
    assert type(mf._numint) is dft.numint.NumInt


def test_level_shift_damping_and_fractional_occupation():
    mol = molecule("Be 0 0 0")
    energies = {}
    for name, xc in {"pyscf": "PBE", "cider": ZERO}.items():
        shifted = solve(dft.RKS, mol, xc, level_shift=0.2, damp=0.1)
        smeared = scf.addons.smearing(dft.UKS(mol, xc=xc), sigma=0.05, method="fermi")
        smeared.grids.level = 0
        smeared.run(conv_tol=1e-10)
        energies[name] = shifted.e_tot, smeared.e_tot, smeared.e_free
    np.testing.assert_allclose(energies["cider"], energies["pyscf"], atol=1e-7)


def test_strings_give_plain_pyscf_back():
    mol = molecule(H2)
    for method in (dft.RKS, dft.UKS, dft.ROKS):
        fresh = method(mol, xc="PBE")
        mf = method(mol, xc=TOY)
        assert mf.xc is TOY and type(mf) is not type(fresh)
        assert isinstance(mf, type(fresh)) and isinstance(mf._numint, CiderNumInt)
        mf.xc = "PBE"
        assert mf.xc == "PBE" and type(mf) is type(fresh)
        assert type(mf._numint) is type(fresh._numint) and mf._numint.libxc is dft.libxc
        assert mf.__dict__.keys() == fresh.__dict__.keys()
    mf.grids.level = fresh.grids.level = 0
    assert abs(mf.kernel() - fresh.kernel()) < 1e-12


def test_assignment_during_the_life_of_an_object():
    mf = solve(dft.RKS, molecule(H2), "PBE")
    mf.xc = TOY
    toy = mf.kernel()
    mf.xc = OTHER
    other = mf.kernel()
    assert abs(toy - other) > 1e-6
    mf = mf.set(xc=TOY).run()
    assert abs(mf.e_tot - toy) < 1e-8
    assert type(mf).__name__ == "CiderRKS"


def test_copy_is_independent():
    mf = solve(dft.RKS, molecule(H2), TOY)
    copy = mf.copy()
    copy.xc = "PBE"
    assert mf.xc is TOY and isinstance(mf._numint, CiderNumInt)
    assert abs(mf.kernel() - copy.kernel()) > 1e-6


def test_pickle_and_chkfile(tmp_path):
    mf = dft.RKS(molecule(H2), xc=TOY)
    mf.chkfile = str(tmp_path / "scf.chk")
    mf.grids.level = 0
    energy = mf.kernel()

    restored = pickle.loads(pickle.dumps(mf))
    assert type(restored) is type(mf) and restored.e_tot == energy
    assert restored.xc.name == TOY.name
    assert abs(restored.kernel(restored.make_rdm1()) - energy) < 1e-8
    assert type(mf) is type(restored)  # pickling left the original alone

    again = dft.RKS(molecule(H2), xc=TOY)
    again.grids.level = 0
    again.init_guess = "chk"
    again.chkfile = mf.chkfile
    again.max_cycle = 2
    assert abs(again.kernel() - energy) < 1e-8


def test_unpickled_in_a_process_that_did_not_import_cider(tmp_path):
    path = tmp_path / "mf.pkl"
    path.write_bytes(pickle.dumps(dft.RKS(molecule(H2), xc=TOY)))
    code = f"import pickle; print(type(pickle.load(open({str(path)!r}, 'rb'))).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "CiderRKS", result.stderr


def test_reset_and_scanner_follow_the_molecule():
    mf = dft.RKS(molecule(H2), xc=TOY)
    mf.grids.level = 0
    mf.kernel()
    other = molecule("H 0 0 0; H 0 0 1.5")
    assert abs(mf.reset(other).kernel() - solve(dft.RKS, other, TOY).e_tot) < 1e-8
    scanner = mf.as_scanner()
    stretched = molecule("H 0 0 0; H 0 0 1.8")
    assert abs(scanner(stretched) - solve(dft.RKS, stretched, TOY).e_tot) < 1e-8


def test_grid_level_changes_the_grid():
    mf = solve(dft.RKS, molecule("He 0 0 0"), TOY)
    coarse, points = mf.e_tot, len(mf.grids.weights)
    mf.grids.level = 1
    assert abs(mf.kernel() - coarse) < 1e-2
    assert len(mf.grids.weights) > points
    mf.grids.level = 0
    assert abs(mf.kernel() - coarse) < 1e-10


def test_small_densities_pruned():
    mf = dft.RKS(molecule("He 0 0 0"), xc=TOY)
    mf.grids.level = 0
    mf.small_rho_cutoff = 1e-7
    assert abs(mf.kernel() - solve(dft.RKS, mf.mol, TOY).e_tot) < 1e-5


def test_flags_name_the_functional():
    mol = molecule("He 0 0 0")
    mol.verbose, mol.stdout = 4, io.StringIO()
    mf = dft.RKS(mol, xc=TOY)
    mf.grids.level = 0
    mf.kernel()
    log = mol.stdout.getvalue()
    assert "XC functionals = CiderFunctional(toy + GGA_C_PBE)" in log
    assert "Perdew" in log and "Overwritten attributes" not in log


def test_conversions():
    mol = molecule(H2)
    restricted = solve(dft.RKS, mol, TOY)
    unrestricted = restricted.to_uks()
    assert type(unrestricted) is type(dft.UKS(mol, xc=TOY)) and unrestricted.xc is TOY
    assert abs(unrestricted.kernel() - restricted.e_tot) < 1e-9
    back = unrestricted.to_rks()
    assert type(back) is type(restricted)
    assert abs(back.kernel() - restricted.e_tot) < 1e-9
    assert type(restricted.to_uks(xc="PBE")) is dft.uks.UKS
    assert type(dft.RKS(mol, xc="PBE").to_uks(xc=TOY)) is type(unrestricted)
    assert type(restricted.to_hf()) is scf.hf.RHF
    assert type(unrestricted.to_hf()) is scf.uhf.UHF
    assert type(restricted.to_ks()) is type(restricted)
    assert type(scf.RHF(mol).to_ks(TOY)) is type(restricted)


def test_wrappers_of_pyscf_around_it():
    mol = molecule("He 0 0 0")
    for wrap in (lambda mf: mf.x2c(), lambda mf: mf.PCM()):
        energies = []
        for xc in ("PBE", ZERO):
            mf = wrap(dft.RKS(mol, xc=xc))
            mf.grids.level = 0
            energies.append(mf.kernel())
        assert abs(energies[0] - energies[1]) < PBE_TOLERANCE


def test_analysis_and_guesses_run():
    mol = molecule("He 0 0 0")
    reference = solve(dft.RKS, mol, TOY)
    for guess in ("minao", "vsap", "1e"):
        mf = dft.RKS(mol, xc=TOY).set(init_guess=guess)
        mf.grids.level = 0
        assert abs(mf.kernel() - reference.e_tot) < 1e-8
    reference.analyze()
    assert np.linalg.norm(reference.dip_moment(verbose=0)) < 1e-8


@pytest.mark.parametrize("name", ["pbe0-x-nldf", "pbe0-x-sdmx"])
def test_spin_of_one_electron(name):
    """Its tail once made the potential diverge (``cider.exchange.GRADIENT_CUTOFF``)."""
    mf = dft.UKS(molecule("Li", spin=1, basis="def2-svp"), xc=CiderFunctional(name))
    mf.set(conv_tol=1e-10).kernel()  # on PySCF's own grid: level 0 is too coarse for this tail
    assert mf.converged and mf.cycles <= 10


def test_bare_nucleus_has_no_energy():
    mf = dft.UKS(molecule("H 0 0 0", charge=1), xc=TOY)
    mf.grids.level = 0
    mf.kernel()
    assert mf.e_tot == 0


def test_nonlocal_features_in_a_self_consistent_calculation(toy_functional):
    """The whole way, on the real convolution of atom-centred grids."""
    mf = dft.RKS(molecule(H2, basis="sto-3g"), xc=toy_functional)
    mf.grids.atom_grid = (10, 26)
    closed = mf.kernel()
    assert mf.converged
    assert abs(mf.to_uks().kernel() - closed) < 1e-9


def test_import_alone_installs_the_hook_in_either_order():
    program = (
        "{imports}; from pyscf import gto, dft; import sys; sys.path.insert(0, {tests!r});"
        "from toy_functionals import toy_exchange; from cider import CiderFunctional;"
        "mf = dft.RKS(gto.M(atom='He'), xc=CiderFunctional(toy_exchange('GGA')));"
        "print(type(mf).__name__)"
    )
    tests = str(toy_functionals.__file__).rsplit("/", 1)[0]
    for imports in ("import cider", "import pyscf.dft, cider"):
        code = program.format(imports=imports, tests=tests)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.stdout.strip() == "CiderRKS", result.stderr


def test_importing_cider_does_not_import_pyscf():
    code = "import cider, sys; print('pyscf' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
