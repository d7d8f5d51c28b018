"""The watchdog process: undoes everything when its parent dies, however it dies.

`python -m chaos.watchdog UNDO_FILE PARENT_PID`. It has a session of its own, so neither Ctrl-C nor a
closed terminal reaches it, and it looks at its parent's pid five times a second: the kernel hands an
orphan to another parent, whatever killed the first. A parent that ends as it should has ended its children
and removed the undo file before it ends the watchdog.

Why not PR_SET_PDEATHSIG: it signals the children but not their descendants, continues nobody that is
stopped, removes no folder, and exists on Linux only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from chaos.undo import carry_out

PERIOD_S = 0.2


def main(arguments: list[str]) -> int:
    """Wait for the parent's end, undo, and say on stderr what could not be undone."""
    if len(arguments) != 2 or not arguments[1].isdigit():
        print("usage: python -m chaos.watchdog UNDO_FILE PARENT_PID", file=sys.stderr)
        return 2
    undo, parent = Path(arguments[0]), int(arguments[1])
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Not bounded: it lasts as long as the parent does, by design.
    while os.getppid() == parent:
        time.sleep(PERIOD_S)
    print(f"process {parent} is gone: undoing {undo}", file=sys.stderr, flush=True)
    troubles = carry_out(undo)
    for trouble in troubles:
        print(f"not undone: {trouble}", file=sys.stderr, flush=True)
    if troubles:
        return 1
    undo.unlink(missing_ok=True)
    print("everything is undone", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
