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

# MiB
declare -rA SIZES=([ext4]=64 [xfs]=96)
readonly KINDS=(ext4 xfs)

# By kind of file system: where it is, where that is mounted, and what it is restored to
declare -A devices=() places=() targets=()

# Where backups, storages and copies of images go
work=''

set_up()
{
	local disk kind=0 each

	need mkfs.ext4 mkfs.xfs sfdisk qemu-img python3
	for each in "${KINDS[@]}"; do
		disk "$kind"; disk=$REPLY
		kind=$((kind + 1))
		printf ',%uM\n,%uM\n' "${SIZES[$each]}" "${SIZES[$each]}" | sfdisk -q "$disk"
		undo wipefs -qaf "$disk"
		eventually test -b "${disk}2"
		devices[$each]=${disk}1
		targets[$each]=${disk}2
		make_"$each" "${disk}1"
		mounted "${disk}1"
		places[$each]=$REPLY
		# What backups but the first need not have
		head -c 16M /dev/urandom >"$REPLY/still"
		undo detach "${disk}1"
	done
	disk 2
	make_fs xfs "$REPLY"
	mounted "$REPLY"
	work=$REPLY
}

make_ext4()
{
	make_fs ext4 "$1"
}

# The tools do not want it so small, the kernel does not mind.
make_xfs()
{
	mkfs.xfs -qf --unsupported "$1"
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

# back_up POINT ARGUMENT...: in the background; its process is in $!. With what it reads to check
# the change tracking it takes at least half a second for each device, so that it can be stopped.
back_up()
{
	command blksnap backup --json "${devices[@]}" --to "$work/backup" --store "$work" \
		--bandwidth 32M "${@:2}" >"$scratch/report.$1" 2>"$scratch/error" &
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
	both copy_image "$point"
	begin=$((begin + $(milliseconds) - stopped))
	kill -CONT "$pid"
	wait "$pid" || status=$?
	[ "$status" = 0 ] || { cat "$scratch/error"; return "$status"; }
	tell "$point" $(($(milliseconds) - begin))
}

# both FUNCTION POINT: at once
both()
{
	local kind pids=() pid

	for kind in "${KINDS[@]}"; do
		"$1" "$kind" "$2" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do
		wait "$pid"
	done
	step
}

copy_image()
{
	local image copy=$work/$1.$2

	image=$(image_of "${devices[$1]}")
	dd if="$image" of="$copy" bs=1M iflag=direct conv=sparse status=none
	# The end may be a hole.
	truncate -s "${SIZES[$1]}M" "$copy"
	[ "$(error_of "${devices[$1]}")" = 0 ]
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
	local point=$1 kind

	# As a new disk would be
	for kind in "${KINDS[@]}"; do
		discard "${targets[$kind]}"
	done
	blksnap restore "$work/backup" --point "$point" "${devices[ext4]}=${targets[ext4]}" \
		"${devices[xfs]}=${targets[xfs]}" --overwrite --check >/dev/null
	both is_same "$point"
	for kind in "${KINDS[@]}"; do
		check_"$kind" "${targets[$kind]}"
	done
}

is_same()
{
	[ "$(size_of "${targets[$1]}")" = $((SIZES[$1] << 20)) ]
	same "${targets[$1]}" "$work/$1.$2"
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
