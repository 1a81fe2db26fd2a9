"""Judges: models that score what no program can check, on top of verifiable rewards."""
