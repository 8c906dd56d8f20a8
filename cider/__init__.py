"""Machine-learned, nonlocal exchange-correlation functionals for PySCF and GPAW."""
