import os

# Before NumPy is loaded: two workers with two threads each spin on two processors, and small matrices gain nothing.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
