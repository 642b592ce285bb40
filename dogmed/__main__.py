"""``python -m dogmed`` is the ``dogmed`` command."""

import sys

from dogmed.cli import main

sys.exit(main())
