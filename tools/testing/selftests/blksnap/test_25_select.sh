#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck disable=SC2317,SC2329
#
# Snapshots of what has changed since an earlier one: all of that is right, and all else is an
# error.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

# Of a block, and of what it is made of
BLOCK=65536

# newest DEV: the id of its newest snapshot
newest()
{
	ctl cbttakes "$1" | tail -n 1
}

# take_selected TAKE_ID DEV: what has changed since that snapshot
take_selected()
{
	new_storage
	create "$storage" "$ROOM"
	ctl add "$2" "$snapshot"
	ctl select "$2" "$1"
	ctl take "$snapshot"
	step
}

# based MEBIBYTES: $dev with a first snapshot, which is $since, and blocks that were written since:
# 3, 4, 20 to 36, and the last one; $scratch/old is the device
based()
{
	null_blk "$1"; dev=$REPLY
	filled "$dev" "$1" "$scratch/old"
	attach "$dev"
	take "$dev"
	ctl destroy "$snapshot"
	since=$(newest "$dev")
	last=$((($1 << 20) / BLOCK - 1))
	put direct $((4 * BLOCK - 512)) 1024 "$dev"
	put direct $((20 * BLOCK)) $((17 * BLOCK)) "$dev"
	put direct $((last * BLOCK)) 512 "$dev"
	copy_of "$dev" "$scratch/old"
}

# has DEV FIRST [COUNT]: the image has blocks, and they are right
has()
{
	dd if="$(image_of "$1")" bs=$BLOCK skip="$2" count="${3:-1}" iflag=direct status=none \
		of="$scratch/part"
	cmp -n $((${3:-1} * BLOCK)) "$scratch/part" "$scratch/old" 0 $(($2 * BLOCK))
	# By way of the page cache, which reads ahead elsewhere
	dd if="$(image_of "$1")" bs=4K skip=$(($2 * BLOCK / 4096)) \
		count=$((${3:-1} * BLOCK / 4096)) status=none >"$scratch/part"
	cmp -n $((${3:-1} * BLOCK)) "$scratch/part" "$scratch/old" 0 $(($2 * BLOCK))
}

# lacks DEV OFFSET BYTES: reading them is the error that is defined
lacks()
{
	local message

	message=$(dd if="$(image_of "$1")" of=/dev/null bs="$3" count=1 skip="$2" \
		iflag=direct,skip_bytes,fullblock 2>&1) && wrong "offset $2: it can be read"
	[[ $message == *"No data available"* ]] || wrong "offset $2: $message"
	# By way of the page cache
	message=$(dd if="$(image_of "$1")" of=/dev/null bs="$3" count=1 skip="$2" \
		iflag=skip_bytes,fullblock 2>&1) && wrong "offset $2: it can be read"
	[[ $message == *"Input/output error"* ]] || wrong "offset $2, page cache: $message"
}

only_changes()
{
	local dev since last

	based 32
	take_selected "$since" "$dev"
	equal 0 "$(error_of "$dev")" "the error"
	look()
	{
		has "$dev" 3 2
		has "$dev" 20 17
		has "$dev" "$last"
		lacks "$dev" 0 4096
		lacks "$dev" $((2 * BLOCK)) $BLOCK
		lacks "$dev" $((5 * BLOCK)) 512
		lacks "$dev" $((37 * BLOCK)) 4096
		# Where only a part of it is there
		lacks "$dev" $((19 * BLOCK)) $((2 * BLOCK))
		lacks "$dev" $((36 * BLOCK)) $((2 * BLOCK))
		lacks "$dev" 0 $((4 << 20))
		lacks "$dev" $(((last - 1) * BLOCK)) $((2 * BLOCK))
	}
	look
	put direct 0 $((3 * BLOCK)) "$dev"
	put direct $((6 * BLOCK)) $((10 * BLOCK)) "$dev"
	put direct $((40 * BLOCK)) $((8 << 20)) "$dev"
	equal 0 "$(space used)" "what was stored of blocks that are not selected"
	look
	# Both kinds at once, and in parts of blocks
	put direct $((2 * BLOCK + 4096)) $((3 * BLOCK)) "$dev"
	put direct $((36 * BLOCK + 4096)) $BLOCK "$dev"
	put buffered $((25 * BLOCK + 100)) 10000 "$dev"
	uncache "$dev"
	put direct $((last * BLOCK)) $BLOCK "$dev"
	look
	put direct 0 $((32 << 20)) "$dev"
	look
	eventually used_at_least $((20 * BLOCK / 512))
	look
	equal 0 "$(error_of "$dev")" "the error"
	ctl destroy "$snapshot"

	# Nothing is missing in the next one.
	take "$dev"
	equal $((last + 1)) "$(map "$dev" | wc -w)" "the blocks of the map"
}

