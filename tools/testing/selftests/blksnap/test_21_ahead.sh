#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Regions that are written again and again are copied ahead of the writes, as long as there is
# room for it, and what cannot be read ahead breaks nothing.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly MIB=1048576

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

# touch_chunks REGION COUNT: 4 KiB in every other chunk of a MiB
touch_chunks()
{
	local i

	for ((i = 0; i < $2; i++)); do
		put direct $(($1 * MIB + i * 32768)) 4096 "$dev"
	done
}

ahead()
{
	figure "$(image_of "$dev")" copied_ahead_bytes
}

ahead_of_something()
{
	[ "$(ahead)" -gt 0 ]
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
		touch_chunks "$region" 4
	done
	eventually stored_is $((32 * 16384))
	equal 0 "$(ahead)" "bytes that were copied ahead"
	same "$(image_of "$dev")" "$scratch/old"
}

hot()
{
	local dev

	begin 64
	# Half of its chunks, by every other one, and one more that tells
	touch_chunks 3 32
	put direct $((3 * MIB + 16384)) 4096 "$dev"
	eventually stored_is $MIB
	equal $((31 * 16384)) "$(ahead)" "bytes that were copied ahead"
	touch_chunks 3 32
	put direct $((3 * MIB)) $MIB "$dev"
	equal $MIB "$(stored)" "bytes that were stored"
	same "$(image_of "$dev")" "$scratch/old"
}

# Half of the storage is for what must be copied
scarce()
{
	local dev region

	begin 4
	for region in 0 1 2; do
		touch_chunks "$region" 32
		put direct $((region * MIB + 16384)) 4096 "$dev"
		sleep 0.2
	done
	[ "$(ahead)" -le $((2 * MIB)) ]
	[ "$(stored)" -le $((3 * MIB)) ]
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
	put direct $((3 * MIB + 16384)) 4096 "$dev"
	touch_chunks 4 32
	put direct $((4 * MIB + 16384)) 4096 "$dev"
	eventually ahead_of_something
	put direct $((3 * MIB + 49152)) 4096 "$dev"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	echo "-$((3 * 2048 + 1056))-$((3 * 2048 + 1063))" >"$config/badblocks"
	same "$(image_of "$dev")" "$scratch/old"
}

run_cases \
	"chunks far from each other" cold \
	"a region that is written again and again" hot \
	"a storage that is nearly full" scarce \
	"a chunk that cannot be read" unreadable
