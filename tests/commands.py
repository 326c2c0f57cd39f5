"""The command line as a user calls it, in this process."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from understudy import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """The exit status of `understudy ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["understudy", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
