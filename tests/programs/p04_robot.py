"""Three robot-like nodes, topics, a parameter, and a plain program that listens."""

import random

import pyzmp


class Laser(pyzmp.Node):
    scan = pyzmp.Topic(list[float])  # <node name>/scan, e.g. front/scan
    period = pyzmp.Parameter(0.1)

    @pyzmp.every(period)
    def measure(self) -> None:
        if self.scan.subscribers:
            self.scan.publish([random.random() for _ in range(360)])


class Pilot(pyzmp.Node):
    speed = pyzmp.Topic(float, keep=1)  # late joiners get the last value

    @pyzmp.subscribe(Laser.scan, full="latest")  # every Laser's scan
    def avoid(self, scan: pyzmp.Message[list[float]]) -> None:
        self.speed.publish(min(scan.value))  # scan.node says whose


class Motor(pyzmp.Node):
    def on_start(self) -> None:  # wiring chosen at run time; ends with the node
        Pilot.at("pilot").speed.subscribe(self.drive, history=1)

    def drive(self, speed: float) -> None:
        self.driven = speed

    @pyzmp.service
    def speed(self) -> float | None:
        return getattr(self, "driven", None)


if __name__ == "__main__":
    with Laser("front"), Laser("rear"), Pilot("pilot"), Motor("motor", kind="thread"):
        Laser.at("rear").period.set(0.05)
        for speed in Pilot.speed.subscribe(timeout=5):  # a plain program; async for works too
            print(speed)
            if speed < 0.001 and Motor.at("motor").speed() is not None:
                break
