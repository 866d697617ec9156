"""``python -m connectx`` is the ``connectx`` command."""

import sys

from connectx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
