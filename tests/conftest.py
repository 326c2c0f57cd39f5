"""Before any test: one thread per worker, and every loss checks its shapes and types as it is called."""

from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("understudy.losses", "beartype.beartype")
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.load_profile("same")
