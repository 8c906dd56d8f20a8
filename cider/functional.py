"""The functional that users hand to a host program."""

import os

import equinox as eqx
import numpy as np
from jaxtyping import Float

from cider.ciderpress_model import load_ciderpress
from cider.conventions import AnyArray
from cider.density import Density
from cider.device_evaluation import device_energy_and_potential
from cider.evaluation import (
    GridDerivative,
    energy,
    energy_and_potential,
    potential_and_grid_derivative,
    strain_derivative,
)
from cider.features.convolution import GaussianConvolution
from cider.features.device_convolution import DeviceConvolution
from cider.learned_functional import LearnedFunctional
from cider.registry import resolve
from cider.response import LinearResponse, linear_response

SEMILOCAL_FUNCTIONALS = {
    "LDA": ("LDA_X", "LDA_C_PW"),
    "PBE": ("GGA_X_PBE", "GGA_C_PBE"),
    "PBESOL": ("GGA_X_PBE_SOL", "GGA_C_PBE_SOL"),
    "BLYP": ("GGA_X_B88", "GGA_C_LYP"),
    "TPSS": ("MGGA_X_TPSS", "MGGA_C_TPSS"),
    "SCAN": ("MGGA_X_SCAN", "MGGA_C_SCAN"),
    "R2SCAN": ("MGGA_X_R2SCAN", "MGGA_C_R2SCAN"),
}
"""Exchange and correlation of the semilocal functionals to mix with, by libxc name."""

HYBRIDS = {("PBE", 0.25): "pbe0", ("R2SCAN", 0.25): "r2scan0", ("TPSS", 0.1): "tpssh"}
"""Hybrids by their semilocal functional and fraction of exact exchange, as D3 and D4 name them."""


