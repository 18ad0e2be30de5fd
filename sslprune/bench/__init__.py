"""How much faster: any number of models timed in turns, compared pair by pair, and where their time goes."""

from sslprune.bench.compare import Comparison, Platform, Timed, compare, compare_onnx, once_absent, platforms_for
from sslprune.bench.contenders import Contender, Input, from_file
from sslprune.bench.files import Bench, bench_files
from sslprune.bench.footprint import Footprint, footprint
from sslprune.bench.operators import operator_times
from sslprune.bench.timing import ENOUGH, WARM_UP, interleave, median_interval, num_cores, summarize

__all__ = [
    "ENOUGH",
    "WARM_UP",
    "Bench",
    "Comparison",
    "Contender",
    "Footprint",
    "Input",
    "Platform",
    "Timed",
    "bench_files",
    "compare",
    "compare_onnx",
    "footprint",
    "from_file",
    "interleave",
    "median_interval",
    "num_cores",
    "once_absent",
    "operator_times",
    "platforms_for",
    "summarize",
]
