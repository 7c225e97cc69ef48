"""What server and devices agree on."""

import os

# OpenMP threads spin while they wait. Beside one other busy process that made training
# with two threads twelve times slower; letting them sleep costs up to a quarter where
# nothing else runs. Read when torch is first imported, which is after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
