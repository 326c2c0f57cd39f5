"""`python -m understudy` is the command line."""

from __future__ import annotations

from understudy.cli import main

main()
