"""Make a packaged release the champion, or put back the one before: `python -m flows.promote --help`.

As flows know the rest of the project by its processes alone, this one hands its arguments to the process that does it.
"""

import subprocess
import sys


def main(arguments: list[str]) -> int:
    """Run the promotion; return its exit status."""
    return subprocess.run([sys.executable, "-m", "stages.plumbing.promotion", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
