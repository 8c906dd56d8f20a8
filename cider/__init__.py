"""Machine-learned, nonlocal exchange-correlation functionals for PySCF and GPAW."""

from typing import TYPE_CHECKING, Any

from cider.plugins.gpaw import hook as _gpaw_hook
from cider.plugins.pyscf import hook as _pyscf_hook

if TYPE_CHECKING:
    from cider.functional import CiderFunctional

__all__ = ["CiderFunctional"]

_gpaw_hook.install()
_pyscf_hook.install()


def __getattr__(name: str) -> Any:
    # JAX takes a second to import: it is loaded when the first functional is made.
    if name == "CiderFunctional":
        from cider.functional import CiderFunctional

        return CiderFunctional
    raise AttributeError(f"module 'cider' has no attribute {name!r}")
