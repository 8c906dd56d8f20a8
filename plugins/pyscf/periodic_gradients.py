"""Forces and stress of learned functionals in periodic cells of PySCF."""

from typing import Any

import numpy as np
from jaxtyping import Float, Inexact
from pyscf import lib
from pyscf.grad import rks
from pyscf.pbc.df import FFTDF
from pyscf.pbc.dft.krks import KRKS
from pyscf.pbc.dft.kuks import KUKS
from pyscf.pbc.dft.multigrid import MultiGridNumInt
from pyscf.pbc.grad import krks as krks_gradients
from pyscf.pbc.grad import kuks as kuks_gradients

from cider.functional import CiderFunctional
from cider.plugins.pyscf.learned_numint import Settings
from cider.plugins.pyscf.learned_part import density_of, threads_of_pyscf
from cider.plugins.pyscf.libxc import num_ingredients
from cider.plugins.pyscf.periodic import CiderKNumInt, require_all_k_points
from cider.plugins.pyscf.periodic_smoothed_density_matrix import PeriodicSmoothing
from cider.plugins.pyscf.periodic_strain import StrainedSmoothing


def gradients_of_cell(mf: Any) -> "CiderPeriodicGradients":
    """PySCF's gradients of a crystal, once they know what to do with its functional.

    Raises ``NotImplementedError`` for what PySCF itself has none of.
    """
    require_all_k_points(mf, "the gradient")
    if not isinstance(mf.with_df, FFTDF):
        raise NotImplementedError(
            f"PySCF has no forces and stress with {type(mf.with_df).__name__}: take FFTDF, its "
            "default, without density_fit()"
        )
    if isinstance(mf._numint, MultiGridNumInt):
        raise NotImplementedError(
            "PySCF has no forces and stress of KRKS and KUKS with multigrid integration: take an "
            "object that was not made by multigrid_numint(); mf.make_rdm1() is a good start for it"
        )
    kinds = {KRKS: krks_gradients.Gradients, KUKS: kuks_gradients.Gradients}
    for kind, make in kinds.items():
        if isinstance(mf, kind):
            gradients = make(mf)
            lib.set_class(gradients, (CiderPeriodicGradients, make))
            return gradients
    raise NotImplementedError(
        f"PySCF has forces and stress of KRKS and KUKS, not of {type(mf).__name__}: for one "
        "k-point, KRKS(cell, kpts=cell.make_kpts([1, 1, 1])) or KUKS gives the same energy"
    )


class CiderPeriodicGradients:
    """In front of a gradients class of PySCF's crystals: the part of a learned functional.

    Uniform grids do not move with the atoms, so that forces are the derivative of the energy.
    """

    __name_mixin__ = "Cider"

    def get_veff(self, dm: Any = None, kpts: Any = None) -> np.ndarray:
        """Coulomb, exchange and correlation potential of the gradients (Ha/bohr), as in PySCF."""
        if not isinstance(self.base.xc, CiderFunctional):
            return super().get_veff(dm, kpts)
        if self.grid_response:
            raise NotImplementedError(
                "grid_response: uniform grids do not respond to atoms; leave it False"
            )
        dm = self.base.make_rdm1() if dm is None else dm
        kpts = self.kpts if kpts is None else kpts
        closed = dm.ndim == 3
        vxc = self._exchange_correlation((dm,) if closed else tuple(dm), kpts)
        coulomb = self.get_j(dm, kpts)
        return vxc[:, 0] + coulomb if closed else vxc + coulomb.sum(axis=1, keepdims=True)

    def _exchange_correlation(
        self, dms: tuple[Any, ...], kpts: np.ndarray
    ) -> Inexact[np.ndarray, "xyz spin kpt ao ao"]:
        grids = self.base.grids if self.grids is None else self.grids
        max_memory = max(2000, self.max_memory * 0.9 - lib.current_memory()[0])
        integrator = self.base._numint
        where = self.cell, grids
        settings = Settings(kpts=kpts, max_memory=max_memory)
        functional = self.base.xc
        potential = integrator.potential(*where, functional, dms, settings)
        of_density, of_matrices = np.split(potential, [num_ingredients(functional)], axis=1)
        vxc = gradient_matrices(integrator, *where, of_density, kpts, max_memory)
        sdmx = functional.learned.descriptors.sdmx
        if sdmx is not None:
            smoothing = PeriodicSmoothing(*where, sdmx, kpts)
            own = smoothing.gradient_matrices(np.stack(dms)[:, None], of_matrices[:, None])
            vxc = vxc + np.moveaxis(own[:, 0], 0, 1)
        return vxc

    def get_stress(self) -> Float[np.ndarray, "xyz xyz"]:
        """Derivative of the energy by strain, per volume (Ha/bohr^3), as in PySCF."""
        if not isinstance(self.base.xc, CiderFunctional):
            return super().get_stress()
        dm = self.base.make_rdm1()
        dms = np.stack([dm] if dm.ndim == 3 else tuple(dm))
        grids = self.base.grids if self.grids is None else self.grids
        integrator = _WholeGridNumInt(self.cell, grids, self.base.kpts, dms)
        plain = self.copy()
        plain.base = self.base.copy()
        plain.base.__dict__["_numint"] = integrator
        return super(CiderPeriodicGradients, plain).get_stress() + (
            integrator.by_smoothing / self.cell.vol
        )


