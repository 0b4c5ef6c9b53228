#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# The image is read over and over while the device is written from all sides.
#
# Environment:
#   BLKSNAP_READS  how many image reads are to be overtaken (default: 1000)

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=12

# write_on DEV: until it is killed
write_on()
{
	while :; do
		ctl put direct $((RANDOM % (SIZE * 16) * 65536)) $((512 * (RANDOM % 128 + 1))) "$1"
		ctl put buffered $((RANDOM % (SIZE * 16) * 65536)) $((RANDOM * 2 + 1)) "$1"
	done
}

# writers DEV: starts some, as $pids
writers()
{
	local rw

	pids=()
	if command -v fio >/dev/null; then
		for rw in randwrite write; do
			fio --name="$rw" --filename="$1" --rw="$rw" --direct=1 --ioengine=libaio \
				--iodepth=16 --bsrange=512-64k --size="${SIZE}M" --time_based \
				--runtime=600 --thread >/dev/null 2>&1 &
			pids+=($!)
		done
	else
		write_on "$1" 2>/dev/null &
		pids+=($!)
	fi
	write_on "$1" 2>/dev/null &
	pids+=($!)
	for rw in "${pids[@]}"; do
		undo stop "$rw"
	done
}

# stress DEV ROUNDS
stress()
{
	local dev=$1 rounds=$2 old=$scratch/old round i image

	attach "$dev"
	for ((round = 0; round < rounds; round++)); do
		filled "$dev" "$SIZE" "$old"
		take "$dev"
		image=$(image_of "$dev")
		writers "$dev"
		for i in 1 2 3 4; do
			same "$image" "$old"
		done
		# A writer that is killed in the middle leaves the image right.
		kill -KILL "${pids[@]}"
		wait "${pids[@]}" 2>/dev/null || true
		same "$image" "$old"
		cmp -n $((SIZE << 20)) "$image" "$old"
		if ctl same "$dev" "$old" >/dev/null; then
			wrong "nothing was written"
		fi
		equal 0 "$(error_of "$dev")" "the snapshot's error"
		ctl destroy "$snapshot"
	done
}

on_null_blk()
{
	null_blk "$SIZE" irqmode=2 completion_nsec=100000
	stress "$REPLY" 2
}

on_slow_null_blk()
{
	null_blk "$SIZE" irqmode=2 completion_nsec=3000000
	stress "$REPLY" 1
}

on_brd()
{
	brd "$SIZE"
	stress "$REPLY" 1
}

on_dm()
{
	null_blk "$SIZE" irqmode=2 completion_nsec=100000
	dm_linear blksnap-stress "$REPLY" 0 $((SIZE << 11))
	stress "$REPLY" 2
}

on_loop()
{
	loop "$SIZE"
	stress "$REPLY" 1
}

on_disk()
{
	disk 0
	stress "$REPLY" 1
}

# Takes in the middle of writes: every image is of one moment, however often it is read.
takes()
{
	local dev=$1 round

	attach "$dev"
	filled "$dev" "$SIZE" "$scratch/old"
	writers "$dev"
	for round in 1 2 3; do
		take "$dev"
		copy_of "$(image_of "$dev")" "$scratch/first"
		same "$(image_of "$dev")" "$scratch/first"
		same "$(image_of "$dev")" "$scratch/first"
		ctl destroy "$snapshot"
	done
}

takes_null_blk()
{
	null_blk "$SIZE" irqmode=2 completion_nsec=1000000
	takes "$REPLY"
}

takes_dm()
{
	null_blk "$SIZE" irqmode=2 completion_nsec=1000000
	dm_linear blksnap-takes "$REPLY" 0 $((SIZE << 11))
	takes "$REPLY"
}

# The device has what was written, with all that goes on.
verified()
{
	local dev

	need fio
	null_blk "$SIZE" irqmode=2 completion_nsec=100000; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/old"
	snapshot_of "$dev"
	fio --name=verify --filename="$dev" --rw=randwrite --direct=1 --ioengine=libaio \
		--iodepth=32 --bs=4k --size="${SIZE}M" --verify=crc32c --do_verify=1 \
		--verify_state_save=0 --verify_fatal=1 >"$scratch/fio" 2>&1 &
	same "$(image_of "$dev")" "$scratch/old"
	wait $! || { cat "$scratch/fio"; false; }
	same "$(image_of "$dev")" "$scratch/old"
}

