#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Regions that are written again and again are copied ahead of the writes, as long as there is
# room for it, and what cannot be read ahead breaks nothing.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly MIB=1048576 CHUNK=16384

# begin STORAGE_MIB: a disk of 8 MiB in a snapshot
begin()
{
	[ -d /sys/kernel/debug/blksnap ] || skip "no debugfs"
	null_blk 8; dev=$REPLY
	filled "$dev" 8 "$scratch/old"
	attach "$dev"
	null_blk "$1"
	create "$REPLY" 0
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
}

# touch_chunks REGION COUNT [STEP]: 4 KiB in so many of a MiB's chunks, one in STEP of them
touch_chunks()
{
	local i

	for ((i = 0; i < $2; i++)); do
		put direct $(($1 * MIB + i * ${3:-1} * CHUNK)) 4096 "$dev"
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
		touch_chunks "$region" 16 4
	done
	eventually stored_is $((8 * 16 * CHUNK))
	equal 0 "$(ahead)" "bytes that were copied ahead"
	same "$(image_of "$dev")" "$scratch/old"
}

hot()
{
	local dev

	begin 64
	# Half of its chunks, and one more in the third quarter of it
	touch_chunks 3 32
	put direct $((3 * MIB + 40 * CHUNK)) 4096 "$dev"
	eventually stored_is $((48 * CHUNK))
	equal $((15 * CHUNK)) "$(ahead)" "bytes that were copied ahead"
	# As far as somebody else has it not: two chunks from the end of the last quarter
	touch_chunks 3 48
	put direct $((3 * MIB + 61 * CHUNK)) $((2 * CHUNK)) "$dev"
	eventually stored_is $((64 * CHUNK))
	equal $((29 * CHUNK)) "$(ahead)" "bytes that were copied ahead"
	put direct $((3 * MIB)) $MIB "$dev"
	equal $MIB "$(stored)" "bytes that were stored"
	same "$(image_of "$dev")" "$scratch/old"
}

# Only what nobody has claimed yet
holes()
{
	local dev

	begin 64
	touch_chunks 3 32 2
	put direct $((3 * MIB + CHUNK)) 4096 "$dev"
	eventually stored_is $((33 * CHUNK))
	equal 0 "$(ahead)" "bytes that were copied ahead"
	same "$(image_of "$dev")" "$scratch/old"
}

# Half of the storage is for what must be copied: that is enough for two regions, with 48 chunks
# of each.
scarce()
{
	local dev region sum=0

	begin 4
	for region in 0 1 2 3; do
		touch_chunks "$region" 32
		put direct $((region * MIB + 40 * CHUNK)) 4096 "$dev"
		sum=$((sum + (region < 2 ? 48 : 33)))
		eventually stored_is $((sum * CHUNK))
	done
	equal $((2 * 15 * CHUNK)) "$(ahead)" "bytes that were copied ahead"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	same "$(image_of "$dev")" "$scratch/old"
}

unreadable()
{
	local dev config

	begin 64
	config=/sys/kernel/config/nullb/$(basename "$dev")
	[ -w "$config/badblocks" ] || skip "no bad blocks in null_blk"
	# Sectors of one of the chunks that nobody writes
	echo "+$((3 * 2048 + 1056))-$((3 * 2048 + 1063))" >"$config/badblocks"
	touch_chunks 3 32
	put direct $((3 * MIB + 40 * CHUNK)) 4096 "$dev"
	eventually stored_is $((33 * CHUNK))
	# What follows can be read.
	put direct $((3 * MIB + 41 * CHUNK)) 4096 "$dev"
	eventually stored_is $((40 * CHUNK))
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	echo "-$((3 * 2048 + 1056))-$((3 * 2048 + 1063))" >"$config/badblocks"
	same "$(image_of "$dev")" "$scratch/old"
}

run_cases \
	"chunks far from each other" cold \
	"a region that is written again and again" hot \
	"chunks between claimed ones" holes \
	"a storage that is nearly full" scarce \
	"a chunk that cannot be read" unreadable
