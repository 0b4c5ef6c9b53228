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

# slow_storage MILLISECONDS [DEV]: what each write to it takes from the take on. The origin is
# written at random places. DEV is in the snapshot, too.
slow_storage()
{
	local under store

	reloaded copy_memory=1 copy_ahead=0 hold_writers=6
	null_blk 256; under=$REPLY
	dm_linear blksnap-slow "$under" 0 524288; store=$REPLY
	null_blk 64; dev=$REPLY
	filled "$dev" 64 "$scratch/new"
	attach "$dev"
	[ "$#" = 1 ] || attach "$2"
	create "$store" 0
	ctl add "$dev" "$snapshot"
	[ "$#" = 1 ] || ctl add "$2" "$snapshot"
	ctl take "$snapshot"
	dmsetup suspend --noudevsync blksnap-slow
	dmsetup reload blksnap-slow --table "0 524288 delay $under 0 $1" || skip "no dm-delay"
	dmsetup resume --noudevsync blksnap-slow
	blksnap_ctl churn direct 0 $((64 << 20)) 65536 "$dev" "$scratch/new" "$scratch/begun" &
	writer=$!
	undo stop "$writer"
}

# A storage that completes writes late is reported soon, and given up before long.
slow()
{
	local dev writer begin duration

	begin=$(milliseconds)
	slow_storage 1000
	ctl wait "$snapshot" 60000 >"$scratch/event"
	cat "$scratch/event"
	grep -qx 'code 34' "$scratch/event"
	grep -qx 'limit 6000' "$scratch/event"
	[ "$(awk '$1 == "held" { print $2 }' "$scratch/event")" -ge 1000 ]
	equal 0 "$(error_of "$dev")" "the snapshot's error at the event"
	ctl wait "$snapshot" 30000 | grep -x 'error -110'
	duration=$(($(milliseconds) - begin))
	result "$duration ms until it was given up"
	[ "$duration" -ge 6000 ] || wrong "it was given up after $duration ms"
	[ "$(ctl space "$snapshot" | awk '$1 == "held" { print $2 }')" -ge 6000 ]
	kill -TERM "$writer"
	wait "$writer"
	same "$dev" "$scratch/new"
}

# A storage that is only slower than the writers is not given up.
busy()
{
	local dev writer

	slow_storage 20
	sleep 3
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	expect ENOENT ctl wait "$snapshot" 0
	kill -TERM "$writer"
	wait "$writer"
	same "$dev" "$scratch/new"
	[ "$(figure "$(image_of "$dev")" parked_writes_peak)" -gt 0 ]
}

# has_more_than BYTES IMAGE: in copies that are not stored
has_more_than()
{
	[ "$(figure "$2" copy_bytes)" -gt "$1" ]
}

