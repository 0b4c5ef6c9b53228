#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Changes files in all ways that file systems know, until it is terminated.

usage: fsload.py SEED DIRECTORY...

One process for each directory, which it makes, does random operations in it; the same
ones in the same order with the same seed. Prints how many there were of each kind.
"""

import collections
import ctypes
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

BLOCK = 4096
MAX_FILES = 48
MAX_BLOCKS = 64
MAX_DIRECTORIES = 8
# Between two operations; others want the processor, too.
PAUSE = 0.04

libc = ctypes.CDLL("libc.so.6", use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), f"fallocate, mode {mode}")


class Load:
    def __init__(self, root, seed):
        self.root, self.random = Path(root), random.Random(f"{seed} {root}")
        self.root.mkdir()
        self.directories, self.files, self.links = [self.root], [], []
        self.counts, self.made, self.going_on = collections.Counter(), 0, True

    def run(self):
        signal.signal(signal.SIGTERM, self.stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        operations = [getattr(self, name) for name in dir(self) if name.startswith("op_")]
        while self.going_on:
            operation = self.random.choice(operations)
            if len(self.files) < MAX_FILES // 2:
                operation = self.op_create
            operation()
            self.counts[operation.__name__[3:]] += 1
            time.sleep(PAUSE)

    def stop(self, *_):
        self.going_on = False

    # --- what the operations choose

    def new_path(self):
        self.made += 1
        return self.random.choice(self.directories) / f"{self.made}"

    def some_file(self):
        return self.random.choice(self.files)

    def open(self, path, flags=0):
        return Descriptor(os.open(path, os.O_RDWR | flags, 0o644))

    def some_bytes(self, blocks=16):
        return self.random.randbytes(self.random.randint(1, blocks * BLOCK))

    def blocks_in(self, fd):
        """Offset and length of some blocks of the file that are not its last ones."""
        count = os.fstat(fd).st_size // BLOCK
        if count < 3:
            return None
        first = self.random.randrange(count - 2)
        return first * BLOCK, self.random.randint(1, count - 1 - first) * BLOCK

    def fallocate(self, mode):
        with self.open(self.some_file()) as fd:
            if where := self.blocks_in(fd):
                fallocate(fd, mode, *where)

    # --- operations

    def op_create(self):
        if len(self.files) >= MAX_FILES:
            return self.op_unlink()
        path = self.new_path()
        with self.open(path, os.O_CREAT | os.O_EXCL) as fd:
            os.write(fd, self.some_bytes(32))
        self.files.append(path)

    def op_write(self):
        with self.open(self.some_file()) as fd:
            data = self.some_bytes()
            os.pwrite(fd, data, self.random.randrange(MAX_BLOCKS * BLOCK - len(data)))

    def op_write_direct(self):
        with mmap.mmap(-1, self.random.randint(1, 16) * BLOCK) as data:
            data[:] = self.random.randbytes(len(data))
            with self.open(self.some_file(), os.O_DIRECT) as fd:
                os.pwritev(fd, [data], self.random.randrange(MAX_BLOCKS - 16) * BLOCK)

    def op_append(self):
        with self.open(self.some_file(), os.O_APPEND) as fd:
            if os.fstat(fd).st_size < MAX_BLOCKS * BLOCK:
                os.write(fd, self.some_bytes(4))

    def op_truncate(self):
        os.truncate(self.some_file(), self.random.randrange(MAX_BLOCKS * BLOCK))

    def op_map(self):
        with self.open(self.some_file()) as fd:
            if size := os.fstat(fd).st_size:
                with mmap.mmap(fd, size) as memory:
                    at = self.random.randrange(size)
                    data = self.some_bytes(4)[:size - at]
                    memory[at:at + len(data)] = data

    def op_punch(self):
        self.fallocate(PUNCH_HOLE | KEEP_SIZE)

    def op_zero_range(self):
        self.fallocate(ZERO_RANGE)

    def op_collapse(self):
        self.fallocate(COLLAPSE_RANGE)

    def op_insert(self):
        with self.open(self.some_file()) as fd:
            if (where := self.blocks_in(fd)) and os.fstat(fd).st_size < MAX_BLOCKS * BLOCK:
                fallocate(fd, INSERT_RANGE, *where)

    def op_allocate(self):
        with self.open(self.some_file()) as fd:
            fallocate(fd, 0, self.random.randrange(MAX_BLOCKS // 2) * BLOCK, 8 * BLOCK)

    def op_fsync(self):
        with self.open(self.some_file()) as fd:
            os.fsync(fd)

    def op_attribute(self):
        # All of them fit in a block, which may be one of 1 KiB.
        os.setxattr(self.some_file(), f"user.{self.random.randrange(4)}", self.some_bytes(1)[:100])

    def op_rename(self):
        # Over another one, half of the time
        at = self.random.randrange(len(self.files))
        path = self.some_file() if self.random.random() < 0.5 else self.new_path()
        if path.exists() and path.samefile(self.files[at]):
            return
        os.rename(self.files[at], path)
        del self.files[at]
        if path not in self.files:
            self.files.append(path)

    def op_link(self):
        path = self.new_path()
        if len(self.files) < MAX_FILES:
            os.link(self.some_file(), path)
            self.files.append(path)

    def op_symlink(self):
        path = self.new_path()
        path.symlink_to(self.some_file())
        self.links.append(path)
        if len(self.links) > MAX_FILES:
            self.links.pop(self.random.randrange(MAX_FILES)).unlink()

    def op_unlink(self):
        if len(self.files) > 1:
            self.files.pop(self.random.randrange(len(self.files))).unlink()

    def op_directory(self):
        if len(self.directories) < MAX_DIRECTORIES:
            path = self.new_path()
            path.mkdir()
            self.directories.append(path)
            return
        path = self.directories.pop(self.random.randrange(1, MAX_DIRECTORIES))
        inside = [p for p in self.files + self.links + self.directories if path in p.parents]
        if inside:
            self.directories.append(path)
        else:
            path.rmdir()


class Descriptor:
    """An open file, which is closed at the end of "with"."""

    def __init__(self, fd):
        self.fd = fd

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        os.close(self.fd)


def main():
    seed, roots = sys.argv[1], sys.argv[2:]
    # Nobody gets one before it is waited for.
    ends = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    children = []
    for root in roots:
        pid = os.fork()
        if pid == 0:
            load = Load(root, seed)
            load.run()
            counts = (f"{name} {count}" for name, count in sorted(load.counts.items()))
            print(root, *counts, flush=True)
            os._exit(0)
        children.append(pid)
    # A process that fails ends all.
    signal.sigwait(ends)
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    failed = [pid for pid in children if os.waitpid(pid, 0)[1]]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
