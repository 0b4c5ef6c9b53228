# SPDX-License-Identifier: GPL-2.0-only
"""Finds in a kernel's log what a kernel says when something is wrong with it."""

import re

BAD = re.compile(
    r"(\bBUG: |\bBUG at |\bWARNING: |\bOops\b|Kernel panic|general protection fault|kernel BUG"
    r"|Unable to handle kernel|unable to handle page fault|KASAN: |KCSAN: |UBSAN: "
    r"|INFO: task .* blocked for more than|blocked for more than \d+ seconds|INFO: rcu.* detected stall|rcu:.*self-detected stall"
    r"|soft lockup|hard LOCKUP|possible circular locking|possible recursive locking|possible irq lock inversion"
    r"|inconsistent lock state|suspicious RCU usage|INFO: trying to register non-static key"
    r"|sleeping function called from invalid context|scheduling while atomic|refcount_t: |ODEBUG: "
    r"|list_add corruption|list_del corruption|Bad page state|Slab corruption|unreferenced object"
    r"|rust_kernel: panicked|panicked at|Segfault with no mm|Objects remaining on)")

# The kernel has races that it lives with: counted are those where code of ours is near, in the
# innermost frames of an access, but not what an interrupt does that came there.
RACE = "KCSAN: data-race"
NEAR = 4
ACCESS = re.compile(r" by (task \d+|interrupt) on cpu|race at unknown origin")
INTERRUPT = re.compile(r" asm_\w+interrupt\+0x")
# A task changes its flags as everybody does, and the tick reads them.
TASK_FLAGS = re.compile(r"kthread_data / rust_helper_memalloc_\w+$")
# A line of the call trace, that is, not the name of the kernel. Names of Rust may be mangled there.
OURS = re.compile(r"(blk_filter|blksnap|kernel(::|5)block).*\+0x|\+0x.*\[blksnap\]")


def concerns_us(report):
    """Whether what begins a report of KCSAN, which ends with a ruler, is about our code."""
    if TASK_FLAGS.search(report[0].rstrip()):
        return False
    depth = NEAR
    for line in report:
        if "======" in line:
            break
        depth = 0 if ACCESS.search(line) else NEAR if INTERRUPT.search(line) else depth + 1
        if 0 < depth <= NEAR and OURS.search(line):
            return True
    return False


def splats(lines, allow=()):
    """The bad lines, each with a little of what follows it; `allow` are patterns to accept."""
    found = []
    last = -100
    for number, line in enumerate(lines):
        if RACE in line and not concerns_us(lines[number:number + 100]):
            continue
        if BAD.search(line) and not any(re.search(a, line) for a in allow):
            if number - last > 30:
                found.append("the kernel log has:\n" + "\n".join("     " + x.rstrip() for x in lines[number:number + 25]))
            last = number
    return found
