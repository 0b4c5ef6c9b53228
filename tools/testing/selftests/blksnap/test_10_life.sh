#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Snapshots, images, devices and the module go in any order.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=8

# Destroying does not wait for anybody.
destroy_soon()
{
	timeout 30 blksnap_ctl destroy "$snapshot"
}

destroy_mounted()
{
	local dev where

	null_blk 16; dev=$REPLY
	make_fs ext4 "$dev"
	mounted "$dev"; where=$REPLY
	: >"$where/file"
	put buffered 0 $((4 << 20)) "$where/file"
	snapshot_of "$dev"
	mounted "$(image_of "$dev")" -o ro
	head -c 4096 "$REPLY/file" >/dev/null
	destroy_soon
	if dd if="$REPLY/file" of=/dev/null bs=1M iflag=direct status=none 2>/dev/null; then
		wrong "the image could still be read"
	fi
	# The next one is not in its way.
	take "$dev"
	e2fsck -fn "$(image_of "$dev")"
	umount "$REPLY"
	put buffered 0 4096 "$where/file"
	destroy_soon
}

read_on()
{
	while dd if="$1" of=/dev/null bs=64k iflag=direct status=none; do
		:
	done
}

destroy_while_read()
{
	local dev i old=$scratch/old

	null_blk "$SIZE" irqmode=2 completion_nsec=500000; dev=$REPLY
	attach "$dev"
	for i in 1 2 3; do
		filled "$dev" "$SIZE" "$old"
		take "$dev"
		put direct 0 $((4 << 20)) "$dev"
		read_on "$(image_of "$dev")" 2>/dev/null &
		read_on "$(image_of "$dev")" 2>/dev/null &
		sleep 0.3
		destroy_soon
		timeout 30 tail --pid=$! -f /dev/null
		wait
	done
}

# read_until_fails IMAGE OLD FILE: all that is read is right; how it ended is in the file
read_until_fails()
{
	while blksnap_ctl same "$1" "$2" >"$3" 2>&1; do
		:
	done
}

# No image has what is written when writes are not waited for any more.
destroy_while_read_and_written()
{
	local dev round image i

	null_blk "$SIZE"; dev=$REPLY
	attach "$dev"
	for round in 1 2 3 4 5 6; do
		filled "$dev" "$SIZE" "$scratch/old"
		take "$dev"
		image=$(image_of "$dev")
		for i in 1 2; do
			read_until_fails "$image" "$scratch/old" "$scratch/read$i" &
		done
		background blksnap_ctl churn direct 0 $((SIZE << 20)) 4096 "$dev" /dev/null
		destroy_soon
		stop $!
		wait
		if grep differs "$scratch"/read?; then
			wrong "round $round: wrong data"
		fi
	done
}

destroy_while_written()
{
	local dev i

	null_blk "$SIZE" irqmode=2 completion_nsec=500000; dev=$REPLY
	attach "$dev"
	for i in 1 2 3; do
		filled "$dev" "$SIZE" "$scratch/new"
		take "$dev"
		put direct 0 $((SIZE << 20)) "$dev" "$scratch/new" &
		sleep 0.1
		destroy_soon
		wait $!
		same "$dev" "$scratch/new"
	done
}

destroy_open()
{
	local dev image first

	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/old"
	snapshot_of "$dev"
	first=$(image_of "$dev")
	exec 7<"$first"
	destroy_soon
	[ ! -e "$first" ]
	take "$dev"
	image=$(image_of "$dev")
	# Nobody can take an old image for the new one.
	[ "$first" != "$image" ]
	# Nothing or an error, but no data
	equal 0 "$(head -c 4096 2>/dev/null <&7 | wc -c)" "bytes of the first image"
	same "$image" "$scratch/old"
	if is_module; then
		destroy_soon
		ctl detach "$dev"
		# The image that is open belongs to the module.
		if rmmod blksnap 2>/dev/null; then
			wrong "the module was unloaded with an image open"
			load
		fi
	fi
	exec 7<&-
}

