#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# The change map: what is not in it is missing in a backup.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

# next DEV: takes and destroys a snapshot
next()
{
	take "$@"
	ctl destroy "$snapshot"
}

info()
{
	local dev size block count

	for size in 1 16; do
		null_blk "$size"; dev=$REPLY
		attach "$dev"
		equal "$(size_of "$dev")" "$(cbt "$dev" capacity)" "the capacity"
		block=$(cbt "$dev" block_size)
		count=$(cbt "$dev" block_count)
		[ $((block & (block - 1))) = 0 ]
		[ "$block" -ge 512 ]
		equal $((((size << 20) + block - 1) / block)) "$count" "the number of blocks"
		equal 0 "$(cbt "$dev" number)" "the number of the newest snapshot"
		[ "$(cbt "$dev" generation)" != 00000000-0000-0000-0000-000000000000 ]
		equal "" "$(map "$dev")" "the map"
	done
}

# limit NAME: a module parameter
limit()
{
	cat "/sys/module/blksnap/parameters/tracking_block_$1"
}

# Nobody has to guess the limits, and the smallest block that keeps to them is taken.
limits()
{
	local size min max most block

	min=$((1 << $(limit minimum_shift)))
	max=$((1 << $(limit maximum_shift)))
	most=$(limit maximum_count)
	if (echo 12 >/sys/module/blksnap/parameters/tracking_block_minimum_shift) 2>/dev/null; then
		wrong "a parameter can be written"
	fi
	# 32 TiB have more blocks than that of the smallest size; nothing is written.
	for size in 1 16 33554432; do
		null_blk "$size" memory_backed=0
		attach "$REPLY"
		block=$min
		while [ "$block" -lt "$max" ] && [ $(((size << 20) / block)) -gt "$most" ]; do
			block=$((block * 2))
		done
		equal "$block" "$(cbt "$REPLY" block_size)" "the block of $size MiB"
		ctl detach "$REPLY"
	done
}

marks()
{
	local dev block last generation

	null_blk 16 discard=1; dev=$REPLY
	attach "$dev"
	block=$(cbt "$dev" block_size)
	last=$(($(cbt "$dev" block_count) - 1))
	generation=$(cbt "$dev" generation)
	put direct "$block" 4096 "$dev"
	# What is seen is the map of the newest snapshot, and there was none.
	equal "" "$(map "$dev")" "the map before the first snapshot"
	next "$dev"
	equal 1 "$(cbt "$dev" number)" "the number"
	equal "1:1" "$(map "$dev")" "the map of the first snapshot"

	put direct $((4 * block - 512)) 512 "$dev"
	# Over a border, by one sector on either side
	put direct $((11 * block - 512)) 1024 "$dev"
	put direct $(((last + 1) * block - 512)) 512 "$dev"
	dd if="$dev" of=/dev/null bs="$block" skip=20 count=5 iflag=direct status=none
	equal "1:1" "$(map "$dev")" "the map is frozen"
	next "$dev"
	equal 2 "$(cbt "$dev" number)" "the number"
	equal "1:1 3:2 10:2 11:2 $last:2" "$(map "$dev")" "the second map"

	# One that is held sees nothing of what comes after it.
	take "$dev"
	put direct 0 $((2 * block)) "$dev"
	equal 3 "$(cbt "$dev" number)" "the number"
	equal "1:1 3:2 10:2 11:2 $last:2" "$(map "$dev")" "the third map"
	ctl destroy "$snapshot"
	equal "1:1 3:2 10:2 11:2 $last:2" "$(map "$dev")" "the third map later"
	next "$dev"
	equal "0:4 1:4 3:2 10:2 11:2 $last:2" "$(map "$dev")" "the fourth map"
	equal "$generation" "$(cbt "$dev" generation)" "the generation"

	# A part of the map
	equal "2 0" "$(ctl cbtmap "$dev" 11 2 | tr '\n' ' ' | sed 's/ $//')" "two bytes"
}

# A large disk has fine blocks, and existing clients read the whole map at once.
large_disk()
{
	local dev block blocks=() i

	[ "$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)" -gt $((400 << 10)) ] ||
		skip "no memory for a map of 160 MiB"
	# 10 TiB, of which nothing is stored
	null_blk 10485760 memory_backed=0; dev=$REPLY
	attach "$dev"
	block=$(cbt "$dev" block_size)
	equal 65536 "$block" "the size of a block"
	for i in {0..19}; do
		blocks+=($((i * 8388593 + i)))
		put direct $((blocks[i] * block + 4096)) 4096 "$dev"
	done
	next "$dev"
	equal "$(printf '%d:1 ' "${blocks[@]}" | sed 's/ $//')" "$(map "$dev")" "the map"
	# 64 MiB and a block on either side, most of which are marked together
	ctl cbtdirty "$dev" $(((1 << 31) - 128)):$(((64 << 11) + 256))
	blocks=("$(((1 << 40) / block - 1))" "$((((1 << 40) + (64 << 20)) / block))")
	equal "${blocks[*]} $(((64 << 20) / block + 2))" \
		"$(map "$dev" | tr ' ' '\n' |
			awk -F: -v first="${blocks[0]}" -v last="${blocks[1]}" '
				$1 >= first && $1 <= last { if (!n++) print $1; end = $1 }
				END { print end, n }' | xargs)" "what was marked by hand"
}

