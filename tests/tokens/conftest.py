"""The tests of tokens share samples."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # of token_samples, which pytest's importlib mode does not find
