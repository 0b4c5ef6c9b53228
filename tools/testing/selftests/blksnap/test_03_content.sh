#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# The image keeps every byte that the device had when the snapshot was taken, and the
# device gets every byte that is written, on devices of several kinds.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=16

# check DEV: the first SIZE MiB of it are used
check()
{
	local dev=$1 old=$scratch/old new=$scratch/new block image

	block=$(logical_block "$dev")
	filled "$dev" "$SIZE" "$old"
	cp "$old" "$new"
	snapshot_of "$dev"
	image=$(image_of "$dev")
	same "$image" "$old"

	# From within a chunk to several requests at once; next to each other, over
	# each other, and past what is saved already.
	put direct $((1 * block)) "$block" "$dev" "$new"
	put direct $((1001 * block)) $((7 * block)) "$dev" "$new"
	put direct $((5 << 20)) $((4 << 20)) "$dev" "$new"
	put direct $((4 * 1024 * 1024 + 3 * block)) $((2 << 20)) "$dev" "$new"
	put direct $(((10 << 20) - block)) $((129 * block)) "$dev" "$new"
	put direct $(((SIZE << 20) - block)) "$block" "$dev" "$new"
	put buffered 777777 1 "$dev" "$new"
	put buffered 999999 5000 "$dev" "$new"
	put buffered 1234567 300000 "$dev" "$new"
	put buffered $(((11 << 20) + 13)) $((3 << 20)) "$dev" "$new"
	put buffered $(((SIZE << 20) - 5000)) 4000 "$dev" "$new"
	uncache "$dev"
	same "$image" "$old"
	same "$dev" "$new"
	# Once more, from where all of it is now; and through the page cache.
	same "$image" "$old"
	cmp -n "$(stat -c %s "$old")" "$image" "$old"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	# A test that cannot fail is none: the image is not what the device is now.
	if ctl same "$image" "$new" >/dev/null; then
		wrong "the image has the new data"
	fi
}

on_null_blk()
{
	null_blk "$SIZE"
	check "$REPLY"
}

on_null_blk_4k()
{
	null_blk "$SIZE" blocksize=4096
	check "$REPLY"
}

# Reads take 2 ms, so that writes have to wait for their copies.
on_slow_null_blk()
{
	null_blk "$SIZE" irqmode=2 completion_nsec=2000000
	check "$REPLY"
}

# Other chunks than a page
with_large_chunks()
{
	local dev

	[ -d /sys/kernel/debug/blksnap ] || skip "no debugfs"
	reloaded chunk_minimum_shift=16
	null_blk "$SIZE" irqmode=2 completion_nsec=1000000; dev=$REPLY
	check "$dev"
	equal 65536 "$(figure "$(image_of "$dev")" chunk_bytes)" "the size of a chunk"
}

# Bios are completed before their submission returns.
at_once()
{
	null_blk "$SIZE" irqmode=0
	check "$REPLY"
}

on_brd()
{
	brd "$SIZE"
	check "$REPLY"
}

on_loop()
{
	loop "$SIZE"
	check "$REPLY"
}

on_dm()
{
	null_blk $((SIZE + 1))
	dm_linear blksnap-linear "$REPLY" 8 $((SIZE << 11))
	check "$REPLY"
}

on_disk()
{
	disk 0
	check "$REPLY"
}

# The last chunk is not whole.
odd_size()
{
	local dev old=$scratch/old sectors=$(((1 << 11) + 17)) block=512

	null_blk 2; dev=$REPLY
	dm_linear blksnap-odd "$dev" 3 "$sectors"; dev=$REPLY
	: >"$old"
	put direct 0 $((sectors * block)) "$dev" "$old"
	snapshot_of "$dev"
	equal $((sectors * block)) "$(size_of "$(image_of "$dev")")" "the image's size"
	put direct $(((sectors - 1) * block)) "$block" "$dev"
	same "$(image_of "$dev")" "$old"
	put direct $(((sectors - 17) * block)) $((17 * block)) "$dev"
	put direct 0 $((sectors * block)) "$dev"
	same "$(image_of "$dev")" "$old"
}

# Two snapshots one after the other: each has its own moment.
one_after_another()
{
	local dev round now=$scratch/now

	null_blk 4; dev=$REPLY
	attach "$dev"
	filled "$dev" 4 "$now"
	for round in 1 2 3; do
		take "$dev"
		cp "$now" "$scratch/then"
		put direct $((round << 18)) $((1 << 20)) "$dev" "$now"
		put direct $((round << 19)) 4096 "$dev" "$now"
		same "$(image_of "$dev")" "$scratch/then"
		same "$dev" "$now"
		ctl destroy "$snapshot"
	done
}

run_cases \
	"null_blk" on_null_blk \
	"null_blk with blocks of 4096 bytes" on_null_blk_4k \
	"null_blk that takes its time" on_slow_null_blk \
	"null_blk, in chunks of 64 KiB" with_large_chunks \
	"null_blk that is done at once" at_once \
	"brd" on_brd \
	"loop" on_loop \
	"dm-linear" on_dm \
	"spare disk" on_disk \
	"device that does not end with a chunk" odd_size \
	"snapshots one after another" one_after_another
