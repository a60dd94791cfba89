"""`python -m coda.pipeline` is the command `coda`."""

import sys

from .cli.cli import main

sys.exit(main())
