"""How GPAW is built for the tests: with the ScaLAPACK that parallel domains and bands need."""

mpi = True
compiler = "mpicxx"
scalapack = True
libraries = ["xc", "openblas", "scalapack-openmpi"]
