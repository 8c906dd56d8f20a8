"""Drift of the total energy of a water molecule in dynamics at constant energy."""

import argparse

import numpy as np
from ase import units
from ase.build import molecule
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

from cider.plugins.ase import Cider


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functional", default="pbe0-x-nldf", help="name or file")
    parser.add_argument("--basis", default="6-31g")
    parser.add_argument("--grid-level", type=int, default=1)
    parser.add_argument("--duration", type=float, default=500.0, help="fs")
    parser.add_argument("--step", type=float, default=0.25, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K, of the start")
    settings = parser.parse_args()

    atoms = molecule("H2O")
    atoms.calc = Cider(
        settings.functional, basis=settings.basis, grid_level=settings.grid_level, density_fit=True
    )
    MaxwellBoltzmannDistribution(
        atoms, temperature_K=settings.temperature, rng=np.random.default_rng(1)
    )
    Stationary(atoms)
    dynamics = VelocityVerlet(atoms, timestep=settings.step * units.fs)
    times, energies = [], []

    def record() -> None:
        times.append(dynamics.get_time() / units.fs)
        energies.append(atoms.get_total_energy() / units.Hartree)
        print(f"{times[-1]:9.2f} fs {energies[-1] - energies[0]:+.2e} Ha", flush=True)

    dynamics.attach(record)
    dynamics.run(round(settings.duration / settings.step))
    slope = np.polyfit(times, energies, 1)[0]
    print(f"drift {slope * 500:+.1e} Ha in 0.5 ps; spread {np.std(energies):.1e} Ha")


if __name__ == "__main__":
    main()
