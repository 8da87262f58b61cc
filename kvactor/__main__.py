"""`python -m kvactor` is `kvactor`."""

import sys

from kvactor.cli import main

sys.exit(main())
