"""What holds for every test: one thread each (several run side by side), and no setting of the caller's."""

import os
import signal

from mha_course import quiet

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here or in a kernel
ours = ("MHA_COURSE_SEED", "MHA_COURSE_TORCH", "MHA_COURSE_HANDED_OVER", "NBGRADER_EXECUTION")
for name in (*ours, *quiet.TALKATIVE):
    os.environ.pop(name, None)

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background: whatever a test starts would ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C as well
