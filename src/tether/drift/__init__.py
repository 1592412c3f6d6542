"""Representation collapse of finished runs: `measure_run` for one, `measure_collapse` for many."""
