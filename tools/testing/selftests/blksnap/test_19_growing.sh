#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Storage that is handed over in pieces, also while the snapshot is there, and whose
# owner hears that there is little of it left.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=8

# begin: a disk with the filter, as $dev; what it has is in $old, and $new is to be kept
# like it
begin()
{
	old=$scratch/old new=$scratch/new
	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$old"
	cp "$old" "$new"
	attach "$dev"
}

create_empty()
{
	snapshot=$(ctl create-empty)
	undo destroy "$snapshot"
}

add_and_take()
{
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	image=$(image_of "$dev")
}

# kept: the image is what it was, the device what was written, and nothing is wrong
kept()
{
	same "$image" "$old"
	uncache "$dev"
	same "$dev" "$new"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
}

# untouched FILE COPY OFFSET END: from here to there, in bytes
untouched()
{
	head -c "$4" "$2" | tail -c +$(($3 + 1)) >"$scratch/part"
	same "$1" "$scratch/part" "$3"
}

ranges()
{
	local store before=$scratch/before

	begin
	null_blk 16; store=$REPLY
	filled "$store" 16 "$before"
	create_empty
	ctl add "$dev" "$snapshot"
	expect ENOSPC ctl take "$snapshot"
	equal 0 "$(space total)" "the space"
	# Not in order, and neither as long as the other: 1 MiB at 8 MiB, 2 MiB at 4 MiB
	ctl append "$snapshot" "$store" 16384:2048 8192:4096
	equal 6144 "$(space total)" "the space"
	ctl take "$snapshot"
	image=$(image_of "$dev")
	put direct 0 $((2 << 20)) "$dev" "$new"
	kept
	# 5 MiB more, at 10 MiB; then all of the disk fits in.
	ctl append "$snapshot" "$store" 20480:12288
	put direct $((2 << 20)) $((6 << 20)) "$dev" "$new"
	kept
	equal 18432 "$(space total)" "the space"
	# Eight of nine MiB are used; what is left at the end of the first part was too small.
	eventually used_at_least $((SIZE << 11))
	uncache "$store"
	untouched "$store" "$before" 0 $((4 << 20))
	untouched "$store" "$before" $((6 << 20)) $((8 << 20))
	untouched "$store" "$before" $((9 << 20)) $((10 << 20))
	kept
	ctl destroy "$snapshot"
	# It is free again.
	make_fs ext4 "$store"
}

# Many that are small and at odd places: what is saved goes over their borders.
many_ranges()
{
	local store i list=()

	begin
	null_blk 32; store=$REPLY
	for ((i = 0; i < 1000; i++)); do
		list+=($((i * 64 + i % 7)):$((16 + i % 11)))
	done
	create_empty
	ctl append "$snapshot" "$store" "${list[@]}"
	add_and_take
	put direct 0 $((3 << 20)) "$dev" "$new"
	put direct $(((4 << 20) + 512)) $((3 << 20)) "$dev" "$new"
	eventually used_at_least $((6 << 11))
	kept
	# In parts of its own, too.
	step
	dd if="$image" of=/dev/null bs=5k iflag=direct status=none
}

# A file with a limit, then a whole disk, then one with a partition
mixed()
{
	local store

	begin
	new_storage
	create "$storage" 2048
	add_and_take
	null_blk 2; store=$REPLY
	ctl append "$snapshot" "$store"
	partitioned 16
	ctl append "$snapshot" "${REPLY}p2"
	equal $((2048 + 4096 + (12 << 11) - 2048)) "$(space total)" "the space"
	put direct 0 $((SIZE << 20)) "$dev" "$new"
	kept
	eventually used_at_least $((6 << 11))
	kept
}

# A part with room for less than a store is used, too.
small_parts()
{
	local store i

	! is_module || reloaded copy_ahead=0
	begin
	null_blk 8; store=$REPLY
	create_empty
	for i in 0 1 2 3; do
		ctl append "$snapshot" "$store" $((i * 4096)):1536
	done
	add_and_take
	for ((i = 0; i < 44; i++)); do
		put direct $((i << 17)) 65536 "$dev" "$new"
	done
	eventually used_at_least $((44 * 128))
	kept
}

# The image is broken when one of the media is, and the disk is not.
gone()
{
	local store

	begin
	new_storage
	create "$storage" 2048
	add_and_take
	null_blk 16; store=$REPLY
	ctl append "$snapshot" "$store"
	# Not in sequence, or what follows would be copied ahead.
	put direct 0 $((1 << 20)) "$dev" "$new"
	put direct $((2 << 20)) $((1 << 20)) "$dev" "$new"
	kept
	echo 0 >"/sys/kernel/config/nullb/${store#/dev/}/power"
	put direct $((4 << 20)) $((4 << 20)) "$dev" "$new"
	uncache "$dev"
	same "$dev" "$new"
	eventually broken
	expect EIO ctl same "$image" "$old"
	ctl wait "$snapshot" 5000 | tee "$scratch/event"
	grep -qx 'code 0' "$scratch/event"
	ctl destroy "$snapshot"
	same "$dev" "$new"
}

