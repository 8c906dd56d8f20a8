"""Ions, distorted geometries, homologues and synthetic molecules that widen the training data.

A functional trained on equilibrium molecules alone has seen few kinds of bonds. What matters for
the extras is that they differ from one another, not that they exist.
"""

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from jaxtyping import Float, Int
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

# (element, charge, 2S)
IONS = (
    *(("He", 1, 1), ("Li", 1, 0), ("Be", 1, 1), ("B", 1, 0), ("C", 1, 1), ("N", 1, 2)),
    *(("O", 1, 3), ("F", 1, 2), ("Ne", 1, 1), ("Na", 1, 0), ("Mg", 1, 1), ("Al", 1, 0)),
    *(("Si", 1, 1), ("P", 1, 2), ("S", 1, 3), ("Cl", 1, 2), ("Ar", 1, 1)),
    *(("H", -1, 0), ("Li", -1, 0), ("B", -1, 2), ("C", -1, 3), ("O", -1, 1), ("F", -1, 0)),
    *(("Na", -1, 0), ("Al", -1, 2), ("Si", -1, 3), ("P", -1, 2), ("S", -1, 1), ("Cl", -1, 0)),
    *(("He", 0, 2), ("Be", 0, 2), ("B", 0, 3), ("C", 0, 4), ("N", 0, 1), ("Mg", 0, 2)),
    *(("Si", 0, 4), ("P", 0, 1)),
    *(("K", 1, 0), ("Ca", 1, 1), ("Sc", 1, 2), ("Sc", 2, 1), ("Ti", 1, 3), ("Ti", 2, 2)),
    *(("V", 1, 4), ("V", 3, 2), ("Cr", 1, 5), ("Cr", 2, 4), ("Mn", 1, 6), ("Mn", 2, 5)),
    *(("Mn", 3, 4), ("Fe", 1, 5), ("Co", 1, 2), ("Ni", 1, 1), ("Cu", 1, 0), ("Zn", 1, 1)),
    *(("Zn", 2, 0), ("Ga", 1, 0), ("Ge", 1, 1), ("As", 1, 2), ("Se", 1, 3), ("Br", 1, 2)),
    *(("Kr", 1, 1), ("Ge", -1, 3), ("As", -1, 2), ("Se", -1, 1), ("Br", -1, 0)),
    *(("Ti", 0, 4), ("V", 0, 5), ("Ni", 0, 0), ("As", 0, 1)),
)

# (formula, structure, lattice constant in angstrom): insulators, no solid of the benchmarks
CRYSTALS = (
    *(("BAs", "zincblende", 4.78), ("AlP", "zincblende", 5.46), ("AlAs", "zincblende", 5.66)),
    *(("GaN", "zincblende", 4.52), ("GaP", "zincblende", 5.45), ("BeO", "zincblende", 3.80)),
    *(("BeS", "zincblende", 4.87), ("ZnS", "zincblende", 5.41), ("LiCl", "zincblende", 5.60)),
    *(("LiCl", "rocksalt", 5.11), ("LiBr", "rocksalt", 5.50), ("NaH", "rocksalt", 4.88)),
    *(("NaF", "rocksalt", 4.61), ("KH", "rocksalt", 5.70), ("KF", "rocksalt", 5.34)),
    *(("MgS", "rocksalt", 5.20), ("MgSe", "rocksalt", 5.45), ("CaO", "rocksalt", 4.80)),
    *(("CaS", "rocksalt", 5.69), ("NaF", "cesiumchloride", 2.80), ("Ne", "fcc", 4.43)),
    *(("Ar", "fcc", 5.26), ("CaF2", "fluorite", 5.46), ("SiMg2", "fluorite", 6.35)),
    *(("CBe2", "fluorite", 4.34), ("OLi2", "fluorite", 4.62), ("CMg2", "fluorite", 5.45)),
    *(("GeC", "zincblende", 4.59), ("SiGe", "zincblende", 5.55), ("ZnO", "zincblende", 4.58)),
    *(("SLi2", "fluorite", 5.71), ("ONa2", "fluorite", 5.56), ("ZnSe", "zincblende", 5.67)),
    *(("CuCl", "zincblende", 5.42), ("KCl", "rocksalt", 6.29)),
)

SCALES = (1.0, 0.97, 1.03)
"""Of the lattice constants of crystals."""

# Bond lengths are the sums of covalent radii times these, in turn.
_STRETCH = (1.0, 1.08, 0.95, 1.18)

