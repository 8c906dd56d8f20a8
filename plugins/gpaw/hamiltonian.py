r"""The Hamiltonian on a grid that holds products of waves, with half of the Fourier transforms.

There the product rule is exact, and the term of the kinetic energy density takes no gradients:

.. math:: \nabla\cdot(v_\tau \nabla\psi)
          = \tfrac12 \left[\nabla^2 (v_\tau\psi) + v_\tau \nabla^2\psi
          - \psi \nabla^2 v_\tau\right]
"""

from typing import Any

import numpy as np
from gpaw.core import UGArray, UGDesc
from gpaw.core.plane_waves import PWArray
from gpaw.new.pw.hamiltonian import PWHamiltonian
from jaxtyping import Float
from scipy.fft import irfftn, rfftn

from cider.features.waves import waves_of_grid


class ProductRuleHamiltonian(PWHamiltonian):
    """GPAW's, but where a functional of the kinetic energy density is applied."""

    def __init__(self, grid: UGDesc, dtype: Any):
        super().__init__(grid, dtype)
        self.squares = waves_of_grid(grid.cell, grid.size).lengths ** 2

    def apply(
        self,
        vt_sR: UGArray,
        dedtaut_sR: UGArray | None,
        ibzwfs: Any,
        D_asii: Any,
        psit_nG: PWArray,
        out: PWArray,
        spin: int,
        calculate_energy: bool = False,
    ) -> PWArray:
        """Write what the Hamiltonian but for its projectors makes of some bands."""
        if dedtaut_sR is None:
            return super().apply(
                vt_sR, dedtaut_sR, ibzwfs, D_asii, psit_nG, out, spin, calculate_energy
            )
        self._apply_with_tau(vt_sR[spin], dedtaut_sR[spin], psit_nG, out)
        self.apply_orbital_dependent(ibzwfs, D_asii, psit_nG, spin, out, calculate_energy)
        return out

    def _apply_with_tau(
        self, vt_R: UGArray, dedtaut_R: UGArray, psit_nG: PWArray, out_nG: PWArray
    ) -> None:
        by_tau = dedtaut_R.gather(broadcast=True).data
        local = vt_R.gather(broadcast=True).data + self._laplacian(by_tau) / 4
        comm, waves = psit_nG.desc.comm, psit_nG.desc.new(comm=None)
        kinetic, on_grid, every_wave = waves.ekin_G, self.plan.tmp_R, self.plan.tmp_Q
        indices = waves.indices(every_wave.shape)
        psit_G = waves.empty().data
        applied = np.empty_like(psit_G)
        for first in range(0, psit_nG.mydims[0], comm.size):
            bands = slice(first, min(first + comm.size, psit_nG.mydims[0]))
            psit_nG[bands].gather_all(psit_G)
            if comm.rank < bands.stop - first:
                self.plan.ifft_sphere(psit_G, waves)
                psit_R = on_grid.copy()
                psit_G *= kinetic
                self.plan.ifft_sphere(psit_G, waves)
                on_grid *= 0.5 * by_tau
                on_grid += local * psit_R
                self.plan.fft()
                applied[:] = every_wave.ravel()[indices]
                np.multiply(by_tau, psit_R, out=on_grid)
                self.plan.fft()
                applied += 0.5 * kinetic * every_wave.ravel()[indices]
                applied /= on_grid.size
                applied += psit_G
            out_nG[bands].scatter_from_all(applied)

    def _laplacian(self, values: Float[np.ndarray, "nx ny nz"]) -> Float[np.ndarray, "nx ny nz"]:
        waves = rfftn(values)
        waves *= -self.squares.reshape(waves.shape)
        return irfftn(waves, values.shape)