class _WholeGridNumInt(CiderKNumInt):
    """Evaluates a functional where PySCF's stress does: with the density of the whole grid.

    ``by_smoothing`` is then the derivative (Ha) of its energy by the strain of what convolves the
    sources of nonlocal features, and of features of the density matrices; PySCF knows all else that
    strain changes.
    """

    by_smoothing: Float[np.ndarray, "xyz xyz"]

    def __init__(
        self,
        cell: Any,
        grids: Any,
        kpts: Float[np.ndarray, "kpt xyz"],
        dms: Inexact[np.ndarray, "spin kpt ao ao"],
    ):
        super().__init__()
        self._cell, self._grids = cell, grids
        self._kpts, self._dms = kpts, dms[:, None]

    def eval_xc_eff(
        self, xc_code: Any, rho: Any, *_: Any, **__: Any
    ) -> tuple[Float[np.ndarray, " grid"], Float[np.ndarray, "*spin ingredient grid"]]:
        """Energy (Ha) per electron, alike everywhere, and the potential at each point."""
        weights = self._grids.weights
        of_density = np.reshape(rho, (-1, *np.shape(rho)[-2:]))
        rows = of_density.shape[1]
        read = of_density
        where = self._cell, self._grids
        sdmx = xc_code.learned.descriptors.sdmx
        if sdmx is not None:
            smoothing = StrainedSmoothing(*where, sdmx, self._kpts)
            read = np.concatenate([of_density, smoothing.features(self._dms)[:, 0]], axis=1)
        energy, potential = self._energy_and_potential(*where, xc_code, read)
        with threads_of_pyscf():
            self.by_smoothing = xc_code.learned_strain_derivative(
                density_of(xc_code, read), weights, self._convolution_for(*where, xc_code)
            )
        if sdmx is not None:
            by_features = potential[:, None, rows:]
            self.by_smoothing += smoothing.strain_derivative(self._dms, by_features)
        eps_xc = energy / np.sum(of_density[:, 0] @ weights)
        by_density = potential[:, :rows] / weights
        return np.full(len(weights), eps_xc), by_density.reshape(np.shape(rho))


def gradient_matrices(
    integrator: Any,
    cell: Any,
    grids: Any,
    potential: Float[np.ndarray, "spin ingredient grid"],
    kpts: np.ndarray,
    max_memory: float,
) -> Inexact[np.ndarray, "xyz spin kpt ao ao"]:
    """What orbitals that move with their atoms do to the energy, points fixed (Ha/bohr)."""
    total: Any = 0
    start = 0
    for ao, _, mask, weights, _ in integrator.block_loop(
        cell, grids, cell.nao, 2, kpts, None, max_memory
    ):
        own = potential[..., start : start + len(weights)]
        total = total + np.stack(
            [[_gradient_matrix(cell, at_k, v, mask) for at_k in ao] for v in own]
        )
        start += len(weights)
    return -np.moveaxis(total, 2, 0)


def _gradient_matrix(
    cell: Any, ao: np.ndarray, v: Float[np.ndarray, "ingredient grid"], mask: Any
) -> Inexact[np.ndarray, "xyz ao ao"]:
    """Of the orbitals of one k-point and the points of one block."""
    matrix = np.zeros((3, cell.nao, cell.nao), ao.dtype)
    half = v * np.array([[0.5], [1], [1], [1], [0.5]])[: len(v)]
    rks._gga_grad_sum_(matrix, cell, ao, half[:4], mask, cell.ao_loc)
    if len(v) == 5:
        rks._tau_grad_dot_(matrix, cell, ao, half[4], mask, cell.ao_loc, True)
    return matrix
