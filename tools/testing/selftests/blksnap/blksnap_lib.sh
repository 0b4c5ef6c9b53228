# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the tests of blksnap share. A test is made of cases: functions that run_cases
# calls, each in a subshell that ends at the first command that fails, and with a
# description. What a case sets up is taken down after it, in reverse.
#
# Environment:
#   BLKSNAP_DISKS    spare disks, separated by spaces; the tests overwrite them
#   BLKSNAP_MODULES  a directory with blksnap.ko, if modprobe does not find it
#   BLKSNAP_STALL    seconds without progress that are a stall (10; more for slow machines)
#   BLKSNAP_CASES    run only the cases whose description matches this extended regular
#                    expression
#   TMPDIR           where scratch files go; should be in memory

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=/dev/null
. "$here/../kselftest/ktap_helpers.sh"

PATH=$here:$PATH:/usr/sbin:/sbin
export LC_ALL=C
set -o pipefail

# Storages get that many sectors if it does not matter: 64 MiB.
# shellcheck disable=SC2034
readonly ROOM=131072

# Seconds without progress that are a stall
readonly STALL=${BLKSNAP_STALL:-10}

ctl()
{
	blksnap_ctl "$@"
}

#
# Cases
#

# run_cases DESCRIPTION FUNCTION...: a function may have arguments, separated by spaces
run_cases()
{
	local cases=()

	while [ $# -gt 0 ]; do
		[[ ! $1 =~ ${BLKSNAP_CASES:-} ]] || cases+=("$1" "$2")
		shift 2
	done
	[ ${#cases[@]} -gt 0 ] || ktap_exit_fail_msg "no case matches $BLKSNAP_CASES"
	prepare
	ktap_print_header
	ktap_set_plan $((${#cases[@]} / 2))
	set -- "${cases[@]}"
	while [ $# -gt 0 ]; do
		run_case "$1" "$2"
		shift 2
	done
	rm -rf "$scratch"
	ktap_finished
}

# Also ends the test where it cannot run at all.
prepare()
{
	local reason=

	if [ "$(id -u)" != 0 ]; then
		reason="only for root"
	elif ! load; then
		reason="no blksnap in this kernel"
	fi
	if [ -n "$reason" ]; then
		ktap_print_header
		ktap_skip_all "$reason"
		exit "$KSFT_SKIP"
	fi
	scratch=$(mktemp -d "${TMPDIR:-/tmp}/blksnap.XXXXXX") || exit "$KSFT_FAIL"
}

load()
{
	[ -e /dev/blksnap-control ] && return 0
	modprobe -q blksnap 2>/dev/null ||
		insmod "${BLKSNAP_MODULES:-.}/blksnap.ko" 2>/dev/null
	[ -e /dev/blksnap-control ]
}

# Whether the driver is a module, so that it can be unloaded.
is_module()
{
	[ -e /sys/module/blksnap/refcnt ]
}

# Since 1970
milliseconds()
{
	echo $((${EPOCHREALTIME/[.,]/} / 1000))
}

# reloaded PARAMETER=VALUE...: the driver with other parameters, until the case ends
reloaded()
{
	is_module || skip "the driver is built in"
	unload blksnap
	undo load
	undo unload blksnap
	modprobe -q blksnap "$@" || skip "modprobe does not find the driver"
}

run_case()
{
	local description=$1 function=$2 log=$scratch/log status

	rm -f "$scratch/skipped"
	# The log of the kernel tells what belongs to what.
	echo "blksnap test: ${0##*/}: $description" >/dev/kmsg
	(run_in_case "$function") >"$log" 2>&1 </dev/null
	status=$?
	if [ "$status" -eq "$KSFT_SKIP" ] && [ -e "$scratch/skipped" ]; then
		__ktap_test ok "$description" "SKIP $(<"$scratch/skipped")"
		KTAP_CNT_SKIP=$((KTAP_CNT_SKIP + 1))
		return
	fi
	if [ "$status" -eq 0 ]; then
		ktap_test_pass "$description"
	else
		sed 's/^/# /' "$log"
		ktap_test_fail "$description"
	fi
	# Whatever comes now would wait for the same.
	[ ! -e "$scratch/hangs" ] || ktap_exit_fail_msg "tasks hang"
}

run_in_case()
{
	undos=()
	failures=0
	trap end_case EXIT
	trap 'say_where $? "$BASH_COMMAND"' ERR
	set -eE
	# shellcheck disable=SC2086
	$1
}

say_where()
{
	local i

	for ((i = 1; i < ${#BASH_LINENO[@]} - 1; i++)); do
		[[ ${BASH_SOURCE[i]} = *blksnap_lib.sh ]] || break
	done
	echo "${BASH_SOURCE[i]##*/}:${BASH_LINENO[i - 1]}: status $1: $2" >&2
}

end_case()
{
	local status=$? i

	trap - ERR EXIT
	set +eE
	for ((i = ${#undos[@]} - 1; i >= 0; i--)); do
		step
		if ! eval "${undos[i]}"; then
			echo "could not be undone: ${undos[i]}"
			failures=$((failures + 1))
		fi
	done
	for i in $(ctl collect); do
		echo "a snapshot is left: $i"
		failures=$((failures + 1))
		ctl destroy "$i"
	done
	[ "$failures" -eq 0 ] || status=$KSFT_FAIL
	exit "$status"
}

# The case cannot run here.
skip()
{
	echo "$*" >"$scratch/skipped"
	exit "$KSFT_SKIP"
}

need()
{
	local program

	for program; do
		command -v "$program" >/dev/null || skip "no $program"
	done
}

# Remembers a command that takes something down again.
undo()
{
	local command

	printf -v command '%q ' "$@"
	undos+=("$command")
}

# Says that something is wrong; the case goes on, and fails.
wrong()
{
	echo "${BASH_SOURCE[1]##*/}:${BASH_LINENO[0]}: $*"
	failures=$((failures + 1))
}

# log_says REGEX: whether the end of the kernel's log does
log_says()
{
	dmesg | tail -n 20 | grep -q "$1"
}

# How far a case came; in the log of the kernel too, since it is shown only if it fails.
result()
{
	echo "$*"
	echo "blksnap test result: $*" >/dev/kmsg
}

# expect ERROR COMMAND...: the command fails with that error. The case goes on
# where it does not, and fails.
expect()
{
	local want=$1 got

	shift
	step
	if got=$("$@" 2>&1); then
		got="success ($got)"
	fi
	got=${got##*$'\n'}
	if [ "$got" != "$want" ]; then
		printf 'line %u: %.200s: expected %s, got %s\n' \
			"${BASH_LINENO[0]}" "$*" "$want" "$got"
		failures=$((failures + 1))
	fi
}

# equal WANT GOT WHAT
equal()
{
	[ "$1" = "$2" ] && return 0
	echo "line ${BASH_LINENO[0]}: $3: expected $1, got $2"
	failures=$((failures + 1))
}

# Runs a command in the background as long as the case does; its id is in $!.
background()
{
	"$@" &
	undo stop $!
}

stop()
{
	kill -KILL "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}

# From now on the case must make progress: it calls step at least every three times
# $BLKSNAP_STALL seconds, as much of what is below does, and the files
# $scratch/progress.* are written to at least every $BLKSNAP_STALL seconds. Else it says
# where tasks hang, and all ends here: what is stuck in the kernel cannot be killed.
watched()
{
	step
	background watchdog "$BASHPID"
}

step()
{
	: >"$scratch/step"
}

watchdog()
{
	trap - ERR EXIT
	set +eE
	while sleep 1; do
		if stuck "$scratch/step" $((3 * STALL)) ||
			stuck "$scratch"/progress.* "$STALL"; then
			: >"$scratch/hangs"
			where_tasks_hang
			kill -KILL "$1"
			return
		fi
	done
}

# stuck FILE... SECONDS: one of them was not written to for longer than that
stuck()
{
	local seconds=${!#} file when

	for file in "${@:1:$# - 1}"; do
		when=$(stat -c %Y "$file" 2>/dev/null) || continue
		if [ $((EPOCHSECONDS - when)) -gt "$seconds" ]; then
			echo "${file##*/}: no progress for more than $seconds s"
			return 0
		fi
	done
	return 1
}

where_tasks_hang()
{
	local task

	echo w 2>/dev/null >/proc/sysrq-trigger
	for task in /proc/[0-9]*/task/[0-9]*; do
		grep -qs '^State:.D' "$task/status" || continue
		echo "${task##*/} $(<"$task/comm") is in"
		cat "$task/stack"
	done
}

# Tries a command for 10 s.
eventually()
{
	local i

	for ((i = 0; i < 100; i++)); do
		step
		"$@" && return 0
		sleep 0.1
	done
	return 1
}

#
# Devices; $REPLY is the new one
#

next_number=0

# null_blk MEBIBYTES [ATTRIBUTE=VALUE]...
null_blk()
{
	local name=blksnap-test$next_number config=/sys/kernel/config/nullb
	local size=$1 attribute

	next_number=$((next_number + 1))
	shift
	[ -d $config ] || modprobe -q null_blk nr_devices=0 2>/dev/null || true
	mountpoint -q /sys/kernel/config ||
		mount -t configfs configfs /sys/kernel/config 2>/dev/null || true
	[ -d $config ] || skip "no null_blk"
	mkdir "$config/$name"
	undo rmdir "$config/$name"
	for attribute in size="$size" memory_backed=1 "$@"; do
		echo "${attribute#*=}" 2>/dev/null >"$config/$name/${attribute%%=*}" ||
			skip "null_blk does not do $attribute"
	done
	echo 1 >"$config/$name/power"
	REPLY=/dev/$name
}

# scsi_disk MEBIBYTES [PARAMETER=VALUE]...: there is one at a time
scsi_disk()
{
	[ ! -e /sys/module/scsi_debug/refcnt ] || skip "scsi_debug is in use"
	modprobe -q scsi_debug dev_size_mb="$1" "${@:2}" 2>/dev/null || skip "no scsi_debug"
	undo unload scsi_debug
	eventually find_scsi
}

find_scsi()
{
	REPLY=$(echo /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/*)
	REPLY=/dev/${REPLY##*/}
	[ -b "$REPLY" ]
}

# nvme MULTIPATH MEBIBYTES [ATTRIBUTE=VALUE]...: an NVMe namespace on a null_blk; with MULTIPATH Y
# of a controller that may have several paths, and else N. There is one at a time.
nvme()
{
	local config=/sys/kernel/config/nvmet subsystem

	modprobe -q nvme-core multipath="$1" 2>/dev/null || true
	undo unload nvme_core
	undo unload nvme_fabrics
	undo unload nvmet
	modprobe -q nvme-loop 2>/dev/null || skip "no NVMe over loop"
	undo unload nvme_loop
	[ "$(cat /sys/module/nvme_core/parameters/multipath 2>/dev/null)" = "$1" ] ||
		skip "no NVMe with multipath=$1"
	null_blk "${@:2}"
	subsystem=$config/subsystems/blksnap-test
	mkdir "$subsystem" "$subsystem/namespaces/1" "$config/ports/1"
	undo rmdir "$config/ports/1" "$subsystem/namespaces/1" "$subsystem"
	echo 1 >"$subsystem/attr_allow_any_host"
	echo -n "$REPLY" >"$subsystem/namespaces/1/device_path"
	echo 1 >"$subsystem/namespaces/1/enable"
	echo loop >"$config/ports/1/addr_trtype"
	ln -s "$subsystem" "$config/ports/1/subsystems/blksnap-test"
	undo rm "$config/ports/1/subsystems/blksnap-test"
	echo transport=loop,nqn=blksnap-test >/dev/nvme-fabrics
	undo nvme_disconnect
	eventually find_nvme
}

find_nvme()
{
	REPLY=$(find /sys/block -name 'nvme*n*' ! -name 'nvme*c*n*' -printf '/dev/%f\n')
	[ -b "$REPLY" ]
}

nvme_disconnect()
{
	local file

	for file in /sys/class/nvme/nvme*/delete_controller; do
		echo 1 >"$file"
	done
}

# partitioned MEBIBYTES [ATTRIBUTE=VALUE]...: a null_blk disk with two partitions: the
# first a quarter of it, from 1 MiB on, the second from there to the end
partitioned()
{
	local dev

	need sfdisk
	null_blk "$@"; dev=$REPLY
	printf '2048,%u\n%u,\n' $(($1 << 9)) $((2048 + ($1 << 9))) | sfdisk -q "$dev"
	eventually test -b "${dev}p2"
	REPLY=$dev
}

null_blk_remove()
{
	echo 0 >"/sys/kernel/config/nullb/${1#/dev/}/power"
}

# brd MEBIBYTES
brd()
{
	[ -e /sys/module/brd/refcnt ] && skip "brd is in use"
	modprobe -q brd rd_nr=1 rd_size=$(($1 << 10)) 2>/dev/null || skip "no brd"
	undo unload brd
	REPLY=/dev/ram0
}

unload()
{
	[ ! -e "/sys/module/$1" ] || eventually rmmod "$1"
}

# loop MEBIBYTES [OPTION]...: on a file in the scratch directory
loop()
{
	local file

	file=$(mktemp "$scratch/loop.XXXXXX")
	truncate -s "$1M" "$file"
	shift
	undo rm -f "$file"
	loop_on "$file" "$@"
}

# loop_on FILE [OPTION]...
loop_on()
{
	local file=$1

	shift
	REPLY=$(losetup --find --show "$@" "$file") || skip "no loop devices"
	# It may call the file by another name.
	undo loop_remove "$REPLY" "$(losetup -nO BACK-FILE "$REPLY")"
}

loop_remove()
{
	[ "$(losetup -nO BACK-FILE "$1" 2>/dev/null)" != "$2" ] || losetup -d "$1"
}

# dm NAME TABLE
dm()
{
	local target

	need dmsetup
	read -r _ _ target _ <<<"$2"
	dmsetup targets 2>/dev/null | grep -q "^$target " || skip "no dm-$target"
	dmsetup create --noudevsync --verifyudev "$1" <<<"$2"
	undo dm_remove "$1"
	REPLY=/dev/dm-$(dmsetup info -c --noheadings -o minor "$1")
}

dm_remove()
{
	dmsetup info "$1" >/dev/null 2>&1 || return 0
	eventually dmsetup remove --noudevsync "$1"
}

# dm_linear NAME DEV OFFSET SECTORS
dm_linear()
{
	dm "$1" "0 $4 linear $2 $3"
}

# md_array raid0|raid1 DEV DEV: of devices of one size, without metadata
md_array()
{
	local level=$1 number=127 dir dev kib slot=0

	shift
	while [ -e "/sys/block/md$number" ]; do
		number=$((number - 1))
	done
	dir=/sys/block/md$number/md
	modprobe -q md_mod 2>/dev/null || true
	echo "md$number" 2>/dev/null >/sys/module/md_mod/parameters/new_array || skip "no md"
	undo eventually md_remove "$dir"
	echo "$level" 2>/dev/null >"$dir/level" || skip "no $level"
	echo none >"$dir/metadata_version"
	echo $# >"$dir/raid_disks"
	kib=$(($(size_of "$1") >> 10))
	echo "$kib" >"$dir/component_size"
	[ "$level" = raid1 ] || echo 65536 >"$dir/chunk_size"
	# Two copies, next to each other
	[ "$level" != raid10 ] || echo 258 >"$dir/layout"
	for dev; do
		cat "/sys/class/block/${dev#/dev/}/dev" >"$dir/new_dev"
		[ "$level" = raid1 ] || echo "$kib" >"$dir/dev-${dev#/dev/}/size"
		echo $((slot++)) >"$dir/dev-${dev#/dev/}/slot"
	done
	[ "$level" = raid0 ] || echo none >"$dir/resync_start"
	echo active 2>/dev/null >"$dir/array_state" ||
		echo clean 2>/dev/null >"$dir/array_state" || skip "no $level"
	REPLY=/dev/md$number
}

md_remove()
{
	[ ! -e "$1" ] || echo clear 2>/dev/null >"$1/array_state"
}

# disk NUMBER: one of the spare disks, emptied
disk()
{
	local disks

	read -ra disks <<<"${BLKSNAP_DISKS:-}"
	[ "${#disks[@]}" -gt "$1" ] || skip "\$BLKSNAP_DISKS has no disk number $1"
	REPLY=${disks[$1]}
	wipefs -qaf "$REPLY" || skip "no disk $REPLY"
	blockdev --rereadpt "$REPLY"
}

# mounted DEV [OPTION]...: mounts it; $REPLY is where
mounted()
{
	local where

	where=$(mktemp -d "$scratch/mnt.XXXXXX")
	undo rmdir "$where"
	mount "$@" "$where"
	undo unmount "$where"
	REPLY=$where
}

unmount()
{
	! mountpoint -q "$1" || eventually umount "$1" 2>/dev/null
}

# make_fs TYPE DEV...: only a btrfs can have several
make_fs()
{
	need "mkfs.$1"
	case $1 in
	btrfs)	modprobe -q btrfs 2>/dev/null || true
		grep -qw btrfs /proc/filesystems || skip "no btrfs"
		mkfs.btrfs -qf "${@:2}" ;;
	xfs)	mkfs.xfs -qf "$2" ;;
	*)	"mkfs.$1" -qF "${@:2}" ;;
	esac
}

logical_block()
{
	blockdev --getss "$1"
}

size_of()
{
	blockdev --getsize64 "$1"
}

#
# Snapshots
#

attach()
{
	ctl attach "$1"
	undo detach "$1"
}

detach()
{
	local error

	[ -b "$1" ] || return 0
	error=$(ctl detach "$1" 2>&1) || [ "$error" = ENOENT ] ||
		{ echo "detach $1: $error"; return 1; }
}

# create STORAGE SECTORS: the id is in $snapshot
create()
{
	snapshot=$(ctl create "$@")
	undo destroy "$snapshot"
}

destroy()
{
	local error

	error=$(ctl destroy "$1" 2>&1) || [ "$error" = ENODEV ] ||
		{ echo "destroy $1: $error"; return 1; }
}

# A file for the difference storage, in $storage
new_storage()
{
	storage=$(mktemp "$scratch/storage.XXXXXX")
	undo rm -f "$storage"
}

# take DEV...: a snapshot of devices that have the filter already, with $room sectors of storage
take()
{
	local dev

	new_storage
	create "$storage" "${room:-$ROOM}"
	for dev; do
		ctl add "$dev" "$snapshot"
	done
	ctl take "$snapshot"
	step
}

# snapshot_of DEV...: the same of devices without it
snapshot_of()
{
	local dev

	for dev; do
		attach "$dev"
	done
	take "$@"
}

# image_of DEV: its path
image_of()
{
	local name

	name=$(ctl info "$1" | sed -n 's/^image //p')
	[ -n "$name" ] && echo "/dev/$name"
}

# figure IMAGE NAME: what debugfs says of the image's device, or nothing
figure()
{
	local file=/sys/kernel/debug/blksnap/${1#/dev/}

	[ ! -e "$file" ] || sed -n "s/^$2 //p" "$file"
}

# figure_is IMAGE NAME VALUE
figure_is()
{
	[ "$(figure "$1" "$2")" = "$3" ]
}

# error_is DEV ERROR
error_is()
{
	[ "$(error_of "$1")" = "$2" ]
}

# cbt DEV WHAT: of the change map
cbt()
{
	ctl cbtinfo "$1" | sed -n "s/^$2 //p"
}

# map DEV: the blocks that are not 0, as BLOCK:NUMBER
map()
{
	ctl marks "$1"
}

# space WHAT: "total", "used" or "low" of the snapshot's storage, in sectors
space()
{
	ctl space "$snapshot" | sed -n "s/^$1 //p"
}

used_at_least()
{
	[ "$(space used)" -ge "$1" ]
}

left_at_least()
{
	[ $(($(space total) - $(space used))) -ge "$1" ]
}

# Whether the snapshot of $dev is broken
broken()
{
	[ "$(error_of "$dev")" != 0 ]
}

# error_of DEV: what the snapshot says of it
error_of()
{
	ctl info "$1" | sed -n 's/^error //p'
}

#
# Contents
#

# filled DEV MEBIBYTES COPY: writes random bytes to its beginning, and to COPY
filled()
{
	: >"$3"
	ctl fill "$2" "$1" "$3"
	step
}

# copy_of DEV COPY: the whole device
copy_of()
{
	dd if="$1" of="$2" bs=1M iflag=direct status=none
	step
}

# same DEV COPY [OFFSET]: the device has what the file has, from byte OFFSET on. It is
# read past the page cache.
same()
{
	ctl same "$@"
}

# put FLAGS OFFSET BYTES DEV [COPY]: random bytes to the device, and to a copy of it
put()
{
	ctl put "$@"
}

# The maps have memory for each part of a device of this size in which something was saved, 7 KiB.
REGION=$((128 << 20))

# far_writes DEV FIRST END [COPY]: writes 4 KiB to each of these parts, and to COPY
far_writes()
{
	local i

	for ((i = $2; i < $3; i++)); do
		put direct $((i * REGION)) 4096 "$1" "${@:4}"
	done
}

# far_content PATH FIRST END BYTES: what is at the start of these parts
far_content()
{
	local direct=() i

	[ ! -b "$1" ] || direct=(iflag=direct)
	for ((i = $2; i < $3; i++)); do
		dd if="$1" bs="$4" skip=$((i * REGION / $4)) count=1 "${direct[@]}" status=none
	done
}

# discard DEV [OPTION]...: what is in use is no obstacle
discard()
{
	blkdiscard -f "$@" 2>"$scratch/blkdiscard" ||
		{ cat "$scratch/blkdiscard"; return 1; }
}

# What the device says of a queue's limit
limit_of()
{
	cat "/sys/block/${1#/dev/}/queue/$2"
}

# Nothing of the device or its image stays in the page cache.
uncache()
{
	ctl uncache "$@"
}
