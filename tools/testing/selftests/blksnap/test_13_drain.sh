#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# The barrier: when a snapshot is taken no write is on its way to the media any more, on
# bio-based devices too, where a frozen queue does not say so. Else the image changes when
# the write arrives. It ends soon, also where that cannot be had.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

# Of the devices, in MiB, and how long their writes take, in milliseconds. The image has to
# be read before that is over.
readonly SIZE=2 DELAY=1000

# delayed NAME [ATTRIBUTE=VALUE]...: a device whose writes take their time
delayed()
{
	null_blk "$SIZE" "${@:2}"
	dm "$1" "0 $((SIZE << 11)) delay $REPLY 0 0 $REPLY 0 $DELAY"
}

# write_to DEV WRITERS BYTES: from now on, at random places, up to so many bytes at a time
write_to()
{
	local share=$(((SIZE << 20) / $2)) i

	for ((i = 0; i < $2; i++)); do
		background blksnap_ctl churn direct $((i * share)) "$share" "$3" "$1" /dev/null
	done
	sleep 0.6
}

# check DEV [ROUNDS]: while it is written, snapshots are taken, one after the other
check()
{
	local round

	for ((round = 1; round <= ${2:-1}; round++)); do
		echo "snapshot $round"
		take "$1"
		stays "$(image_of "$1")"
		equal 0 "$(error_of "$1")" "the snapshot's error"
		ctl destroy "$snapshot"
	done
}

# stays IMAGE: it has what it had, also when all writes that came before it are done
stays()
{
	local sum time

	sum=$(sum_of "$1")
	for time in second third; do
		sleep 0.6
		equal "$sum" "$(sum_of "$1")" "the sum of the image, the $time time"
	done
}

sum_of()
{
	dd if="$1" bs=1M iflag=direct status=none | md5sum
}

# How many writes the device has done
writes_of()
{
	local fields

	read -ra fields <"/sys/class/block/${1#/dev/}/stat"
	echo "${fields[4]}"
}

written_since()
{
	[ "$(writes_of "$1")" -gt "$2" ]
}

on_delay()
{
	delayed blksnap-delay
	attach "$REPLY"
	write_to "$REPLY" 8 65536
	check "$REPLY" 2
}

# There were no filters when the writes began.
attach_on_delay()
{
	delayed blksnap-delay
	write_to "$REPLY" 8 65536
	attach "$REPLY"
	check "$REPLY"
}

attach_on_linear()
{
	delayed blksnap-delay
	dm_linear blksnap-linear "$REPLY" 0 $((SIZE << 11))
	write_to "$REPLY" 8 65536
	attach "$REPLY"
	check "$REPLY"
}

# One write is up to 64 bios, and ends with the last of them.
on_delay_with_splits()
{
	delayed blksnap-split max_sectors=16
	attach "$REPLY"
	write_to "$REPLY" 4 $((512 << 10))
	check "$REPLY"
}

on_md()
{
	local one

	delayed blksnap-one; one=$REPLY
	delayed blksnap-two
	md_array raid1 "$one" "$REPLY"
	write_to "$REPLY" 8 65536
	attach "$REPLY"
	check "$REPLY"
}

# Discards are in flight, too, also when nobody has asked for them one by one.
raid0_that_discards()
{
	local one md discarding

	null_blk "$SIZE" discard=1
	dm blksnap-one "0 $((SIZE << 11)) delay $REPLY 0 0 $REPLY 0 $DELAY"; one=$REPLY
	null_blk "$SIZE" discard=1
	dm blksnap-two "0 $((SIZE << 11)) delay $REPLY 0 0 $REPLY 0 $DELAY"
	md_array raid0 "$one" "$REPLY"; md=$REPLY
	[ "$(limit_of "$md" discard_max_bytes)" != 0 ] || skip "no discard on $md"
	filled "$md" "$SIZE" "$scratch/new"
	attach "$md"
	discard "$md" & discarding=$!
	sleep 0.3
	take "$md"
	stays "$(image_of "$md")"
	wait "$discarding"
}

