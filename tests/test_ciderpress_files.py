"""Model files of ciderpress: read as data, evaluated as published, refused when hostile."""

import importlib.util
import os
import pickle
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_models import (
    MODELS,
    NO_DISPERSION,
    XC,
    array,
    dispersion,
    scalar,
    tensor,
    torch_storage,
)

from cider import CiderFunctional, ciderpress_file
from cider.baselines import BASELINES
from cider.ciderpress_file import CiderpressFileError, Record, read_ciderpress_file
from cider.ciderpress_model import load_ciderpress
from cider.command_line import main
from cider.conventions import (
    LDA_EXCHANGE_PREFACTOR,
    REDUCED_GRADIENT_PREFACTOR,
    THOMAS_FERMI_PREFACTOR,
)
from cider.density import Density
from cider.files import load_functional, save_functional
from cider.learned_functional import LearnedFunctional

EVERY = pytest.mark.parametrize("name", MODELS)
HEAD = "!!python/object:ciderpress.dft.xc_evaluator.MappedXC\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "MODEL.yaml"


def read(path: Path, text: str | bytes) -> LearnedFunctional:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_ciderpress(path)


def density(count: int = 400) -> tuple[np.ndarray, ...]:
    """rho, sigma, tau, p and alpha of points, and nonlocal features from small to large."""
    random = np.random.default_rng(8)
    rho = 10 ** random.uniform(-3, 2, size=count)
    p, alpha = 10 ** random.uniform(-4, 3, size=(2, count))
    alpha[:3] = p[3:6] = 0.0
    sigma = p * rho ** (8 / 3) / REDUCED_GRADIENT_PREFACTOR
    tau = alpha * THOMAS_FERMI_PREFACTOR * rho ** (5 / 3) + sigma / (8 * rho)
    return rho, sigma, tau, p, alpha, 10 ** random.uniform(-2, 1, size=(5, count))


# The published formulas


@pytest.mark.usefixtures("x64")
@EVERY
def test_enhancement_is_the_published_one(name: str, path: Path) -> None:
    model = MODELS[name]
    functional = read(path, model.text())
    (exchange,) = functional.terms
    rho, sigma, tau, p, alpha, features = density()
    descriptors = functional.descriptors
    is_mgga = descriptors.level == "MGGA"
    features = features[: model.num_nonlocal]
    semilocal, nonlocal_ = descriptors.bounded(
        jnp.asarray(rho),
        jnp.asarray(sigma),
        jnp.asarray(tau) if is_mgga else None,
        jnp.asarray(features),
    )
    found = exchange.model(exchange.transform(semilocal, nonlocal_))
    # Alpha comes from a difference that cancels where it is small beside p.
    np.testing.assert_allclose(found, model.correction(p, alpha, features), atol=1e-11)
    assert exchange.baseline == model.baseline
    assert functional.name == "MODEL"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["nl gga", "nl mgga"])
def test_exponents_are_the_published_ones(name: str, path: Path) -> None:
    """But for the bounds, which are 1e-6 of them at these densities."""
    model = MODELS[name]
    nldf = read(path, model.text()).descriptors.nldf
    rho, sigma, tau, p, alpha, _ = density()
    chosen = (rho > 0.1) & (p < 10) & (alpha < 10)
    rho, sigma, tau = rho[chosen], sigma[chosen], tau[chosen]
    for number, own in enumerate((nldf.source_exponent, *nldf.exponents), start=-1):
        found = own(*map(jnp.asarray, (rho, sigma, tau)))
        np.testing.assert_allclose(found, model.a(number, rho, sigma, tau), rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["sl gga", "sl mgga"])
