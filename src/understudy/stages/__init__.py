"""The stages of a run: each reads what the one before left in the run's folder, and writes a card last."""
