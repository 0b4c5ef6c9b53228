// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tracepoints of blksnap, which only C can define.
 */
#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/blksnap.h>
