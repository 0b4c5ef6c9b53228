#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""
usage: ci/model/mutations.py [NAME]...

Breaks the driver's state machine in one place at a time, and looks whether that is found: by
`check`, which tries all orders, by loom, or by the compiler. Prints a line for each. Fails if one
was not found.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

MODEL = Path(__file__).resolve().parent
ROOT = MODEL.parent.parent
DRIVER = Path("drivers/block/blksnap")

# What finds it, its name, the file, what is there, and what is put in its place. With `check` the
# world in which it does, if that is a late one; with the compiler, its error.
MUTATIONS = [
    ("check", "a write is released before its chunks are saved", "status.rs",
     "self.saved.first_unsaved(chunks).is_none() || self.error() != 0", "true"),
    ("check", "a write to some saved chunks passes", "status.rs",
     "self.saved.first_unsaved(chunks).is_none() || self.error() != 0",
     "self.saved.first_saved(chunks).is_some() || self.error() != 0"),
    ("check", "writes are held though the image is broken", "status.rs",
     "self.saved.first_unsaved(chunks).is_none() || self.error() != 0",
     "self.saved.first_unsaved(chunks).is_none()"),
    ("check", "a read from the origin is not looked at again", "status.rs",
     "self.error() == 0 && self.saved.first_saved(chunks).is_some()", "false"),
    ("check", "a claim does not look whether its chunks are free", "cow.rs",
     "            || !self.is_free(status, chunks)\n", ""),
    ("check", "chunks that were found free stay so", "cow.rs", "        self.free.set(ChunkRange::NONE);\n", ""),
    ("check", "a claim does not look whether there is room", "cow.rs",
     "            || !self.memory.take(self.counts.copy_bytes, bytes)\n", ""),
    ("check", "chunks are saved when they are claimed", "cow.rs",
     "status.saved().reserve(new.leaves);", "status.saved().reserve(new.leaves); status.saved().set(chunks);"),
    ("check", "chunks are not saved when they were read", "cow.rs",
     "        status.saved().set(chunks);\n", ""),
    ("check", "free chunks go on over saved ones", "cow.rs",
     "            *end = saved\n                .first_saved(ChunkRange { start, end: *end })\n"
     "                .unwrap_or(*end);\n", "            let _ = end;\n"),
    ("check", "there is never room for the only copy", "copy_memory.rs", " >= need || bytes == 0 {", " > need {"),
    ("check", "a copy that is stored keeps its room", "cow.rs",
     "        self.memory.give(self.counts.copy_bytes, len);\n        self.counts.forget(len);", "        self.counts.forget(len);"),
    ("check reads and stores that fail", "a failed read keeps its room", "counts.rs",
     "        self.claimed_bytes -= bytes;\n        self.forget(bytes);\n", "        self.claimed_bytes -= bytes;\n"),
    ("check", "a copy is stored twice", "cow.rs",
     "            left -= usize::from(taken);\n            !taken", "            left -= usize::from(taken);\n            true"),
    ("check", "a copy is never stored", "cow.rs",
     "let _ = self.unstored.insert_within_capacity(at, start);", "let _ = at;"),
    ("check", "all copies of a store are at its start", "cow.rs",
     "self.stored.insert(chunks, at + offset as u64, rooms)", "self.stored.insert(chunks, at + 0 * offset as u64, rooms)"),
    ("check", "extents are joined wherever they are stored", "stored_map.rs",
     "prev.end() == part.start && prev.sector() + (prev.len() << self.shift) == sector", "prev.end() == part.start"),
    ("check", "an image read begins at the extent", "stored_map.rs",
     "extent.sector() + ((part.start - extent.start()) << self.shift)", "extent.sector() + 0 * part.start"),
    ("check reads and stores that fail", "a copy that could not be stored keeps its room", "cow.rs",
     "            let _ = self.forget(chunks.start);", "            let _ = self.active.remove(chunks.start);"),
    ("check reads and stores that fail", "a forgotten copy is still counted as unstored", "cow.rs",
     "        self.counts.unstored_bytes -= len;\n", "        let _ = len;\n"),
    ("check large write and reads that fail", "what is lost can be read", "cow.rs",
     "        let end = lost.unwrap_or(end);\n", "        let _ = lost;\n"),
    ("check reads and stores that fail", "a failed read is still counted as one", "counts.rs",
     "        self.claimed_bytes -= bytes;\n        self.forget(bytes);\n", "        self.forget(bytes);\n"),
    ("check large write and reads that fail", "suspects are read together", "suspects.rs",
     "            start + 1\n", "            end\n"),
    ("check", "a lane stays stalled", "lanes.rs",
     "        self.list.iter_mut().for_each(|lane| lane.stalled = false);\n", ""),
    ("check", "a lane that was stalled loses what came later", "lanes.rs",
     "            writes.append(&mut lane.taken);\n", ""),
    ("check", "a lane whose worker has ended still has one", "lanes.rs",
     "        lane.running = false;\n        if matches!", "        if matches!"),
    ("check", "a lane has no worker when writes are only ready", "lanes.rs",
     "!self.ready.is_empty() || !self.stalled && !self.taken.is_empty()",
     "!self.stalled && !self.taken.is_empty()"),
    ("loom", "the bit of a saved chunk is not ordered after its data", "saved_map.rs",
     "word.store(word.load(Relaxed) | mask, Release);", "word.store(word.load(Relaxed) | mask, Relaxed);"),
    ("loom", "a saved chunk is looked up without order", "saved_map.rs",
     "word.load(Acquire)", "word.load(Relaxed)"),
    ("loom", "a read from the origin is looked at again without a barrier", "status.rs",
     "        smp_mb(Read);\n", ""),
    ("loom", "a write undoes that a block was made dirty", "mark.rs",
     "let _ = self.0.cmpxchg(old, pack(mark, last), Relaxed);", "self.0.store(pack(mark, last), Relaxed);"),
    ("rustc E0599", "a taken write is resubmitted", "lanes.rs",
     "        self.of(&write).taken.push(write);", "        write.resubmit();"),
    ("rustc E0603", "a taken write is called released", "lanes.rs",
     "        self.of(&write).taken.push(write);",
     "        self.of(&write).ready.push(crate::taken::Released(write));"),
    ("rustc E0616", "the bio of a taken write is resubmitted", "lanes.rs",
     "        self.of(&write).taken.push(write);", "        write.0.resubmit();"),
    ("rustc E0308", "a taken write joins the released ones", "lanes.rs",
     "        self.of(&write).taken.push(write);", "        self.of(&write).ready.push(write);"),
]

