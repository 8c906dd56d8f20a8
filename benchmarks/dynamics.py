"""Drift of the total energy of a water molecule in dynamics at constant energy.

A run goes on where its trajectory ends, and a finished one is evaluated again.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.build import molecule
from ase.io import Trajectory
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from harness import learned

from cider.plugins.ase import Cider


class Semilocal(Cider):
    """The same calculator with a functional of PySCF's own, to compare with."""

    def __init__(self, xc: str, **settings: Any):
        super().__init__(**settings)
        self._functional = xc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functional", default="pbe0-x-nldf", help="name, file, or PBE")
    parser.add_argument("--basis", default="def2-svp")
    parser.add_argument("--grid-level", type=int, default=1)
    parser.add_argument("--duration", type=float, default=500.0, help="fs")
    parser.add_argument("--step", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K, of the start")
    parser.add_argument("--trajectory", type=Path, default=Path("dynamics.traj"))
    settings = parser.parse_args()

    atoms = started(settings) if not settings.trajectory.exists() else continued(settings)
    own = settings.functional
    atoms.calc = (Semilocal if own == "PBE" else Cider)(
        own if own == "PBE" else learned(own),
        basis=settings.basis,
        grid_level=settings.grid_level,
        density_fit=True,
    )
    dynamics = VelocityVerlet(atoms, timestep=settings.step * units.fs)
    with Trajectory(settings.trajectory, "a", atoms) as trajectory:
        trajectory.set_description(compared_settings(settings))
        dynamics.nsteps = max(0, len(trajectory) - 1)
        dynamics.attach(trajectory.write)
        dynamics.run(round(settings.duration / settings.step) - dynamics.nsteps)
    report(settings)


def compared_settings(settings: argparse.Namespace) -> dict[str, Any]:
    """What a trajectory depends on."""
    names = ("functional", "basis", "grid_level", "step", "temperature")
    return {name: getattr(settings, name) for name in names}


def started(settings: argparse.Namespace) -> Any:
    """Water with random velocities."""
    atoms = molecule("H2O")
    random = np.random.default_rng(1)
    MaxwellBoltzmannDistribution(atoms, temperature_K=settings.temperature, rng=random)
    Stationary(atoms)
    return atoms


def continued(settings: argparse.Namespace) -> Any:
    """The last atoms of the trajectory; refuses one of other settings."""
    with Trajectory(settings.trajectory) as trajectory:
        if trajectory.description != compared_settings(settings):
            raise SystemExit(
                f"{settings.trajectory} was made with {trajectory.description}: "
                "give these settings, or another --trajectory"
            )
        return trajectory[-1]


def report(settings: argparse.Namespace) -> None:
    """Slopes of the energy, with and without what the integrator does, and how far it strays."""
    with Trajectory(settings.trajectory) as trajectory:
        frames = list(trajectory)
    energies = np.array([atoms.get_total_energy() for atoms in frames]) / units.Hartree
    times = settings.step * np.arange(len(frames))
    # In a step of velocity Verlet the kinetic energy gains the work of the mean of two forces, and
    # the change of this:
    squares = [np.sum(atoms.get_forces() ** 2 / atoms.get_masses()[:, None]) for atoms in frames]
    swing = (settings.step * units.fs) ** 2 / 8 * np.array(squares) / units.Hartree
    print(f"{settings.functional}, {times[-1]:g} fs in steps of {settings.step:g} fs:")
    for name, own in (("energy", energies), ("without the integrator's swing", energies - swing)):
        slope, start = np.polyfit(times, own, 1)
        spread = np.std(own - start - slope * times)
        print(f"{name}: drift {500 * slope:+.1e} Ha in 0.5 ps; spread about it {spread:.1e} Ha")


if __name__ == "__main__":
    main()
