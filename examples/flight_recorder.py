"""Recordings: what happened goes into a file, and a node that was written afterwards is tried on it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyzmp
from pyzmp.recording import Recording, record, replay


class Plane(pyzmp.Node):
    height = pyzmp.Topic(float)  # metres

    @pyzmp.service
    def fly(self) -> None:
        for minute in range(100):
            self.height.publish(100.0 * min(minute, 99 - minute) - (600.0 if 40 < minute < 45 else 0.0))


class Alarm(pyzmp.Node):
    """Knows nothing of recordings: it hears what planes publish."""

    kind = "thread"

    def on_start(self) -> None:
        self.before, self.falls = 0.0, list[str]()

    @pyzmp.subscribe(Plane.height, full="block")
    def check(self, height: pyzmp.Message[float]) -> None:
        if height.value < self.before - 200:
            self.falls.append(f"{height.node} fell from {self.before:g} m to {height.value:g} m")
        self.before = height.value

    @pyzmp.service
    def told(self) -> list[str]:
        return self.falls


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder, "box.rec")
        with Plane("hb-ikl"), record(box, Plane.height) as recorder:
            Plane.fly()
            while recorder.messages < 100:
                recorder.wait(0.01)
        for topic in Recording(box).topics():
            print(f"{topic.topic}: {topic.messages} messages, {topic.dropped + topic.lost} missing")
        with Alarm("alarm"):
            done = replay(box, pace=None, subscribers=1)  # the plane is not there any more
            print(f"{done.messages} messages replayed")
            print(*Alarm.told(), sep="\n")


if __name__ == "__main__":
    main()
