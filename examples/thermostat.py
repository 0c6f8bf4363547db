"""Parameters and the graph: a heater is set from outside, and whoever wants follows it."""

import pyzmp


class Heater(pyzmp.Node):
    period = pyzmp.Parameter(60.0)  # seconds between two measurements
    target = pyzmp.Parameter(18.0)  # degrees, for anybody to set
    degrees = pyzmp.Parameter(15.0, settable=False)  # for anybody to see

    @pyzmp.every(period)
    def measure(self) -> None:
        self.degrees = min(self.degrees + 1.0, self.target)


def main() -> None:
    heater = Heater.at("heater")
    with Heater("heater"):
        heater.target.set(20.5)
        heater.period.set(0.01)
        for degrees in heater.degrees.watch(timeout=10):
            print(f"{degrees} of {heater.target.get()} degrees")
            if degrees == 20.5:
                break
        try:
            heater.degrees.set(30.0)
        except pyzmp.CallError as error:
            print(error)
        for parameter in pyzmp.graph().node("heater").parameters:
            print(parameter)


if __name__ == "__main__":
    main()
