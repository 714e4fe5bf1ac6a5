"""``python -m ouroboros`` is the command line."""

import sys

from ouroboros.cli import main

sys.exit(main())
