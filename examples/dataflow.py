"""Small nodes joined with ``|``: each step of `pyzmp.flow` in a line or two."""
from __future__ import annotations

from statistics import fmean

import pyzmp
from pyzmp.flow import Echo, Filter, Flow, Forward, Ghost, Interval, Map, Merge, Shadow, Throttle, Window


class Thermometer(pyzmp.Node):
    reading = pyzmp.Topic(float, keep=1)

    def on_start(self) -> None:
        self.now = 20.0

    @pyzmp.every(0.01)
    def measure(self) -> None:
        self.now = 18.0 if self.now > 24 else self.now + 0.25
        self.reading.publish(self.now)

    @pyzmp.service
    def celsius(self) -> float:
        return self.now


def fahrenheit(celsius: float) -> float:  # annotations are the types of the topics on both sides
    return celsius * 9 / 5 + 32


WARM = 22.0
house = pyzmp.Group("house", [
    Thermometer("kitchen"), Thermometer("hall"),

    # The warm readings of all thermometers, in groups of five, as their means.  The lambda travels to a process.
    Thermometer.reading | Filter(lambda celsius: celsius > WARM, kind="process") | Window(5) | Map(fmean, "means"),

    # One place to another, and two places into one.  Names and patterns are sources too.
    Thermometer.at("kitchen").reading | Map(fahrenheit) | Forward("house/fahrenheit"),
    ["kitchen/reading", "ha*/reading"] | Merge("all"),

    # With a name of its own, and what has come within a tenth of a second.
    Flow("lately", ["all/output", Interval(0.1), Map(len)]),

    # Ten a second at most, and each is printed where the node lives.
    Thermometer.at("hall").reading | Throttle(0.1) | Echo(lambda celsius: print(f"hall: {celsius} C")),

    # A topic as a service, and a service as a topic.
    Thermometer.at("kitchen").reading | Shadow("temperature"),
    Ghost(Thermometer.at("hall").celsius, 0.05, "asked", type=float),
])

if __name__ == "__main__":
    with house:
        for topic in "means/output", "house/fahrenheit", "lately/2/output", "asked/output":
            with pyzmp.Topic(float, topic).subscribe(timeout=10) as values:
                print(f"{topic}: {next(values):.2f}")
        temperature = pyzmp.discover("temperature")
        print("the kitchen has", temperature() if temperature else "none", "C")
        print("filtered:", Filter.at("house/3/1/1").counts())