# (first atom, second atom, 2S)
_DIATOMICS = (
    *(("Li", "Cl", 0), ("Na", "F", 0), ("Na", "H", 0), ("Mg", "O", 0), ("Be", "O", 0)),
    *(("Mg", "F", 1), ("Li", "Na", 0), ("Al", "F", 0), ("Al", "Cl", 0), ("B", "F", 0)),
    *(("B", "Cl", 0), ("C", "F", 1), ("C", "Cl", 1), ("Si", "F", 1), ("N", "F", 2)),
    *(("N", "Cl", 2), ("P", "F", 2), ("P", "Cl", 2), ("S", "F", 1), ("S", "Cl", 1)),
    *(("B", "O", 1), ("Al", "O", 1), ("B", "N", 2), ("C", "P", 1), ("P", "N", 0)),
    *(("Si", "S", 0), ("Si", "N", 1), ("P", "O", 1), ("N", "S", 1), ("B", "S", 1)),
    *(("Be", "F", 1), ("Be", "Cl", 1), ("Mg", "Cl", 1), ("Be", "S", 0), ("Mg", "S", 0)),
    *(("Li", "O", 1), ("Na", "O", 1), ("Li", "S", 1), ("B", "B", 2), ("C", "C", 2)),
    *(("Be", "Be", 0), ("Mg", "Mg", 0), ("Al", "Al", 2), ("Li", "Be", 1), ("B", "C", 3)),
    *(("Al", "N", 2), ("B", "P", 2), ("Si", "C", 2), ("Mg", "H", 1), ("Al", "H", 0)),
    *(("B", "H", 0), ("Si", "H", 1), ("P", "H", 2), ("O", "F", 1), ("Na", "Cl", 0)),
)

# (first atom, second atom, distance in angstrom, 2S)
_WEAK_DIATOMICS = (
    *(("He", "He", 2.6, 0), ("Ne", "Ne", 2.9, 0), ("Ar", "Ar", 3.6, 0), ("He", "Ne", 2.2, 0)),
    *(("Ne", "Ar", 3.0, 0), ("He", "H", 1.5, 1), ("Li", "He", 3.0, 1), ("Ar", "H", 2.0, 1)),
)

# (first atom, second atom, distance in angstrom, 2S), with elements of the fourth row
_HEAVY_DIATOMICS = (
    *(("K", "H", 2.25, 0), ("K", "F", 2.2, 0), ("K", "Cl", 2.65, 0), ("Ca", "H", 2.0, 1)),
    *(("Ca", "O", 1.85, 0), ("Ca", "F", 1.95, 1), ("Sc", "H", 1.8, 0), ("Sc", "F", 1.8, 0)),
    *(("Sc", "O", 1.65, 1), ("Sc", "S", 2.15, 1), ("Ti", "O", 1.6, 2), ("Ti", "N", 1.6, 1)),
    *(("Ti", "Cl", 2.25, 3), ("V", "O", 1.6, 3), ("V", "N", 1.55, 2), ("Cr", "H", 1.65, 5)),
    *(("Cr", "O", 1.6, 4), ("Cr", "F", 1.8, 5), ("Mn", "H", 1.75, 6), ("Mn", "F", 1.85, 6)),
    *(("Fe", "H", 1.55, 3), ("Fe", "F", 1.8, 5), ("Co", "H", 1.5, 2), ("Co", "F", 1.75, 4)),
    *(("Ni", "H", 1.45, 1), ("Ni", "C", 1.6, 0), ("Ni", "O", 1.65, 2), ("Cu", "H", 1.45, 0)),
    *(("Cu", "O", 1.75, 1), ("Cu", "Cl", 2.05, 0), ("Cu", "Cu", 2.2, 0), ("Zn", "H", 1.6, 1)),
    *(("Zn", "O", 1.7, 0), ("Zn", "S", 2.05, 0), ("Kr", "H", 2.2, 1), ("Kr", "Kr", 4.0, 0)),
)

