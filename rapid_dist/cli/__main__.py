"""`python -m rapid_dist.cli ...` is `rapid-dist ...`."""

import sys

from rapid_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
