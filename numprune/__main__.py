"""`python -m numprune`."""

import sys

from numprune.cli import main

sys.exit(main())