# holding_md [ATTRIBUTE=VALUE]...: $dev is an md that holds back what is written from 1 MiB
# on, until release_md
holding_md()
{
	local one

	delayed blksnap-one "$@"; one=$REPLY
	delayed blksnap-two "$@"
	md_array raid1 "$one" "$REPLY"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/new"
	echo 2048 >"/sys/block/${dev#/dev/}/md/suspend_lo"
	echo $((SIZE << 11)) >"/sys/block/${dev#/dev/}/md/suspend_hi"
	undo release_md "$dev"
}

release_md()
{
	echo 0 >"/sys/block/${1#/dev/}/md/suspend_hi"
}

# write_waits OFFSET: of 64 KiB; its process is $writer
write_waits()
{
	background blksnap_ctl put direct "$1" 65536 "$dev" "$scratch/new"
	writer=$!
	eventually waits "$writer"
}

waits()
{
	grep -q '^State:.D' "/proc/$1/status"
}

# A write that md holds back is later than the snapshot, also if it is older than the filter.
attach_to_holding_md()
{
	local dev writer

	holding_md
	cp "$scratch/new" "$scratch/old"
	write_waits $((1 << 20))
	attach "$dev"
	take "$dev"
	waits "$writer"
	release_md "$dev"
	wait "$writer"
	same "$(image_of "$dev")" "$scratch/old"
	same "$dev" "$scratch/new"
}

# So is what remains of a write that md has begun.
take_of_holding_md()
{
	local dev writer sum

	holding_md max_sectors=16
	attach "$dev"
	write_waits $(((1 << 20) - 32768))
	take "$dev"
	waits "$writer"
	sum=$(sum_of "$(image_of "$dev")")
	release_md "$dev"
	wait "$writer"
	same "$dev" "$scratch/new"
	equal "$sum" "$(sum_of "$(image_of "$dev")")" "the sum of the image"
}

on_brd()
{
	brd "$SIZE"
	write_to "$REPLY" 2 65536
	attach "$REPLY"
	check "$REPLY"
}

# It does not wait for those that come while it waits, and they go on.
many_writers()
{
	local dev since writes

	delayed blksnap-delay; dev=$REPLY
	attach "$dev"
	write_to "$dev" 64 16384
	since=$SECONDS
	take "$dev"
	since=$((SECONDS - since))
	stays "$(image_of "$dev")"
	[ $since -lt "$STALL" ] || wrong "the take has lasted $since s"
	writes=$(writes_of "$dev")
	eventually written_since "$dev" $((writes + 64))
}

# begin_suspended: $dev does not end the write that is on its way, which $writer waits for.
# The snapshot with it and $other is not taken yet.
begin_suspended()
{
	null_blk 16; other=$REPLY
	make_fs ext4 "$other"
	mounted "$other"; where=$REPLY
	null_blk "$SIZE"
	dm_linear blksnap-suspended "$REPLY" 0 $((SIZE << 11))
	dm_linear blksnap-upper "$REPLY" 0 $((SIZE << 11)); dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/new"
	attach "$dev"
	attach "$other"
	new_storage
	create "$storage" "$ROOM"
	ctl add "$dev" "$snapshot"
	ctl add "$other" "$snapshot"
	dmsetup suspend --noudevsync blksnap-suspended
	undo dmsetup resume --noudevsync blksnap-suspended
	write_waits 4096
}

# end_suspended: nothing is left of the take that failed
end_suspended()
{
	# Nobody else had to wait for longer.
	timeout 10 dd if=/dev/zero of="$where/file" bs=64k count=1 conv=fsync status=none
	waits "$writer"
	dmsetup resume --noudevsync blksnap-suspended
	wait "$writer"
	put direct $((1 << 20)) 65536 "$dev" "$scratch/new"
	same "$dev" "$scratch/new"
	cp "$scratch/new" "$scratch/old"
	ctl take "$snapshot"
	put direct 0 $((1 << 20)) "$dev"
	same "$(image_of "$dev")" "$scratch/old"
}

