"""``python -m pyzmp``: the pyzmp command."""

from pyzmp.cli import main

main()
