"""The ``cider-train`` command: from a recipe to a functional file and a report."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rich.console import Console

from cider.plugins.pyscf.grids import becke_convolution
from cider.plugins.pyscf.smoothed_density_matrix import sdmx_features
from cider.training.crystals import CrystalDensities
from cider.training.descriptors import NonlocalMaps
from cider.training.evaluation import HELD_OUT, display_unit, summarize
from cider.training.recipe import Recipe, read_recipe
from cider.training.store import StoreError
from cider.training.train import Trained, train

_BAD_INPUT, _INTERRUPTED = 2, 130

DEFAULT_RECIPE, SMALL_RECIPE = "x-nldf.toml", "small.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0 done, 2 bad input or no space, 130 interrupted."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        recipe = _recipe(options)
        trained = train(
            recipe,
            NonlocalMaps(becke_convolution, sdmx_features),
            options.output,
            options.references,
            options.descriptors,
            options.workers,
            console,
            _crystal_densities() if any(s.cell for s in recipe.all_systems()) else None,
        )
    except (ValueError, StoreError, OSError) as error:
        print(f"cider-train: {' '.join(str(error).split())}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        print(
            "cider-train: interrupted; the same command goes on where it stopped", file=sys.stderr
        )
        return _INTERRUPTED
    _print_result(trained)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cider-train",
        description="Train an exchange functional: reference data, descriptors, fit, validation. "
        "An interrupted run goes on where it stopped.",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("recipe", nargs="?", type=Path, help="TOML file (default: that of x-nldf)")
    choice.add_argument(
        "--small", action="store_true", help="few atoms and molecules: minutes on two cores"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes, of one thread each (default: 1)"
    )
    parser.add_argument("--output", type=Path, help="folder of the run (default: cider-NAME)")
    parser.add_argument(
        "--references",
        type=Path,
        help="store of reference data to share with other recipes (default: within the output)",
    )
    parser.add_argument(
        "--descriptors",
        type=Path,
        help="store of descriptors to share with other recipes of the same references; it may hold "
        "more nonlocal features than the recipe has (default: within the output)",
    )
    return parser


def _recipe(options: argparse.Namespace) -> Recipe:
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}: at least one is needed")
    if options.recipe is not None:
        return read_recipe(options.recipe)
    name = SMALL_RECIPE if options.small else DEFAULT_RECIPE
    with resources.as_file(resources.files("cider.training") / "recipes" / name) as path:
        return dataclasses.replace(read_recipe(path), origin=".")


def _crystal_densities() -> CrystalDensities | None:
    """What GPAW's plugin makes of crystals, where GPAW is installed."""
    try:
        from cider.plugins.gpaw.crystals import crystal_density
    except ImportError:
        return None
    return crystal_density


def _print_result(trained: Trained) -> None:
    for density, evaluation in trained.evaluations.items():
        for kind in ("aex", "total"):
            mask = evaluation.mask(kind=kind, role=HELD_OUT)
            if mask.any():
                unit, factor = display_unit(kind)
                errors = summarize(evaluation.error[mask] * factor)
                print(
                    f"{density} densities, {errors.count} held-out molecules: {kind} MAE "
                    f"{errors.mae:.2f}, largest {errors.largest:.2f} {unit}"
                )
    if trained.failures:
        print(f"{len(trained.failures)} left out, see the report")
    print(f"functional: {trained.path}\nreport: {trained.report}")


if __name__ == "__main__":
    sys.exit(main())