take_killed()
{
	local dev other where writer taker

	begin_suspended
	background blksnap_ctl take "$snapshot"
	taker=$!
	sleep 1
	kill -KILL "$taker"
	eventually ended "$taker"
	end_suspended
}

ended()
{
	! kill -0 "$1" 2>/dev/null
}

# take_timed_out: and the other device is not kept for longer than it may be
take_timed_out()
{
	local dev other where writer since taker number

	begin_suspended
	since=$SECONDS
	blksnap_ctl take "$snapshot" 2>"$scratch/take" &
	taker=$!
	sleep 1
	# Who only asks does not wait for it.
	timeout 2 blksnap_ctl info "$dev" >"$scratch/info" || wrong "info waits for the take"
	equal 0 "$(sed -n 's/^error //p' "$scratch/info")" "the error meanwhile"
	timeout 2 blksnap_ctl collect | grep -qx "$snapshot" || wrong "collect waits for the take"
	! wait "$taker" || wrong "the take has succeeded"
	equal ETIMEDOUT "$(tail -1 "$scratch/take")" "its error"
	number=$(<"/sys/class/block/${dev#/dev/}/dev")
	log_says "blksnap: I/O in flight to $number did not complete" ||
		wrong "the kernel's log does not name the device"
	since=$((SECONDS - since))
	# 5 s are freeze_timeout.
	[ $since -lt $((5 + STALL / 2)) ] || wrong "the take has lasted $since s"
	end_suspended
}

# A device that is suspended itself has nothing on its way. Only the image's partitions
# cannot be looked for until it is resumed.
suspended()
{
	local dev writer taker

	null_blk "$SIZE"
	dm_linear blksnap-suspended "$REPLY" 0 $((SIZE << 11)); dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/new"
	cp "$scratch/new" "$scratch/old"
	attach "$dev"
	dmsetup suspend --noudevsync blksnap-suspended
	undo dmsetup resume --noudevsync blksnap-suspended
	write_waits 4096
	new_storage
	create "$storage" "$ROOM"
	ctl add "$dev" "$snapshot"
	background blksnap_ctl take "$snapshot"
	taker=$!
	eventually compgen -G "/dev/blksnap-image*" >/dev/null
	waits "$writer"
	dmsetup resume --noudevsync blksnap-suspended
	wait "$writer"
	wait "$taker"
	same "$(image_of "$dev")" "$scratch/old"
	same "$dev" "$scratch/new"
}

# As many bios as fit in a stack are chained, and the first one ends last.
chained()
{
	local size=160 dev

	null_blk $size; dev=$REPLY
	dm blksnap-chained "0 2048 delay $dev 0 0 $dev 0 500
		2048 $(((size - 1) << 11)) linear $dev 2048"; dev=$REPLY
	attach "$dev"
	put direct 0 4096 "$dev"
	blkdiscard -z "$dev"
	cmp -n $((size << 20)) "$dev" /dev/zero
}

# Any user who can read the device can flush it in a loop.
flushed()
{
	local dev since i

	null_blk "$SIZE" cache_size=1 irqmode=2 completion_nsec=50000000
	dm_linear blksnap-flushed "$REPLY" 0 $((SIZE << 11)); dev=$REPLY
	for i in 1 2; do
		background flush_on "$dev"
	done
	sleep 0.5
	since=$SECONDS
	attach "$dev"
	for i in 1 2 3; do
		take "$dev"
		ctl destroy "$snapshot"
	done
	since=$((SECONDS - since))
	[ $since -lt "$STALL" ] || wrong "three snapshots have lasted $since s"
}

