"""Scorecards: quality, fidelity, calibration and cost of teacher, control, student and exported file, and the verdict."""
