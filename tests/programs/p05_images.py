"""A numpy image pipeline; frames cross processes without a copy."""

import numpy as np
from numpy.typing import NDArray

import pyzmp

Image = NDArray[np.uint8]


class Camera(pyzmp.Node):
    frame = pyzmp.Topic(Image)

    def on_start(self) -> None:  # opened in the node, not in __init__
        self.rng = np.random.default_rng()

    @pyzmp.every(1 / 60)
    def grab(self) -> None:
        self.frame.publish(self.rng.integers(0, 255, (1080, 1920, 3), dtype=np.uint8))


class Edges(pyzmp.Node):
    edges = pyzmp.Topic(Image)

    @pyzmp.subscribe(Camera.frame, full="latest")
    def find(self, frame: Image) -> None:  # read-only view over the received memory
        self.edges.publish(np.abs(np.diff(frame, axis=0)))


class Stats(pyzmp.Node):
    mean = pyzmp.Topic(float)

    @pyzmp.subscribe(Edges.edges, full="drop_oldest", length=8)
    def measure(self, edges: Image) -> None:
        self.mean.publish(float(edges.mean()))


if __name__ == "__main__":
    with Camera("cam"), Edges("edges"), Stats("stats"):
        for mean in Stats.mean.subscribe():
            print(f"{mean:.2f}", flush=True)
