"""From a student to a folder that answers without this package: model file, signature, predict.py, parity, card."""