def test_energy_of_an_atom(name: str, path: Path) -> None:
    """Energies of open shells, by numbers of the density of PySCF alone."""
    from pyscf import dft, gto

    model = MODELS[name]
    mol = gto.M(atom="N", basis="def2-svp", spin=3, verbose=0)
    mf = dft.UKS(mol, xc="PBE")
    mf.grids.level = 1
    mf.kernel()
    ao = dft.numint.eval_ao(mol, mf.grids.coords, deriv=1)
    rho = np.array(
        [dft.numint.eval_rho(mol, ao, d, xctype="MGGA", with_lapl=False) for d in mf.make_rdm1()]
    )
    total = 0.0
    for spin in 2 * rho:
        own = spin[:, spin[0] > 1e-9]
        sigma = np.sum(own[1:4] ** 2, axis=0)
        p = REDUCED_GRADIENT_PREFACTOR * sigma / own[0] ** (8 / 3)
        alpha = (own[4] - sigma / (8 * own[0])) / (THOMAS_FERMI_PREFACTOR * own[0] ** (5 / 3))
        g = model.correction(p, alpha, np.zeros((0, len(p))))
        base = BASELINES[model.baseline](jnp.asarray(own[0]), jnp.asarray(sigma))
        e_x = LDA_EXCHANGE_PREFACTOR * own[0] ** (4 / 3) * (np.asarray(base) + g)
        total += 0.5 * np.sum(mf.grids.weights[spin[0] > 1e-9] * e_x)
    path.write_text(model.text())
    functional = CiderFunctional.from_ciderpress(path)
    tau = rho[:, 4] if functional.needs_tau else None
    # Points below 1e-9 bohr^-3 hold less than this.
    own = functional.learned_energy(Density(rho[:, 0], rho[:, 1:4], tau), mf.grids.weights)
    assert abs(own - total) < 1e-8


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spins", [1, 2])
def test_exchange_and_correlation_are_the_published_ones(spins: int, path: Path) -> None:
    """Energies of points, of spin densities with gradients in any directions."""
    learned = read(path, XC.text())
    assert learned.has_correlation and learned.descriptors.needs_tau
    random = np.random.default_rng(4)
    rho = 10 ** random.uniform(-3, 2, size=(spins, 300))
    grad_rho = random.normal(size=(spins, 3, 300)) * rho[:, None] ** (4 / 3)
    tau = np.sum(grad_rho**2, axis=1) / (8 * rho) + random.uniform(0, 5, 300) * rho ** (5 / 3)
    features = 10 ** random.uniform(-2, 1, size=(spins, 2, 300))
    scaled = Density(*map(jnp.asarray, (rho, grad_rho, tau))).spin_scaled()
    given = tuple(map(jnp.asarray, features))
    found = sum(term.energy_density(learned.descriptors, scaled, given) for term in learned.terms)
    if spins == 1:  # half of it for each spin
        halves = [np.concatenate([x, x]) / 2 for x in (rho, grad_rho, tau)]
        expected = XC.energy_density(*halves, np.concatenate([features, features]))
    else:
        expected = XC.energy_density(rho, grad_rho, tau, features)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("spin", [0, 1])
def test_exchange_and_correlation_run_in_pyscf(spin: int, path: Path) -> None:
    from pyscf import dft, gto

    path.write_text(XC.text())
    functional = CiderFunctional.from_ciderpress(path)
    mol = gto.M(atom="H 0 0 0; H 0 0 0.74", charge=spin, spin=spin, basis="sto-3g", verbose=0)
    mf = (dft.UKS if spin else dft.RKS)(mol, xc=functional)
    mf.grids.level = 0
    mf.kernel()
    assert mf.converged and mf.scf_summary["exc"] < 0


def test_dispersion_beside_which_a_model_was_trained(path: Path) -> None:
    pytest.importorskip("pyscf.dispersion")
    from pyscf import dft, gto

    bare = read(path, XC.text())
    text = XC.text().replace(NO_DISPERSION, dispersion("d4", "{xc: PBE}"))
    save_functional(path.with_suffix(".h5"), read(path, text), {})
    learned = load_functional(path.with_suffix(".h5"))
    assert bare.dispersion is None and learned.dispersion == "d42b:pbe"
    assert CiderFunctional(learned).learned.exchange.dispersion is None

    mol = gto.M(atom="He 0 0 0; He 0 0 3", basis="sto-3g", verbose=0)
    mf = dft.RKS(mol, xc=CiderFunctional(learned))
    mf.grids.level = 0
    mf.kernel()
    expected = dft.RKS(mol, xc="PBE").get_dispersion("d42b:pbe")
    assert expected < 0
    assert mf.scf_summary["dispersion"] == pytest.approx(expected, abs=1e-12)
    assert mf.e_tot == pytest.approx(
        dft.RKS(mol, xc=CiderFunctional(bare)).set(grids=mf.grids).kernel() + expected, abs=1e-9
    )
    mf.disp = False
    assert not mf.do_disp()


def test_exchange_and_correlation_take_no_other_part(path: Path) -> None:
    path.write_text(XC.text())
    parts = [{"x_mix": 0.25, "semilocal": "PBE"}, {"semilocal": "PBE"}, {"correlation": "LDA_C_PW"}]
    for composition in [*parts, {"x_mix": 0.5}]:
        with pytest.raises(ValueError, match="MODEL is exchange and correlation in one"):
            CiderFunctional.from_ciderpress(path, **composition)
    assert CiderFunctional.from_ciderpress(path, x_mix=1.0).name == "MODEL"


