"""Launchers: what starts a node somewhere."""

from __future__ import annotations

from pyzmp.launchers.base import Body, Control, Handle, Launcher

__all__ = ["Body", "Control", "Handle", "Launcher"]
