"""Small nodes for the usual dataflow, and ``|``, which joins them.

Each is a few lines over what every program may use: a topic that is subscribed to in `on_start`, and one that is
published.  So what is missing here is quickly written: a `Step` with another `Step.take`.
"""

from pyzmp.flow.adapters import Ghost, Shadow
from pyzmp.flow.stages import Flow, Stage, Step
from pyzmp.flow.steps import Echo, Filter, Forward, Interval, Map, Merge, Throttle, Window

__all__ = ["Echo", "Filter", "Flow", "Forward", "Ghost", "Interval", "Map", "Merge", "Shadow", "Stage", "Step",
           "Throttle", "Window"]
