"""`python -m pipeline`."""

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 - before anything is imported
    # Python puts the working directory first, and whatever lies there would stand in for modules of ours.
    del sys.path[0]

from pipeline.cli import main

if __name__ == "__main__":
    main()
