"""Seconds of the nonlocal features, of energy and potential, and of a whole nr_rks."""

import argparse
import dataclasses
import json

import harness


def main() -> None:
    settings = harness.options(__doc__).parse_args()
    if settings.measure:
        print(json.dumps(measure(settings, settings.systems[0])))
        return
    results = [harness.in_fresh_process(settings, "all", name) for name in settings.systems]
    harness.report(settings, "Features", results)


def measure(settings: argparse.Namespace, system: str) -> dict:
    """All times of one system, in seconds."""
    import numpy as np
    from pyscf import dft

    from cider.conventions import float64
    from cider.density import Density
    from cider.evaluation import _sources
    from cider.plugins.pyscf.grids import becke_convolution
    from cider.plugins.pyscf.numint import CiderNumInt
    from cider.plugins.pyscf.smoothed_density_matrix import sdmx_features, sdmx_potential_matrices

    functional = harness.learned(settings.functional)
    mol, grids, dm = harness.molecule(settings, system)
    ao = dft.numint.eval_ao(mol, grids.coords, deriv=1)
    rho = dft.numint.eval_rho(mol, ao, dm, xctype="MGGA", hermi=1, with_lapl=False)[None]
    del ao
    density = Density(rho[:, 0], rho[:, 1:4], rho[:, 4] if functional.needs_tau else None)
    nldf, sdmx = functional.learned.descriptors.nldf, functional.learned.descriptors.sdmx
    integrator, semilocal = CiderNumInt(), dft.numint.NumInt()

    first, stages, convolution = {}, {}, None
    if nldf is not None:
        first["convolution: build"] = harness.seconds(lambda: becke_convolution(mol, grids, nldf))
        convolution = becke_convolution(mol, grids, nldf)
        sources = float64(_sources)(functional.learned, density)
        fields = np.asarray(convolution.apply(sources))
        # Kernels of known kinds of atoms are kept, as for a second geometry.
        stages["convolution: build again"] = lambda: becke_convolution(mol, grids, nldf)
        stages["convolution: apply"] = lambda: convolution.apply(sources)
        stages["convolution: transpose"] = lambda: convolution.transpose(fields)
    if sdmx is not None:
        dms, kept = dm[None, None], {}
        features = sdmx_features(mol, grids, sdmx, dms, mol.max_memory, kept)
        density = dataclasses.replace(density, sdmx=features[:, 0])
        stages["density matrix: features"] = lambda: sdmx_features(
            mol, grids, sdmx, dms, mol.max_memory, {}
        )
        stages["density matrix: potential"] = lambda: sdmx_potential_matrices(
            mol, grids, sdmx, dms, features, mol.max_memory, kept
        )
    stages["energy and potential"] = lambda: functional.learned_energy_and_potential(
        density, grids.weights, convolution
    )
    stages["nr_rks: learned"] = lambda: integrator.nr_rks(mol, grids, functional, dm)
    references = []
    for name in harness.REFERENCES:
        references.append(f"nr_rks: {name}")
        stages[references[-1]] = lambda name=name: semilocal.nr_rks(mol, grids, name, dm)

    # First calls compile; they also find out what is wrong before anything is timed.
    first |= {name: harness.seconds(stage) for name, stage in stages.items()}
    checks = harness.check(functional, mol, grids, dm)
    times = harness.interleaved(stages, settings.repeats)
    tables = {
        "seconds": harness.rows_of(times, references),
        "first call, with compilation (seconds)": [
            {"first call": name, "seconds": value} for name, value in first.items()
        ],
    }
    return harness.result(system, mol, grids, checks, tables)


if __name__ == "__main__":
    main()
