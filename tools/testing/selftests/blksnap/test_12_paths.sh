#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# shellcheck disable=SC2317,SC2329
#
# Every path to the sectors counts, on every kind of device and for every kind of write:
# a filter on a disk sees what is written through its partitions, one on a partition what
# is written through the disk.

# shellcheck source=blksnap_lib.sh
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

# In KiB. Of the disk's two partitions the second begins where the first ends, and not
# where a chunk of the disk does.
readonly SIZE=2048 ONE=68 TWO=1092 END=1604

# "try" is without waiting, unless that is refused. It is the first because such a write must
# not be split: what is written becomes longer with each turn.
readonly WAYS="direct,try direct buffered direct,dsync direct,uring discard zeroes"

# ranges TURN: what is written, in KiB. From in front of the first partition into it,
# inside of it, and over its end into the second one; with each turn there are chunks that
# are not saved yet.
ranges()
{
	local more=$((24 * $1))

	echo $((ONE - 8)) $((ONE + more))
	echo $((ONE + 340 + more)) $((ONE + 360 + more))
	echo $((TWO - more)) $((TWO + more))
}

# The origins; $REPLY is the disk

on_null_blk()
{
	null_blk $((SIZE >> 10)) discard=1 fua=1 cache_size=1
}

on_brd()
{
	brd $((SIZE >> 10))
}

on_loop()
{
	loop $((SIZE >> 10)) --partscan
}

# On a device with a command for zeroes, if there is one
on_dm()
{
	if [ -n "${BLKSNAP_DISKS:-}" ]; then
		disk 0
	else
		null_blk $((SIZE >> 10)) discard=1
	fi
	dm_linear blksnap-paths "$REPLY" 0 $((SIZE << 1))
}

on_md()
{
	local one

	null_blk $((SIZE >> 10)) discard=1; one=$REPLY
	null_blk $((SIZE >> 10)) discard=1
	md_array raid1 "$one" "$REPLY"
}

on_spare()
{
	disk 0
	undo wipefs -qaf "$REPLY"
}

# Makes the partitions $one and $two of $disk.
partition()
{
	need sfdisk
	printf '%u,%u\n' $((ONE << 1)) $(((TWO - ONE) << 1)) \
		$((TWO << 1)) $(((END - TWO) << 1)) | sfdisk -q "$disk"
	one=$disk
	[[ $disk != *[0-9] ]] || one+=p
	two=${one}2 one+=1
	eventually test -b "$two"
}

# beginning_of DEV COPY: what is used of it; a spare disk is larger
beginning_of()
{
	dd if="$1" of="$2" bs=64k count=$((SIZE >> 6)) iflag=direct status=none
}

# check ORIGIN FILTER: the disk, its first partition or both are in a snapshot
check()
{
	local disk one='' two='' ways='' devs images=() way i

	if [ "$1" = dm ] && [ "$2" != disk ]; then
		skip "disks of device-mapper have no partitions"
	fi
	"on_$1"; disk=$REPLY
	put direct $((4 << 10)) $(((SIZE - 4) << 10)) "$disk"
	[ "$1" = dm ] || partition
	case $2 in
	disk)	devs=("$disk") ;;
	one)	devs=("$one") ;;
	both)	devs=("$one" "$two") ;;
	esac

	# shellcheck disable=SC2086
	ctl can "$disk" $((ONE << 10)) $WAYS >"$scratch/ways"
	for way in $WAYS; do
		if grep -qx "$way" "$scratch/ways"; then
			ways+=" $way"
		else
			echo "# $1, $2: no $way on this device" >&3
		fi
	done
	beginning_of "$disk" "$scratch/new"
	for i in "${!devs[@]}"; do
		beginning_of "${devs[i]}" "$scratch/old$i"
	done
	snapshot_of "${devs[@]}"
	for i in "${devs[@]}"; do
		images+=("$(image_of "$i")")
	done
	rows | ctl run
}

# Prints the commands of all rows.
rows()
{
	local way turn=0

	for way in $ways; do
		row "$way" "$disk" 0 $SIZE
		[ -z "$one" ] || row "$way" "$one" $ONE $TWO
	done
}

# row WAY PATH FIRST LAST: writes through $path, which has these KiB of the disk
row()
{
	local from to put i

	turn=$((turn + 1))
	echo "# $1, through $2:"
	while read -r from to; do
		from=$((from > $3 ? from : $3))
		to=$((to < $4 ? to : $4))
		put="$(((from - $3) << 10)):$((from << 10)) $(((to - from) << 10)) $2 $scratch/new"
		echo "put $1 $put"
		# It is saved now, so there is nothing to wait for.
		[ "$1" != direct,try ] || echo "put direct,nowait $put"
	done < <(ranges "$turn")
	[ "$1" != buffered ] || echo "uncache $2"
	echo "same $disk $scratch/new"
	for i in "${!images[@]}"; do
		echo "same ${images[i]} $scratch/old$i"
	done
}

# For what the cases have to say besides their results
exec 3>&1

cases=()
for origin in null_blk brd loop dm md spare; do
	cases+=("$origin: snapshot of the disk" "check $origin disk")
	cases+=("$origin: snapshot of a partition" "check $origin one")
	cases+=("$origin: snapshot of two partitions" "check $origin both")
done
run_cases "${cases[@]}"