# fail_storage MEBIBYTES: all I/O of it fails from now on
fail_storage()
{
	dmsetup suspend --noudevsync --nolockfs blksnap-storage
	dmsetup reload blksnap-storage --table "0 $(($1 << 11)) error"
	dmsetup resume --noudevsync blksnap-storage
}

storage_failing()
{
	local dev image under storage

	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/new"
	null_blk "$SIZE"; under=$REPLY
	dm_linear blksnap-storage "$under" 0 $((SIZE << 11)); storage=$REPLY
	attach "$dev"
	create "$storage" 0
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	image=$(image_of "$dev")
	fail_storage "$SIZE"
	put direct 0 $((4 << 20)) "$dev" "$scratch/new"
	same "$dev" "$scratch/new"
	eventually fails "$dev"
	expect EIO ctl same "$image" "$scratch/new"
	ctl wait "$snapshot" 1000 | grep -x 'code 0'
	destroy_soon
}

# Ends the snapshot, one of whose devices or its storage does not answer.
destroy_in_time()
{
	local begin duration

	begin=$(milliseconds)
	timeout 20 blksnap_ctl destroy "$snapshot"
	snapshot=
	duration=$(($(milliseconds) - begin))
	result "$duration ms until it was destroyed"
	[ "$duration" -lt 5000 ] || wrong "it took $duration ms"
}

# silent MEBIBYTES: a device that does not answer after $(suspend), until $(resume)
silent()
{
	null_blk "$1"
	dm_linear blksnap-silent "$REPLY" 0 $(($1 << 11))
	undo dmsetup resume --noudevsync blksnap-silent
}

suspend()
{
	dmsetup suspend --noudevsync --nolockfs blksnap-silent
}

resume()
{
	dmsetup resume --noudevsync blksnap-silent
}

is_closed()
{
	[ "$(dmsetup info -c --noheadings -o open blksnap-silent)" = 0 ]
}

is_parked()
{
	[ "$(figure "$image" parked_writes)" -gt 0 ]
}

# The devices are free at once, and the rest when the storage answers.
storage_silent()
{
	local dev storage devices=()

	silent 64; storage=$REPLY
	create "$storage" 0
	for _ in 1 2; do
		null_blk "$SIZE"; dev=$REPLY
		attach "$dev"
		ctl add "$dev" "$snapshot"
		devices+=("$dev")
	done
	ctl take "$snapshot"
	suspend
	for dev in "${devices[@]}"; do
		put direct 0 65536 "$dev"
	done
	sleep 0.1
	destroy_in_time
	for dev in "${devices[@]}"; do
		[ ! -e "$(image_of "$dev" 2>/dev/null)" ]
		put direct 0 65536 "$dev"
		ctl detach "$dev"
	done
	# Another snapshot has nothing to do with it.
	snapshot_of "$dev"
	copy_of "$dev" "$scratch/old"
	put direct 0 65536 "$dev"
	same "$(image_of "$dev")" "$scratch/old"
	destroy_soon
	resume
	eventually is_closed
}

# The same with writers that wait for it
storage_silent_full()
{
	local dev image storage writer

	! is_module || reloaded copy_memory=1
	silent 64; storage=$REPLY
	create "$storage" 0
	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/new"
	attach "$dev"
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	suspend
	put direct 0 $((8 << 20)) "$dev" "$scratch/new" &
	writer=$!
	image=$(image_of "$dev")
	eventually is_parked
	destroy_in_time
	timeout 10 tail --pid="$writer" -f /dev/null
	wait "$writer"
	same "$dev" "$scratch/new"
	resume
	eventually is_closed
}

