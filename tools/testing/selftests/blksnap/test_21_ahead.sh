#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# What follows writes in sequence, and regions that are written again and again, are copied ahead of
# the writes, as long as there is room for it, and what cannot be read ahead breaks nothing.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly MIB=1048576 CHUNK=4096

# begin STORAGE_MIB [ATTRIBUTE=VALUE]...: a disk of 8 MiB in a snapshot
begin()
{
	[ -d /sys/kernel/debug/blksnap ] || skip "no debugfs"
	null_blk 8 "${@:2}"; dev=$REPLY
	filled "$dev" 8 "$scratch/old"
	attach "$dev"
	null_blk "$1"
	create "$REPLY" 0
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
}

# touch_chunks REGION COUNT STEP: so many of a MiB's chunks, one in STEP of them
touch_chunks()
{
	local i

	for ((i = 0; i < $2; i++)); do
		put direct $(($1 * MIB + i * $3 * CHUNK)) 4096 "$dev"
	done
}

ahead()
{
	figure "$(image_of "$dev")" copied_ahead_bytes
}

stored()
{
	figure "$(image_of "$dev")" stored_bytes
}

stored_is()
{
	[ "$(stored)" = "$1" ]
}

cold()
{
	local dev region

	begin 64
	for region in 0 1 2 3 4 5 6 7; do
		touch_chunks "$region" 3 64
	done
	eventually stored_is $((8 * 3 * CHUNK))
	equal 0 "$(ahead)" "bytes that were copied ahead"
	same "$(image_of "$dev")" "$scratch/old"
}

hot()
{
	local dev

	begin 64
	# Half of its chunks, and one more in the third quarter of it
	put direct $((3 * MIB)) $((128 * CHUNK)) "$dev"
	put direct $((3 * MIB + 160 * CHUNK)) 4096 "$dev"
	eventually stored_is $((192 * CHUNK))
	equal $((63 * CHUNK)) "$(ahead)" "bytes that were copied ahead"
	# Two chunks near the end of the last quarter
	put direct $((3 * MIB + 253 * CHUNK)) $((2 * CHUNK)) "$dev"
	eventually stored_is $MIB
	equal $((125 * CHUNK)) "$(ahead)" "bytes that were copied ahead"
	put direct $((3 * MIB)) $MIB "$dev"
	equal $MIB "$(stored)" "bytes that were stored"
	same "$(image_of "$dev")" "$scratch/old"
}

# Only what nobody has claimed yet
holes()
{
	local dev

	begin 64
	touch_chunks 3 4 2
	put direct $((3 * MIB + 128 * CHUNK)) $((96 * CHUNK)) "$dev"
	put direct $((3 * MIB + CHUNK)) 4096 "$dev"
	eventually stored_is $((101 * CHUNK))
	equal 0 "$(ahead)" "bytes that were copied ahead"
	# From the one after those to the end of the quarter
	put direct $((3 * MIB + 20 * CHUNK)) 4096 "$dev"
	eventually stored_is $((158 * CHUNK))
	equal $((56 * CHUNK)) "$(ahead)" "bytes that were copied ahead"
	same "$(image_of "$dev")" "$scratch/old"
}

# Half of the storage is for what must be copied: that is enough for two regions, with 192 chunks
# of each.
scarce()
{
	local dev region sum=0

	begin 4
	for region in 0 1 2 3 4; do
		put direct $((region * MIB)) $((128 * CHUNK)) "$dev"
		put direct $((region * MIB + 160 * CHUNK)) 4096 "$dev"
		sum=$((sum + (region < 2 ? 192 : 129)))
		eventually stored_is $((sum * CHUNK))
	done
	equal $((2 * 63 * CHUNK)) "$(ahead)" "bytes that were copied ahead"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	same "$(image_of "$dev")" "$scratch/old"
}

