"""Record the messages of topics into a file, look into it, and publish them again.

The form of the file is `pyzmp.protocol.recording`'s.
"""

from pyzmp.recording.file import Recorded, Recording
from pyzmp.recording.recorder import Recorder, arecord, record
from pyzmp.recording.replay import Replayed, areplay, replay

__all__ = ["Recorded", "Recorder", "Recording", "Replayed", "arecord", "areplay", "record", "replay"]