flush_on()
{
	while sync "$1"; do
		:
	done
}

# A device, and what is stacked on it, in the wrong order
stacked()
{
	local low mid top round

	null_blk 16 irqmode=2 completion_nsec=20000000; low=$REPLY
	dm_linear blksnap-middle "$low" 2048 28672; mid=$REPLY
	dm blksnap-top "0 $((SIZE << 11)) delay $mid 4096 0 $mid 4096 50"; top=$REPLY
	attach "$low"
	attach "$mid"
	attach "$top"
	write_to "$top" 8 65536
	for round in 1 2 3; do
		take "$low" "$mid" "$top"
		stays "$(image_of "$top")"
		equal 0 "$(error_of "$low")" "the error of the lowest"
		# Of the same moment
		dd if="$(image_of "$low")" bs=1M skip=3 count="$SIZE" iflag=direct status=none |
			cmp - "$(image_of "$top")"
		ctl destroy "$snapshot"
	done
}

# More levels, all of which are written
levels()
{
	local devices=() ordered=() i order

	null_blk $((SIZE + 4)); devices+=("$REPLY")
	for i in 1 2 3 4; do
		dm_linear "blksnap-level$i" "$REPLY" 2048 $(((SIZE + 4 - i) << 11))
		devices+=("$REPLY")
	done
	# Of each but the last one what is not part of the next one, whose filter would not see that
	for i in 0 1 2 3 4; do
		attach "${devices[i]}"
		background blksnap_ctl churn direct 0 $((1 << 20)) 65536 "${devices[i]}" /dev/null
	done
	sleep 0.6
	for order in "0 1 2 3 4" "4 3 2 1 0" "2 0 1 4 3"; do
		ordered=()
		for i in $order; do
			ordered+=("${devices[i]}")
		done
		take "${ordered[@]}"
		stays "$(image_of "${devices[4]}")"
		ctl destroy "$snapshot"
	done
}

# They are waited for together: one after the other they would take longer than freeze_timeout.
busy()
{
	local devices=() i

	for ((i = 0; i < 6; i++)); do
		null_blk "$SIZE"
		dm "blksnap-busy$i" "0 $((SIZE << 11)) delay $REPLY 0 0 $REPLY 0 1500"
		attach "$REPLY"
		devices+=("$REPLY")
		background blksnap_ctl churn direct 0 $((SIZE << 20)) 65536 "$REPLY" /dev/null
	done
	sleep 0.6
	take "${devices[@]}"
	stays "$(image_of "${devices[5]}")"
}

# Prepares a snapshot of two file systems, one of which is above a device-mapper device. Sets
# `healthy`, `mnt`, `stuck` and `where`.
begin_stuck_fs()
{
	local options=()

	# Or the kernel would write to it at any time.
	[ "$1" != ext4 ] || options=(-E lazy_itable_init=0)
	null_blk 64; healthy=$REPLY
	make_fs ext4 "$healthy"
	mounted "$healthy"; mnt=$REPLY
	null_blk 512
	dm_linear blksnap-stuck "$REPLY" 0 $((512 << 11))
	dm_linear blksnap-above "$REPLY" 0 $((512 << 11)); stuck=$REPLY
	make_fs "$1" "$stuck" "${options[@]}"
	mounted "$stuck"; where=$REPLY
	sync
	attach "$healthy"
	attach "$stuck"
	new_storage
	create "$storage" "$ROOM"
	ctl add "$healthy" "$snapshot"
	ctl add "$stuck" "$snapshot"
}

