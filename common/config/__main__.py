"""``python -m idiolect.common.config ROOT`` rewrites what is generated from the keys."""

import sys
from pathlib import Path

from .page import generate

generate(Path(sys.argv[1]))
