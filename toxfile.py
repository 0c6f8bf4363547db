"""What tox reads before tox.ini: where interpreters are, and which of them is the one at hand.

The interpreters that pyenv keeps are not on the search path under their own names, so their folders are put at its
end.  The environment ``py`` stands for the interpreter that runs tox and is never skipped; the one of the same
version would repeat it, so it is left out of a run of everything.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
folders = sorted(str(folder) for folder in pyenv.glob("versions/3.*/bin"))
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])
for name in ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS"):  # trust whom the system trusts; the second is the old name
    os.environ.setdefault(name, "true")
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")  # a missing interpreter is skipped, not fetched
if not {"-e", "-m", "-f"} & set(sys.argv):
    os.environ.setdefault("TOX_SKIP_ENV", "py{}{}".format(*sys.version_info))
