"""A node that asks the sensors, and keeps statistics of what they said lately."""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import fmean

import pyzmp
from sensors import PERIOD, Cpu, Disk, Memory


@dataclass
class Summary:
    """What a resource's use was lately, in percent."""

    samples: int
    lowest: float
    mean: float
    highest: float


class Rolling(pyzmp.Node):
    window = 50  # samples

    def on_start(self) -> None:
        self.sensors = {"cpu": Cpu.cpu, "memory": Memory.memory, "disk": Disk.disk}
        self.lately: dict[str, deque[float]] = {name: deque(maxlen=self.window) for name in self.sensors}

    @pyzmp.every(PERIOD)
    async def collect(self) -> None:
        for name, sensor in self.sensors.items():
            self.lately[name].append((await sensor.acall()).used)

    @pyzmp.service
    def summary(self) -> dict[str, Summary]:
        return {name: Summary(len(used), min(used), fmean(used), max(used))
                for name, used in self.lately.items() if used}
