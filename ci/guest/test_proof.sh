#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck disable=SC2016,SC2154,SC2317,SC2329
#
# Incremental backups of an ext4 and an xfs that are written to all the time. Every restore
# point is restored to fresh disks, in the end, and compared byte for byte with the images
# that were held when it was made.
#
# A backup holds its snapshot itself, and no longer than it needs it. So it is stopped by a
# signal as soon as the images are there, until they have been copied.
#
# Environment:
#   BLKSNAP_BACKUPS  how many incremental backups there are (default: 12)

# shellcheck source=/dev/null
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly BACKUPS=${BLKSNAP_BACKUPS:-12}

# MiB. An xfs is not made smaller.
declare -rA SIZES=([ext4]=128 [xfs]=300)
readonly KINDS=(ext4 xfs)

# By kind of file system
declare -A devices=() places=()

# Where backups, storages and copies of images go
work=''

set_up()
{
	local disk kind=0 each

	need mkfs.ext4 mkfs.xfs sfdisk qemu-img python3
	for each in "${KINDS[@]}"; do
		disk "$kind"; disk=$REPLY
		kind=$((kind + 1))
		echo ",${SIZES[$each]}M" | sfdisk -q "$disk"
		undo wipefs -qaf "$disk"
		eventually test -b "${disk}1"
		devices[$each]=${disk}1
		make_fs "$each" "${disk}1"
		mounted "${disk}1"
		places[$each]=$REPLY
		# What backups but the first need not have
		head -c 24M /dev/urandom >"$REPLY/still"
		undo detach "${disk}1"
	done
	disk 2
	make_fs xfs "$REPLY"
	mounted "$REPLY"
	work=$REPLY
}

begin_load()
{
	local roots=() kind

	for kind in "${KINDS[@]}"; do
		roots+=("${places[$kind]}/a" "${places[$kind]}/b")
	done
	"$here/fsload.py" "$SRANDOM" "${roots[@]}" >"$scratch/load" 2>&1 &
	load=$!
	undo stop_load
	for kind in "${KINDS[@]}"; do
		eventually test -d "${places[$kind]}/b"
	done
}

# Not by SIGKILL, which would leave its children.
stop_load()
{
	kill -TERM "$load" 2>/dev/null || return 0
	wait "$load" || { cat "$scratch/load"; return 1; }
}

# back_up POINT ARGUMENT...: in the background; its process is in $!
back_up()
{
	command blksnap backup --json "${devices[@]}" --to "$work/backup" --store "$work" \
		"${@:2}" >"$scratch/report.$1" 2>"$scratch/error" &
}

# A backup, and copies of the images that it was made from
backup_and_copies()
{
	local point=$1 kind begin stopped pid status=0

	begin=$(milliseconds)
	back_up "$point"
	pid=$!
	undo stop "$pid"
	for kind in "${KINDS[@]}"; do
		has_image "${devices[$kind]}" "$pid"
	done
	kill -STOP "$pid"
	stopped=$(milliseconds)
	for kind in "${KINDS[@]}"; do
		dd if="$(image_of "${devices[$kind]}")" of="$work/$kind.$point" bs=64K \
			iflag=direct conv=sparse status=none
		# The end may be a hole.
		truncate -s "${SIZES[$kind]}M" "$work/$kind.$point"
		equal 0 "$(error_of "${devices[$kind]}")" "the error of the $kind"
		step
	done
	begin=$((begin + $(milliseconds) - stopped))
	kill -CONT "$pid"
	wait "$pid" || status=$?
	[ "$status" = 0 ] || { cat "$scratch/error"; return "$status"; }
	tell "$point" $(($(milliseconds) - begin))
}

# has_image DEV PROCESS: waits for it without a pause, as long as there is the process
has_image()
{
	until image_of "$1" >/dev/null 2>&1; do
		kill -0 "$2" || { cat "$scratch/error"; return 1; }
	done
}

milliseconds()
{
	echo $((${EPOCHREALTIME/./} / 1000))
}

# tell POINT MILLISECONDS: a line of the table
tell()
{
	python3 - "$scratch/report.$1" "$work/backup" "$2" <<-'END' >"$scratch/line"
		import json, pathlib, sys
		report = json.load(open(sys.argv[1]))
		point, devices = report["point"], report["devices"]
		files = pathlib.Path(sys.argv[2], f"{point:06}").iterdir()
		mebibytes = [sum(n) / 2**20 for n in (
		    (d["read_bytes"] for d in devices), (f.stat().st_size for f in files))]
		full = all(d["base"] is None for d in devices)
		print(f"{point:5} {'full' if full else 'changes':>8} {int(sys.argv[3]) / 1000:8.1f}"
		      f" {mebibytes[0]:9.1f} {mebibytes[1]:10.1f}")
	END
	result "$(<"$scratch/line")"
}

# A restore point is what the images were, and its file systems are right.
restored()
{
	local point=$1 kind target

	for kind in "${KINDS[@]}"; do
		null_blk "${SIZES[$kind]}"; target=$REPLY
		blksnap restore "$work/backup" --point "$point" "${devices[$kind]}=$target" >/dev/null
		step
		same "$target" "$work/$kind.$point"
		equal $((SIZES[$kind] << 20)) "$(size_of "$target")" "the size"
		check_"$kind" "$target"
		null_blk_remove "$target"
	done
}

check_ext4()
{
	local where

	e2fsck -fn "$1"
	mounted "$1"; where=$REPLY
	[ -d "$where/b" ]
	umount "$where"
}

# Its log is never empty after a freeze; mounting replays it.
check_xfs()
{
	local where

	mounted "$1" -o nouuid; where=$REPLY
	[ -d "$where/b" ]
	umount "$where"
	xfs_repair -n "$1"
}

proof()
{
	local point begin file

	set_up
	begin_load
	result "point     kind  seconds  read MiB  stored MiB"
	for ((point = 1; point <= BACKUPS + 1; point++)); do
		sleep 1
		backup_and_copies "$point"
		kill -0 "$load"
	done
	# Beside them, one of everything
	begin=$(milliseconds)
	back_up "$point" --full
	wait "$!"
	tell "$point" $(($(milliseconds) - begin))
	stop_load
	result "$(awk '{ for (i = 3; i <= NF; i += 2) n += $i } END { print n }' \
		"$scratch/load") operations of the file systems"
	for file in "$work"/backup/*/*.qcow2; do
		qemu-img check -q "$file"
	done
	for ((point = 1; point <= BACKUPS + 1; point++)); do
		restored "$point"
	done
}

run_cases "command: every restore point of two busy file systems" proof
