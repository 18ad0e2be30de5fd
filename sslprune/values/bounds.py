"""The most that a person may ask for: far above what is of use, and far below what hangs or crashes a machine."""

MOST_SEED = 2**32 - 1  # numpy's
MOST_THREADS = 1024
MOST_PROCESSES = 1024  # on one machine
MOST_REPETITIONS = 100_000  # rounds of timing
MOST_EPOCHS = 100_000
MOST_STEPS = 1_000_000  # optimizer steps that are counted one by one; more are written as epochs
MOST_SAMPLES = 65_536  # in a batch
MOST_LENGTH = 1_000_000  # steps of a sequence
MOST_PIXELS = 8192  # along one side of a picture
MOST_CLASSES = 1_000_000
MOST = 1_000_000_000  # of anything else that is counted
