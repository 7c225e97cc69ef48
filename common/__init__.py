"""What server and devices agree on."""

import os

# OpenMP threads wait by spinning. Beside one other busy process that made training with two
# threads four to twelve times slower. So they spin for some microseconds and then sleep:
# with a model as small as the built-in one that is nearly as fast as spinning where nothing
# else runs, and beside other work no slower than sleeping at once. Read when torch is first
# imported, which is after this.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
