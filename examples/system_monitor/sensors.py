"""A node for each concern: it samples the machine, and serves its latest figures.  Linux tells them in /proc."""
from __future__ import annotations

import os
from dataclasses import dataclass

import pyzmp

PERIOD = 0.1  # seconds between two samples


@dataclass
class Sample:
    """One look at a resource: how much of it is used, in percent, and the figure behind that."""

    used: float
    detail: str


class Cpu(pyzmp.Node):
    def on_start(self) -> None:
        self.before = self.ticks()
        self.latest = Sample(0.0, "measuring")

    def ticks(self) -> tuple[int, int]:
        """The ticks that all processors have spent, and those of them that they were idle."""
        with open("/proc/stat") as file:
            spent = [int(field) for field in file.readline().split()[1:9]]
        return sum(spent), spent[3] + spent[4]

    @pyzmp.every(PERIOD)
    def measure(self) -> None:
        total, idle = self.ticks()
        passed = total - self.before[0]
        if passed:
            busy = 100 * (1 - (idle - self.before[1]) / passed)
            self.latest = Sample(busy, f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.2f}")
            self.before = total, idle

    @pyzmp.service
    def cpu(self) -> Sample:
        return self.latest


class Memory(pyzmp.Node):
    @pyzmp.service
    def memory(self) -> Sample:
        with open("/proc/meminfo") as file:
            kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file}
        total, free = kilobytes["MemTotal"], kilobytes["MemAvailable"]
        return Sample(100 * (1 - free / total), f"{(total - free) / 2**20:.1f} of {total / 2**20:.1f} GiB")


class Disk(pyzmp.Node):
    @pyzmp.service
    def disk(self) -> Sample:
        found = os.statvfs("/")
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        used = (total - free) / 2**30
        return Sample(100 * (1 - free / total), f"{used:.1f} of {total / 2**30:.1f} GiB")