@pytest.mark.parametrize("name", ["sl gga", "nl mgga", "sdmx"])
def test_runs_in_pyscf(name: str, path: Path) -> None:
    """Self-consistently, with a gradient of the energy by the orbitals that is its own."""
    from pyscf import dft, gto

    path.write_text(MODELS[name].text())
    functional = CiderFunctional.from_ciderpress(path, correlation="GGA_C_PBE")
    mol = gto.M(atom="H 0 0 0; H 0 0 0.74", basis="sto-3g", verbose=0)
    mf = dft.RKS(mol, xc=functional)
    mf.grids.level = 0
    mf.kernel()
    assert mf.converged


# Files of ours


@pytest.mark.parametrize("name", [*MODELS, "xc"])
def test_conversion_is_bit_identical(name: str, path: Path, capsys) -> None:
    model = XC if name == "xc" else MODELS[name]
    exchange = read(path, model.text())
    out = path.with_suffix(".h5")
    assert main(["convert", str(path), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    loaded = load_functional(out)
    assert jax.tree.structure(loaded) == jax.tree.structure(exchange)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(exchange), strict=True):
        assert ours.dtype == np.float64 and ours.shape == theirs.shape
        assert ours.tobytes() == np.ascontiguousarray(theirs).tobytes()
    assert main(["info", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "not exact" in shown and "MODEL.yaml" in shown
    parts = ["exchange: additive spline"]
    if name == "sdmx":
        parts = ["exchange: modulated network", "sdmx_1rd[j=0]", "J. Chem. Theory Comput."]
    if name == "xc":
        parts = ["exchange: radial basis, correlation: radial basis", "GGA_X_PBE + GGA_C_PBE"]
        parts += ["spin scaling (exchange)", "tau/tau_0"]
    assert all(part in shown for part in parts)


def test_missing_file_and_command_line(path: Path, capsys) -> None:
    assert main(["convert", str(path), "out.h5"]) == 2
    assert "MODEL.yaml cannot be read" in capsys.readouterr().err


def test_existing_files_are_kept(path: Path, capsys) -> None:
    path.write_text(MODELS["sl gga"].text())
    out = path.with_suffix(".h5")
    out.write_text("mine")
    assert main(["convert", str(path), str(out)]) == 2
    assert f"{out} exists" in capsys.readouterr().err and out.read_text() == "mine"
    assert main(["convert", str(path), str(out), "--force"]) == 0
    assert load_functional(out).name == "MODEL"


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models of a ciderpress that fails when it is imported."""
    package = tmp_path / "site" / "ciderpress"
    folder = package / "data" / "functionals"
    folder.mkdir(parents=True)
    for module in (package, package / "data", folder):
        (module / "__init__.py").write_text("raise RuntimeError('imported')")
    # In front of one that is really installed.
    monkeypatch.syspath_prepend(str(package.parent))
    return folder


def test_installed_models(installation: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "made" / "here"
    assert main(["convert", "--installed", str(out)]) == 2
    assert "no ciderpress with model files" in capsys.readouterr().err and not out.exists()

    (installation / "A.yaml").write_text(MODELS["sl gga"].text())
    (installation / "B.yaml").write_text(MODELS["sdmx"].text().replace("SDMXFull", "SDMXG"))
    (installation / "C.yaml").write_text(MODELS["sl mgga"].text())
    assert main(["convert", "--installed", str(out)]) == 0
    printed = capsys.readouterr()
    assert sorted(file.name for file in out.iterdir()) == ["A.h5", "C.h5"]
    assert str(out / "A.h5") in printed.out and str(out / "C.h5") in printed.out
    assert "B is not converted" in printed.err and "SDMX features of other" in printed.err
    assert load_functional(out / "C.h5").name == "C"

    (out / "C.h5").unlink()
    (out / "A.h5").write_text("mine")
    assert main(["convert", "--installed", str(out)]) == 2
    assert f"{out / 'A.h5'} exists" in capsys.readouterr().err
    assert (out / "A.h5").read_text() == "mine" and (out / "C.h5").exists()
    assert main(["convert", "--installed", str(out), "--force"]) == 0
    assert load_functional(out / "A.h5").name == "A"
    assert "ciderpress" not in sys.modules


def test_installed_models_go_into_this_folder(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installation / "A.yaml").write_text(MODELS["sl gga"].text())
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "--installed"]) == 0
    assert load_functional(tmp_path / "A.h5").name == "A"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give a model file"),
        (["a.yaml"], "give a model file"),
        (["--installed", "b", "a.yaml"], "leave a.yaml out"),
    ],
)
def test_what_to_convert_must_be_clear(arguments: list[str], message: str, capsys) -> None:
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["convert", "--installed", str(tmp_path)]) == 2
    assert "pip install ciderpress" in capsys.readouterr().err


def test_arrays_of_all_kinds(path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3)
    newer = array(values).replace("numpy.core", "numpy._core")
    fields = f"a: {array(values)}\nb: {array(values, fortran=True)}\nc: {newer}\n"
    fields += f"d: {array(np.array([3, -1]))}\ne: {scalar(2.5)}\nf: {scalar(7)}\n"
    path.write_text(HEAD + fields)
    record = read_ciderpress_file(path)
    for name in "abc":
        np.testing.assert_array_equal(record.get(name, np.ndarray), values)
    np.testing.assert_array_equal(record.get("d", np.ndarray), [3, -1])
    assert record.get("e", float) == 2.5 and record.get("f", int) == 7
    with pytest.raises(CiderpressFileError, match="'f' of type str, but it is int"):
        record.get("f", str)


# Neural networks


class Exploit:
    """What a pickle runs when it is read."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def with_readout(parameter: str) -> str:
    """A model with a neural network, of whose last weights another tensor takes the place."""
    model = MODELS["sdmx"]
    own, text = tensor(model.arrays()["last"][0]), model.text()
    assert text.count(own) == 1
    return text.replace(own, parameter)


def test_tensors_are_arrays(path: Path) -> None:
    weight = np.arange(6.0).reshape(3, 2)
    path.write_text(with_readout(tensor(weight)))
    evaluator = read_ciderpress_file(path).get("kernels", list)[0].get("fevals", list)[0]
    layer = evaluator.get("model", Record).get("_modules", dict)["last"]
    found = layer.get("_parameters", dict)["weight"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, weight)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("tuple [3, 2]", "tuple [3, 3]", "needs 72 bytes.* 48"),
        ("tuple [3, 2]", "tuple [-3, -2]", "is no shape"),
        ("tuple [3, 2]", "tuple [3000000000, 3000000000]", "needs 7\\d+ bytes.* 48"),
        ("tuple [2, 1]", "tuple [1, 3]", "strides"),
        ("tuple [2, 1]", "tuple [0, 0]", "strides"),
        ('"], 0, ', '"], 1, ', "from 1 on"),
        ("_load_from_bytes [!!binary ", "_load_from_bytes [!!str ", "given by bytes"),
        ("_load_from_bytes", "_load_from_file", "_load_from_file'.*refused"),
        ("torch.device [cpu]", "torch.device [meta]", "no device"),
        ("['bias',", "['weight',", "twice"),
        ("[['weight',", "[[['weight'],", "no ordered dictionary"),
        ("!!set {}", "!!set [a]", "a mapping is expected"),
        ("_rebuild_parameter [", "_rebuild_parameter [null, ", "a parameter is a tensor"),
    ],
)
def test_damaged_tensors(old: str, new: str, message: str, path: Path) -> None:
    content = with_readout(tensor(np.ones((3, 2))))
    assert old in content
    with pytest.raises(CiderpressFileError, match=rf"MODEL\.yaml, line \d+: .*{message}"):
        read(path, content.replace(old, new))


@pytest.mark.parametrize(
    "old, new, error, message",
    [
        ("activation.Tanh", "linear.Linear", CiderpressFileError, "needs Tanh, but has Linear"),
        ("activation.Tanh", "activation.SiLU", CiderpressFileError, "SiLU'.*refused"),
        ("xc_torch.XNet", "xc_torch.XNet2", NotImplementedError, "networks of other kinds"),
        ("['l0',", "['l1',", CiderpressFileError, "needs Linear, but has NoneType"),
        ("['lls',", "['l3s',", CiderpressFileError, "needs ModuleList, but has NoneType"),
        ("['bias',", "['bios',", CiderpressFileError, "no weights and biases"),
        ("['1',", "['0',", CiderpressFileError, "twice"),
        ("i: 7,", "i: 1,", NotImplementedError, "each feature once"),
        ("i: 7,", "i: [7],", NotImplementedError, "each feature once"),
        ("i: 7,", "i: 8,", NotImplementedError, "each feature once"),
        ("power: -1.0}", "power: -1.1}", NotImplementedError, "power -1.1 of the density"),
        ("DensityNormalizer {", "ConstantNormalizer {", NotImplementedError, "power 0.0 of the"),
        ("const: -1.1,", "const: 1.1,", CiderpressFileError, "positive ratios"),
        (", [1, 1, 2, 2]]", ", [1, 1, 2]]", CiderpressFileError, "four numbers"),
        (", [1, 1, 2, 2]]", ", [1, 1, 2, 3]]", CiderpressFileError, "four numbers"),
        (", [1, 1, 2, 2]]", ", [1, 1, 1, 2]]", CiderpressFileError, "as many normalisers"),
        ("[[1, 0], ", "[[1, 3], ", CiderpressFileError, "j is 0, 1 or 2"),
        ("[[1, 0], ", "[[1, x], ", CiderpressFileError, "four numbers"),
        ("1.0: !!", "1.5: !!", NotImplementedError, r"smoothed twice \(1.5\)"),
        (
            "_settings:\n",
            "_integral_type: gauss_r2\n    _settings:\n",
            NotImplementedError,
            "smooth",
        ),
        ("_settings:\n", "others:\n", CiderpressFileError, "'_settings'"),
        ("SDMXFullSettings", "SADMSettings", NotImplementedError, "SDMX features of other kinds"),
        ("SDMXFullSettings", "SemilocalSettings", CiderpressFileError, "needs SDMXFullSettings"),
    ],
)
def test_damaged_networks_and_features_of_the_density_matrix(
    old: str, new: str, error: type[Exception], message: str, path: Path
) -> None:
    text = MODELS["sdmx"].text()
    assert old in text
    with pytest.raises(error, match=rf"MODEL\.yaml.*{message}"):
        read(path, text.replace(old, new))


@pytest.mark.parametrize("layer", MODELS["sdmx"].arrays())
def test_layers_that_do_not_fit(layer: str, path: Path) -> None:
    model = MODELS["sdmx"]
    weights, biases = model.arrays()[layer]
    own = tensor(weights)
    for other in (weights[:, 1:], weights[1:] if len(weights) > 1 else np.tile(weights, (2, 1))):
        with pytest.raises(CiderpressFileError, match=r"MODEL\.yaml"):
            read(path, model.text().replace(own, tensor(np.ascontiguousarray(other))))
    with pytest.raises(CiderpressFileError, match="no weights and biases"):
        read(path, model.text().replace(tensor(biases), tensor(np.stack([biases, biases]))))


def hostile_storages(victim: Path) -> dict[str, bytes]:
    """Streams that call something, claim too much or stop too early."""
    good = torch_storage(np.ones(6))
    end = len(good) - 6 * 8
    large = (2**40).to_bytes(8, "little")
    return {
        "call at once": pickle.dumps(Exploit(victim), 2),
        "call later": good[: good.index(b"\x80\x02(")] + pickle.dumps(Exploit(victim), 2),
        "call as magic": pickle.dumps(Exploit(victim), 0) + good,
        "call at the end": good.replace(b"NtQ.", b"NtQ" + pickle.dumps(Exploit(victim), 2)[2:]),
        "other name": good.replace(b"ctorch\nDoubleStorage", b"cos\nsystem"),
        "name from the stack": good.replace(b"NtQ.", b"NtQ\x93."),
        "object with a state": good.replace(b"NtQ.", b"NtQb."),
        "memo of 30 GB": good.replace(b"NtQ.", b"NtQr\xff\xff\xff\xff."),
        "bytes of 1 TB": good.replace(b"NtQ.", b"\x96" + large + b"."),
        "text of 4 GB": good.replace(b"X\x07\0\0\0storage", b"X\xff\xff\xff\xffstorage"),
        "count of the reference": good.replace(b"J\x06\0\0\0", b"J\xff\xff\xff\x7f"),
        "negative count": good.replace(b"J\x06\0\0\0", b"J\xfa\xff\xff\xff"),
        "count of the elements": good[: end - 8] + large + good[end:],
        "both counts": good.replace(b"J\x06", b"J\x07").replace(b"\x06\0\0\0", b"\x07\0\0\0"),
        "other key": good.replace(b"4242q\x01a.", b"4243q\x01a."),
        "big-endian": good.replace(b"\x88", b"\x89"),
        "a view": good.replace(b"NtQ.", b"K\0tQ."),
        "more behind": good + b"\0",
        "zip file": b"PK\x03\x04",
        **{f"first {n} bytes": good[:n] for n in (0, 1, 14, 15, 60, end - 9, end, len(good) - 1)},
    }


@pytest.mark.parametrize("kind", hostile_storages(Path()))
def test_hostile_storages(kind: str, path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    content = hostile_storages(victim)[kind]
    assert content != torch_storage(np.ones(6))
    start = time.perf_counter()
    with pytest.raises(
        CiderpressFileError, match=r"MODEL\.yaml, line \d+: .*nothing in it was run"
    ):
        read(path, with_readout(tensor(np.ones(6), content)))
    assert not victim.exists()
    assert time.perf_counter() - start < 5


# Hostile and damaged files


@pytest.mark.parametrize(
    "part",
    [
        "!!python/object/apply:os.system ['touch {victim}']",
        "!!python/object/new:os.system ['touch {victim}']",
        '!!python/object/apply:builtins.eval [\'open("{victim}", "w")\']',
        "!!python/object:cider.files.FunctionalFileError {{}}",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!!python/object/apply:numpy.load ['{victim}']",
        "!!python/object/apply:ciderpress.dft.xc_evaluator.MappedXC []",
        "!!python/object/apply:torch.load ['{victim}']",
        "!!python/object/apply:torch._utils._rebuild_tensor [1]",
        "!!python/object:torch.nn.modules.linear.Bilinear {{}}",
        "!!binary_ 'x'",
        "!made_up {{}}",
    ],
)
def test_unknown_tags_are_refused_by_name(part: str, path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    text = f"{HEAD}kernels: []\nsettings: {part.format(victim=victim)}\n"
    tag = re.escape(part.split()[0])
    with pytest.raises(CiderpressFileError, match=rf"MODEL.yaml, line 3: the tag '{tag}'.*refused"):
        read(path, text)
    assert not victim.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_is_refused(protocol: int, path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    with pytest.raises(CiderpressFileError):
        read(path, pickle.dumps(Exploit(victim), protocol))
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89HDF\r\n\x1a\n\0\0", b"PK\x03\x04", b"# CIDER\n", b"[1, 2]", b"a: 1", b"\xff\xfe"],
)
def test_other_files(content: bytes, path: Path) -> None:
    with pytest.raises(CiderpressFileError, match=r"not a (complete YAML|model) file"):
        read(path, content)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_truncated(fraction: float, path: Path) -> None:
    text = MODELS["nl mgga"].text()
    with pytest.raises(CiderpressFileError, match=r"MODEL\.yaml"):
        read(path, text[: int(fraction * len(text))])


BOMBS = {
    "laughs": "a: &a0 [x, x]\n"
    + "".join(f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "merges": "a: &a0 {x: 1}\n"
    + "".join(f"b{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "circle": "a: &a [1, *a]\n",
    "depth": "a: " + 10**6 * "[",
    "width": "a: [" + 10**6 * "1,",
    "no anchor": "a: *b\n",
    "merge": "a: {<<: {x: 1}, <<: {y: 1}}\n",
    "digits": f"a: {10**5 * '7'}\n",
    "key": "? [a, b]\n: 1\n",
    "twice": "a: 1\na: 2\n",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_fail_fast(kind: str, path: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(CiderpressFileError):
        read(path, HEAD + BOMBS[kind])
    assert time.perf_counter() - start < 5


def test_large_files_are_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ciderpress_file, "MAX_BYTES", 1000)
    with pytest.raises(CiderpressFileError, match="larger than 1000 bytes"):
        read(path, MODELS["sl gga"].text())


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[1, !!python/tuple [11]", "[1, !!python/tuple [12]", "shape .12,. needs 96 bytes.* 88"),
        ("[1, !!python/tuple [11]", "[1, !!python/tuple [-11]", "is no shape"),
        ("[1, !!python/tuple [11]", "[1, 11", "is no shape"),
        ("[1, !!python/tuple [11]", "[2, !!python/tuple [11]", "unknown version"),
        ("[f8, false, true]", "[O8, false, true]", "a data type 'O8'"),
        ("[f8, false, true]", "[[f8], false, true]", "a data type"),
        ("tuple [3, <,", "tuple [3, '>',", "a data type"),
        ("numpy.dtype {args", "numpy.dtype {arms", "only args and state"),
        ("numpy.ndarray ''", "ciderpress.dft.baselines.lda_x ''", "parts of an array"),
        ("[0, 1, 9]", "[0, 1, 10]", r"coefficients of shape \(11,\).* need \(12,\)"),
        ("[0, 1, 9]", "[1, 0, 9]", "low first"),
        ("[0, 1, 9]", "[0, .inf, 9]", "finite bounds"),
        ("[0, 1, 9]", "[0, 1, 9.0]", "no uniform grid"),
        ("[0, 1, 9]", "[0, 1]", "no uniform grid"),
        ("gamma: 0.243", "gamma: -0.243", "positive ratios"),
        ("gamma: 0.243", "gamma: large", "'gamma' of type float, but it is str"),
        ("gamma: 0.243", "gimmick: 0.243", "'gamma' of type float, but it is NoneType"),
        ("const: -0.25", "const: .nan", "NaN"),
        ("mode: np", "mode: []", "'mode' of type str"),
        ("baselines.lda_x ''", "baselines.lda_x {}", "MODEL.yaml"),
        ("transform_data.UMap", "settings.EmptySettings", "EmptySettings"),
        ("feature_list:", "feature_last:", "needs FeatureList, but has NoneType"),
        ("[null, null]", "[null]", "as many normalisers"),
    ],
)
def test_damaged_values(old: str, new: str, message: str, path: Path) -> None:
    text = MODELS["sl gga"].text()
    assert old in text
    with pytest.raises(CiderpressFileError, match=message):
        read(path, text.replace(old, new))


@pytest.mark.parametrize(
    "old, new, missing",
    [
        ("settings.EmptySettings", "settings.SDMXSettings", "SDMX features"),
        ("xc_evaluator.MappedXC", "xc_evaluator2.Other", "other energies"),
        ("xc_evaluator.SplineSetEvaluator", "xc_evaluator.KernelEvaluator", "other models"),
        ("transform_data.UMap", "transform_data.WMap", "other input maps"),
        ("transform_data.UMap", "transform_data.SLXMap", "each feature once"),
        ("baselines.lda_x", "baselines.one_xc", "other baselines"),
        ("mode: SEP", "mode: NPOL", "spin-scaled exchange"),
        ("mode: np", "mode: ns", "semilocal features 'ns'"),
        ("libxc_baseline: null", "libxc_baseline: GGA_C_PBE", "functional of libxc"),
        (
            "_mul_basefunc: !!python/name:ciderpress.dft.baselines.lda_x",
            "_mul_basefunc: !!python/name:ciderpress.dft.baselines.gga_x_pbe",
            "multiplies another energy",
        ),
        ("i: 1}", "i: 0}", "each feature once"),
    ],
)
def test_what_is_missing_is_named(old: str, new: str, missing: str, path: Path) -> None:
    text = MODELS["sl gga"].text()
    assert old in text
    with pytest.raises(NotImplementedError, match=f"MODEL.yaml.*{missing}"):
        read(path, text.replace(old, new))


@pytest.mark.parametrize(
    "old, new, error",
    [
        ("feat_specs: [se, se]", "feat_specs: [se, se_ar2]", NotImplementedError),
        ("rho_mult: one", "rho_mult: expnt", NotImplementedError),
        ("l1_feat_specs: []", "l1_feat_specs: [se_grad]", NotImplementedError),
        ("feat_specs: [se, se]", "feat_specs: [se]", CiderpressFileError),
        ("theta_params: [0.5, 0.01, 0.015]", "theta_params: [0.5]", CiderpressFileError),
        (
            "theta_params: [0.5, 0.01, 0.015]",
            "theta_params: [-0.5, 0.01, 0.015]",
            CiderpressFileError,
        ),
        ("theta_params: [0.5, 0.01, 0.015]", "theta_params: [0.5, 0.01, x]", CiderpressFileError),
    ],
)
def test_other_nonlocal_features(old: str, new: str, error: type[Exception], path: Path) -> None:
    text = MODELS["nl mgga"].text()
    assert old in text
    with pytest.raises(error, match=r"MODEL\.yaml"):
        read(path, text.replace(old, new))


@pytest.mark.parametrize(
    "old, new, error, message",
    [
        ("vdw_fit_term: null", "vdw_fit_term: d4", NotImplementedError, "dispersion"),
        ("vdw_fit_info: null", "vdw_fit_info: {kind: d4}", NotImplementedError, "dispersion"),
        (NO_DISPERSION, dispersion("d3", "{xc: PBE}"), NotImplementedError, "'d3'"),
        (NO_DISPERSION, dispersion("d4", "{}"), NotImplementedError, "dispersion"),
        (NO_DISPERSION, dispersion("d4", "[PBE]"), NotImplementedError, "PBE"),
        (NO_DISPERSION, dispersion("d4", "{xc: PBE, ga: 3.0}"), NotImplementedError, "ga"),
        ("mode: NPOL", "mode: POL", NotImplementedError, "mode 'POL'"),
        ("mode: NPOL", "mode: SEP", NotImplementedError, "multiplies another energy"),
        ("mode: SEP", "mode: NPOL", NotImplementedError, "multiplies another energy"),
        ("omega: 0.0", "omega: 0.3", NotImplementedError, "range-separated"),
        ("_add_basefunc: GGA_C_PBE", "_add_basefunc: null", CiderpressFileError, "_add_basefunc"),
        ("GGA_C_PBE", "MGGA_C_SCAN", CiderpressFileError, "unknown correlation .*GGA_C_PBE"),
        ("GGA_X_PBE", "GGA_X_RPBE", CiderpressFileError, "unknown baseline .*GGA_X_PBE"),
        ("SLNMap {gamma: 10.0, i: 0}", "UMap {gamma: 1, i: 3}", NotImplementedError, "each"),
        ("SLNMap {gamma: 10.0, i: 0}", "SLNMap {gamma: -1, i: 0}", CiderpressFileError, "density_"),
        ("SLNMap {gamma: 10.0, i: 0}", "SLNMap {gamma: 1, i: 1}", CiderpressFileError, "another"),
        ("SLTMap {i: 0, j: 2}", "SLTMap {i: 0, j: 1}", NotImplementedError, "each feature once"),
        ("SLTMap {i: 0, j: 2}", "SLTMap {j: 2}", NotImplementedError, "each feature once"),
        ("SLXMap {gamma: 0.243, i", "SLXMap {gamma: x, i", CiderpressFileError, "'gamma'"),
        ("SLXMap {gamma: 0.243, i", "SLXMap {gamma: -1, i", CiderpressFileError, "positive"),
        ("[1, !!python/tuple [7, 5]", "[1, !!python/tuple [5, 7]", CiderpressFileError, "control"),
        ("[1, !!python/tuple [7, 5]", "[1, !!python/tuple [35]", CiderpressFileError, "control"),
        ("[1, !!python/tuple [7]", "[1, !!python/tuple [1, 7]", CiderpressFileError, "control"),
        ("[1, !!python/tuple [7]", "[1, !!python/tuple [8]", CiderpressFileError, "needs 64 bytes"),
        ("_indexes:", "_exps_:", CiderpressFileError, "'_indexes'"),
        ("kernels:\n", "kernels: []\nothers:\n", CiderpressFileError, "no energy terms"),
        ("MappedXC2", "MappedXC", CiderpressFileError, "needs MappedDFTKernel"),
    ],
)
def test_damaged_exchange_and_correlation(
    old: str, new: str, error: type[Exception], message: str, path: Path
) -> None:
    text = XC.text()
    assert old in text
    changed = text.replace(old, new)
    if "xc_evaluator2.MappedXC\n" in changed:
        changed = changed.replace("xc_evaluator2.MappedXC\n", "xc_evaluator.MappedXC\n")
    with pytest.raises(error, match=f"(?s)MODEL.*{message}"):
        read(path, changed)


def test_a_radial_basis_of_some_inputs_is_not_read(path: Path) -> None:
    text = XC.text()
    indices = array(np.arange(4, dtype=np.int32))
    assert indices in text
    with pytest.raises(NotImplementedError, match="does not read all inputs"):
        read(path, text.replace(indices, array(np.array([0, 1, 2, 2], dtype=np.int32))))


@pytest.mark.parametrize("model", [MODELS["sl mgga"], MODELS["sdmx"], XC])
def test_random_damage_gives_a_clear_error_or_a_model(model, path: Path) -> None:
    content = model.text().encode()
    random = np.random.default_rng(2)
    for position in random.integers(len(content), size=60):
        changed = bytearray(content)
        changed[position] = random.choice(list(b"[]{}:,!&*'\" x0-\n\t"))
        try:
            exchange = read(path, bytes(changed))
        except (CiderpressFileError, NotImplementedError):
            continue
        assert isinstance(exchange, LearnedFunctional)
