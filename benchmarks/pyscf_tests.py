"""PySCF's own tests: plainly, with cider imported, and with a learned functional of zero size.

The latter stands in the place of every functional that it equals then. Give a folder of PySCF's
sources, as its repository has them: its packages leave the tests out. Each file runs in a process
of its own; what went another way than plainly is listed.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

FILES = (
    "dft/test/test_h2o.py",
    "dft/test/test_he.py",
    "dft/test/test_numint.py",
    "dft/test/test_grids.py",
    "grad/test/test_rks.py",
    "grad/test/test_uks.py",
    "grad/test/test_roks.py",
    "tdscf/test/test_tdrks.py",
    "tdscf/test/test_tduks.py",
    "hessian/test/test_rks.py",
    "hessian/test/test_uks.py",
    "pbc/dft/test/test_rks.py",
    "pbc/dft/test/test_uks.py",
    "pbc/dft/test/test_krks.py",
    "pbc/dft/test/test_kuks.py",
    "pbc/grad/test/test_krks.py",
    "pbc/grad/test/test_kuks.py",
)
WAYS = ("plain", "imported", "replaced")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path, help="folder that holds dft/test, grad/test, ...")
    parser.add_argument("--files", nargs="+", default=FILES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--functional", default="x-sl-mgga", help="whose learned part is zeroed")
    parser.add_argument("--select", default="not high_cost", help="pytest's -k")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds of a file and way")
    settings = parser.parse_args()

    print(f"Replaced by {settings.functional} of zero size. Tests passed, failed, skipped:\n")
    print(
        f"| | {' | '.join(settings.ways)} |\n| --- | {' | '.join('---' for _ in settings.ways)} |"
    )
    differences = []
    for file in settings.files:
        if not (settings.sources / file).exists():
            print(f"| {file} | not there |", flush=True)
            continue
        outcomes = {way: outcomes_of(settings, file, way) for way in settings.ways}
        print(f"| {file} | {' | '.join(map(counts, outcomes.values()))} |", flush=True)
        plain = outcomes[settings.ways[0]]
        for way in settings.ways[1:]:
            differences += [
                f"- {file}, {way}: {test}: {outcome}"
                for test, outcome in outcomes[way].items()
                if outcome.split(":")[0] != plain.get(test, "").split(":")[0]
            ]
    print("\nOtherwise than plainly:\n" if differences else "\nAll as plainly.")
    print("\n".join(differences))


def outcomes_of(settings: argparse.Namespace, file: str, way: str) -> dict[str, str]:
    """What became of each test: passed, skipped, or failed and why."""
    with tempfile.TemporaryDirectory() as folder:  # PySCF's sources must not be the ones imported
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={folder}"]
        command += ["-p", Path(__file__).stem, f"--way={way}", f"--zeroed={settings.functional}"]
        command += ["-k", settings.select, f"--junitxml={report}"]
        command += [str((settings.sources / file).resolve())]
        path = os.pathsep.join(
            [str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", "")]
        )
        try:
            subprocess.run(
                command,
                cwd=folder,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path},
                stdout=subprocess.DEVNULL,
                timeout=settings.timeout,
            )
        except subprocess.TimeoutExpired:
            return {"file": f"failed: not finished in {settings.timeout:g} s"}
        if not report.exists():
            return {"file": "failed: pytest made no report"}
        cases = ElementTree.parse(report).iter("testcase")
        return {case.get("name", ""): outcome(case) for case in cases}


def outcome(case: ElementTree.Element) -> str:
    """One line on a test."""
    for part in case:
        if part.tag in ("failure", "error"):
            return f"failed: {(part.get('message') or '').splitlines()[0][:300]}"
        if part.tag == "skipped":
            return "skipped"
    return "passed"


def counts(outcomes: dict[str, str]) -> str:
    """How many passed, failed and were skipped."""
    kinds = [text.split(":")[0] for text in outcomes.values()]
    return ", ".join(str(kinds.count(kind)) for kind in ("passed", "failed", "skipped"))


# From here on in the process of pytest, which takes this file as a plugin.


def pytest_addoption(parser: Any) -> None:
    """Of what happens before PySCF's tests run."""
    parser.addoption("--way", choices=WAYS)
    parser.addoption("--zeroed")


def pytest_configure(config: Any) -> None:
    """Import cider, and let a zero learned part replace functionals."""
    if config.getoption("way") != "plain":
        import cider  # noqa: F401
    if config.getoption("way") == "replaced":
        replace_functionals(config.getoption("zeroed"))


def replace_functionals(name: str) -> None:
    """From here on ``mf.xc = "PBE"`` assigns what is PBE by a learned functional of zero size."""
    from pyscf.dft import rks

    from cider.plugins.pyscf import hook, kohn_sham

    class Replacing(hook.FunctionalAttribute):
        def __set__(self, mf: Any, xc: Any) -> None:
            replacement = zero_learned(name, xc) if isinstance(xc, str) else None
            try:
                super().__set__(mf, xc if replacement is None else replacement)
            except NotImplementedError:  # such as generalised Kohn-Sham
                super().__set__(mf, xc)

    rks.KohnShamDFT.xc = Replacing()
    # Only asked for the auxiliary basis, and not to be replaced.
    kohn_sham.AUXILIARY_BASIS_OF = "BLYP"


def zero_learned(name: str, xc: str) -> Any:
    """The named functional without its learned part and with exchange and correlation of ``xc``;
    None where the exchange is no baseline."""
    import equinox as eqx
    import numpy as np
    from pyscf.dft import libxc

    from cider import CiderFunctional
    from cider.baselines import BASELINES

    try:
        hybrid, terms = libxc.parse_xc(xc)
    except KeyError:  # a dispersion correction in the name
        return None
    full_names = (full for full in libxc.XC_CODES if {"X", "C"} & set(full.split("_")))
    names = {libxc.XC_CODES[full]: full for full in full_names}
    weights = {names.get(code, str(code)): weight for code, weight in terms}
    exchange, correlation = (
        [term for term in weights if (term in BASELINES) is baseline] for baseline in (True, False)
    )
    other = any(hybrid) or set(weights.values()) != {1} or len(correlation) > 1
    if other or len(exchange) != 1 or any("_C_" not in term for term in correlation):
        return None
    learned = CiderFunctional(name).learned
    model = eqx.tree_at(
        lambda m: m.quadratic_form, learned.terms[0].model, replace_fn=np.zeros_like
    )
    term = dataclasses.replace(learned.terms[0], baseline=exchange[0], model=model)
    learned = dataclasses.replace(learned, terms=(term,))
    return CiderFunctional(learned, correlation=correlation[0] if correlation else None)


if __name__ == "__main__":
    main()
