"""What ends a server whose owner was killed and could not end it: a process of its own.

Linux can signal a child when its parent ends, but takes the thread that started it for the parent,
and does not know the child's children. A pipe ends with the last process that holds it.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


class Guard:
    """Watches from its creation until `end`."""

    def __init__(self, group: int, shared_memory: str, folder: Path) -> None:
        """Begin to watch.

        Args:
            group: of the server's processes, which are killed.
            shared_memory: prefix of its files below /dev/shm, which are removed.
            folder: removed as well.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-ISs", __file__, str(group), shared_memory, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is not meant for it
        )

    def end(self) -> None:
        """The owner sees to the server itself."""
        self._process.kill()
        self._process.communicate()


def remove_shared_memory(prefix: str) -> None:
    """Remove what a server left below /dev/shm."""
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def _watch(group: int, shared_memory: str, folder: str) -> None:
    sys.stdin.buffer.read()  # nothing comes but the end
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    remove_shared_memory(shared_memory)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2], sys.argv[3])
