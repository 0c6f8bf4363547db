"""Monitors this machine: a process for each sensor, one for the statistics, and a table from a second interpreter."""
import pathlib
import subprocess
import sys

from rolling import Rolling
from sensors import Cpu, Disk, Memory

if __name__ == "__main__":
    with Cpu("cpu-sensor"), Memory("memory-sensor"), Disk("disk-sensor"), Rolling("statistics"):
        table = pathlib.Path(__file__).with_name("table.py")
        sys.exit(subprocess.run([sys.executable, str(table), *sys.argv[1:]], check=False).returncode)