# Every operation that changes the media
operations()
{
	local dev block

	null_blk 16 discard=1; dev=$REPLY
	attach "$dev"
	block=$(cbt "$dev" block_size)
	next "$dev"
	put buffered $((2 * block + 12345)) 1 "$dev"
	uncache "$dev"
	put direct,dsync $((4 * block)) 512 "$dev"
	discard "$dev" -o $((6 * block)) -l $((2 * block))
	discard "$dev" -z -o $((10 * block)) -l 4096
	next "$dev"
	equal "2:2 4:2 6:2 7:2 10:2" "$(map "$dev")" "the map"
}

# What a file system writes, and only that, makes the difference.
restored()
{
	local dev where block number offset copy=$scratch/copy

	null_blk 32; dev=$REPLY
	make_fs ext4 "$dev"
	attach "$dev"
	block=$(cbt "$dev" block_size)
	mounted "$dev"; where=$REPLY
	take "$dev"
	copy_of "$(image_of "$dev")" "$copy"
	ctl destroy "$snapshot"
	mkdir "$where/dir"
	: >"$where/dir/file"
	put buffered 100000 1000000 "$where/dir/file"
	take "$dev"
	offset=0
	for number in $(ctl cbtmap "$dev" 0 "$(cbt "$dev" block_count)"); do
		if [ "$number" -gt 1 ]; then
			dd if="$(image_of "$dev")" of="$copy" bs="$block" count=1 \
				skip="$offset" seek="$offset" conv=notrunc status=none
		fi
		offset=$((offset + 1))
	done
	same "$(image_of "$dev")" "$copy"
	[ "$(map "$dev" | tr ' ' '\n' | grep -c ':2$')" -lt $((offset / 2)) ]
}

dirty()
{
	local dev sectors

	null_blk 16; dev=$REPLY
	attach "$dev"
	sectors=$(($(cbt "$dev" block_size) / 512))
	next "$dev"
	next "$dev"
	ctl cbtdirty "$dev" $((5 * sectors)):1 $((8 * sectors - 1)):2 0:0
	# It is in the frozen map, as a change up to the newest snapshot…
	equal "5:2 7:2 8:2" "$(map "$dev")" "the map"
	# … and in the live one, as a change after it.
	next "$dev"
	equal "5:3 7:3 8:3" "$(map "$dev")" "the next map"
	next "$dev"
	equal "5:3 7:3 8:3" "$(map "$dev")" "the map after that"
}

generations()
{
	local dev first

	null_blk 4; dev=$REPLY
	attach "$dev"
	first=$(cbt "$dev" generation)
	next "$dev"
	put direct 0 4096 "$dev"
	next "$dev"
	equal "$first" "$(cbt "$dev" generation)" "the generation"
	ctl detach "$dev"
	put direct 65536 4096 "$dev"
	ctl attach "$dev"
	[ "$(cbt "$dev" generation)" != "$first" ]
	equal 0 "$(cbt "$dev" number)" "the number"
	equal "" "$(map "$dev")" "the map"
}

# takes DEV: the ids of the snapshots in the change map
takes()
{
	ctl cbttakes "$1" | tail -n +2
}

# Each take has an id of its own, which stays what it is.
take_ids()
{
	local dev ids

	null_blk 4; dev=$REPLY
	attach "$dev"
	equal "" "$(takes "$dev")" "the ids before the first take"
	next "$dev"
	ids=$(takes "$dev")
	equal 1 "$(wc -w <<<"$ids")" "the number of ids"
	next "$dev"
	next "$dev"
	equal "$ids" "$(takes "$dev" | head -1)" "the first id"
	ids=$(takes "$dev")
	equal 3 "$(sort -u <<<"$ids" | wc -w)" "the number of ids"
	# Random ones: version 4
	equal 3 "$(grep -cE '^.{14}4.{4}[89ab]' <<<"$ids")" "ids of version 4"
	equal "$(cbt "$dev" generation)" "$(ctl cbttakes "$dev" | head -1)" "the generation"
	# They end with the generation.
	ctl detach "$dev"
	ctl attach "$dev"
	equal "" "$(takes "$dev")" "the ids after an attach"
	next "$dev"
	! grep -qF "$(takes "$dev")" <<<"$ids" || wrong "an id has come again"
}

