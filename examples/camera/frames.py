"""A camera that publishes 60 frames of 1920x1080 pixels a second, and a viewer that says how they came."""
from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import pyzmp
from measure import SHAPE, Meter, mapping_of, owner_of

Image: TypeAlias = NDArray[np.uint8]


class Camera(pyzmp.Node):
    frame = pyzmp.Topic(Image)

    def on_start(self) -> None:
        self.meter, self.shade = Meter(), 0

    @pyzmp.every(1 / 60)
    def grab(self) -> None:
        if self.frame.subscribers < 2:  # no work for nobody
            return
        self.meter.look()
        self.shade = (self.shade + 1) % 256
        frame = np.full(SHAPE, self.shade, np.uint8)  # a new one each time: what was published is not to be changed
        self.meter.mark()
        self.frame.publish(frame)

    @pyzmp.service
    def measured(self) -> dict[str, Any]:
        return {**self.meter.result()}


class Viewer(pyzmp.Node):
    def on_start(self) -> None:
        self.meter, self.missed, self.notes = Meter(), 0, dict[str, Any]()

    @pyzmp.subscribe(Camera.frame, full="latest")  # where it cannot keep up it leaves some out, and is never late
    def view(self, frame: pyzmp.Message[Image]) -> None:
        self.meter.look()
        image = frame.value
        if image.min() != image.max():
            raise ValueError("this frame is torn")
        if not self.meter.frames:
            self.first = frame.number
            self.notes = {"owndata": image.flags.owndata, "writeable": image.flags.writeable,
                          "owner": owner_of(image), "mapping": mapping_of(image)}
        self.missed = frame.number - self.first - self.meter.frames
        self.meter.mark()

    @pyzmp.service
    def measured(self) -> dict[str, Any]:
        return {**self.meter.result(), **self.notes, "missed": self.missed}
