"""``python -m celler.cli``."""

import sys

from celler.cli import main

sys.exit(main())