# A device gets the memory that others do not need, but not what they may come to need.
busy_beside_another()
{
	local dev writer other begin duration peak

	null_blk 64; other=$REPLY
	slow_storage 1000 "$other"
	eventually has_more_than $((512 << 10)) "$(image_of "$dev")"
	sleep 0.2
	begin=$(milliseconds)
	put direct 0 4096 "$other"
	duration=$(($(milliseconds) - begin))
	peak=$(figure "$(image_of "$dev")" copy_bytes_peak)
	result "$peak bytes of the busy device, $duration ms for a write to the other one"
	[ "$peak" -gt $((512 << 10)) ] || wrong "one of two devices has not more than half"
	[ "$peak" -le $((768 << 10)) ] || wrong "one of two devices has more than 3/4"
	[ "$duration" -lt 500 ] || wrong "the other device had to wait"
	kill -TERM "$writer"
	wait "$writer"
	same "$dev" "$scratch/new"
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
	! is_module || reloaded copy_memory=1 hold_writers=2
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
	ctl wait "$snapshot" 0 | grep -x 'code 34'
	ctl wait "$snapshot" 0 | grep -x 'error -110'
	same "$one" "$scratch/one"
	same "$two" "$scratch/two"
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

# lacks IMAGE SECTOR SECTORS FILE: the image has what the file has, but for these sectors
lacks()
{
	local end=$((($2 + $3) * 512))

	head -c $(($2 * 512)) "$4" >"$scratch/head"
	tail -c +$((end + 1)) "$4" >"$scratch/tail"
	same "$1" "$scratch/head"
	same "$1" "$scratch/tail" "$end"
	expect EIO ctl same "$1" "$4"
}

# A chunk that cannot be read when it is to be saved is missing from the image, and nothing else is.
# COMMAND writes to the device, the unreadable chunk among others.
unreadable()
{
	local dev under image at=$((100 * 8)) len=8 tail

	null_blk "$SIZE"; under=$REPLY
	filled "$under" "$SIZE" "$scratch/new"
	cp "$scratch/new" "$scratch/old"
	tail=$((at + len))
	dm blksnap-unreadable "0 $at linear $under 0
		$at $len flakey $under $at 0 60 1 error_reads
		$tail $(((SIZE << 11) - tail)) linear $under $tail"
	dev=$REPLY
	attach "$dev"
	take "$dev"
	image=$(image_of "$dev")
	[ "$(figure "$image" chunk_bytes)" = $((len * 512)) ] || skip "chunks are larger"

	"$@" "$dev"
	lacks "$image" "$at" "$len" "$scratch/old"
	equal 0 "$(error_of "$dev")" "the error"
	equal 1 "$(figure "$image" lost_chunks)" "lost chunks"
	ctl wait "$snapshot" 0 >"$scratch/event"
	printf '%s\n' 'code 33' "sector $at" "sectors $len" 'error -5' | sort >"$scratch/expected"
	grep -v '^time\|^device' "$scratch/event" | sort | diff "$scratch/expected" - ||
		wrong "the event"
	expect ENOENT ctl wait "$snapshot" 0
	# The same when all of it is on the storage
	eventually figure_is "$image" copy_bytes 0
	lacks "$image" "$at" "$len" "$scratch/old"
	# And the write was not harmed.
	same "$under" "$scratch/new"
}

write_large() { put direct 0 $((4 << 20)) "$1" "$scratch/new"; }
write_small() { put direct $((100 * 4096)) 4096 "$1" "$scratch/new"; }
write_around() { put direct $((99 * 4096)) $((3 * 4096)) "$1" "$scratch/new"; }

write_zeroes()
{
	discard "$1" -z -o $((64 * 4096)) -l $((1 << 20))
	dd if=/dev/zero of="$scratch/new" bs=4096 seek=64 count=256 conv=notrunc status=none
}

# The maps of as many far writes take more than a MiB.
MAP_WRITES=170

# What is known of saved data has a limit.
map_memory()
{
	local dev image stored

	reloaded map_memory=1
	null_blk $(((MAP_WRITES + 8) * 128)); dev=$REPLY
	attach "$dev"
	take "$dev"
	image=$(image_of "$dev")
	far_writes "$dev" 0 20
	eventually figure_is "$image" copy_bytes 0
	figure_is "$image" stored_bytes $((20 * 4096)) || wrong "copies are coarse already"
	# From half of it on more is copied at a time.
	far_writes "$dev" 20 100
	eventually figure_is "$image" copy_bytes 0
	stored=$(figure "$image" stored_bytes)
	[ "$stored" -gt $((100 * 4096 + 10 * 61440)) ] || wrong "copies are small: $stored bytes"
	equal 0 "$(error_of "$dev")" "the error"
	far_content "$image" 0 100 65536 >"$scratch/image"
	cmp -n $((100 << 16)) "$scratch/image" /dev/zero
	far_writes "$dev" 100 "$MAP_WRITES"
	eventually error_is "$dev" -122
	ctl wait "$snapshot" 0 >"$scratch/event"
	grep -qx 'code 0' "$scratch/event" || { cat "$scratch/event"; wrong "no event"; }
	grep -qx 'error -122' "$scratch/event" || { cat "$scratch/event"; wrong "the event"; }
	# Writes go on, and the next snapshot has all of it again.
	put direct 0 65536 "$dev"
	ctl destroy "$snapshot"
	take "$dev"
	far_writes "$dev" 0 20
	equal 0 "$(error_of "$dev")" "the error of the next one"
}

# The device merges what is next to each other, so that all of one request fails, and the chunks
# beside the unreadable one are not lost. COMMAND writes to them all.
merged()
{
	local dev badblocks queue image at=$((100 * 8)) len=8

	null_blk 1 irqmode=2 completion_nsec=30000000 hw_queue_depth=1 submit_queues=1
	dev=$REPLY
	badblocks=/sys/kernel/config/nullb/${dev#/dev/}/badblocks
	queue=/sys/block/${dev#/dev/}/queue
	[ -w "$badblocks" ] || skip "no bad blocks in null_blk"
	echo mq-deadline 2>/dev/null >"$queue/scheduler" || skip "no mq-deadline"
	echo 64 >"$queue/nr_requests"
	filled "$dev" 1 "$scratch/old"
	attach "$dev"
	take "$dev"
	image=$(image_of "$dev")
	[ "$(figure "$image" chunk_bytes)" = $((len * 512)) ] || skip "chunks are larger"

	echo "+$at-$((at + len - 1))" >"$badblocks"
	"$@" "$dev"
	echo "-$at-$((at + len - 1))" >"$badblocks"
	equal 1 "$(figure "$image" lost_chunks)" "lost chunks"
	lacks "$image" "$at" "$len" "$scratch/old"
	equal 0 "$(error_of "$dev")" "the error"
}

put_large() { ! put direct $((64 * 4096)) $((64 * 4096)) "$1"; }

put_many()
{
	local i

	for ((i = 90; i < 110; i++)); do
		put direct $((i * 4096)) 4096 "$1" &
	done
	wait
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
	"unreadable chunk, one write" "unreadable write_small" \
	"unreadable chunk, among others" "unreadable write_around" \
	"unreadable chunk, large write" "unreadable write_large" \
	"unreadable chunk, zeroes" "unreadable write_zeroes" \
	"unreadable chunk, large write that is merged" "merged put_large" \
	"unreadable chunk, small writes that are merged" "merged put_many" \
	"storage smaller than a chunk" tiny \
	"memory of the maps" map_memory \
	"many writers at once" many_writers \
	"storages that do not answer" silent \
	"storage that is slow" slow \
	"storage that is slower than the writers" busy \
	"storage that is slow, and another device" busy_beside_another \
	"waiting ends in time" timeouts \
	"waiting ends by a signal" interrupted \
	"waiting ends with the snapshot" destroyed \
	"two wait for events" two_wait