# (end, centre, end, angle in degrees, 2S)
_TRIATOMICS = (
    *(("F", "Be", "F", 180, 0), ("Cl", "Be", "Cl", 180, 0), ("F", "Mg", "F", 180, 0)),
    *(("H", "Be", "H", 180, 0), ("H", "Mg", "H", 180, 0), ("H", "O", "Na", 180, 0)),
    *(("H", "O", "Li", 180, 0), ("H", "B", "O", 180, 0), ("H", "B", "S", 180, 0)),
    *(("H", "N", "C", 180, 0), ("H", "C", "P", 180, 0), ("F", "B", "O", 180, 0)),
    *(("Cl", "C", "N", 180, 0), ("O", "Si", "O", 180, 0), ("N", "N", "N", 180, 1)),
    *(("C", "C", "C", 180, 0), ("Li", "C", "N", 180, 0), ("Li", "O", "Li", 180, 0)),
    *(("Na", "O", "Na", 160, 0), ("F", "H", "F", 180, 1), ("Li", "F", "Li", 120, 1)),
    *(("H", "H", "H", 180, 1), ("F", "N", "F", 104, 1), ("F", "P", "F", 98, 1)),
    *(("F", "C", "F", 105, 0), ("Cl", "C", "Cl", 110, 0), ("F", "Si", "F", 101, 0)),
    *(("F", "B", "F", 120, 1), ("F", "Al", "F", 118, 1), ("F", "S", "F", 98, 0)),
    *(("Cl", "S", "Cl", 103, 0), ("Cl", "O", "Cl", 111, 0), ("S", "S", "S", 117, 0)),
    *(("H", "O", "O", 104, 1), ("H", "N", "O", 108, 0), ("F", "N", "O", 110, 0)),
    *(("H", "B", "H", 130, 1), ("H", "Al", "H", 118, 1), ("H", "P", "O", 105, 0)),
)

# The same with metals of the fourth row, and the length of both bonds (angstrom)
_HEAVY_TRIATOMICS = (
    *(("F", "Ca", "F", 2.05, 150, 0), ("O", "Ti", "O", 1.65, 112, 0)),
    *(("F", "Cr", "F", 1.8, 180, 4), ("F", "Mn", "F", 1.8, 180, 5)),
    *(("Cl", "Fe", "Cl", 2.15, 180, 4), ("F", "Co", "F", 1.75, 180, 3)),
    *(("F", "Ni", "F", 1.75, 180, 2), ("Cl", "Cu", "Cl", 2.05, 180, 1)),
    *(("H", "Zn", "H", 1.55, 180, 0), ("Cl", "Zn", "Cl", 2.1, 180, 0)),
)

# (centre, ligand, number, 2S): planar for three ligands, tetrahedral for four
_STARS = (("B", "H", 3, 0), ("Al", "H", 3, 0), ("B", "H", 4, 1), ("Be", "H", 3, 1))

# The same with metals of the fourth row, and the length of the bonds (angstrom)
_HEAVY_STARS = (
    *(("Sc", "F", 3, 1.85, 0), ("Ti", "F", 4, 1.75, 0), ("Cr", "F", 3, 1.75, 3)),
    *(("Mn", "F", 3, 1.75, 4), ("Fe", "F", 3, 1.75, 5)),
)

# Elements that take one another's places in molecules.
_GROUPS = (("H", "F", "Cl"), ("Li", "Na"), ("B", "Al"), ("C", "Si"), ("N", "P"), ("O", "S"))
_REPLACED_SHARE = 0.3
_HEAVIER = {
    **{"Li": "K", "Na": "K", "Be": "Ca", "Mg": "Ca", "B": "Ga", "Al": "Ga", "Si": "Ge"},
    **{"N": "As", "P": "As", "O": "Se", "S": "Se", "F": "Br", "Cl": "Br"},
}


def distort(
    xyz: Float[np.ndarray, "atom xyz"], index: int, seed: int
) -> Float[np.ndarray, "atom xyz"]:
    """Positions (angstrom) scaled by 0.88-1.18 for even ``index``, shaken by 0.07 for odd ones."""
    rng = np.random.default_rng((seed, index))
    if index % 2 == 0:
        centre = xyz.mean(axis=0)
        return centre + (xyz - centre) * rng.uniform(0.88, 1.18)
    return xyz + rng.normal(scale=0.07, size=xyz.shape)


def homologue(molecule: Atoms, index: int, seed: int) -> Atoms | None:
    """The molecule with about a third of its elements replaced by others of the same valence.

    Its bonds keep their directions and scale with the covalent radii. There is none if nothing was
    replaced, or if atoms would come closer than two thirds of their covalent radii.
    """
    rng = np.random.default_rng((seed, index))
    symbols = molecule.get_chemical_symbols()
    for place, symbol in enumerate(symbols):
        if rng.random() < _REPLACED_SHARE:
            symbols[place] = str(rng.choice(next((g for g in _GROUPS if symbol in g), (symbol,))))
    return _with_elements(molecule, symbols)


