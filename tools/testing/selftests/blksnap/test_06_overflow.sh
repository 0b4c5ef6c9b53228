#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# A storage that is full breaks the snapshot and not the origin, and its owner hears of
# it. How events are waited for.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=8

# overflow STORAGE SECTORS: makes it overflow
overflow()
{
	local dev new=$scratch/new image

	null_blk "$SIZE"; dev=$REPLY
	attach "$dev"
	filled "$dev" "$SIZE" "$new"
	cp "$new" "$scratch/old"
	create "$@"
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	image=$(image_of "$dev")
	# What fits in does no harm.
	put direct 0 65536 "$dev" "$new"
	same "$image" "$scratch/old"
	expect ENOENT ctl wait "$snapshot" 0

	put direct $((1 << 20)) $((5 << 20)) "$dev" "$new"
	put buffered 4321 54321 "$dev" "$new"
	discard "$dev" -z -o $((7 << 20)) -l $((1 << 20))
	truncate -s $((7 << 20)) "$new"
	truncate -s $((SIZE << 20)) "$new"
	uncache "$dev"
	same "$dev" "$new"

	eventually overflown "$dev" || ctl info "$dev"
	ctl wait "$snapshot" 5000 | tee "$scratch/event"
	grep -qx 'code 1' "$scratch/event"
	grep -qx 'sectors [1-9][0-9]*' "$scratch/event"
	grep -qx 'time [1-9][0-9]*' "$scratch/event"
	expect ENOENT ctl wait "$snapshot" 100
	# All of the image, whether it was overwritten or not.
	expect EIO ctl same "$image" "$new"
	expect EIO ctl same "$image" "$new" $((7 << 20))
	put direct 0 $((1 << 20)) "$dev" "$new"
	same "$dev" "$new"
	[ -b "$image" ]
	ctl destroy "$snapshot"
	# The device is as good as ever.
	take "$dev"
	put direct 0 $((1 << 20)) "$dev"
	same "$(image_of "$dev")" "$new"
	ctl destroy "$snapshot"
	same "$dev" "$new" 0 >/dev/null && wrong "the write was lost"
	ctl detach "$dev"
}

overflown()
{
	[ "$(error_of "$1")" = -28 ]
}

file()
{
	new_storage
	overflow "$storage" 2048
}

device()
{
	null_blk 1
	overflow "$REPLY" 0
}

device_limit()
{
	null_blk 16
	overflow "$REPLY" 1024
}

full_ext4()
{
	null_blk 4
	make_fs ext4 "$REPLY"
	mounted "$REPLY"
	overflow "$REPLY" "$ROOM"
}

full_tmpfs()
{
	local where

	where=$(mktemp -d "$scratch/tmpfs.XXXXXX")
	undo rmdir "$where"
	mount -t tmpfs -o size=2M none "$where"
	undo umount "$where"
	overflow "$where" "$ROOM"
}

# left_on MOUNTPOINT: bytes that its file system has left, for users without privileges
left_on()
{
	local blocks size

	read -r blocks size < <(stat -f -c '%a %S' "$1")
	echo $((blocks * size))
}

# on_fs KIND: $dev has a snapshot whose storage can grow to 10 GiB in a file system of 400 MiB, $mnt
on_fs()
{
	null_blk "$SIZE"; dev=$REPLY
	attach "$dev"
	null_blk 400
	make_fs "$1" "$REPLY"
	mounted "$REPLY"; mnt=$REPLY
	create "$mnt" $((10 << 21))
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
}

# Space that is not needed now is left to others.
frugal()
{
	local dev mnt before

	on_fs "$1"
	before=$(left_on "$mnt")
	put direct 0 4096 "$dev"
	eventually used_at_least 8
	before=$((before - $(left_on "$mnt")))
	result "$before bytes were taken for a chunk"
	[ "$before" -le $((2 << 20)) ]
}

# What is kept for root is not for the storage, and a failed allocation takes nothing.
reserve()
{
	local dev mnt before

	on_fs ext4
	fallocate -l "$(($(left_on "$mnt") - (64 << 10)))" "$mnt/file"
	before=$(stat -f -c %f "$mnt")
	[ "$before" -gt 0 ]
	put direct 0 $((4 << 20)) "$dev"
	eventually overflown "$dev"
	ctl wait "$snapshot" 5000 | grep -x 'code 1'
	before=$((before - $(stat -f -c %f "$mnt")))
	[ "$before" -le 64 ] || wrong "$before blocks of the reserve were taken"
}

# The low-space event also comes when the file system has little left.
low_on_fs()
{
	local dev mnt

	on_fs ext4
	ctl low-space "$snapshot" $((200 << 11))
	put direct 0 4096 "$dev"
	eventually used_at_least 8
	expect ENOENT ctl wait "$snapshot" 100
	fallocate -l "$(($(left_on "$mnt") - (100 << 20)))" "$mnt/file"
	put direct 65536 4096 "$dev"
	ctl wait "$snapshot" 5000 | tee "$scratch/event"
	grep -qx 'code 32' "$scratch/event"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
}

# Less than a chunk
tiny()
{
	local dev

	null_blk 1; dev=$REPLY
	attach "$dev"
	new_storage
	create "$storage" 1
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	put direct 0 4096 "$dev"
	eventually overflown "$dev"
	ctl wait "$snapshot" 1000 | grep -x 'code 1'
}

