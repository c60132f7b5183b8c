"""``python -m llm_callback`` is the same as the command ``llm-callback``."""

from __future__ import annotations

import sys

from llm_callback.cli import main

if __name__ == "__main__":
    sys.exit(main())
