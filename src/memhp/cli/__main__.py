"""``python -m memhp.cli``."""

import sys

from memhp.cli import main

sys.exit(main())
