"""`python -m ckptool` is `ckptool`."""

import sys

from ckptool.cli import main

sys.exit(main())
