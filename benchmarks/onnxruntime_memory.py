"""What a session of ONNX Runtime keeps of memory after images of many sizes, and what less costs.

    python benchmarks/onnxruntime_memory.py BUNDLE/label.onnx --way shrink --batch 4

A process of its own for each way, as none gives back all that another one took. One JSON line:
memory in MiB at the end and at its greatest, and seconds of CPU time.
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import onnxruntime

WAYS = ("keep", "shrink", "no_arena", "no_pattern", "shrink_no_pattern", "no_arena_no_pattern")


def open_session(graph: Path, way: str) -> tuple[onnxruntime.InferenceSession, object]:
    """A session of one thread, and the options of its runs."""
    options, run_options = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.enable_cpu_mem_arena = "no_arena" not in way
    options.enable_mem_pattern = "no_pattern" not in way
    if "shrink" in way:
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(graph, options, providers=providers), run_options


def resident_mebibytes(field: str) -> int:
    """VmRSS: now; VmHWM: at most so far."""
    status = Path("/proc/self/status").read_text()
    return round(int(re.findall(rf"{field}:\s+(\d+)", status)[0]) / 1024)


def main() -> None:
    """Run batches of 1, 2, ... images, each batch of another size of 300 to 500 pixels a side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", type=Path)
    parser.add_argument("--way", choices=WAYS, default="keep")
    parser.add_argument("--sizes", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4, help="of the largest batches")
    given = parser.parse_args()
    session, run_options = open_session(given.graph, given.way)
    generator, num_images = np.random.default_rng(0), 0
    started = time.process_time()
    for number in range(given.sizes):
        height, width = (int(side) for side in generator.integers(300, 501, 2))
        count = 1 + number % given.batch
        num_images += count
        pixels = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        feeds = {"image": pixels}
        for value in session.get_inputs()[1:]:  # `present`: the classifier decides
            feeds[value.name] = np.full((count, value.shape[1]), -1, np.float32)
        session.run(None, feeds, run_options)
    found = {
        "way": given.way,
        "images": num_images,
        "kept_mib": resident_mebibytes("VmRSS"),
        "peak_mib": resident_mebibytes("VmHWM"),
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
