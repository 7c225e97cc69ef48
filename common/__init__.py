"""What server and devices agree on."""

import os

# OpenMP threads spin while they wait. Beside one other busy process that made training
# with two threads four to twelve times slower; letting them sleep makes a model as small
# as the built-in one up to twice as slow where nothing else runs, and slower than one
# thread (OMP_NUM_THREADS=1). Read when torch is first imported, which is after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