# A file system whose device does not answer can be neither frozen nor thawed. It must not keep
# another one frozen.
stuck_fs()
{
	local healthy mnt stuck where since

	begin_stuck_fs "$1"
	dmsetup suspend --noudevsync blksnap-stuck
	undo dmsetup resume --noudevsync blksnap-stuck
	since=$SECONDS
	expect ETIMEDOUT ctl take "$snapshot"
	since=$((SECONDS - since))
	# Until it would be frozen, and until it would be thawed again, 5 s each.
	[ $since -lt $((10 + STALL / 2)) ] || wrong "the take has lasted $since s"
	dd if=/dev/zero of="$mnt/file" bs=4k count=1 conv=fsync status=none
	dmsetup resume --noudevsync blksnap-stuck
	ctl take "$snapshot"
	dd if=/dev/zero of="$mnt/file" bs=4k count=1 conv=fsync status=none
}

# The file system of a loop device has to be frozen before the one with its file, also if the disk
# below got its present table later than the loop device its file.
loop_over_new_table()
{
	local base low mnt upper where

	null_blk 64; base=$REPLY
	dm blksnap-low "0 $((64 << 11)) linear $base 0"; low=$REPLY
	make_fs ext4 "$low"
	mounted "$low"; mnt=$REPLY
	truncate -s 16M "$mnt/file"
	loop_on "$mnt/file"; upper=$REPLY
	make_fs ext4 "$upper"
	mounted "$upper"; where=$REPLY
	printf '0 65536 linear %s 0\n65536 65536 linear %s 65536\n' "$base" "$base" |
		dmsetup reload --noudevsync blksnap-low
	dmsetup resume --noudevsync blksnap-low
	attach "$low"
	attach "$upper"
	dd if=/dev/zero of="$where/file" bs=1M count=4 status=none
	take "$low" "$upper"
	stays "$(image_of "$upper")"
	timeout 10 dd if=/dev/zero of="$where/file" bs=4k count=1 conv=fsync status=none ||
		wrong "the file system is frozen"
}

# third_of_four: one device cannot be stopped, the others are not kept
third_of_four()
{
	local i devices=()

	for i in 0 1 2 3; do
		null_blk "$SIZE"
		dm_linear "blksnap-lower$i" "$REPLY" 0 $((SIZE << 11))
		dm_linear "blksnap-upper$i" "$REPLY" 0 $((SIZE << 11))
		attach "$REPLY"
		devices+=("$REPLY")
	done
	new_storage
	create "$storage" "$ROOM"
	for i in 0 1 2 3; do
		ctl add "${devices[i]}" "$snapshot"
	done
	dmsetup suspend --noudevsync blksnap-lower2
	undo dmsetup resume --noudevsync blksnap-lower2
	background blksnap_ctl churn direct 0 $((SIZE << 20)) 65536 "${devices[2]}" /dev/null
	sleep 0.3
	expect ETIMEDOUT ctl take "$snapshot"
	for i in 0 1 3; do
		timeout 5 dd if=/dev/zero of="${devices[i]}" bs=4k count=1 oflag=direct \
			status=none ||
			wrong "device $i is stopped"
	done
	dmsetup resume --noudevsync blksnap-lower2
	ctl take "$snapshot"
	stays "$(image_of "${devices[2]}")"
}

# If it has data to write, the take waits for that, with nothing frozen, and can be interrupted.
stuck_sync()
{
	local healthy mnt stuck where taker

	begin_stuck_fs "$1"
	dd if=/dev/zero of="$where/file" bs=64k count=16 status=none
	dmsetup suspend --noudevsync blksnap-stuck
	undo dmsetup resume --noudevsync blksnap-stuck
	background blksnap_ctl take "$snapshot"
	taker=$!
	sleep 1
	kill -0 "$taker" || wrong "the take has ended"
	timeout 10 dd if=/dev/zero of="$mnt/file" bs=4k count=1 conv=fsync status=none
	kill -TERM "$taker"
	eventually ended "$taker"
	dmsetup resume --noudevsync blksnap-stuck
	ctl take "$snapshot"
	fsck.ext4 -fn "$(image_of "$stuck")" >"$scratch/fsck"
}