# A write and an image read wait for the origin.
origin_silent()
{
	local dev image writer reader

	silent "$SIZE"
	# device-mapper holds back what comes to a suspended device itself.
	dm_linear blksnap-over "$REPLY" 0 $((SIZE << 11)); dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/new"
	snapshot_of "$dev"
	image=$(image_of "$dev")
	suspend
	put direct 0 65536 "$dev" "$scratch/new" &
	writer=$!
	dd if="$image" of=/dev/null bs=4096 count=1 skip=512 iflag=direct 2>"$scratch/reader" &
	reader=$!
	eventually is_parked
	destroy_in_time
	resume
	wait "$writer"
	# What it gets is the content or an error.
	wait "$reader" || grep -q 'Input/output error' "$scratch/reader"
	same "$dev" "$scratch/new"
	ctl detach "$dev"
	dm_remove blksnap-over
	eventually is_closed
}

# What ext4 puts into its journal goes by way of the page cache: only who waits for it to
# be written is told of errors.
cached_storage_failing()
{
	local dev image under storage

	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/old"
	cp "$scratch/old" "$scratch/new"
	null_blk 64; under=$REPLY
	dm_linear blksnap-storage "$under" 0 $((64 << 11)); storage=$REPLY
	make_fs ext4 "$storage"
	mounted "$storage" -o data=journal
	: >"$REPLY/storage"
	attach "$dev"
	create "$REPLY/storage" 16384
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	image=$(image_of "$dev")
	put direct 0 65536 "$dev" "$scratch/new"
	same "$image" "$scratch/old"
	fail_storage 64
	put direct 65536 $((1 << 20)) "$dev" "$scratch/new"
	same "$dev" "$scratch/new"
	eventually fails "$dev"
	expect EIO ctl same "$image" "$scratch/old"
	destroy_soon
}

fails()
{
	[ "$(error_of "$1")" -lt 0 ]
}

unloading()
{
	local dev

	is_module || skip "the driver is built in"
	null_blk 1; dev=$REPLY
	attach "$dev"
	expect_in_use
	take "$dev"
	expect_in_use
	ctl destroy "$snapshot"
	expect_in_use
	ctl detach "$dev"
	rmmod blksnap
	[ ! -e /dev/blksnap-control ]
	put direct 0 4096 "$dev"
	load
	expect ENOENT ctl detach "$dev"
	attach "$dev"
}

expect_in_use()
{
	if rmmod blksnap 2>/dev/null; then
		wrong "the module was unloaded while it was in use"
		load
	fi
}

# owned COUNT: snapshots that end with the process $owner and the one that it forked,
# $other; the first one is of $dev; their ids in $ids
owned()
{
	local line

	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/old"
	attach "$dev"
	: >"$scratch/owned"
	blksnap_ctl own "$1" "$scratch" 65536 "$dev" >"$scratch/owned" &
	owner=$!
	undo stop "$owner"
	eventually test -s "$scratch/owned"
	read -r other line <"$scratch/owned"
	undo stop "$other"
	read -ra ids <<<"$line"
	equal "$1" "${#ids[@]}" "the snapshots"
}

is_gone()
{
	! ctl collect | grep -q "$1"
}

owner_killed()
{
	local dev image owner other ids

	owned 2
	image=$(image_of "$dev")
	put direct 0 65536 "$dev"
	same "$image" "$scratch/old"
	read_on "$image" 2>/dev/null &
	undo stop $!
	exec 7<"$image"
	# They stay as long as a process has the file.
	kill -KILL "$owner"
	wait "$owner" 2>/dev/null || true
	put direct 65536 65536 "$dev"
	same "$image" "$scratch/old"
	equal "${ids[*]}" "$(ctl collect | xargs)" "the snapshots"
	if is_module && rmmod blksnap 2>/dev/null; then
		wrong "the module was unloaded with its file open"
		load
	fi
	kill -KILL "$other"
	eventually is_gone "${ids[0]}"
	eventually is_gone "${ids[1]}"
	eventually test ! -e "$image"
	equal 0 "$(head -c 4096 2>/dev/null <&7 | wc -c)" "bytes of the image"
	exec 7<&-
	put direct 0 65536 "$dev"
	# And the device is free for the next one.
	take "$dev"
	image_of "$dev"
}

