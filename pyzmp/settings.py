"""What `configure` sets."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from msgspec.structs import replace

from pyzmp.protocol.deadline import seconds

TIMEOUT = 5.0  # seconds that a call may take where nothing else is said


class Settings(msgspec.Struct, frozen=True):
    """What `configure` sets and children inherit."""

    domain: str = "default"
    registry: str = ""
    timeout: float = TIMEOUT
    interface: str = ""

    @classmethod
    def from_environment(cls) -> Settings:
        """The defaults, where ``PYZMP_DOMAIN`` and its like say nothing else."""
        text = os.environ.get("PYZMP_TIMEOUT") or str(TIMEOUT)
        try:
            timeout = seconds(float(text), "PYZMP_TIMEOUT")
        except ValueError as error:
            raise ValueError(f"PYZMP_TIMEOUT: expected a positive number of seconds, got {text!r}") from error
        domain, registry = os.environ.get("PYZMP_DOMAIN") or "default", os.environ.get("PYZMP_REGISTRY") or ""
        return cls(domain, registry, timeout, os.environ.get("PYZMP_INTERFACE") or "").checked()

    def changed(self, changes: dict[str, Any]) -> Settings:
        """These settings with *changes*; raises TypeError and ValueError for what cannot be."""
        return replace(self, **changes).checked()

    def checked(self) -> Settings:
        """These settings; raises TypeError and ValueError for what cannot be."""
        if not isinstance(self.domain, str):
            raise TypeError(f"domain: expected a name, got {self.domain!r}")
        from pyzmp.registry import finder, reach  # where they are used, and not where nodes are only defined
        from pyzmp.registry.domain import Domain

        finder.check_registry(self.registry)
        reach.check_interface(self.interface)
        Domain.named(self.domain)
        return self
