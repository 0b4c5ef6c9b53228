#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Tracepoints: each tells what has happened, and nothing else does.

. "$(dirname "$0")/blksnap_lib.sh"

# traced: the events since the last call, one a line, without what the trace has before them
traced()
{
	sed -n 's/^[^#].*: \(blksnap_[a-z]*: .*\)/\1/p' "$trace/trace"
	echo >"$trace/trace"
}

# told EVENT PATTERN: the events in $scratch/events have one like that
told()
{
	grep -qE "^blksnap_$1: $2\$" "$scratch/events" || {
		cat "$scratch/events"
		wrong "no event $1"
	}
}

begin()
{
	trace=/sys/kernel/tracing
	mountpoint -q "$trace" || mount -t tracefs tracefs "$trace" 2>"$scratch/error" ||
		skip "no tracefs"
	[ -e "$trace/events/blksnap" ] || skip "no tracepoints"
	undo eval "echo 0 >$trace/events/blksnap/enable"
	echo 1 >"$trace/events/blksnap/enable"
	traced >/dev/null
}

# number DEV: as events have it
number()
{
	tr : , <"/sys/class/block/${1#/dev/}/dev"
}

written()
{
	local dev id

	begin
	null_blk 4; dev=$REPLY
	attach "$dev"
	put direct 0 4096 "$dev"
	traced >"$scratch/events"
	[ ! -s "$scratch/events" ] || wrong "something is traced without a snapshot"

	take "$dev"
	id=${snapshot,,}
	put direct $((128 * 512)) 4096 "$dev"
	eventually figure_is "$(image_of "$dev")" copy_bytes 0
	ctl destroy "$snapshot"
	traced >"$scratch/events"
	dev=$(number "$dev")
	told take "$id nr_devices=1 frozen_ns=[1-9][0-9]* error=0"
	told claim "$dev 128 \+ [1-9][0-9]*"
	told saved "$dev 128 \+ [1-9][0-9]*"
	told released "$dev 128 \+ 8"
	told stored "$dev offset=[0-9]+ bytes=[1-9][0-9]* duration_ns=[1-9][0-9]*"
	told destroy "$id timed_out=0"
	equal 6 "$(wc -l <"$scratch/events")" "events"
}

failed()
{
	local dev

	begin
	null_blk 4; dev=$REPLY
	attach "$dev"
	new_storage
	create "$storage" 16
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	put direct 0 $((1 << 20)) "$dev"
	eventually error_is "$dev" -28
	traced >"$scratch/events"
	told broken "$(number "$dev") error=-28"
	expect EALREADY ctl take "$snapshot"
	ctl destroy "$snapshot"

	create "$storage" 2048
	expect ENODATA ctl take "$snapshot"
	ctl destroy "$snapshot"
}

run_cases \
	"writes" written \
	"errors" failed