COMMANDS = {
    "check": ["cargo", "run", "--quiet", "--locked", "--bin", "check", "--"],
    "loom": ["cargo", "test", "--quiet", "--locked", "--test", "loom"],
    "rustc": ["cargo", "check", "--quiet", "--locked", "--lib"],
}


def found_by(finder, tree, target):
    """Returns how the mutation in `tree` was found, or None."""
    kind, _, what = finder.partition(" ")
    command = COMMANDS[kind] + ([what] if kind == "check" and what else [])
    env = dict(os.environ, CARGO_TARGET_DIR=str(target))
    if kind == "loom":
        env["CARGO_TARGET_DIR"] += "/loom"
        env["RUSTFLAGS"] = env.get("RUSTFLAGS", "") + " --cfg loom"
    process = subprocess.run(command, cwd=tree / "ci/model", env=env, capture_output=True,
                             text=True, timeout=600, check=False)
    output = process.stdout + process.stderr
    if process.returncode == 0:
        return None
    if kind == "rustc":
        return what if f"error[{what}]" in output else None
    if "could not compile" in output:
        sys.exit(f"mutations: it does not compile:\n{output}")
    if kind == "loom":
        return "assertion" if "test result: FAILED" in output else None
    for line in output.splitlines():
        if " after " in line:
            return line.split(" after ")[0]
    return "panic" if "panicked at" in output else None


def main():
    names = sys.argv[1:]
    unknown = set(names) - {mutation[1] for mutation in MUTATIONS}
    if unknown:
        sys.exit(f"mutations: there is none called {', '.join(sorted(unknown))}")
    target = Path(os.environ.get("CARGO_TARGET_DIR", MODEL / "target"))
    missed = 0
    # Always in the same place, as cargo compiles all of another one. Files are as new as the copy,
    # or cargo would not see that one has changed.
    tree = target / "mutations"
    shutil.rmtree(tree, ignore_errors=True)
    for directory in ("ci/model", DRIVER):
        shutil.copytree(ROOT / directory, tree / directory, copy_function=shutil.copy,
                        ignore=shutil.ignore_patterns("target", "kernel", "kunit", "pin_init"))
    # Cargo takes packages of one name in one target directory for the same: this gets another name,
    # and the others of the workspace are those there are.
    for file in ("Cargo.toml", "Cargo.lock"):
        path = tree / "ci/model" / file
        text = path.read_text().replace('name = "blksnap-model"', 'name = "blksnap-mutant"')
        text = re.sub("^members = .*\n", "", text, flags=re.M)
        path.write_text(re.sub('path = "([a-z_]+)"', rf'path = "{MODEL}/\1"', text))
    for finder, name, file, old, new in MUTATIONS:
        if names and name not in names:
            continue
        begin = time.monotonic()
        path = tree / DRIVER / file
        source = path.read_text()
        if source.count(old) != 1:
            sys.exit(f"mutations: {name}: {file} has {source.count(old)} times: {old}")
        path.write_text(source.replace(old, new))
        found = found_by(finder, tree, target)
        path.write_text(source)
        verdict = "PASS" if found else "FAIL"
        missed += not found
        how = f"found by {finder.split()[0]}, {found}" if found else "not found"
        print(f"{verdict} {name}: {how} [{time.monotonic() - begin:.1f} s]", flush=True)
    return missed > 0


sys.exit(main())
