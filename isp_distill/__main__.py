"""``python -m isp_distill``: the command line."""

import sys

from isp_distill.cli import main

sys.exit(main())
