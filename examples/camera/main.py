"""Frames of 6 MB from a process to two others: the rate that each gets, and the copies made, for 2 or given seconds."""
from __future__ import annotations

import sys
import time
from typing import Any

import pyzmp
from frames import Camera, Viewer


def show(name: str, measured: dict[str, Any]) -> None:
    print(f"{name}: {measured['frames']} frames, {measured['rate']:.1f} a second; copies: Python and numpy allocated "
          f"{measured['copies']:.2f} frames at most; the process grew by {measured['grown']:.1f} frames")


def main(seconds: float) -> None:
    with pyzmp.Group("studio", [Viewer("left"), Viewer("right"), Camera("camera")]):
        time.sleep(seconds)
        camera = Camera.at("camera").measured()
        viewers = {name: Viewer.at(name).measured() for name in ("left", "right")}
    show("camera", camera)
    for name, measured in viewers.items():
        show(name, measured)
        print(f"  {measured['missed']} were left out; owns its data: {measured['owndata']}; writeable: "
              f"{measured['writeable']}; the memory is that of a {measured['owner']}, in {measured['mapping']} memory")
    print("The kernel copies each frame into the socket and out of it, for each viewer; what is above is all else.")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)
