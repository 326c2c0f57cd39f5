"""Recipe -> live objects: the only modules that know both worlds, and the only importers of adapters.

Each function takes the recipe and gives one thing the stages need: rows, a teacher, a student, the objective, the set of rows
a student trains on. Nothing here decides what happens next; that is pipeline.py.
"""
