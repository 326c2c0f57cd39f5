"""Functions that build small models by name, and the Student that wraps what they build."""