def heavier(molecule: Atoms, index: int, seed: int) -> Atoms | None:
    """The molecule with one of its elements replaced by that of the fourth row of its group.

    There is none if it has no such element; the rest is as for :func:`homologue`.
    """
    symbols = molecule.get_chemical_symbols()
    candidates = sorted(_HEAVIER.keys() & set(symbols))
    if not candidates:
        return None
    chosen = candidates[np.random.default_rng((seed, index)).integers(len(candidates))]
    return _with_elements(molecule, [_HEAVIER[chosen] if s == chosen else s for s in symbols])


def _with_elements(molecule: Atoms, symbols: list[str]) -> Atoms | None:
    replaced = Atoms(symbols)
    old, new = (_bond_lengths(x.numbers) for x in (molecule, replaced))
    if (old == new).all():
        return None
    tree = minimum_spanning_tree(molecule.get_all_distances() / old)
    order, parents = breadth_first_order(tree, 0, directed=False)
    for child in order[1:]:
        parent = parents[child]
        bond = molecule.positions[child] - molecule.positions[parent]
        length = new[parent, child] / old[parent, child]
        replaced.positions[child] = replaced.positions[parent] + length * bond
    distances = replaced.get_all_distances()
    np.fill_diagonal(distances, np.inf)
    return replaced if (distances > 2 / 3 * new).all() else None


def synthetic_geometries() -> Iterator[tuple[str, Atoms, int]]:
    """Names, geometries and 2S of the synthetic molecules."""
    for index, (a, b, spin) in enumerate(_DIATOMICS):
        length = _bond(a, b) * _STRETCH[index % len(_STRETCH)]
        yield _diatomic(a, b, length, spin)
    for a, b, length, spin in _WEAK_DIATOMICS:
        yield _diatomic(a, b, length, spin)
    for index, (a, centre, b, angle, spin) in enumerate(_TRIATOMICS):
        stretch = _STRETCH[index % len(_STRETCH)]
        lengths = _bond(a, centre) * stretch, _bond(centre, b) * stretch
        yield _triatomic((a, centre, b), lengths, angle, spin)
    for centre, ligand, count, spin in _STARS:
        yield _star(centre, ligand, count, _bond(centre, ligand), spin)
    for a, b, length, spin in _HEAVY_DIATOMICS:
        yield _diatomic(a, b, length, spin)
    for a, centre, b, length, angle, spin in _HEAVY_TRIATOMICS:
        yield _triatomic((a, centre, b), (length, length), angle, spin)
    for centre, ligand, count, length, spin in _HEAVY_STARS:
        yield _star(centre, ligand, count, length, spin)


def _diatomic(a: str, b: str, length: float, spin: int) -> tuple[str, Atoms, int]:
    return f"{a}{b}", Atoms([a, b], [(0, 0, 0), (0, 0, length)]), spin


def _triatomic(
    symbols: tuple[str, str, str], lengths: tuple[float, float], angle: float, spin: int
) -> tuple[str, Atoms, int]:
    left, right = lengths
    theta = np.deg2rad(angle)
    tip = (right * np.sin(theta), 0.0, right * np.cos(theta))
    return "".join(symbols), Atoms(symbols, [(0, 0, left), (0, 0, 0), tip]), spin


def _star(centre: str, ligand: str, count: int, length: float, spin: int) -> tuple[str, Atoms, int]:
    corners = _directions(count) * length
    symbols = [centre] + [ligand] * count
    return f"{centre}{ligand}{count}", Atoms(symbols, np.vstack([np.zeros(3), corners])), spin


def _bond(a: str, b: str) -> float:
    return float(_bond_lengths(np.array([atomic_numbers[a], atomic_numbers[b]]))[0, 1])


def _bond_lengths(numbers: Int[np.ndarray, " atom"]) -> Float[np.ndarray, "atom atom"]:
    radii = covalent_radii[numbers]
    return radii[:, None] + radii


def _directions(count: int) -> Float[np.ndarray, "atom xyz"]:
    if count == 3:
        angles = 2 * np.pi * np.arange(3) / 3
        return np.stack([np.cos(angles), np.sin(angles), np.zeros(3)], axis=1)
    return np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / np.sqrt(3)