# sums: of the blocks of the image of $dev in $scratch/blocks
sums()
{
	local block image

	image=$(image_of "$dev")
	while read -r block; do
		dd if="$image" bs=$BLOCK skip="$block" count=1 iflag=direct status=none || return 1
	done <"$scratch/blocks" | sha256sum
}

# While writers are busy
busy()
{
	local dev since last number before i

	based 8
	background fio --name=busy --filename="$dev" --rw=randwrite --bs=4k --direct=1 \
		--iodepth=16 --ioengine=libaio --size=8M --time_based --runtime=600 \
		--output="$scratch/fio"
	for i in 1 2 3; do
		sleep 0.3
		take_selected "$(newest "$dev")" "$dev"
		number=$(cbt "$dev" number)
		map "$dev" | tr ' ' '\n' | sed -n "s/:$number$//p" | shuf -n 12 >"$scratch/blocks"
		[ -s "$scratch/blocks" ]
		before=$(sums)
		sleep 0.3
		equal "$before" "$(sums)" "what was selected"
		equal 0 "$(error_of "$dev")" "the error"
		ctl destroy "$snapshot"
	done
}

refused()
{
	local dev since last

	based 16
	expect ESRCH ctl select "$dev" "$since"
	new_storage
	create "$storage" "$ROOM"
	expect ESRCH ctl select "$dev" "$since"
	ctl add "$dev" "$snapshot"
	expect ESTALE ctl select "$dev" 01234567-89ab-4cde-8f01-23456789abcd
	# What a take has that failed
	expect ESTALE ctl select "$dev" 00000000-0000-0000-0000-000000000000
	expect EINVAL ctl select "$dev" "$since" 1
	expect EINVAL ctl select "$dev" "$since" 0 16
	expect EINVAL ctl select "$dev" "$since" $((1 << 32))
	expect E2BIG ctl select "$dev" "$since" 0 32 1
	# What nobody knows yet is 0. The last one counts.
	ctl select "$dev" "$since" 0 32
	ctl take "$snapshot"
	expect EBUSY ctl select "$dev" "$since"
	has "$dev" 3 2
	lacks "$dev" 0 4096
	ctl destroy "$snapshot"
	expect ESRCH ctl select "$dev" "$since"
	# It was for that snapshot.
	copy_of "$dev" "$scratch/old"
	take "$dev"
	put direct 0 $((1 << 20)) "$dev"
	same "$(image_of "$dev")" "$scratch/old"
}

# What is copied is what can be read, also ahead of sequential writes.
copied()
{
	local dev since image block

	null_blk 32; dev=$REPLY
	filled "$dev" 32 "$scratch/old"
	attach "$dev"
	take "$dev"
	ctl destroy "$snapshot"
	since=$(newest "$dev")
	# Two blocks of 32
	for block in {0..511..32}; do
		put direct $((block * BLOCK)) $((2 * BLOCK)) "$dev"
	done
	copy_of "$dev" "$scratch/old"
	take_selected "$since" "$dev"
	image=$(image_of "$dev")
	dd if=/dev/zero of="$dev" bs=64K count=512 oflag=direct status=none
	eventually figure_is "${image#/dev/}" stored_bytes $((32 * BLOCK))
	for block in {0..511..32}; do
		has "$dev" "$block" 2
		lacks "$dev" $(((block + 2) * BLOCK)) 4096
	done
}

# If it is not known what has changed, the image has everything.
another_generation()
{
	local dev since last

	[ -e /sys/kernel/debug/blksnap/vm_forked ] || skip "no CONFIG_BLKSNAP_DEBUG"
	based 16
	new_storage
	create "$storage" "$ROOM"
	ctl add "$dev" "$snapshot"
	ctl select "$dev" "$since"
	echo 1 >/sys/kernel/debug/blksnap/vm_forked
	ctl take "$snapshot"
	equal 1 "$(cbt "$dev" number)" "the number"
	put direct 0 $((2 << 20)) "$dev"
	same "$(image_of "$dev")" "$scratch/old"
}

# What is marked by hand later is not in the image, whose blocks may have passed.
dirty_later()
{
	local dev since last

	based 16
	take_selected "$since" "$dev"
	put direct 0 4096 "$dev"
	ctl cbtdirty "$dev" 0:8 $((10 * BLOCK / 512)):8 $((3 * BLOCK / 512)):8
	expect ERANGE ctl cbtdirty "$dev" $((1 << 40)):8
	lacks "$dev" 0 4096
	lacks "$dev" $((10 * BLOCK)) 4096
	has "$dev" 3 2
	ctl destroy "$snapshot"
	take "$dev"
	for block in 0 3 10; do
		equal 3 "$(ctl cbtmap "$dev" "$block" 1)" "the number of block $block"
	done
}

run_cases \
	"only what has changed can be read" only_changes \
	"busy device" busy \
	"only what can be read is copied" copied \
	"ids, lengths and moments that are refused" refused \
	"generation that has ended" another_generation \
	"blocks that are marked by hand later" dirty_later
