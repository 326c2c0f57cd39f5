"""Preflight: what would make a run meaningless, found before any training and told all at once.

Pure functions that give Problems; errors.raise_errors stops for the errors and hands the warnings on. A message says what is
wrong, where, why it matters and the one-line fix. Adding a check: one function, one code, one line in docs/errors.md.
"""