# in_one_take DEV...: the first one is written meanwhile
in_one_take()
{
	write_to "$1" 2 65536
	take "$@"
	stays "$(image_of "$1")"
}

# More than a task can hold locks of
many_disks()
{
	local disks=() i

	for ((i = 0; i < 30; i++)); do
		null_blk 1
		attach "$REPLY"
		disks+=("$REPLY")
	done
	in_one_take "${disks[@]}"
}

# More than lockdep allows locks for a task
many_dm()
{
	local disk all=() i

	null_blk 64; disk=$REPLY
	for ((i = 0; i < 50; i++)); do
		dm "blksnap-$i" "0 2048 linear $disk $((i * 2048))"
		attach "$REPLY"
		all+=("$REPLY")
	done
	in_one_take "${all[@]}"
}

# on_raid TYPE DEVICES ARGUMENTS: of device-mapper, with places for what belongs to raid
on_raid()
{
	local i devs='' dev

	for ((i = 0; i < $2; i++)); do
		null_blk 4 irqmode=2 completion_nsec=1000000; dev=$REPLY
		null_blk "$SIZE" irqmode=2 completion_nsec=1000000
		devs+=" $dev $REPLY"
	done
	dm blksnap-raid "0 $((SIZE << 11)) raid $1 $3 $2$devs"
	write_to "$REPLY" 4 $((512 << 10))
	attach "$REPLY"
	check "$REPLY" 3
}

on_raid1_with_write_behind()
{
	on_raid raid1 2 "6 0 write_mostly 1 max_write_behind 256 sync"
}

# raid1 splits what is longer than 1 MiB, and submits the rest to the device-mapper device again.
on_raid1_that_splits()
{
	local i devs='' dev

	[ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null)" = 0 ] || skip "no io_uring"
	for i in 1 2; do
		null_blk 8; dev=$REPLY
		null_blk 64 max_sectors=8192; devs+=" $dev $REPLY"
	done
	dm blksnap-raid "0 $((64 << 11)) raid raid1 8 0 nosync write_mostly 1 max_write_behind 256 \
		region_size 8192 2$devs"; dev=$REPLY
	for i in 0 1 2 3; do
		background blksnap_ctl churn direct,contiguous $((i << 24)) $((1 << 24)) \
			$((2 << 20)) "$dev" /dev/null
	done
	attach "$dev"
	for ((i = 0; i < 20; i++)); do
		take "$dev"
		ctl destroy "$snapshot"
	done
	check "$dev"
}

# raid10 discards what is aligned to its stripes and writes the rest, which are parts of one bio.
discards_unaligned()
{
	local start=$((68 << 10)) len=$(((4 << 20) + 8192))

	filled "$1" 8 "$scratch/content"
	discard "$1" -o $start -l $len
	dd if=/dev/zero of="$scratch/content" bs=4096 seek=$((start >> 12)) \
		count=$((len >> 12)) conv=notrunc status=none
	same "$1" "$scratch/content"
}

on_md_raid10()
{
	local members=() i

	for i in 1 2 3 4; do
		null_blk 16 discard=1
		members+=("$REPLY")
	done
	md_array raid10 "${members[@]}"
	discards_unaligned "$REPLY"
}

# The take begins when the first part is on its way to the members, where it waits for a write, and
# the other one is not submitted yet.
on_raid10_that_discards()
{
	local i devs='' dev discarding

	for i in 1 2 3 4; do
		null_blk 8; dev=$REPLY
		null_blk 64 discard=1 irqmode=2 completion_nsec=700000000 hw_queue_depth=1 \
			submit_queues=1
		devs+=" $dev $REPLY"
	done
	dm blksnap-raid "0 $((64 << 11)) raid raid10 6 128 nosync raid10_copies 2 \
		raid10_format near 4$devs"; dev=$REPLY
	attach "$dev"
	for i in 1 2 3; do
		background blksnap_ctl put direct $((32 << 20)) 4096 "$dev"
		background blksnap_ctl put direct $(((32 << 20) + 65536)) 4096 "$dev"
		sleep 0.2
		discard "$dev" -o 65536 -l $((4 << 20)) & discarding=$!
		sleep 0.2
		take "$dev"
		wait $discarding
		ctl destroy "$snapshot"
	done
}

