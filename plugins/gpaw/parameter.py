"""The parameter ``xc`` of a GPAW calculation, where it is a learned functional."""

import hashlib
from typing import Any

import jax
import numpy as np
from gpaw.dft import XC
from gpaw.xc.functional import XCFunctional

from cider.functional import CiderFunctional
from cider.plugins.gpaw.semilocal import semilocal_functional


class CiderXC(XC):
    """What GPAW keeps, writes and prints of a ``CiderFunctional``."""

    def __init__(self, functional: CiderFunctional):
        super().__init__("cider", **_description(functional))
        self.cider_functional = functional

    @classmethod
    def from_dict(cls, xc: Any) -> "CiderXC":
        """From ``{"name": "cider", "functional": "x-nldf", ...}``, as written to files.

        Raises ``ValueError`` where a file was written with another functional of that name.
        """
        arguments = dict(xc) if isinstance(xc, dict) else {}
        arguments.pop("name", None)
        digest = arguments.pop("digest", None)
        if "functional" not in arguments:
            raise ValueError(
                "xc={'name': 'cider'} does not say which functional: add 'functional': 'x-nldf', "
                "or pass xc=CiderFunctional(...)"
            )
        functional = CiderFunctional(**arguments)
        if digest is not None and digest != _description(functional)["digest"]:
            raise ValueError(
                f"the file was written with another functional than {functional}: read it with "
                "GPAW(..., object_hooks={'xc': lambda parameters: CiderFunctional(...)})"
            )
        return cls(functional)

    def functional(self, *, collinear: bool, atoms: Any = None) -> XCFunctional:
        """Its semilocal part, as GPAW's own object."""
        if not collinear:
            raise NotImplementedError(
                f"{self.cider_functional} has no noncollinear form: give collinear magnetic "
                "moments, one number per atom"
            )
        return semilocal_functional(self.cider_functional)


def _description(functional: CiderFunctional) -> dict[str, Any]:
    """How to make the functional again, and a digest of its weights."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(functional):
        digest.update(np.ascontiguousarray(leaf).data)
    arguments = {
        "functional": functional.learned.name,
        "x_mix": functional.x_mix,
        "semilocal": functional.semilocal,
        "correlation": functional.correlation,
        "digest": digest.hexdigest(),
    }
    return {key: value for key, value in arguments.items() if value is not None}
