"""Seconds from a fresh process to a self-consistent H2O, and then NH3, with and without caches."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from geometries import from_ase


def main() -> None:
    settings = harness.options(__doc__, ("H2O",)).parse_args()
    if settings.measure:
        print(json.dumps(measure(settings.measure, settings)))
        return
    rows = []
    for _ in range(settings.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("empty", "filled"):
                rows.append({"functional": settings.functional, "caches": cache})
                rows[-1] |= in_fresh_process(settings, settings.functional, Path(folder))
        for name in harness.REFERENCES:
            rows.append({"functional": name, "caches": "none"})
            rows[-1] |= in_fresh_process(settings, name, None)
    print("\n".join(harness.table(rows)))
    print(", ".join(f"{key} {value}" for key, value in harness.machine().items()))


def in_fresh_process(settings: argparse.Namespace, name: str, caches: Path | None) -> dict:
    """``measure`` in a process with caches of its own, and all its time up to the first SCF."""
    environment = dict(os.environ)
    if caches is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "NUMBA_CACHE_DIR": str(caches / "numba"),
        }
    command = [sys.executable, sys.argv[0], "--measure", name, "--basis", settings.basis]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    total = time.perf_counter() - started
    times = json.loads(done.stdout.splitlines()[-1])
    return {"H2O, all (s)": total - times["NH3"], **{f"{k} (s)": v for k, v in times.items()}}


def measure(name: str, settings: argparse.Namespace) -> dict[str, float]:
    """Seconds of the imports and of each calculation."""
    started = time.perf_counter()
    from pyscf import dft, gto

    import cider

    times = {"imports": time.perf_counter() - started}
    for system in ("H2O", "NH3"):
        started = time.perf_counter()
        mol = gto.M(atom=from_ase(system), basis=settings.basis, verbose=0)
        xc = name if name in harness.REFERENCES else cider.CiderFunctional(name)
        mf = dft.RKS(mol, xc=xc).density_fit()
        mf.kernel()
        if not mf.converged:
            raise RuntimeError(f"{system} with {name} did not converge")
        times[system] = time.perf_counter() - started
    return times


if __name__ == "__main__":
    main()