owner_of_destroyed()
{
	local dev owner other ids i

	owned 8
	# Which stays, as its owner is nobody.
	new_storage
	create "$storage" 2048
	for i in 0 3; do
		ctl destroy "${ids[i]}"
		expect ENODEV ctl destroy "${ids[i]}"
	done
	kill -KILL "$owner" "$other"
	for i in 1 2 4 5 6 7; do
		eventually is_gone "${ids[i]}"
	done
	equal "$snapshot" "$(ctl collect)" "the snapshots"
}

# A snapshot without devices does not keep the module, and frees its storage.
unloading_empty()
{
	is_module || skip "the driver is built in"
	new_storage
	ctl create "$storage" 2048
	if rmmod blksnap; then
		load
		dd if=/dev/null of="$storage" conv=notrunc status=none
	fi
	for id in $(ctl collect); do
		ctl destroy "$id"
	done
}

rounds()
{
	local dev i image

	null_blk 2; dev=$REPLY
	filled "$dev" 2 "$scratch/old"
	new_storage
	undo detach "$dev"
	for ((i = 0; i < 20; i++)); do
		ctl attach "$dev"
		create "$storage" 8192
		ctl add "$dev" "$snapshot"
		ctl take "$snapshot"
		image=$(image_of "$dev")
		cp "$scratch/old" "$scratch/then"
		put direct $((i * 65536)) 65536 "$dev" "$scratch/old"
		same "$image" "$scratch/then"
		ctl destroy "$snapshot"
		ctl detach "$dev"
	done
}

# Many at a time
crowd()
{
	local devs=() i

	for i in 0 1 2 3 4 5 6 7; do
		null_blk 1
		devs[i]=$REPLY
		filled "$REPLY" 1 "$scratch/old$i"
	done
	for i in "${devs[@]}"; do
		attach "$i"
	done
	take "${devs[@]}"
	for i in "${devs[@]}"; do
		put direct 0 $((1 << 20)) "$i" &
	done
	wait
	for i in 0 1 2 3 4 5 6 7; do
		same "$(image_of "${devs[i]}")" "$scratch/old$i"
	done
	for i in "${devs[@]}"; do
		equal 0 "$(error_of "$i")" "the snapshot's error"
	done
}

# Everybody at everything, in no order; all that counts is that nothing is left.
chaos()
{
	local dev i id

	null_blk 2; dev=$REPLY
	undo detach "$dev"
	for i in 1 2 3; do
		attach_and_detach &
		take_and_destroy &
		write_all_over &
	done >/dev/null 2>&1
	wait
	for id in $(ctl collect); do
		ctl destroy "$id"
	done
}

attach_and_detach()
{
	local i

	trap - ERR
	set +e
	for ((i = 0; i < 15; i++)); do
		ctl attach "$dev"
		ctl detach "$dev"
	done
}

take_and_destroy()
{
	local i id

	trap - ERR
	set +e
	for ((i = 0; i < 10; i++)); do
		id=$(ctl create "$scratch" 4096)
		ctl attach "$dev"
		ctl add "$dev" "$id"
		ctl take "$id"
		ctl info "$dev"
		ctl destroy "$id"
	done
}

write_all_over()
{
	local i

	for ((i = 0; i < 10; i++)); do
		put direct 0 $((2 << 20)) "$dev"
	done
}

run_cases \
	"destroy while the image is mounted" destroy_mounted \
	"destroy while the image is read" destroy_while_read \
	"destroy while the image is read and the device is written" \
		destroy_while_read_and_written \
	"destroy while the device is written" destroy_while_written \
	"destroy while the image is open" destroy_open \
	"storage that fails" storage_failing \
	"storage in the page cache that fails" cached_storage_failing \
	"storage of two devices that does not answer" storage_silent \
	"storage that does not answer, and writers that wait for it" storage_silent_full \
	"device that does not answer" origin_silent \
	"unloading the module" unloading \
	"unloading it with a snapshot without devices" unloading_empty \
	"snapshots whose owner is killed" owner_killed \
	"snapshots that are destroyed before their owner ends" owner_of_destroyed \
	"20 rounds" rounds \
	"eight devices" crowd \
	"everything at once" chaos