# new_zram MEBIBYTES: one more disk of zram, as $REPLY
new_zram()
{
	local number

	modprobe -q zram num_devices=1 2>/dev/null || skip "no zram"
	undo unload zram
	number=$(cat /sys/class/zram-control/hot_add)
	undo eventually eval "echo $number >/sys/class/zram-control/hot_remove"
	echo "$1M" >"/sys/block/zram$number/disksize"
	REPLY=/dev/zram$number
}

on_zram()
{
	new_zram "$SIZE"
	write_to "$REPLY" 2 65536
	attach "$REPLY"
	check "$REPLY"
}

# The kernel tells zram by a call, not by a bio, that a block of swap is free.
zram_as_swap()
{
	local dev sum process

	need mkswap swapon
	new_zram 32; dev=$REPLY
	mkswap "$dev" >/dev/null
	swapon "$dev" 2>/dev/null || skip "no swap"
	undo eval "swapoff $dev"
	blksnap_ctl swapped 8 "$scratch/swapped" &
	process=$!
	eventually test -e "$scratch/swapped"
	[ "$(awk -v dev="$dev" '$1 == dev { print $4 }' /proc/swaps)" -gt 4096 ] ||
		wrong "hardly anything was swapped out"
	attach "$dev"
	take "$dev"
	sum=$(sum_of "$(image_of "$dev")")
	kill -KILL "$process"
	wait "$process" || true
	equal "$sum" "$(sum_of "$(image_of "$dev")")" "the sum of the image after swap was freed"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	ctl destroy "$snapshot"
}

on_nvme()
{
	nvme N "$SIZE" irqmode=2 completion_nsec=100000000
	write_to "$REPLY" 2 65536
	attach "$REPLY"
	check "$REPLY"
}

# What else is bio-based does not say when its writes are done.
on_nvme_multipath()
{
	nvme Y "$SIZE"
	expect EOPNOTSUPP ctl attach "$REPLY"
	expect ENOENT ctl detach "$REPLY"
	put direct 0 4096 "$REPLY"
}

on_image()
{
	null_blk "$SIZE"
	snapshot_of "$REPLY"
	expect EOPNOTSUPP ctl attach "$(image_of "$REPLY")"
}

