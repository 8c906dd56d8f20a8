"""CPU seconds of self-consistent calculations of crystals in GPAW, beside PBE and SCAN.

Each functional runs twice in a process of its own: the first time contains compilation.
"""

import argparse
import json
import subprocess
import sys
import time

import harness
from ase.build import bulk

REFERENCES = ("PBE", "SCAN")
NATIVE = ("LDA", "PBE", "PBE0", "SCAN")
CRYSTALS = {
    "Si2": bulk("Si", "diamond", 5.43),
    "Si8": bulk("Si", "diamond", 5.43, cubic=True),
    "Si64": bulk("Si", "diamond", 5.43, cubic=True) * 2,
    "MgO": bulk("MgO", "rocksalt", 4.21),
    "Al4": bulk("Al", "fcc", 4.05, cubic=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=CRYSTALS, default=list(CRYSTALS))
    parser.add_argument("--functionals", nargs="+", default=["pbe0-x-nldf"])
    parser.add_argument("--cutoff", type=float, default=400.0, help="of plane waves (eV)")
    parser.add_argument("--kpts", type=int, default=4, help="along each vector")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one functional, in this process
    settings = parser.parse_args()
    if settings.measure:
        return print(json.dumps(measured(settings)))

    packages = (*harness.PACKAGES, "gpaw")
    facts = ", ".join(f"{key} {value}" for key, value in harness.machine(packages).items())
    print(f"PW({settings.cutoff:g}), {settings.kpts} k-points along each vector. {facts}.\n")
    print("| | | first (s) | second (s) | iterations | ratio to PBE | to SCAN | peak memory (GB) |")
    print("|" + " --- |" * 8)
    for system in settings.systems:
        rows = {
            name: in_fresh_process(settings, system, name)
            for name in (*REFERENCES, *settings.functionals)
        }
        for name, row in rows.items():
            ratios = [row["seconds"][1] / rows[other]["seconds"][1] for other in REFERENCES]
            cells = [f"{value:.1f}" for value in row["seconds"]]
            cells += [str(row["iterations"]), *(f"{ratio:.1f}" for ratio in ratios)]
            print(f"| {system} | {name} | {' | '.join(cells)} | {row['memory']:.2f} |", flush=True)


def in_fresh_process(settings: argparse.Namespace, system: str, name: str) -> dict:
    """What ``--measure`` prints."""
    command = [sys.executable, sys.argv[0], "--systems", system, "--measure", name]
    command += ["--cutoff", str(settings.cutoff), "--kpts", str(settings.kpts)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def measured(settings: argparse.Namespace) -> dict:
    """CPU seconds of two calculations, iterations, energy (eV), peak memory (GB)."""
    from gpaw import GPAW, PW

    from cider import CiderFunctional

    name = settings.measure
    xc = name if name in NATIVE else CiderFunctional(name)
    seconds = []
    for _ in range(2):
        atoms = CRYSTALS[settings.systems[0]].copy()
        started = time.process_time()
        atoms.calc = GPAW(mode=PW(settings.cutoff), kpts=(settings.kpts,) * 3, xc=xc, txt=None)
        energy = atoms.get_potential_energy()
        seconds.append(time.process_time() - started)
    return {
        "seconds": seconds,
        "iterations": atoms.calc.dft.scf_loop.niter,
        "energy": float(energy),
        "memory": harness.peak_memory(),
    }


if __name__ == "__main__":
    main()
