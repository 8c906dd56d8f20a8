r"""Smooth functions of the length of many vectors, from a few of each run of similar lengths.

.. math:: f(G) = \sum_s c_s(G)\, f(G_s)
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Complex, Float
from scipy.linalg import qr, solve_triangular

RUN = 128
"""Vectors of a run. In crystals, many have the same length; longer runs need more samples."""

ERROR = 1e-12
"""Of the interpolation, for functions of the size of one: below that of their other sums."""


class LengthRun(NamedTuple):
    """Where in arrays of all vectors, and of all samples, those of a run are."""

    vectors: slice
    samples: slice
    coefficients: Float[np.ndarray, "own_vector own_sample"]

    def spread(
        self, values: Float[np.ndarray, "own_vector c"]
    ) -> Float[np.ndarray, "own_vector own_samples_c"]:
        """Values times the coefficient of each sample, which a product with matrices sums up."""
        spread = self.coefficients[:, :, None] * values[:, None]
        return spread.reshape(len(values), -1)


class LengthRuns(eqx.Module):
    """Vectors in order of their length, cut into runs; built by ``length_runs``.

    ``samples`` are the lengths that functions are given at; ``coefficients`` are those of all runs,
    whose numbers of vectors and samples are ``shapes``.
    """

    samples: Float[np.ndarray, " sample"]
    coefficients: Float[np.ndarray, " coefficient"]
    shapes: tuple[tuple[int, int], ...] = eqx.field(static=True)

    def __iter__(self) -> Iterator[LengthRun]:
        vector = sample = start = 0
        coefficients = self.coefficients
        for vectors, samples in self.shapes:
            own = coefficients[start : (start := start + vectors * samples)]
            yield LengthRun(
                slice(vector, vector := vector + vectors),
                slice(sample, sample := sample + samples),
                own.reshape(vectors, samples),
            )

    def blocks(self, num_samples: int) -> Iterator[tuple[slice, list[LengthRun]]]:
        """Runs one after the other with at most so many samples, but one at least.

        Where their samples are among all, and runs whose samples are counted from there.
        """
        start, block = 0, list[LengthRun]()
        for run in self:
            if block and run.samples.stop - start > num_samples:
                yield slice(start, start := run.samples.start), block
                block = []
            own = slice(run.samples.start - start, run.samples.stop - start)
            block.append(run._replace(samples=own))
        if block:
            yield slice(start, len(self.samples)), block

    def matrix_product(
        self,
        waves: Complex[np.ndarray, "wave cin"],
        matrices: Float[np.ndarray, "sample cin cout"],
    ) -> Complex[np.ndarray, "wave cout"]:
        """Channels of each wave times the matrix of its length."""
        product = np.empty((len(waves), matrices.shape[2]), dtype=complex)
        for run in self:
            own, matrix = waves[run.vectors], matrices[run.samples].reshape(-1, matrices.shape[2])
            product.real[run.vectors] = run.spread(own.real) @ matrix
            product.imag[run.vectors] = run.spread(own.imag) @ matrix
        return product


def length_runs(
    lengths: Float[np.ndarray, " vector"],
    functions: Callable[[Float[np.ndarray, " some"]], Float[np.ndarray, "function some"]],
) -> LengthRuns:
    """For vectors of ascending lengths, and all sums of ``functions``, at most one large.

    Samples are lengths of vectors: those whose values determine the others'. Ref: Cheng et al.,
    SIAM J. Sci. Comput. 26, 1389 (2005).
    """
    samples, coefficients = [], []
    for start in range(0, len(lengths), RUN):
        # Vectors of one length, which differ by rounding.
        own, which = np.unique(np.round(lengths[start : start + RUN], 12), return_inverse=True)
        triangle, order = qr(functions(own), mode="r", pivoting=True)
        count = max(int(np.sum(np.abs(np.diag(triangle)) > ERROR)), 1)
        chosen, others = order[:count], order[count:]
        by_sample = np.zeros((len(own), count))
        by_sample[chosen] = np.eye(count)
        by_sample[others] = solve_triangular(triangle[:count, :count], triangle[:count, count:]).T
        samples.append(own[chosen])
        coefficients.append(by_sample[which])
    return LengthRuns(
        samples=np.concatenate([np.zeros(0), *samples]),
        coefficients=np.concatenate([np.zeros(0), *(own.ravel() for own in coefficients)]),
        shapes=tuple(own.shape for own in coefficients),
    )