class CiderFunctional(eqx.Module):
    r"""A learned functional, alone or composed with libxc functionals.

    .. math:: E_{xc} = x E_x^{learned} + (1 - x) E_x^{semilocal} + E_c

    - ``CiderFunctional("x-nldf")``: exchange alone.
    - ``CiderFunctional("x-nldf", correlation="GGA_C_PBE")``: with a libxc correlation.
    - ``CiderFunctional("x-nldf", x_mix=0.25, semilocal="PBE")``: a surrogate of a global hybrid:
      learned exchange in place of the exact one, semilocal exchange for the rest, and semilocal
      correlation.
    - ``CiderFunctional("pbe0-x-nldf")``: the same, ready-made.

    - ``CiderFunctional("path/to/xc.h5")``: exchange and correlation, where the learned functional
      brings both; it takes no other part.

    ``functional`` is a registered name, the path of a functional file, or a ``LearnedFunctional``.
    Raises ``ValueError`` for names that do not exist or compositions that make no sense, and
    ``FunctionalFileError`` for files that cannot be read.
    """

    learned: LearnedFunctional
    x_mix: float = eqx.field(static=True)
    semilocal: str | None = eqx.field(static=True)
    correlation: str | None = eqx.field(static=True)

    def __init__(
        self,
        functional: str | os.PathLike[str] | LearnedFunctional,
        *,
        x_mix: float | None = None,
        semilocal: str | None = None,
        correlation: str | None = None,
    ):
        if not isinstance(functional, LearnedFunctional):
            named = resolve(functional)
            x_mix, semilocal, correlation = named.composed_with(x_mix, semilocal, correlation)
            functional = named.load()
        if x_mix is None:
            x_mix = 1.0
        if functional.has_correlation and (x_mix != 1 or semilocal or correlation):
            raise ValueError(
                f"{functional.name} is exchange and correlation in one: it cannot be mixed or get "
                f"another part (x_mix={x_mix}, semilocal={semilocal!r}, "
                f"correlation={correlation!r}); leave these out, or choose a functional of "
                "exchange alone"
            )
        if not 0 < x_mix <= 1:
            raise ValueError(f"x_mix is a fraction of exchange within (0, 1]: got {x_mix}")
        if semilocal is not None and correlation is not None:
            raise ValueError(
                f"semilocal={semilocal!r} brings its own correlation: give either semilocal or "
                f"correlation={correlation!r}"
            )
        if x_mix != 1 and semilocal is None:
            raise ValueError(
                f"x_mix={x_mix} leaves {1 - x_mix:g} of the exchange open: name the functional "
                "that supplies it, such as semilocal='PBE'"
            )
        if semilocal is not None and semilocal.upper() not in SEMILOCAL_FUNCTIONALS:
            raise ValueError(
                f"unknown semilocal functional {semilocal!r}: one of "
                f"{', '.join(SEMILOCAL_FUNCTIONALS)}"
            )
        self.learned = functional
        self.x_mix = float(x_mix)
        self.semilocal = semilocal
        self.correlation = correlation

    @classmethod
    def from_ciderpress(
        cls,
        path: str | os.PathLike[str],
        *,
        x_mix: float | None = None,
        semilocal: str | None = None,
        correlation: str | None = None,
    ) -> "CiderFunctional":
        """A published CIDER functional, from a model file of the package ciderpress.

        The file is read as data: nothing in it is run, and ciderpress need not be installed.
        Raises ``CiderpressFileError`` for files that cannot be read or are refused, and
        ``NotImplementedError``, naming what is missing, for models that need other features.
        """
        learned = load_ciderpress(path)
        return cls(learned, x_mix=x_mix, semilocal=semilocal, correlation=correlation)

    @property
    def libxc_terms(self) -> tuple[tuple[float, str], ...]:
        """Weights and libxc names of the part that is not learned."""
        if self.semilocal is not None:
            exchange, correlation = SEMILOCAL_FUNCTIONALS[self.semilocal.upper()]
            remainder = ((1 - self.x_mix, exchange),) if self.x_mix != 1 else ()
            return (*remainder, (1.0, correlation))
        return ((1.0, self.correlation),) if self.correlation is not None else ()

    @property
    def hybrid(self) -> str | None:
        """The hybrid that it is a surrogate of, whose dispersion correction suits it; or None."""
        if self.semilocal is None:
            return None
        return HYBRIDS.get((self.semilocal.upper(), self.x_mix))

    @property
    def name(self) -> str:
        """What it is, in one line: for logs and checkpoints."""
        learned = self.learned.name if self.x_mix == 1 else f"{self.x_mix:g}*{self.learned.name}"
        others = [name if w == 1 else f"{w:g}*{name}" for w, name in self.libxc_terms]
        return " + ".join([learned, *others])

    @property
    def needs_tau(self) -> bool:
        """Whether the learned part reads the kinetic energy density."""
        return self.learned.descriptors.needs_tau

    @property
    def is_nonlocal(self) -> bool:
        """Whether the learned part needs a ``GaussianConvolution`` of the grid."""
        return self.learned.descriptors.nldf is not None

    @property
    def reads_density_matrix(self) -> bool:
        """Whether the learned part needs features of the density matrix."""
        return self.learned.descriptors.sdmx is not None

    def learned_energy(
        self,
        density: Density,
        weights: Float[AnyArray, " grid"],
        convolution: GaussianConvolution | None = None,
    ) -> float:
        """Energy (Ha) of the learned part, with its fraction ``x_mix``."""
        return energy(self.learned, self.x_mix, density, weights, convolution)

    def learned_energy_and_potential(
        self,
        density: Density,
        weights: Float[AnyArray, " grid"],
        convolution: GaussianConvolution | None = None,
    ) -> tuple[float, Density]:
        """The same, and its derivative: see ``evaluation.energy_and_potential``."""
        if isinstance(convolution, DeviceConvolution):
            given = density, weights, convolution
            return device_energy_and_potential(self.learned, self.x_mix, *given)
        return energy_and_potential(self.learned, self.x_mix, density, weights, convolution)

    def learned_potential_and_grid_derivative(
        self,
        density: Density,
        weights: Float[AnyArray, " grid"],
        convolution: GaussianConvolution | None = None,
    ) -> tuple[Density, GridDerivative]:
        """All first derivatives: see ``evaluation.potential_and_grid_derivative``."""
        return potential_and_grid_derivative(
            self.learned, self.x_mix, density, weights, convolution
        )

    def learned_strain_derivative(
        self,
        density: Density,
        weights: Float[AnyArray, " grid"],
        convolution: GaussianConvolution | None = None,
    ) -> Float[np.ndarray, "xyz xyz"]:
        """Derivative of the same energy by strain: see ``evaluation.strain_derivative``."""
        return strain_derivative(self.learned, self.x_mix, density, weights, convolution)

    def learned_response(
        self,
        density: Density,
        weights: Float[AnyArray, " grid"],
        convolution: GaussianConvolution | None = None,
        *,
        triplet: bool = False,
    ) -> LinearResponse:
        """Its second derivative at a density: see ``response.linear_response``."""
        return linear_response(
            self.learned, self.x_mix, density, weights, convolution, triplet=triplet
        )

    def __repr__(self) -> str:
        return f"CiderFunctional({self.name})"
