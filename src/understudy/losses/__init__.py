"""Pure functions on tensors, one value per example: loss(student, teacher, *, options)."""
