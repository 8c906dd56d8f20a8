"""What a functional is, obeys and was measured to do: as text for ``cider info`` and README."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from cider.exchange import ExchangeTerm
from cider.features.nldf import NldfExponent
from cider.files import load_functional, read_header
from cider.functional import CiderFunctional
from cider.learned_functional import LearnedFunctional
from cider.registry import registered_names, resolve

Row = Mapping[str, str]

_LEVELS = {"GGA": "density and its gradient", "MGGA": "density, gradient, kinetic energy density"}
_HELD_OUT_COLUMNS = {
    "aex": "Atomisation exchange energy, MAE (kcal/mol)",
    "total": "Total exchange energy, MAE (mHa)",
}


def describe(functional: str | os.PathLike[str]) -> dict[str, Row | Sequence[Row]]:
    """Features, constraints, training and errors of a functional, by section.

    A section is a mapping of entries, or a list of rows of equal keys.

    Raises:
        ValueError: The name is unknown.
        FunctionalFileError: The file cannot be used.
    """
    named = resolve(functional)
    header = read_header(named.path)
    learned = load_functional(named.path)
    terms = header["functional"]["terms"]
    provenance = dict(header["provenance"])
    errors = provenance.pop("errors", [])
    sections: dict[str, Row | Sequence[Row]] = {
        named.name: {
            "energy": CiderFunctional(functional).name,
            "reads": _ingredients(learned),
            "baseline": " + ".join(term["baseline"] for term in terms),
            "learned part": ", ".join(f"{term['kind']}: {term['model']['kind']}" for term in terms),
            "file": f"{named.path}, format version {header['format_version']}",
        },
        "Features": _features(learned),
        "Constraints": _constraints(learned),
        "Training": _flat(provenance) or {"provenance": "none in the file"},
    }
    if errors:
        sections["Errors"] = [{key: _text(value) for key, value in row.items()} for row in errors]
    return sections


def overview() -> list[Row]:
    """The registered functionals, one row each."""
    return [
        {
            "Name": name,
            "Energy": CiderFunctional(name).name,
            "Reads": _ingredients(CiderFunctional(name).learned),
        }
        for name in registered_names()
    ]


def shipped_table() -> str:
    """The Markdown table of README: shipped exchange functionals and their held-out errors."""
    header = ("Name", "Reads", *_HELD_OUT_COLUMNS.values(), "Held-out molecules")
    rows = [header, ("---",) * len(header)]
    for name in registered_names():
        named = resolve(name)
        learned = named.load()
        if named.is_composed:
            continue
        errors = {
            row["quantity"]: row
            for row in read_header(named.path)["provenance"].get("errors", [])
            if row["part"] == "held-out" and row["density"] == "PBE"
        }
        cells = [f"{errors[key]['mae']:.2f}" if key in errors else "–" for key in _HELD_OUT_COLUMNS]
        count = str(errors["aex"]["count"]) if "aex" in errors else "–"
        rows.append((f"`{name}`", _ingredients(learned), *cells, count))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _ingredients(learned: LearnedFunctional) -> str:
    nldf, sdmx = learned.descriptors.nldf, learned.descriptors.sdmx
    nonlocal_ = "" if nldf is None else f", {len(nldf.exponents)} nonlocal density features"
    of_matrix = "" if sdmx is None else f", {len(sdmx.terms)} features of the density matrix"
    return _LEVELS[learned.descriptors.level] + nonlocal_ + of_matrix


def _features(learned: LearnedFunctional) -> list[Row]:
    descriptors = learned.descriptors
    values = {"p": "0", "alpha": "1", "tau/tau_0": "1"}
    for part in (descriptors.nldf, descriptors.sdmx):
        if part is not None:
            values |= {n: f"{v:.6f}" for n, v in zip(part.names, part.ueg, strict=True)}
    rows: list[Row] = [
        {"Feature": name, "Scaling power": "0", "Uniform gas": values[name]}
        for name in descriptors.names
    ]
    if learned.has_correlation:
        rows.append({"Feature": "density", "Scaling power": "3", "Uniform gas": "any"})
    return rows


def _constraints(learned: LearnedFunctional) -> Row:
    scaling = "exact"
    if learned.descriptors.nldf is not None:
        # Where a = pi (n/2)^(2/3) A meets its bounds.
        bounds = (NldfExponent.FLOOR, NldfExponent.CEILING)
        low, high = (2 * (bound / math.pi) ** 1.5 for bound in bounds)
        scaling = (
            f"exact far within {low:.0e} to {high:.0e} electrons per bohr^3, smooth bounds beyond"
        )
    if learned.descriptors.sdmx is not None:
        scaling += "; SDMX features to 1e-5 (quadrature over R)"
    excess = sum(
        term.uniform_gas_correction(learned.descriptors)
        for term in learned.terms
        if isinstance(term, ExchangeTerm)
    )
    # Models of ours vanish there by a difference of two equal sums.
    exact = "exact: the learned part vanishes there"
    exchange = {
        "uniform gas": exact if abs(excess) < 1e-10 else f"F_x = 1 {excess:+.1e}, not exact",
        "spin scaling": "exact: E[n_up, n_down] = (E[2 n_up] + E[2 n_down]) / 2",
        "uniform scaling": scaling,
    }
    cutoffs = [
        f"{term.gradient_cutoff:g}"
        for term in learned.terms
        if isinstance(term, ExchangeTerm) and term.gradient_cutoff is not None
    ]
    if cutoffs:
        exchange["tails and nodes"] = (
            f"the learned part falls to a half where s^2 = {', '.join(cutoffs)}"
        )
    size = {"size, rotation, translation": "additive and invariant up to the grid"}
    if not learned.has_correlation:
        return exchange | size
    return {f"{law} (exchange)": text for law, text in exchange.items()} | size


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables as one, with dotted keys."""
    entries: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            entries |= _flat(value, f"{prefix}{key}.")
        else:
            entries[prefix + key] = _text(value)
    return entries


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        shown = ", ".join(_text(entry) for entry in value[:8])
        return shown if len(value) <= 8 else f"{shown}, ... ({len(value)} in all)"
    return str(value)