limit()
{
	local store

	begin
	new_storage
	create "$storage" 2048
	add_and_take
	put direct 0 $((1 << 20)) "$dev" "$new"
	eventually used_at_least 2048
	expect EINVAL ctl limit "$snapshot" 2047
	expect EINVAL ctl limit "$snapshot" 0
	ctl limit "$snapshot" 2048
	ctl limit "$snapshot" $((SIZE << 11))
	put direct $((1 << 20)) $(((SIZE - 1) << 20)) "$dev" "$new"
	kept
	ctl destroy "$snapshot"
	ctl detach "$dev"

	begin
	null_blk 16; store=$REPLY
	create "$store" 2048
	add_and_take
	ctl limit "$snapshot" 4096
	equal 4096 "$(space total)" "the space"
	ctl limit "$snapshot" 0
	equal $((16 << 11)) "$(space total)" "the space"
	ctl limit "$snapshot" 999999999
	equal $((16 << 11)) "$(space total)" "the space"
	put direct 0 $((SIZE << 20)) "$dev" "$new"
	kept
}

# The first part is full, the second in use, and then the first one grows.
limit_of_full()
{
	begin
	new_storage
	create "$storage" 2048
	add_and_take
	null_blk 2
	ctl append "$snapshot" "$REPLY"
	put direct 0 $((2 << 20)) "$dev" "$new"
	eventually used_at_least 4096
	ctl limit "$snapshot" $((SIZE << 11))
	put direct $((2 << 20)) $(((SIZE - 2) << 20)) "$dev" "$new"
	kept
}

low_space()
{
	begin
	new_storage
	create "$storage" 8192
	add_and_take
	expect ENOENT ctl wait "$snapshot" 0
	ctl low-space "$snapshot" 4096
	expect ENOENT ctl wait "$snapshot" 100
	put direct 0 $((3 << 20)) "$dev" "$new"
	ctl wait "$snapshot" 5000 | tee "$scratch/event"
	grep -qx 'code 32' "$scratch/event"
	equal "$((8192 - $(space used)))" "$(sed -n 's/^sectors //p' "$scratch/event")" \
		"what is left"
	# Only once
	put direct $((3 << 20)) 65536 "$dev" "$new"
	eventually used_at_least 6200
	expect ENOENT ctl wait "$snapshot" 100
	# With more space it comes again.
	ctl limit "$snapshot" 12288
	expect ENOENT ctl wait "$snapshot" 100
	put direct $((4 << 20)) $((2 << 20)) "$dev" "$new"
	ctl wait "$snapshot" 5000 | grep -qx 'code 32'
	# There is less than that already.
	ctl low-space "$snapshot" 999999
	ctl wait "$snapshot" 0 | grep -qx 'code 32'
	equal 999999 "$(space low)" "the threshold"
	ctl low-space "$snapshot" 0
	put direct $((6 << 20)) 65536 "$dev" "$new"
	expect ENOENT ctl wait "$snapshot" 100
	kept
}

polled()
{
	begin
	equal err "$(ctl poll 0)" "the poll of nothing"
	new_storage
	create "$storage" 8192
	add_and_take
	equal nothing "$(ctl poll 50 "$snapshot" | tail -n 1)" "the poll"
	# It is woken up.
	background ctl poll 20000 "$snapshot" >"$scratch/poll"
	eventually grep -qx watching "$scratch/poll"
	ctl low-space "$snapshot" 9000
	eventually grep -qx in "$scratch/poll"
	# The event is still there for who asks.
	equal in "$(ctl poll 0 "$snapshot" | tail -n 1)" "the poll"
	ctl wait "$snapshot" 0 >/dev/null
	equal nothing "$(ctl poll 0 "$snapshot" | tail -n 1)" "the poll"
	background ctl poll 20000 "$snapshot" >"$scratch/poll"
	eventually grep -qx watching "$scratch/poll"
	ctl destroy "$snapshot"
	eventually grep -qx inhup "$scratch/poll"
	expect ESRCH ctl poll 0 "$snapshot"
}

# Somebody gives it more whenever it runs short, while the disk is overwritten.
fed()
{
	local at=0

	begin
	null_blk 32; store=$REPLY
	create_empty
	ctl append "$snapshot" "$store" 0:4096
	ctl low-space "$snapshot" 3072
	add_and_take
	background feed
	while [ $at -lt $SIZE ]; do
		put direct $((at << 20)) $((1 << 20)) "$dev" "$new"
		at=$((at + 1))
		eventually left_at_least 3072
	done
	kept
	[ -s "$scratch/fed" ]
}

feed()
{
	local next=4096

	while ctl wait "$snapshot" 60000 >/dev/null; do
		ctl append "$snapshot" "$store" "$next:2048"
		next=$((next + 2048))
		echo "$next" >>"$scratch/fed"
	done
}

