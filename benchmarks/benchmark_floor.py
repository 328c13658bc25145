"""The least time of a merge: read the files once and write as many bytes as a merged model has, one thread per core.

python benchmarks/benchmark_floor.py OUTPUT BYTES FILE...
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import local

CHUNK = 1 << 22
USAGE = "usage: python benchmarks/benchmark_floor.py OUTPUT BYTES FILE..."


def main() -> None:
    if "--help" in sys.argv:
        print(USAGE)
        return
    if len(sys.argv) < 4 or not sys.argv[2].isdecimal():
        sys.exit(USAGE)
    output, size, files = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    sources = [os.open(file, os.O_RDONLY) for file in files]
    target = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    os.posix_fallocate(target, 0, size)
    reads = [(source, start) for source in sources for start in range(0, os.fstat(source).st_size, CHUNK)]
    writes = list(range(0, size, CHUNK))
    of_thread = local()

    def read_and_write(index: int) -> None:
        if not hasattr(of_thread, "buffer"):
            of_thread.buffer = bytearray(CHUNK)
        source, start = reads[index]
        os.preadv(source, [of_thread.buffer], start)
        for place in writes[index * len(writes) // len(reads) : (index + 1) * len(writes) // len(reads)]:
            os.pwrite(target, memoryview(of_thread.buffer)[: size - place], place)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(read_and_write, range(len(reads))):
            pass


if __name__ == "__main__":
    main()
