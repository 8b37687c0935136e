"""``python -m captum_transformer.cli`` is the same as ``captum-transformer``."""

import sys

from captum_transformer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