# overtaking COUNT: image reads until writes have overtaken so many on the device; what
# was wrong is in $wrong, the reads that were done over in $repeated
overtaking()
{
	# On an idle machine every other is, on a busy and slow one fewer than every fourth: the
	# write comes too late, or what is read was copied ahead. There is memory for that many.
	local dev image queue mebibytes=$((($1 > 2000 ? 4 : 8) * $1 * 16 / 1024 + 1)) figures
	local room=$((mebibytes * 2048))

	# Slower than the machine submits
	null_blk "$mebibytes" irqmode=2 completion_nsec=$((STALL * 200000)) hw_queue_depth=1 \
		submit_queues=1
	dev=$REPLY queue=/sys/block/${dev#/dev/}/queue
	# They are filled faster without.
	filled "$dev" "$mebibytes" "$scratch/old"
	echo mq-deadline 2>/dev/null >"$queue/scheduler" || skip "no mq-deadline"
	echo 64 >"$queue/nr_requests"
	snapshot_of "$dev"
	image=$(image_of "$dev")
	figures=$(blksnap_ctl overtake "$image" "$dev" "$scratch/old" "$1")
	wrong=$(sed -n 's/^wrong //p' <<<"$figures")
	repeated=$(figure "$image" image_reads_repeated)
	result "$(tr '\n' ' ' <<<"$figures")done over $repeated"
	if [ "$wrong" = 0 ]; then
		same "$image" "$scratch/old"
	fi
	equal 0 "$(error_of "$dev")" "the snapshot's error"
}

debug=/sys/kernel/debug/blksnap

overtaken()
{
	local wrong repeated

	[ -d "$debug" ] || skip "no debugfs"
	overtaking "${BLKSNAP_READS:-1000}"
	equal 0 "$wrong" "wrong reads"
	[ "$repeated" -ge $((${BLKSNAP_READS:-1000} / 2)) ]
}

trust_reads()
{
	echo "$1" >"$debug/trust_reads"
}

# The same has to fail if the driver does not look.
overtaken_unnoticed()
{
	local wrong repeated

	[ -e "$debug/trust_reads" ] || skip "no BLKSNAP_DEBUG"
	undo trust_reads 0
	trust_reads 1
	overtaking 100
	[ "$wrong" -gt 0 ]
	equal 0 "$repeated" "reads done over"
}

# A storage that is too small, while all of that goes on
overflow()
{
	local dev

	null_blk "$SIZE" irqmode=2 completion_nsec=100000; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/old"
	attach "$dev"
	new_storage
	create "$storage" 4096
	ctl add "$dev" "$snapshot"
	ctl take "$snapshot"
	writers "$dev"
	# Until it breaks, it is right.
	while ctl same "$(image_of "$dev")" "$scratch/old" >"$scratch/result" 2>&1; do
		:
	done
	grep -qx EIO "$scratch/result"
	equal -28 "$(error_of "$dev")" "the snapshot's error"
	timeout 30 blksnap_ctl destroy "$snapshot"
	put direct 0 4096 "$dev"
}

# shares SHIFT: hardly any memory for copies, which writers and a worker want at once
shares()
{
	local size=64 dev

	need fio
	reloaded copy_memory=1 chunk_minimum_shift="$1"
	null_blk "$size" irqmode=2 completion_nsec=1000000; dev=$REPLY
	filled "$dev" "$size" "$scratch/old"
	room=$((size * 4096)) snapshot_of "$dev"
	timeout 120 fio --filename="$dev" --size="${size}M" --direct=1 --ioengine=libaio \
		--name=small --rw=randwrite --bs=4k --iodepth=32 --io_size=16M \
		--name=large --rw=write --bs=3m --iodepth=4 >"$scratch/fio" 2>&1 ||
		{ cat "$scratch/fio"; false; }
	same "$(image_of "$dev")" "$scratch/old"
	equal 0 "$(error_of "$dev")" "the snapshot's error"
	timeout 30 blksnap_ctl destroy "$snapshot"
}

run_cases \
	"null_blk" on_null_blk \
	"null_blk that takes its time" on_slow_null_blk \
	"brd" on_brd \
	"dm-linear" on_dm \
	"loop" on_loop \
	"spare disk" on_disk \
	"takes while null_blk is written" takes_null_blk \
	"takes while dm is written" takes_dm \
	"the device has what was written" verified \
	"image reads that are overtaken" overtaken \
	"image reads that are overtaken, and nobody looks" overtaken_unnoticed \
	"memory for one copy" "shares 20" \
	"memory for small copies" "shares 12" \
	"overflow" overflow