# append ARGUMENT...: to the snapshot; the error is $1
refused()
{
	local error=$1

	shift
	expect "$error" ctl append "$snapshot" "$@"
}

bad_appends()
{
	local store small file list i nobody=00000000-0000-4000-8000-000000000000

	begin
	null_blk 4; store=$REPLY
	create_empty
	refused EBADF fd:99
	refused EBADF fd:-1
	refused ENOTBLK /dev/null
	file=$scratch/file
	: >"$file"
	refused ENOTBLK "$file"
	exec 9<"$store"
	refused EBADF fd:9
	exec 9<&-
	refused EINVAL "$store" 0:0
	refused EINVAL "$store" 0:8193
	refused EINVAL "$store" 8192:1
	refused EINVAL "$store" 8:0xffffffffffffffff
	refused EINVAL "$store" 0xffffffffffffffff:8
	refused EINVAL "$store" 0:8 16:8 7:2
	refused EINVAL "$store" 0:8 0:8
	refused EFAULT "$store" bad
	expect ESRCH ctl append $nobody "$store"
	expect ESRCH ctl limit $nobody 1
	expect ESRCH ctl low-space $nobody 1
	expect ESRCH ctl space $nobody
	expect EINVAL ctl limit "$snapshot" 8192
	expect EINVAL ctl limit "$snapshot" 0xffffffffffffffff
	expect EINVAL ctl create-empty 1
	exec 9<>"$store"
	# A flag, and too many ranges
	refused_raw EINVAL 0000000000000000 00000000 09000000 0100000000000000
	refused_raw E2BIG 0000000000000000 01000100 09000000 0000000000000000
	exec 9<&-
	equal 0 "$(space total)" "the space"
	expect EPERM ctl -u append "$snapshot" "$store"
	expect EPERM ctl -u create-empty
	expect EPERM ctl -u limit "$snapshot" 1
	expect EPERM ctl -u low-space "$snapshot" 1
	expect EPERM ctl -u space "$snapshot"
	# What it has already
	ctl append "$snapshot" "$store" 8:8
	refused EINVAL "$store" 0:9
	refused EINVAL "$store" 15:1
	refused EINVAL "$store"
	ctl append "$snapshot" "$store" 0:8 16:8
	# Larger blocks
	null_blk 4 blocksize=4096; small=$REPLY
	refused EINVAL "$small" 1:8
	refused EINVAL "$small" 8:9
	ctl append "$snapshot" "$small" 8:16
	equal 40 "$(space total)" "the space"
	# More than can be counted, together
	null_blk $((1 << 32)) memory_backed=0
	list=()
	for ((i = 0; i < 4097; i++)); do
		list+=("0:$((1 << 43))")
	done
	refused EINVAL "$REPLY" "${list[@]}"
	# In use
	null_blk 16; store=$REPLY
	make_fs ext4 "$store"
	mounted "$store"
	refused EBUSY "$store"
	umount "$REPLY"
	blockdev --setro "$store"
	exec 9<>"$store" || skip "what is read-only cannot be opened for writing"
	refused EROFS fd:9
	exec 9<&-
}

# refused_raw ERROR FIELD...: those behind the id, in hex
refused_raw()
{
	local error=$1 id=${snapshot//-/} fields

	shift
	printf -v fields %s "$@"
	expect "$error" ctl raw /dev/blksnap-control 0x40285621 "$id$fields"
}

# Where writes would come back to
circles()
{
	local other

	partitioned 16; dev=$REPLY
	attach "$dev"
	create_empty
	null_blk 4
	ctl append "$snapshot" "$REPLY"
	ctl add "$dev" "$snapshot"
	refused EDEADLK "$dev"
	refused EDEADLK "${dev}p1"
	dm_linear blksnap-round "${dev}p2" 0 2048; other=$REPLY
	refused EDEADLK "$other"
	# And by way of another snapshot
	null_blk 8; other=$REPLY
	attach "$other"
	first=$snapshot
	create_empty
	null_blk 4
	ctl append "$snapshot" "$REPLY"
	ctl add "$other" "$snapshot"
	ctl append "$first" "$other" 0:2048
	refused EDEADLK "${dev}p1"
	# The other way round is none.
	null_blk 4
	ctl append "$snapshot" "$REPLY"
}

too_many()
{
	local i store

	null_blk 8; store=$REPLY
	create_empty
	# None is closed before the end.
	ulimit -n 4096
	for ((i = 0; i < 1024; i++)); do
		echo "append $snapshot $store $((i * 8)):8"
	done | ctl run
	refused E2BIG "$store" 8192:8
	equal 8192 "$(space total)" "the space"
}

run_cases \
	"ranges of a disk" ranges \
	"many small ranges" many_ranges \
	"a file, a disk and a partition" mixed \
	"parts smaller than a store" small_parts \
	"one that goes away" gone \
	"a new limit" limit \
	"a new limit when it is full" limit_of_full \
	"little space left" low_space \
	"poll" polled \
	"more and more" fed \
	"bad arguments" bad_appends \
	"circles" circles \
	"too many parts" too_many