# Device-mapper keeps a list of its own in bios that are polled.
polled()
{
	local dev rw round io

	need fio
	null_blk 16 poll_queues=1 irqmode=2 completion_nsec=100000; dev=$REPLY
	# In the middle of the first block of 8 KiB that is written.
	dm blksnap-polled "0 8200 linear $dev 0"$'\n'"8200 24568 linear $dev 8200"; dev=$REPLY
	[ "$(<"/sys/block/${dev#/dev/}/queue/io_poll")" = 1 ] || skip "dm does not poll"
	filled "$dev" 16 "$scratch/old"
	snapshot_of "$dev"
	for rw in write randwrite; do
		fio --name=polled --filename="$dev" --rw="$rw" --bs=8k --offset=4096k --size=64k \
			--loops=50 --direct=1 --ioengine=io_uring --iodepth=4 --hipri=1 \
			>"$scratch/fio" 2>&1 || { cat "$scratch/fio"; false; }
	done
	same "$(image_of "$dev")" "$scratch/old"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	ctl destroy "$snapshot"
	# With bios on their way that were split, and in such a list, before there is a filter
	ctl detach "$dev"
	background fio --thread --name=polled --filename="$dev" --rw=randrw --bs=8k \
		--offset=4096k --size=64k --time_based --runtime=600 \
		--direct=1 --ioengine=io_uring --iodepth=4 --hipri=1 --output="$scratch/fio"
	io=$!
	for ((round = 0; round < 3; round++)); do
		ctl attach "$dev"
		take "$dev"
		ctl destroy "$snapshot"
		take "$dev"
		ctl destroy "$snapshot"
		ctl detach "$dev"
	done
	kill -0 "$io" || { cat "$scratch/fio"; wrong "fio has ended"; }
}

# zero_in_snapshot PART STORE: zeroes on their way to a device in a snapshot of its own. What
# the last of them overwrites is saved already, the others wait for memory to save it; but the
# block layer has chained them, so that the last one ends behind them.
zero_in_snapshot()
{
	filled "$1" 16 "$scratch/one"
	create "$2" 0; first=$snapshot
	ctl add "$1" "$first"
	ctl take "$first"
	put direct $((15 << 20)) $((1 << 20)) "$1"
	blkdiscard -z "$1" & zeroing=$!
	sleep 0.2
}

# zeroed PART: they have ended, and the snapshot has what was there before them
zeroed()
{
	wait "$zeroing"
	same "$(image_of "$1")" "$scratch/one"
	ctl destroy "$first"
}

# Others than the one that is frozen can be in a snapshot already. What is saved of them is
# read meanwhile, and the writes that it is saved for may be chained to some that are counted.
md_with_partitions()
{
	local one two md store first zeroing

	need sfdisk
	reloaded copy_memory=1
	null_blk 32; one=$REPLY
	null_blk 32; two=$REPLY
	null_blk 32 irqmode=2 completion_nsec=100000000; store=$REPLY
	md_array raid1 "$one" "$two"; md=$REPLY
	printf '2048,32768\n34816,\n' | sfdisk -q "$md"
	eventually test -b "${md}p2"
	filled "${md}p2" 8 "$scratch/two"
	attach "${md}p1"

	zero_in_snapshot "${md}p1" "$store"
	ctl attach "${md}p2"
	zeroed "${md}p1"

	zero_in_snapshot "${md}p1" "$store"
	take "${md}p2"
	zeroed "${md}p1"
	same "$(image_of "${md}p2")" "$scratch/two"
	ctl destroy "$snapshot"
}

run_cases \
	"dm-delay" on_delay \
	"dm-delay that is written before it has the filter" attach_on_delay \
	"dm-linear that is written before it has the filter" attach_on_linear \
	"dm-delay that splits" on_delay_with_splits \
	"dm that is polled" polled \
	"md" on_md \
	"raid0 that discards" raid0_that_discards \
	"md with partitions, one of which is in a snapshot" md_with_partitions \
	"md that holds a write back when the filter comes" attach_to_holding_md \
	"md that holds the rest of a write back when it is taken" take_of_holding_md \
	"dm-raid that splits" on_raid1_that_splits \
	"dm-raid that writes behind" on_raid1_with_write_behind \
	"raid10 that discards" on_md_raid10 \
	"dm-raid that splits what it discards" on_raid10_that_discards \
	"brd" on_brd \
	"zram" on_zram \
	"zram that is swap" zram_as_swap \
	"NVMe" on_nvme \
	"NVMe multipath" on_nvme_multipath \
	"an image" on_image \
	"bios in a chain" chained \
	"flushes without an end" flushed \
	"stack of devices" stacked \
	"stack of five devices" levels \
	"busy devices" busy \
	"ext4 whose device is stuck" "stuck_fs ext4" \
	"xfs whose device is stuck" "stuck_fs xfs" \
	"data that cannot be written" "stuck_sync ext4" \
	"loop device on a disk with a new table" loop_over_new_table \
	"third of four devices" third_of_four \
	"many disks" many_disks \
	"many devices of device-mapper" many_dm \
	"device that is suspended" suspended \
	"many writers" many_writers \
	"take that is killed while it waits" take_killed \
	"take that waits for too long" take_timed_out