# Writes that are on their way while it breaks are neither lost nor stuck.
many_writers()
{
	local dev i

	null_blk "$SIZE" irqmode=2 completion_nsec=1000000; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/new"
	attach "$dev"
	new_storage
	create "$storage" 256
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	for i in 0 1 2 3 4 5 6 7; do
		head -c 1M /dev/urandom >"$scratch/part$i"
		dd if="$scratch/part$i" of="$dev" bs=64k oflag=direct seek=$((i * 16)) \
			conv=notrunc status=none &
	done
	wait
	cat "$scratch"/part? >"$scratch/new"
	rm "$scratch"/part?
	same "$dev" "$scratch/new"
	eventually overflown "$dev"
}

# The storage of one device hangs, that of another is moved to the device itself, so
# that both wait for each other. The writers go on without the snapshots.
silent()
{
	local one two store pid

	# Else the storage in a circle can become full first.
	! is_module || reloaded copy_memory=1
	null_blk 64
	dm_linear blksnap-silent "$REPLY" 0 131072; store=$REPLY
	null_blk 64; one=$REPLY
	attach "$one"
	filled "$one" 64 "$scratch/one"
	create "$store" 0
	ctl add "$one" "$snapshot"
	ctl take "$snapshot"
	undo dmsetup resume --noudevsync blksnap-silent
	dmsetup suspend --noudevsync blksnap-silent

	null_blk 128; two=$REPLY
	null_blk 64
	dm_linear blksnap-above "$REPLY" 0 131072; store=$REPLY
	attach "$two"
	filled "$two" 64 "$scratch/two"
	create "$store" 0
	ctl add "$two" "$snapshot"
	ctl take "$snapshot"
	# Were it there before, it would have been found out.
	dmsetup reload blksnap-above --table "0 131072 linear $two 131072"
	dmsetup suspend --noudevsync blksnap-above
	dmsetup resume --noudevsync blksnap-above

	# More than there may be copies in memory
	put direct 0 $((60 << 20)) "$two" "$scratch/two" &
	pid=$!
	put direct 0 $((60 << 20)) "$one" "$scratch/one"
	wait "$pid"
	equal -110 "$(error_of "$one")" "the error of the snapshot whose storage hangs"
	equal -110 "$(error_of "$two")" "the error of the other snapshot"
	ctl wait "$snapshot" 0 | grep -x 'error -110'
	same "$one" "$scratch/one"
	same "$two" "$scratch/two"
}

milliseconds()
{
	echo $((${EPOCHREALTIME/[.,]/} / 1000))
}

timeouts()
{
	local begin duration

	new_storage
	create "$storage" 2048
	begin=$(milliseconds)
	expect ENOENT ctl wait "$snapshot" 1000
	duration=$(($(milliseconds) - begin))
	echo "1000 ms took $duration ms"
	[ "$duration" -ge 990 ]
	[ "$duration" -lt 4000 ]
	begin=$(milliseconds)
	expect ENOENT ctl wait "$snapshot" 0
	[ $(($(milliseconds) - begin)) -lt 900 ]
}

# waiting COMMAND...: what a wait of a minute returns if that is done meanwhile
waiting()
{
	local pid

	blksnap_ctl wait "$snapshot" 60000 2>"$scratch/error" &
	pid=$!
	eventually is_asleep "$pid"
	"$@"
	timeout 20 tail --pid="$pid" -f /dev/null || kill -KILL "$pid"
	wait "$pid" || true
	tail -n 1 "$scratch/error"
}

# In the ioctl
is_asleep()
{
	grep -q '^State:.S' "/proc/$1/status" &&
		[ "$(readlink "/proc/$1/exe")" = "$here/blksnap_ctl" ] &&
		[[ $(readlink /proc/"$1"/fd/*) = */dev/blksnap-control* ]]
}

signal()
{
	kill -TERM "$pid"
}

interrupted()
{
	new_storage
	create "$storage" 2048
	equal EINTR "$(waiting signal)" "what a signal gives"
}

destroyed()
{
	new_storage
	create "$storage" 2048
	equal ESRCH "$(waiting ctl destroy "$snapshot")" "what destroy gives"
}

# Of two that wait, each event is for one.
two_wait()
{
	local dev

	null_blk 2; dev=$REPLY
	attach "$dev"
	new_storage
	create "$storage" 16
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	(ctl wait "$snapshot" 60000 >"$scratch/one" 2>&1) &
	(ctl wait "$snapshot" 60000 >"$scratch/two" 2>&1) &
	put direct 0 $((2 << 20)) "$dev"
	eventually test -s "$scratch/one" -o -s "$scratch/two"
	ctl destroy "$snapshot"
	wait
	equal 1 "$(cat "$scratch/one" "$scratch/two" | grep -cx 'code 1')" "events"
	equal 1 "$(cat "$scratch/one" "$scratch/two" | grep -cx ESRCH)" "errors"
}

run_cases \
	"file" file \
	"block device" device \
	"block device with a limit" device_limit \
	"ext4 that is full" full_ext4 \
	"tmpfs that is full" full_tmpfs \
	"ext4 with little space" "frugal ext4" \
	"xfs with little space" "frugal xfs" \
	"btrfs with little space" "frugal btrfs" \
	"ext4 with nothing but its reserve" reserve \
	"low space of the file system" low_on_fs \
	"storage smaller than a chunk" tiny \
	"many writers at once" many_writers \
	"storages that do not answer" silent \
	"waiting ends in time" timeouts \
	"waiting ends by a signal" interrupted \
	"waiting ends with the snapshot" destroyed \
	"two wait for events" two_wait
