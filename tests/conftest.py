"""What holds for every test: one thread each (several run side by side), and no setting of the caller's."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here or in a kernel
for name in ("MHA_COURSE_SEED", "MHA_COURSE_TORCH", "MHA_COURSE_HANDED_OVER", "NBGRADER_EXECUTION"):
    os.environ.pop(name, None)

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background: whatever a test starts would ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C as well