# sequence FIRST COUNT: so many writes of two chunks, one behind the other
sequence()
{
	local i

	for ((i = 0; i < $2; i++)); do
		put direct $((($1 + 2 * i) * CHUNK)) $((2 * CHUNK)) "$dev"
	done
}

in_sequence()
{
	local dev first

	begin 64
	sequence 256 1
	equal 0 "$(ahead)" "bytes that were copied ahead of one write"
	# 2 ahead of the second one, then 4, 8, 16 and 32 when that is begun
	sequence 258 15
	equal $((62 * CHUNK)) "$(ahead)" "bytes that were copied ahead"
	eventually stored_is $((66 * CHUNK))
	# Two at a time, which go on after others elsewhere
	sequence 512 4
	first=$(ahead)
	sequence 1024 1
	sequence 1536 1
	sequence 520 4
	[ "$(ahead)" -gt "$first" ] || wrong "nothing was copied ahead of what goes on"
	# Up to the end of the device, and not further
	sequence 1984 32
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	same "$(image_of "$dev")" "$scratch/old"
}

# bad_sectors +|- FIRST LAST: these of the fourth MiB are bad from now on, or not any more
bad_sectors()
{
	local attribute

	attribute=/sys/kernel/config/nullb/$(basename "$dev")/badblocks
	[ -w "$attribute" ] || skip "no bad blocks in null_blk"
	echo "$1$((3 * 2048 + $2))-$((3 * 2048 + $3))" >"$attribute"
}

# refused +|- FIRST LAST: the same, but reads of them end before they reach the disk
refused()
{
	local rules

	rules=/sys/kernel/debug/block/$(basename "$dev")/error_injection
	[ -w "$rules" ] || skip "no error injection in this kernel"
	case $1 in
	+) echo "add,op=READ,start=$((3 * 2048 + $2)),nr_sectors=$(($3 - $2 + 1)),status=IOERR" ;;
	-) echo removeall ;;
	esac >"$rules"
}

# unreadable bad_sectors|refused [ATTRIBUTE=VALUE]...: those of a chunk that nobody writes
unreadable()
{
	local dev

	begin 64 "${@:2}"
	"$1" + 1056 1063
	put direct $((3 * MIB)) $((128 * CHUNK)) "$dev"
	put direct $((3 * MIB + 160 * CHUNK)) 4096 "$dev"
	eventually stored_is $((129 * CHUNK))
	# What follows can be read.
	put direct $((3 * MIB + 165 * CHUNK)) 4096 "$dev"
	eventually stored_is $((160 * CHUNK))
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	"$1" - 1056 1063
	same "$(image_of "$dev")" "$scratch/old"
}

# The writer's own task is told of the error, and must not try again and again.
unreadable_at_once()
{
	unreadable bad_sectors irqmode=0
}

# The same, while it waits for the read
unreadable_at_submission()
{
	unreadable refused irqmode=2 completion_nsec=1000000
}

# Those of the chunk that is written, next to what is written
lost_at_once()
{
	local dev image

	begin 64 irqmode=0
	bad_sectors + 1056 1059
	put direct $((3 * MIB + 1060 * 512)) 2048 "$dev"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	image=$(image_of "$dev")
	equal 1 "$(figure "$image" lost_chunks)" "lost chunks"
	put direct $((3 * MIB)) 4096 "$dev"
	bad_sectors - 1056 1059
	head -c $((3 * MIB + 1056 * 512)) "$scratch/old" >"$scratch/head"
	same "$image" "$scratch/head"
	expect EIO ctl same "$image" "$scratch/old"
}

run_cases \
	"chunks far from each other" cold \
	"a region that is written again and again" hot \
	"chunks between claimed ones" holes \
	"a storage that is nearly full" scarce \
	"writes in sequence" in_sequence \
	"a chunk that cannot be read" "unreadable bad_sectors" \
	"a chunk that cannot be read, which is known at once" unreadable_at_once \
	"a chunk that cannot be read, which is known before" unreadable_at_submission \
	"a chunk that is written and cannot be read" lost_at_once
