"""Grading a class: many submissions, run confined, scored on the trusted side, written by one writer.

* `intake`: what a learner handed in, read defensively, rebuilt from the release
* `sandbox`: where the learner's cells run; `worker`: what runs in there; `switches`: what is off in there
* `wire`: plain data across the boundary; `remote`: asking an answer on the other side of it
* `score`: from a rebuilt notebook to marks
* `writer`: marks into nbgrader's gradebook, autograded/ and feedback/
* `run`: all of it for a class; `cluster`: on more than one machine; `export`: marks for other systems

docs/grading.md says what each protection is for, and what is not stopped.
"""
