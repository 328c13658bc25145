"""The floor under a merge: read files once, write as much as a merged model is, and nothing else.

python benchmarks/benchmark_floor.py OUTPUT BYTES FILE...   with plain positioned reads and writes, a thread a core
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import local

CHUNK = 1 << 22


def main() -> None:
    output, size, files = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    sources = [os.open(file, os.O_RDONLY) for file in files]
    target = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    os.posix_fallocate(target, 0, size)
    reads = [(source, start) for source in sources for start in range(0, os.fstat(source).st_size, CHUNK)]
    writes = list(range(0, size, CHUNK))
    mine = local()

    def read_and_write(index: int) -> None:
        if not hasattr(mine, "buffer"):
            mine.buffer = bytearray(CHUNK)
        source, start = reads[index]
        os.preadv(source, [mine.buffer], start)
        for place in writes[index * len(writes) // len(reads) : (index + 1) * len(writes) // len(reads)]:
            os.pwrite(target, memoryview(mine.buffer)[: size - place], place)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(read_and_write, range(len(reads))):
            pass


if __name__ == "__main__":
    main()
