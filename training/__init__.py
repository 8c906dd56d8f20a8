"""From reference data to a functional file: recipes, stores, fits, reports."""
