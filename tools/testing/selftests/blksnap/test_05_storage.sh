#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# What the difference storage may be kept in, and who can get at it there.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=8

# check STORAGE SECTORS: a snapshot with it keeps what is overwritten. It stays.
check()
{
	local dev old=$scratch/old

	null_blk "$SIZE"; dev=$REPLY
	attach "$dev"
	filled "$dev" "$SIZE" "$old"
	create "$@"
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	put direct 0 $((3 << 20)) "$dev"
	put direct $(((4 << 20) + 512)) $((3 << 20)) "$dev"
	same "$(image_of "$dev")" "$old"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	origin=$dev
}

# file_system TYPE MEBIBYTES: mounts an empty one; it is at $where
file_system()
{
	null_blk "$2"
	make_fs "$1" "$REPLY"
	mounted "$REPLY"; where=$REPLY
}

# guarded FILE: nobody can get at it while it is in use.
guarded()
{
	local file=$1

	equal 600 "$(stat -c %a "$file")" "the mode"
	expect_busy "opened for writing" dd if=/dev/null of="$file" conv=notrunc
	expect_busy "truncated" truncate -s 0 "$file"
	expect_busy "allocated" fallocate -l 1M "$file"
}

expect_busy()
{
	local what=$1

	shift
	if "$@" 2>"$scratch/error"; then
		wrong "the storage could be $what"
	else
		grep -q 'Text file busy' "$scratch/error" || wrong "$(<"$scratch/error")"
	fi
}

regular()
{
	file_system ext4 64
	: >"$where/storage"
	chmod 666 "$where/storage"
	check "$where/storage" "$ROOM"
	guarded "$where/storage"
	ctl destroy "$snapshot"
	dd if=/dev/null of="$where/storage" conv=notrunc status=none
	truncate -s 0 "$where/storage"
}

allocated()
{
	file_system ext4 64
	fallocate -l 16M "$where/storage"
	check "$where/storage" 32768
	guarded "$where/storage"
}

on_xfs()
{
	file_system xfs 320
	: >"$where/storage"
	check "$where/storage" "$ROOM"
	guarded "$where/storage"
}

on_tmpfs()
{
	where=$scratch
	: >"$where/storage"
	undo rm -f "$where/storage"
	check "$where/storage" "$ROOM"
	guarded "$where/storage"
}

# in_directory: in $where; nothing is to be seen there, and the space comes back
in_directory()
{
	local free after

	sync -f "$where"
	free=$(stat -f -c %f "$where")
	check "$where" 65536
	equal "" "$(find "$where" -xdev -type f ! -path "$scratch/log" \
			! -path "$scratch/old" ! -path "$scratch/error")" "files"
	after=$(stat -f -c %f "$where")
	[ "$after" -lt "$free" ] || wrong "the storage is not there"
	ctl destroy "$snapshot"
	eventually is_free
}

is_free()
{
	sync -f "$where"
	[ "$(stat -f -c %f "$where")" -ge $((free - 64)) ]
}

directory()
{
	file_system ext4 64
	in_directory
}

directory_xfs()
{
	file_system xfs 320
	in_directory
}

directory_tmpfs()
{
	where=$(mktemp -d "$scratch/tmpfs.XXXXXX")
	undo rmdir "$where"
	mount -t tmpfs -o size=64M none "$where"
	undo umount "$where"
	in_directory
}

device()
{
	local dev

	null_blk 16; dev=$REPLY
	check "$dev" 0
	# It is in use exclusively.
	expect EBUSY ctl create "$dev" 0
	ctl destroy "$snapshot"
	make_fs ext4 "$dev"
}

# The device is larger than the limit, and then the limit larger than the device.
device_with_limit()
{
	local dev

	null_blk 16; dev=$REPLY
	filled "$dev" 16 "$scratch/before"
	# 6 MiB are overwritten.
	check "$dev" 14336
	ctl destroy "$snapshot"
	tail -c $((9 << 20)) "$scratch/before" >"$scratch/behind"
	same "$dev" "$scratch/behind" $((7 << 20))
	check "$dev" 1000000
}

partition()
{
	partitioned 32
	check "${REPLY}p2" 0
}

device_4k()
{
	null_blk 16 blocksize=4096
	check "$REPLY" 0
}

loop_file()
{
	loop 16
	check "$REPLY" 0
}

# An origin with small blocks, and a file on a file system with large ones.
file_on_4k()
{
	null_blk 64 blocksize=4096
	make_fs ext4 "$REPLY"
	mounted "$REPLY"; where=$REPLY
	: >"$where/storage"
	check "$where/storage" 65536
}

# A file that could be swapped to can be it before and after only.
swap()
{
	need mkswap swapon
	file_system ext4 64
	dd if=/dev/zero of="$where/storage" bs=1M count=4 status=none
	chmod 600 "$where/storage"
	mkswap "$where/storage" >/dev/null
	swapon "$where/storage" 2>/dev/null || skip "no swap"
	undo swap_off "$where/storage"
	if snapshot=$(ctl create "$where/storage" 2048); then
		undo destroy "$snapshot"
		wrong "a swap file became a storage"
	fi
	swapoff "$where/storage"
	create "$where/storage" 2048
	if swapon "$where/storage" 2>/dev/null; then
		wrong "a storage could be swapped to"
	fi
	ctl destroy "$snapshot"
	swapon "$where/storage"
	swapoff "$where/storage"
}

swap_off()
{
	swapoff "$1" 2>/dev/null || true
}

# When destroy returns the storage is free for the next snapshot.
used_again()
{
	local dev storage

	null_blk 1; dev=$REPLY
	attach "$dev"
	file_system ext4 64
	: >"$where/storage"
	null_blk 1
	for storage in "$where/storage" "$where" "$REPLY"; do
		ctl cycle "$dev" "$storage" 2048 20 || wrong "$storage"
	done
	ctl detach "$dev"
	umount "$where"
}

# Two snapshots at once, in storages of their own
two_snapshots()
{
	check "$scratch" "$ROOM"
	mv "$scratch/old" "$scratch/first"
	set -- "$origin"
	check "$scratch" "$ROOM"
	same "$(image_of "$1")" "$scratch/first"
}

run_cases \
	"regular file on ext4" regular \
	"file that is allocated already" allocated \
	"regular file on xfs" on_xfs \
	"regular file on tmpfs" on_tmpfs \
	"directory on ext4" directory \
	"directory on xfs" directory_xfs \
	"directory on tmpfs" directory_tmpfs \
	"whole block device" device \
	"block device with a limit" device_with_limit \
	"partition" partition \
	"block device with blocks of 4096 bytes" device_4k \
	"file on a device with blocks of 4096 bytes" file_on_4k \
	"loop device" loop_file \
	"file that could be swapped to" swap \
	"storage that is used again" used_again \
	"two snapshots with a directory each" two_snapshots