# Two devices in one snapshot: two takes
take_ids_of_two()
{
	local one two

	null_blk 4; one=$REPLY
	null_blk 4; two=$REPLY
	snapshot_of "$one" "$two"
	equal 1 "$(takes "$one" | wc -w)" "the number of ids of the first"
	equal 1 "$(takes "$two" | wc -w)" "the number of ids of the second"
	[ "$(takes "$one")" != "$(takes "$two")" ] || wrong "two devices have one id"
}

# A hypervisor has resumed the virtual machine as a copy. The snapshot that is held stays,
# and so does its map; what comes after it is of another generation.
forked()
{
	local dev image generation before

	[ -e /sys/kernel/debug/blksnap/vm_forked ] || skip "no CONFIG_BLKSNAP_DEBUG"
	null_blk 16; dev=$REPLY
	filled "$dev" 16 "$scratch/old"
	attach "$dev"
	next "$dev"
	put direct 65536 4096 "$dev"
	copy_of "$dev" "$scratch/old"
	take "$dev"
	image=$(image_of "$dev")
	before="$(ctl cbtinfo "$dev") $(ctl cbttakes "$dev") $(map "$dev")"
	generation=$(cbt "$dev" generation)
	echo 1 >/sys/kernel/debug/blksnap/vm_forked
	put direct 0 $((1 << 20)) "$dev"
	same "$image" "$scratch/old"
	equal 0 "$(ctl info "$dev" | sed -n 's/^error //p')" "the error"
	equal "$before" "$(ctl cbtinfo "$dev") $(ctl cbttakes "$dev") $(map "$dev")" \
		"what was frozen"
	ctl destroy "$snapshot"
	next "$dev"
	[ "$(cbt "$dev" generation)" != "$generation" ] || wrong "the generation goes on"
	equal 1 "$(cbt "$dev" number)" "the number"
	equal 1 "$(takes "$dev" | wc -w)" "the number of ids"
	# From then on all goes on.
	generation=$(cbt "$dev" generation)
	put direct 131072 4096 "$dev"
	next "$dev"
	equal "$generation" "$(cbt "$dev" generation)" "the generation"
	equal "2:2" "$(map "$dev")" "the map"
	# All devices are concerned, be they attached after it or not.
	echo 1 >/sys/kernel/debug/blksnap/vm_forked
	next "$dev"
	[ "$(cbt "$dev" generation)" != "$generation" ] || wrong "the generation goes on"
}

# What is written by way of multipath is not seen, so nothing goes on.
request_based()
{
	local dev path generation

	# Not null_blk, whose driver may sleep, which device-mapper does not know of.
	scsi_disk 4; dev=$REPLY
	filled "$dev" 4 "$scratch/old"
	dm blksnap-path "0 8192 multipath 0 0 1 1 round-robin 0 1 1 $dev 1000"; path=$REPLY
	attach "$dev"
	next "$dev"
	generation=$(cbt "$dev" generation)
	take "$dev"
	dd if="$path" of=/dev/null bs=1M iflag=direct status=none
	equal 0 "$(error_of "$dev")" "the error after a read"
	put direct 65536 4096 "$path"
	equal -116 "$(error_of "$dev")" "the error after a write"
	ctl destroy "$snapshot"
	next "$dev"
	[ "$(cbt "$dev" generation)" != "$generation" ] || wrong "the generation goes on"
}

# Nor is what SG_IO writes.
passthrough()
{
	local disk dev generation

	need sfdisk
	scsi_disk 4 lbpu=1; disk=$REPLY dev=${REPLY}1
	sfdisk -q "$disk" <<<"2048,"
	undo wipefs -qaf "$disk"
	eventually test -b "$dev"
	attach "$disk"
	attach "$dev"
	next "$disk"
	generation=$(cbt "$disk" generation)
	take "$disk" "$dev"
	# INQUIRY
	ctl scsi "$disk" in 120000002400 zero:36
	equal 0 "$(error_of "$disk")" "the error after a command that reads"
	# WRITE(10)
	ctl scsi "$disk" out 2a000000100000000800 zero:4096
	equal -116 "$(error_of "$disk")" "the disk's error after a command that writes"
	equal -116 "$(error_of "$dev")" "the partition's error"
	ctl destroy "$snapshot"
	next "$disk"
	[ "$(cbt "$disk" generation)" != "$generation" ] || wrong "the generation goes on"
	next "$dev"
	generation=$(cbt "$dev" generation)
	# UNMAP, by way of the partition
	ctl scsi "$dev" out 42000000000000001800 \
		001600100000000000000000000010000000000800000000
	next "$dev"
	[ "$(cbt "$dev" generation)" != "$generation" ] || wrong "the generation goes on"
}

