"""`python -m exo_operator`."""

import sys

from exo_operator.main import main

sys.exit(main())