passthrough_nvme()
{
	local dev generation

	nvme N 4; dev=$REPLY
	attach "$dev"
	next "$dev"
	generation=$(cbt "$dev" generation)
	take "$dev"
	# Read
	ctl nvme "$dev" 2 128 zero:4096
	equal 0 "$(error_of "$dev")" "the error after a command that reads"
	# Write
	ctl nvme "$dev" 1 128 zero:4096
	equal -116 "$(error_of "$dev")" "the error after a command that writes"
	ctl destroy "$snapshot"
	next "$dev"
	[ "$(cbt "$dev" generation)" != "$generation" ] || wrong "the generation goes on"
}

# A take that fails does not use up a number.
failed_take()
{
	local dev

	null_blk 4; dev=$REPLY
	attach "$dev"
	next "$dev"
	new_storage
	create "$storage" 2048
	expect ENODATA ctl take "$snapshot"
	ctl add "$dev" "$snapshot"
	ctl destroy "$snapshot"
	equal 1 "$(cbt "$dev" number)" "the number"
	equal 1 "$(takes "$dev" | wc -w)" "the number of ids"
}

# resized DEV: it has just become larger
resized()
{
	local dev=$1

	put direct 0 4096 "$dev"
	put direct $((5 << 20)) 4096 "$dev"
	next "$dev"
	[ "$(cbt "$dev" generation)" != "$generation" ] ||
		wrong "the generation has survived"
	equal 1 "$(cbt "$dev" number)" "the number"
	equal $((8 << 20)) "$(cbt "$dev" capacity)" "the capacity"
	generation=$(cbt "$dev" generation)
	put direct $((7 << 20)) 4096 "$dev"
	next "$dev"
	equal $(((7 << 20) / $(cbt "$dev" block_size))):2 "$(map "$dev")" "the map"
	equal "$generation" "$(cbt "$dev" generation)" "the generation"
}

resize_loop()
{
	local dev file

	loop 4; dev=$REPLY
	file=$(losetup -nO BACK-FILE "$dev")
	attach "$dev"
	next "$dev"
	generation=$(cbt "$dev" generation)
	truncate -s 8M "$file"
	losetup -c "$dev"
	resized "$dev"
}

resize_dm()
{
	local dev under

	null_blk 8; under=$REPLY
	dm_linear blksnap-grow "$under" 0 8192; dev=$REPLY
	attach "$dev"
	next "$dev"
	generation=$(cbt "$dev" generation)
	dmsetup reload blksnap-grow --table "0 16384 linear $under 0"
	dmsetup resume --noudevsync blksnap-grow
	resized "$dev"
}

# The numbers end at 255; no client may mistake what comes then.
rollover()
{
	local dev generation

	null_blk 1; dev=$REPLY
	attach "$dev"
	generation=$(cbt "$dev" generation)
	ctl cycle "$dev" "$scratch" 2048 253
	equal 253 "$(takes "$dev" | sort -u | wc -w)" "the number of ids"
	equal 253 "$(cbt "$dev" number)" "the number"
	put direct 65536 4096 "$dev"
	ctl cycle "$dev" "$scratch" 2048 1
	equal "1:254" "$(map "$dev")" "the map"
	equal "$generation" "$(cbt "$dev" generation)" "the generation"
	equal 254 "$(takes "$dev" | sort -u | wc -w)" "the number of ids"
	put direct 0 4096 "$dev"
	ctl cycle "$dev" "$scratch" 2048 1
	if [ "$(cbt "$dev" generation)" = "$generation" ]; then
		# Then it has to be the last one.
		equal 255 "$(cbt "$dev" number)" "the number"
		equal "0:255 1:254" "$(map "$dev")" "the map"
		ctl cycle "$dev" "$scratch" 2048 1
	fi
	[ "$(cbt "$dev" generation)" != "$generation" ]
	equal 1 "$(cbt "$dev" number)" "the number"
	put direct 131072 4096 "$dev"
	ctl cycle "$dev" "$scratch" 2048 1
	equal 2 "$(cbt "$dev" number)" "the number"
	equal 2 "$(ctl cbtmap "$dev" 2 1)" "the block's number"
}

run_cases \
	"numbers of the map" info \
	"limits of the blocks" limits \
	"writes are marked, and the map is frozen at take" marks \
	"all operations are marked" operations \
	"large disk" large_disk \
	"a copy is brought up to date by the map" restored \
	"blocks that are marked by hand" dirty \
	"generations" generations \
	"each take has an id" take_ids \
	"takes of two devices" take_ids_of_two \
	"virtual machine that was resumed as a copy" forked \
	"writes by way of multipath" request_based \
	"writes by SCSI commands" passthrough \
	"writes by NVMe commands" passthrough_nvme \
	"take that fails" failed_take \
	"resized loop device" resize_loop \
	"resized dm device" resize_dm \
	"numbers that are used up" rollover
