#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck disable=SC2016,SC2154,SC2317,SC2329
#
# The blksnap command with the driver: what cargo test can only show with a kernel of files.
# Runs beside the kselftests, whose functions it uses.

# shellcheck source=/dev/null
. "$(dirname "$(readlink -f "$0")")/blksnap_lib.sh"

readonly SIZE=16

blksnap()
{
	step
	command blksnap "$@"
}

# json FILTER FILE: the value of a field, without jq, which may not be there
json()
{
	python3 -c 'import json, sys
value = [json.loads(line) for line in open(sys.argv[2]) if line.strip()]
result = eval(f"({sys.argv[1]},)", {"all": value, "first": value[0] if value else None})
print(*result)' "$@"
}

begin()
{
	null_blk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/old"
	undo detach "$dev"
	blksnap attach "$dev"
	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
}

# created ARGUMENT...: takes a snapshot
created()
{
	snapshot=$(blksnap snap create "$@" "$dev")
	undo destroy "$snapshot"
	blksnap snap take "$snapshot"
	image=$(blksnap snap image "$dev")
}

events()
{
	local follower

	begin
	null_blk 8
	created --store "$REPLY" --low-space 4M
	blksnap snap events "$snapshot" >"$scratch/none"
	equal "" "$(<"$scratch/none")" "the events"
	command blksnap snap events "$snapshot" --follow --json >"$scratch/events" &
	follower=$!
	undo stop "$follower"
	put direct 0 $((6 << 20)) "$dev"
	eventually grep -q low-space "$scratch/events"
	same "$image" "$scratch/old"
	put direct $((6 << 20)) $((10 << 20)) "$dev"
	eventually grep -q no-space "$scratch/events"
	ctl destroy "$snapshot"
	ends 3 "$follower"
	equal low-space "$(json 'first["kind"]' "$scratch/events")" "the first event"
	equal "$snapshot" "$(json 'first["id"]' "$scratch/events")" "its snapshot"
	json 'all[-1]["kind"]' "$scratch/events"
}

# ends CODE PROCESS
ends()
{
	local status=0

	step
	wait "$2" || status=$?
	equal "$1" "$status" "the exit code"
}

# Whoever follows ends with the snapshot, without an error if it was intact.
events_end()
{
	local follower

	begin
	created --store "$scratch" --limit 32M
	command blksnap events "$snapshot" --follow >"$scratch/events" &
	follower=$!
	undo stop "$follower"
	sleep 1
	ctl destroy "$snapshot"
	ends 0 "$follower"
	equal "" "$(<"$scratch/events")" "the events"
}

grow()
{
	local at

	begin
	created --store "$scratch" --grow 4M
	for ((at = 0; at < SIZE; at++)); do
		put direct $((at << 20)) $((1 << 20)) "$dev"
		eventually left_at_least 4096
	done
	same "$image" "$scratch/old"
	blksnap status --json "$dev" >"$scratch/status"
	json 'first["snapshots"][0]["storage"]' "$scratch/status"
	ctl destroy "$snapshot"
	eventually no_watcher
}

# What is mounted from a device on top of the one in the snapshot, as a logical volume is, is
# frozen, too.
stacked()
{
	local dev volume where loop

	null_blk 64; dev=$REPLY
	dm_linear blksnap-volume "$dev" 2048 90112; volume=$REPLY
	make_fs ext4 "$volume"
	mounted "$volume"; where=$REPLY
	truncate -s 16M "$where/file"
	loop_on "$where/file"; loop=$REPLY
	make_fs ext4 "$loop"
	mounted "$loop"
	# Only in memory so far
	echo before >"$where/before"
	echo inside >"$REPLY/inside"
	mkdir "$scratch/a" "$scratch/b"
	undo rm -rf "$scratch/a" "$scratch/b"
	blksnap run "$dev" --store "$scratch" --limit 32M -- sh -ec '
		dd if="$BLKSNAP_IMAGE_1" of="$0/fs" bs=1M skip=1 count=44 status=none
		e2fsck -fn "$0/fs"
		mount -o ro,noload,loop "$0/fs" "$0/a"
		e2fsck -fn "$0/a/file"
		mount -o ro,noload,loop "$0/a/file" "$0/b"
		cat "$0/a/before" "$0/b/inside" >"$0/found"
		umount "$0/b" "$0/a"' "$scratch"
	equal "before inside" "$(paste -sd ' ' "$scratch/found")" "the files' content"
	# And goes on.
	timeout 10 sync -f "$where"
}

# A path of a multipath device is refused, since writes by way of that are not seen. The multipath
# device itself can be had.
multipath_path()
{
	local path

	scsi_disk 16; path=$REPLY
	need dmsetup
	dmsetup targets | grep -q '^multipath ' || skip "no dm-multipath"
	# Without the uuid of multipath-tools
	dmsetup create --noudevsync blksnap-map \
		--table "0 32768 multipath 0 0 1 1 round-robin 0 1 1 $path 1000"
	undo dm_remove blksnap-map
	mkdir "$scratch/backup"
	undo rm -rf "$scratch/backup"
	if blksnap backup "$path" --to "$scratch/backup" --store "$scratch" 2>"$scratch/error"; then
		wrong "a path was backed up"
	fi
	grep "is a path of the multipath device /dev/mapper/blksnap-map" "$scratch/error"
	grep "name /dev/mapper/blksnap-map instead" "$scratch/error"
	if blksnap attach "$path"; then
		wrong "the filter was attached to a path"
	fi
	expect ENOENT ctl detach "$path"
	# Without udev its node has another name.
	blksnap backup "/dev/dm-$(dmsetup info -c --noheadings -o minor blksnap-map)" \
		--to "$scratch/backup" --store "$scratch" --limit 8M
	blksnap verify "$scratch/backup"
}

no_watcher()
{
	local process name

	for process in /proc/[0-9]*; do
		{ read -r name <"$process/comm"; } 2>/dev/null || continue
		[ "$name" = blksnap-grow ] || continue
		# What has ended is there until the machine's init looks after it.
		! grep -qs '^State:.[DRST]' "$process/status" || return 1
	done
}

# It stops at --max, and then the snapshot is what it would be without.
grow_to_the_end()
{
	begin
	created --store "$scratch" --grow 2M --max 4M
	put direct 0 $((3 << 19)) "$dev"
	eventually grown_to 8192
	put direct $((3 << 19)) $((2 << 20)) "$dev"
	sleep 2
	same "$image" "$scratch/old"
	grown_to 8192
	put direct $((3 << 20)) $((8 << 20)) "$dev"
	eventually broken
	expect EIO ctl same "$image" "$scratch/old"
	ctl destroy "$snapshot"
	eventually no_watcher
}

grown_to()
{
	[ "$(space total)" = "$1" ]
}

append()
{
	local store

	begin
	created --store "$scratch" --limit 2M
	null_blk 32; store=$REPLY
	blksnap snap append "$snapshot" "$store" --range 4M:2M --range 1M:2M
	equal $((6 << 11)) "$(space total)" "the space"
	blksnap append "$snapshot" "$store" --range 8M:16M
	put direct 0 $((SIZE << 20)) "$dev"
	same "$image" "$scratch/old"
	if blksnap append "$snapshot" "$store" --range 8M:1M 2>"$scratch/error"; then
		wrong "the same range was appended again"
	fi
	grep -q 'what to do' "$scratch/error"
	if blksnap append "$snapshot" "$dev" --overwrite 2>"$scratch/error"; then
		wrong "the device became its own storage"
	fi
	grep -q 'what to do' "$scratch/error"
}

# A snapshot that grows while a command writes to the device
snapshot_grows()
{
	begin
	blksnap run "$dev" --store "$scratch" --grow 4M -- bash -c '
		for ((at = 0; at < 16; at++)); do
			dd if=/dev/urandom of="$BLKSNAP_DEVICE_1" bs=1M count=1 seek=$at \
				oflag=direct conv=notrunc status=none || exit
			sleep 0.5
		done
		cmp "$BLKSNAP_IMAGE_1" '"$scratch/old"
	equal "" "$(ctl collect)" "the snapshots"
}

no_snapshots()
{
	[ -z "$(ctl collect)" ]
}

# usage: kill_command ROUND PID
# In round 1 the command alone, which the programs that it runs outlive; else its process group.
# Nothing is left of its snapshot, and $dev can be written.
kill_command()
{
	case $1 in
	1) kill -KILL "$2" ;;
	*) kill -KILL -- "-$2" 2>/dev/null || kill -KILL "$2" ;;
	esac
	wait "$2" 2>/dev/null || true
	eventually no_snapshots
	put direct 0 65536 "$dev"
}

# Whatever is killed at whatever time, no snapshot stays.
killed()
{
	local i command

	begin
	for i in 1 2 3 4 5 6; do
		rm -f "$work/ready"
		# With a group of its own, of which all processes are killed at once
		setsid blksnap snapshot "$dev" --store "$work" --limit 4M --grow 4M -- \
			sh -c ': >"$0"; sleep 60' "$work/ready" 2>/dev/null &
		command=$!
		undo stop "$command"
		case $i in
		[123]) eventually test -e "$work/ready" ;;
		*) sleep "0.0$((i * 2))" ;;
		esac
		kill_command "$i" "$command"
	done
	start_backup "$work/copy"
	kill -KILL $!
	eventually no_snapshots
	back_up "$work/copy"
	restores 1 "$work/copy"
}

# A "create" that is killed before its id is out leaves no snapshot.
create_killed()
{
	local i command

	begin
	mkfifo "$work/pipe"
	exec 9<>"$work/pipe"
	# So that telling the id has to wait
	dd if=/dev/zero of="$work/pipe" bs=4096 oflag=nonblock 2>/dev/null || true
	for i in 1 2 3 4; do
		setsid blksnap create "$dev" --store "$work" --limit 4M --grow 4M \
			>"$work/pipe" 2>/dev/null 9>&- &
		command=$!
		undo stop "$command"
		eventually eval '! no_snapshots'
		kill_command "$i" "$command"
	done
	exec 9>&-
	# And one whose id is out stays.
	created --store "$work" --limit 4M
	equal "$snapshot" "$(ctl collect)" "the snapshots"
}

# mounted_elsewhere DEV DIRECTORY [OPTION]...: a mount that only the process $holder sees
mounted_elsewhere()
{
	rm -f "$work/ready"
	unshare --mount sh -c 'mount "$@" && : >"$0" && exec sleep 600' \
		"$work/ready" "${@:3}" "$1" "$2" &
	holder=$!
	undo stop "$holder"
	eventually test -e "$work/ready"
}

# refuses WORDS: what destroying the snapshot is refused with
refuses()
{
	exits 1 blksnap snap destroy "$snapshot" 2>"$work/error"
	grep -q "$1" "$work/error"
	equal "$snapshot" "$(ctl collect)" "the snapshots"
}

is_free()
{
	python3 -c 'import os, sys; os.open(sys.argv[1], os.O_EXCL)' "$1" 2>/dev/null
}

# An image that is in use is not destroyed without --force, wherever its user is.
destroy_used()
{
	local holder

	null_blk "$SIZE"; dev=$REPLY
	make_fs ext4 "$dev"
	undo detach "$dev"
	blksnap attach "$dev"
	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
	created --store "$work" --limit 4M
	mkdir "$work/mnt"
	# Where only its own processes see it
	mounted_elsewhere "$image" "$work/mnt" -o ro,noload
	refuses "mounted on $work/mnt in the mount namespace of process $holder (sleep)"
	stop "$holder"
	# In a namespace that no process is in
	mounted_elsewhere "$image" "$work/mnt" -o ro,noload
	exec 8<"/proc/$holder/ns/mnt"
	stop "$holder"
	refuses "cannot be seen from here"
	exec 8<&-
	eventually is_free "$image"
	loop_on "$image" --read-only
	refuses "the loop device ${REPLY#/dev/} is on top of it"
	losetup -d "$REPLY"
	if command -v dmsetup >/dev/null; then
		dmsetup create --readonly blksnap-user --table "0 2048 linear $image 0"
		undo dmsetup remove blksnap-user
		refuses "(blksnap-user) is on top of it"
		blksnap destroy "$snapshot" --force 2>"$work/error"
		grep -q "(blksnap-user) is on top of it" "$work/error"
	else
		blksnap snap destroy "$snapshot"
	fi
	equal "" "$(ctl collect)" "the snapshots"
}

# back_up COPY ARGUMENT...: what the device has is in COPY then, the report in $work/report
back_up()
{
	copy_of "$dev" "$1"
	blksnap backup --json "$dev" --to "$work/backup" --store "$work" "${@:2}" \
		>"$work/report" 2>"$work/error"
}

# start_backup COPY ARGUMENT...: starts one that is slow enough to look at the image meanwhile; its
# process is in $!
start_backup()
{
	copy_of "$dev" "$1"
	command blksnap backup --json "$dev" --to "$work/backup" --store "$work" \
		--limit "${limit:-64M}" --bandwidth 1M --spot-check 0 "${@:2}" >"$work/report" \
		2>"$work/error" &
	undo stop $!
	eventually has_image
}

has_image()
{
	command blksnap image "$dev" >/dev/null 2>&1
}

# base: the restore point that the last backup of the device was based on
base()
{
	json 'first["devices"][0]["base"]' "$work/report"
}

# points: the numbers of the restore points
points()
{
	blksnap list --json "$work/backup" >"$work/list"
	json '*[point["point"] for point in first["points"]]' "$work/list"
}

# restores POINT COPY
restores()
{
	rm -f "$work/restored"
	blksnap restore "$work/backup" --point "$1" "$work/restored" >/dev/null
	cmp "$work/restored" "$2"
}

# A full backup and three incremental ones while the device is written to
backup()
{
	local point target

	begin
	for point in 1 2 3 4; do
		start_backup "$work/copy$point"
		# Not done before its image was looked at, however slow the machine is
		kill -STOP "$!"
		put direct $((point << 20)) $((6 << 20)) "$dev"
		dd if=/dev/zero of="$dev" bs=64K seek=$((12 << 4)) count="$point" oflag=direct \
			conv=notrunc status=none
		image=$(blksnap image "$dev")
		same "$image" "$work/copy$point"
		kill -CONT "$!"
		ends 0 "$!"
		equal "$((point - 1))" "$(base | sed s/None/0/)" "the base of $point"
	done
	blksnap verify "$work/backup"
	for point in 4 1 3 2; do
		restores "$point" "$work/copy$point"
	done
	null_blk "$SIZE"; target=$REPLY
	put direct 0 $((SIZE << 20)) "$target"
	exits 1 blksnap restore "$work/backup" --point 3 "$dev=$target" 2>"$work/error"
	grep -q -e "--overwrite" "$work/error"
	blksnap restore "$work/backup" --point 3 "$dev=$target" --overwrite --check
	same "$target" "$work/copy3"
	check_with_qemu "$work/copy4"

	blksnap prune "$work/backup" --keep 2
	equal "3 4" "$(points)" "the restore points"
	blksnap verify "$work/backup"
	restores 3 "$work/copy3"
	restores 4 "$work/copy4"
	check_with_qemu "$work/copy4"
	back_up "$work/copy5"
	equal 4 "$(base)" "the base of 5"
	restores 5 "$work/copy5"
}

# check_with_qemu COPY: of restore point 4
check_with_qemu()
{
	local file

	if ! command -v qemu-img >/dev/null; then
		result "no qemu-img, so the images were not looked at with it"
		return
	fi
	for file in "$work"/backup/*/*.qcow2; do
		qemu-img check -q "$file"
	done
	qemu-img compare -q -f qcow2 -F raw "$work"/backup/000004/*.qcow2 "$1"
}

# Whoever stops a backup leaves the restore points as they were, and the next goes on.
backup_interrupted()
{
	local signal

	begin
	back_up "$work/copy1"
	for signal in TERM HUP KILL; do
		put direct 0 $((8 << 20)) "$dev"
		start_backup "$work/copy2"
		sleep 1
		kill "-$signal" "$!"
		ends $((128 + $(kill -l "$signal"))) "$!"
		eventually no_snapshot
		equal 1 "$(points)" "the restore points"
	done
	ls -d "$work/backup/000002.partial"
	back_up "$work/copy2"
	equal 1 "$(base)" "the base"
	restores 1 "$work/copy1"
	restores 2 "$work/copy2"
	[ ! -e "$work/backup/000002.partial" ] || wrong "a leftover is still there"
}

no_snapshot()
{
	[ -z "$(ctl collect)" ]
}

# A backup that a snapshot broke under is none.
backup_broken()
{
	begin
	back_up "$work/copy1"
	put direct 0 $((8 << 20)) "$dev"
	limit=1M start_backup "$work/copy2"
	put direct 0 $((8 << 20)) "$dev"
	ends 3 "$!"
	grep -q overflowed "$work/error"
	equal 1 "$(points)" "the restore points"
	back_up "$work/copy2"
	equal 1 "$(base)" "the base"
	restores 2 "$work/copy2"
}

# The change tracking began again: everything is read, what differs is stored, and a message says so.
backup_generation()
{
	begin
	back_up "$work/copy1"
	blksnap detach "$dev"
	put direct $((1 << 20)) 4096 "$dev"
	back_up "$work/copy2"
	equal 1 "$(base)" "the base"
	equal "$((SIZE << 20)) 65536" \
		"$(json 'first["devices"][0]["read_bytes"], first["devices"][0]["data_bytes"]' "$work/report")" \
		"the bytes that were read and written"
	grep -q "read and compared with restore point 1" "$work/error"
	restores 1 "$work/copy1"
	restores 2 "$work/copy2"
	# Somebody else takes a snapshot between.
	put direct $((2 << 20)) 4096 "$dev"
	created --store "$work" --limit 16M
	put direct $((3 << 20)) 4096 "$dev"
	ctl destroy "$snapshot"
	back_up "$work/copy3"
	equal 2 "$(base)" "the base"
	equal 131072 "$(json 'first["devices"][0]["read_bytes"]' "$work/report")" \
		"the bytes that were read"
	restores 3 "$work/copy3"
}

# What the backing file of a loop device gets past the device is in no change map.
backup_past_tracking()
{
	local file

	loop "$SIZE"; dev=$REPLY
	file=$(losetup -nO BACK-FILE "$dev")
	filled "$dev" "$SIZE" "$scratch/old"
	undo detach "$dev"
	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
	back_up "$work/copy1"
	put direct 0 65536 "$dev"
	back_up "$work/copy2"
	equal "None $(((SIZE << 20) - 65536))" \
		"$(json 'first["devices"][0]["compared"], first["devices"][0]["checked_bytes"]' \
			"$work/report")" "what was checked"
	head -c 65536 /dev/urandom | dd of="$file" bs=64K seek=9 conv=notrunc status=none
	exits 5 back_up "$work/copy3"
	grep -q "writes past it" "$work/error"
	equal 65536 "$(json 'first["devices"][0]["data_bytes"]' "$work/report")" "what was written"
	restores 2 "$work/copy2"
	restores 3 "$work/copy3"
	# Asked for, it is no surprise.
	head -c 65536 /dev/urandom | dd of="$file" bs=64K seek=20 conv=notrunc status=none
	back_up "$work/copy4" --compare
	restores 4 "$work/copy4"
}

# Readers and a backup at once, and a prune that waits for it
backup_locked()
{
	begin
	back_up "$work/copy1"
	put direct 0 $((8 << 20)) "$dev"
	back_up "$work/copy2"
	put direct 0 $((8 << 20)) "$dev"
	start_backup "$work/copy3"
	blksnap verify "$work/backup"
	restores 2 "$work/copy2"
	exits 6 blksnap prune "$work/backup" --keep 1 2>"$work/locked"
	cat "$work/locked"
	grep -q "\"blksnap backup --json .*\" (process $! on .*) since 20" "$work/locked"
	blksnap prune "$work/backup" --keep 1 --lock-wait 60 2>"$work/locked"
	cat "$work/locked"
	grep -q "waiting for at most" "$work/locked"
	ends 0 "$!"
	equal 3 "$(points)" "the restore points"
	restores 3 "$work/copy3"
}

# written: the base of the last backup and the bytes of data in it
written()
{
	json 'first["devices"][0]["base"], first["devices"][0]["data_bytes"]' "$work/report"
}

# A disk gets another name and other sizes, and is known by what it is.
backup_moved()
{
	local file

	loop "$SIZE"; dev=$REPLY
	file=$(losetup -nO BACK-FILE "$dev")
	filled "$dev" "$SIZE" "$scratch/old"
	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
	back_up "$work/copy1"
	blksnap detach "$dev"
	losetup -d "$dev"
	# Which takes the old name.
	loop "$SIZE"; other=$REPLY
	loop_on "$file"; dev=$REPLY
	undo detach "$dev"
	put direct $((1 << 20)) 4096 "$dev"
	back_up "$work/copy2"
	equal "1 65536" "$(written)" "after a new name"
	truncate -s +1M "$file"
	losetup -c "$dev"
	back_up "$work/copy3"
	equal "2 0" "$(written)" "after it became larger"
	truncate -s 9M "$file"
	losetup -c "$dev"
	put direct $((2 << 20)) 4096 "$dev"
	back_up "$work/copy4"
	equal "3 65536" "$(written)" "after it became smaller"
	for point in 1 2 3 4; do restores "$point" "$work/copy$point"; done
	blksnap verify "$work/backup"
	blksnap list "$work/backup" --json >"$work/list"
	equal "$file" "$(json 'first["points"][3]["devices"][0]["disk"]["backing_file"]' \
		"$work/list")" "what the disk is"

	# In place, as it is the same disk, whatever its name
	put direct 0 1048576 "$dev"
	blksnap restore "$work/backup" --in-place --overwrite --check
	cmp "$dev" "$work/copy4"
	blksnap detach "$dev"
	losetup -d "$dev"
	losetup "$dev" "$(losetup -nO BACK-FILE "$other")" || losetup "$dev" "$scratch/old"
	undo losetup -d "$dev"
	exits 1 blksnap restore "$work/backup" --in-place --overwrite 2>"$work/error"
	grep -q "another disk is there now" "$work/error"
}

# lvm COMMAND ARGUMENT...: of LVM, which sees this disk only and does not wait for udev
lvm()
{
	"$@" --quiet --quiet --config "
		devices { use_devicesfile = 0 filter = [ \"a|^$disk\$|\", \"r|.*|\" ] }
		activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
		backup { backup = 0 archive = 0 }
		global { use_lvmpolld = 0 locking_dir = \"$work\" }" </dev/null >"$work/lvm" 2>&1 ||
		{ cat "$work/lvm"; return 1; }
}

# The usual undo of an upgrade: a snapshot of LVM is merged back, below the filter.
backup_lvm_merge()
{
	need lvcreate
	# LVM does not know null_blk.
	loop 96; disk=$REPLY
	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
	lvm pvcreate "$disk"
	lvm vgcreate blksnap-test "$disk"
	undo lvm vgremove --force blksnap-test
	lvm lvcreate --zero n --size "${SIZE}M" --name root blksnap-test
	dev=/dev/mapper/blksnap--test-root
	filled "$dev" "$SIZE" "$scratch/old"
	undo detach "$dev"
	back_up "$work/copy1"
	lvm lvcreate --snapshot --size 24M --name before blksnap-test/root
	put direct $((1 << 20)) $((1 << 20)) "$dev"
	back_up "$work/copy2"
	put direct $((3 << 20)) $((1 << 20)) "$dev"
	back_up "$work/copy3"
	lvm lvconvert --merge --interval 1 blksnap-test/before
	eventually cmp -s "$dev" "$work/copy1"
	back_up "$work/copy4"
	cmp "$work/copy4" "$work/copy1"
	equal "3 $((SIZE << 20))" "$(json 'first["devices"][0]["base"],
		first["devices"][0]["read_bytes"]' "$work/report")" "the base and what was read"
	for point in 1 2 3 4; do restores "$point" "$work/copy$point"; done
}

# refuses_store STORE DEV...: it lies on each of them
refuses_store()
{
	local store=$1 dev

	shift
	for dev; do
		exits 1 blksnap create --store "$store" "$dev" 2>"$work/error"
		grep -q "$dev: the store $store lies on it" "$work/error"
		exits 1 blksnap snapshot "$dev" --store "$store" -- true 2>"$work/error"
		grep -q "the store $store lies on it" "$work/error"
		exits 1 blksnap backup "$dev" --to "$work/backup" --store "$store" 2>"$work/error"
		grep -q "the store $store lies on it" "$work/error"
	done
}

# The driver can neither see through encryption, nor know on which of its devices a file
# system is going to put something.
store_on_source()
{
	local disk two key

	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
	key=$(head -c 64 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
	partitioned 64; disk=$REPLY
	dm blksnap-crypt "0 65536 crypt aes-xts-plain64 $key 0 ${disk}p2 0"
	refuses_store "$REPLY" "$REPLY" "${disk}p2" "$disk"
	make_fs ext4 "$REPLY"
	mounted "$REPLY"
	refuses_store "$REPLY" "${disk}p2" "$disk"
	: >"$REPLY/file"
	refuses_store "$REPLY/file" "${disk}p2" "$disk"
	null_blk 256; disk=$REPLY
	null_blk 256; two=$REPLY
	make_fs btrfs "$disk" "$two"
	mounted "$disk" -o "device=$two"
	refuses_store "$REPLY" "$disk" "$two"
	equal "" "$(ctl collect)" "the snapshots"
}

# A directory on what is backed up, by whatever way, whether it is there or not
backup_onto_itself()
{
	local disk

	partitioned "$SIZE"; disk=$REPLY
	make_fs ext4 "${disk}p1"
	mounted "${disk}p1"; where=$REPLY
	undo detach "$disk"
	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
	mkdir "$where/backup"
	for dev in "$disk" "${disk}p1"; do
		for to in "$where/backup" "$where/new/er"; do
			exits 1 blksnap backup "$dev" --to "$to" --store "$work" 2>"$work/error"
			grep -q "would lie on it" "$work/error"
		done
	done
	equal "" "$(ls "$where/backup")" "what is in the backup"
	# Beside it is allowed.
	blksnap backup "${disk}p2" --to "$where/backup/p2" --store "$work" --limit 4M
}

# medium_errors 0|2: whether the SCSI disk cannot read sectors 4660 to 4667
medium_errors()
{
	echo 8 >/sys/module/scsi_debug/parameters/medium_error_count
	echo "$1" >/sys/bus/pseudo/drivers/scsi_debug/opts
}

# Sectors that cannot be read: messages name them, and with --salvage they cost only themselves
backup_salvage()
{
	local other

	null_blk 4; other=$REPLY
	filled "$other" 4 "$scratch/other"
	undo detach "$other"
	scsi_disk "$SIZE"; dev=$REPLY
	filled "$dev" "$SIZE" "$scratch/old"
	undo detach "$dev"
	undo medium_errors 0
	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
	copy_of "$dev" "$work/copy1"
	cp "$work/copy1" "$work/lost"
	dd if=/dev/zero of="$work/lost" seek=4660 count=8 conv=notrunc status=none

	medium_errors 2
	exits 1 blksnap backup --json "$dev" "$other" --to "$work/backup" --store "$work" \
		>"$work/report" 2>"$work/error"
	cat "$work/error"
	grep -q "back up $dev: its bytes 2385920 to 2386432 cannot be read (ENODATA)" "$work/error"
	equal "$other" "$(json '*[it["device"] for it in first["devices"]]' "$work/report")" \
		"the devices of the restore point"
	exits 7 blksnap backup --json "$dev" --to "$work/backup" --store "$work" --salvage \
		>"$work/report" 2>"$work/error"
	cat "$work/error"
	lost "2385920 4096"
	blksnap list "$work/backup" >"$work/list"
	cat "$work/list"
	grep -q " could not be read" "$work/list"
	exits 7 blksnap verify "$work/backup"
	exits 7 blksnap restore "$work/backup" "$dev=$work/restored"
	cmp "$work/restored" "$work/lost"
	# It is read again though nothing was written, and found to be bad or good.
	exits 7 blksnap backup --json "$dev" --to "$work/backup" --store "$work" --salvage \
		>"$work/report"
	lost "2385920 4096"
	medium_errors 0
	blksnap backup --json "$dev" --to "$work/backup" --store "$work" >"$work/report"
	lost ""
	equal "3 65536" "$(json '*(first["devices"][0][it] for it in ("base", "read_bytes"))' \
		"$work/report")" "the base and what was read"
	restores 4 "$work/copy1"
	blksnap verify "$work/backup" --point 4

	# What could not be read before it was overwritten is missing, and nothing else.
	start_backup "$work/copy2" --full --salvage
	medium_errors 2
	put direct 2359296 65536 "$dev"
	medium_errors 0
	ends 7 "$!"
	cat "$work/error"
	# The chunks that these sectors are in
	lost "2383872 8192"
	equal "1 2 3 4 5" "$(points)" "the restore points"
	dd if=/dev/zero of="$work/copy2" seek=4656 count=16 conv=notrunc status=none
	exits 7 blksnap restore "$work/backup" "$dev=$work/again"
	cmp "$work/again" "$work/copy2"
}

# lost EXTENTS: what the last backup could not read
lost()
{
	equal "$1" "$(json '*[n for it in first["devices"][0]["unreadable"]
		for n in (it["offset"], it["length"])]' "$work/report")" "what cannot be read"
}

# A target that is full
backup_full_target()
{
	local where

	begin
	where=$work/small
	mkdir "$where"
	undo rmdir "$where"
	mount -t tmpfs -o size=20m small "$where"
	undo unmount "$where"
	blksnap backup "$dev" --to "$where/backup" --store "$work"
	put direct 0 $((8 << 20)) "$dev" "$scratch/old"
	if blksnap backup "$dev" --to "$where/backup" --store "$work" 2>"$work/error"; then
		wrong "there was space"
	fi
	grep -q "no space left" "$work/error"
	grep -q "what to do" "$work/error"
	equal "" "$(ctl collect)" "the snapshots"
	equal 1 "$(find "$where/backup" -name '*.qcow2' | wc -l)" "the images"
	mount -o remount,size=40m "$where"
	blksnap backup --json "$dev" --to "$where/backup" --store "$work" >"$work/report"
	equal 1 "$(base)" "the base"
	blksnap verify "$where/backup"
	blksnap restore "$where/backup" "$work/restored"
	cmp "$work/restored" "$scratch/old"
}

# flip FILE OFFSET: changes a byte, whatever it is
flip()
{
	local byte

	byte=$(od -An -tu1 -j "$2" -N 1 "$1")
	printf '%b' "\\0$(printf %o $((byte ^ 255)))" |
		dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Damage is found, and told where it matters.
backup_damaged()
{
	local file target

	begin
	back_up "$work/copy1"
	put direct 0 65536 "$dev"
	back_up "$work/copy2"
	file=$(echo "$work"/backup/000001/*.qcow2)
	# The last byte of data, which follows the header of 64 KiB, did not change since.
	flip "$file" $(((SIZE << 20) + 65535))
	exits 4 blksnap verify "$work/backup"
	exits 4 blksnap restore "$work/backup" --point 2 "$work/restored"
	exits 4 blksnap verify --json --point 1 "$work/backup" >"$work/report"
	equal 1 "$(json 'len(first["damaged"])' "$work/report")" "what is damaged"
	# A target that is too small
	null_blk 4; target=$REPLY
	exits 1 blksnap restore "$work/backup" --point 2 "$target"
	exits 4 blksnap restore "$work/backup" --point 1 "$target" --truncate
	head -c 4M "$work/copy1" >"$work/start"
	same "$target" "$work/start"
	rm "$file"
	exits 4 blksnap verify "$work/backup"
}

# exits CODE COMMAND...
exits()
{
	local want=$1 status=0

	shift
	"$@" || status=$?
	equal "$want" "$status" "the exit code of $*"
}

# A target that is mounted, and one that holds a file system
restore_mounted()
{
	local target

	begin
	back_up "$work/copy1"
	null_blk "$SIZE"; target=$REPLY
	make_fs ext4 "$target"
	mounted "$target"
	# ext4 notes where it is mounted when a file is opened.
	touch "$REPLY/file"
	exits 1 blksnap restore "$work/backup" "$target" --overwrite 2>"$work/error"
	cat "$work/error"
	grep -q "in use" "$work/error"
	grep -q "$REPLY" "$work/error"
	umount "$REPLY"
	exits 1 blksnap restore "$work/backup" "$target" --in-use 2>"$work/error"
	cat "$work/error"
	grep -q "ext4.*last mounted on $REPLY" "$work/error"
	blksnap restore "$work/backup" "$target" --overwrite --check
	same "$target" "$work/copy1"
}

# A mount in another mount namespace, which cannot be seen from here
restore_mounted_elsewhere()
{
	local target where holder

	begin
	back_up "$work/copy1"
	null_blk "$SIZE"; target=$REPLY
	make_fs ext4 "$target"
	where=$(mktemp -d "$scratch/elsewhere.XXXXXX")
	undo rmdir "$where"
	mounted_elsewhere "$target" "$where"
	exits 1 blksnap restore "$work/backup" "$target" --overwrite --truncate \
		2>"$work/error"
	cat "$work/error"
	grep -q "in use" "$work/error"
}

# Logical blocks of another size, of which the manifest knows
restore_other_block_size()
{
	local target

	begin
	back_up "$work/copy1"
	null_blk "$SIZE" blocksize=4096; target=$REPLY
	exits 1 blksnap restore "$work/backup" "$target" 2>"$work/error"
	cat "$work/error"
	grep -q -e "--other-block-size" "$work/error"
	blksnap restore "$work/backup" "$target" --other-block-size --check
	same "$target" "$work/copy1"
}

# The file systems of the partitions are named, too.
restore_partitions()
{
	local target

	begin
	back_up "$work/copy1"
	partitioned "$SIZE"; target=$REPLY
	make_fs ext4 "${target}p1"
	mounted "${target}p1"
	touch "$REPLY/file"
	umount "$REPLY"
	exits 1 blksnap restore "$work/backup" "$target" 2>"$work/error"
	cat "$work/error"
	grep -q "partition table (dos), ${target}p1 is ext4, last mounted on $REPLY" \
		"$work/error"
}

# A thin volume takes what there is data, though it cannot deallocate by writing zeroes.
restore_thin()
{
	local meta pool target

	begin
	dd if=/dev/zero of="$dev" bs=1M seek=4 count=$((SIZE - 4)) oflag=direct conv=notrunc \
		status=none
	back_up "$work/copy1"
	null_blk 4; meta=$REPLY
	null_blk 32; pool=$REPLY
	dm blksnap-pool "0 $((32 << 11)) thin-pool $meta $pool 128 0"
	pool=$REPLY
	dmsetup message blksnap-pool 0 "create_thin 0"
	dm blksnap-thin "0 $((SIZE << 11)) thin $pool 0"
	target=$REPLY
	blksnap restore "$work/backup" "$target" --check
	same "$target" "$work/copy1"
	equal 64 "$(thin_blocks)" "the blocks that are used"
	# Full, it takes no more than before, and as a volume of LVM less again.
	put direct 0 $((SIZE << 20)) "$target"
	equal 256 "$(thin_blocks)" "the blocks that are used"
	blksnap restore "$work/backup" "$target" --overwrite --check
	same "$target" "$work/copy1"
	equal 256 "$(thin_blocks)" "the blocks that are used"
	dmsetup rename --noudevsync blksnap-pool --setuuid LVM-blksnap-pool-tpool
	dmsetup rename --noudevsync blksnap-thin --setuuid LVM-blksnap-thin
	blksnap restore "$work/backup" "$target" --overwrite --check
	same "$target" "$work/copy1"
	equal 64 "$(thin_blocks)" "the blocks that are used"
}

# How many blocks of 64 KiB of the pool are used
thin_blocks()
{
	# With what the pool has not written yet
	dmsetup suspend --noudevsync blksnap-pool
	dmsetup resume --noudevsync blksnap-pool
	dmsetup status blksnap-pool | awk '{ split($6, used, "/"); print used[1] }'
}

# What changed, for other backup programs
changed()
{
	begin
	exits 1 blksnap changed "$dev"
	created --store "$work"
	ctl destroy "$snapshot"
	put direct $((1 << 20)) 4096 "$dev"
	put direct $(((1 << 20) + 65536)) 4096 "$dev"
	put direct $((5 << 20)) 4096 "$dev"
	dd if="$dev" of="$work/changed" bs=64K skip=16 count=2 iflag=direct status=none
	created --store "$work"
	blksnap changed "$dev" >"$work/report"
	equal "1048576 131072 5242880 65536" \
		"$(json '*[n for e in first["extents"] for n in (e["offset"], e["length"])]' \
			"$work/report")" "the extents"
	equal "2 1" "$(json '*(first["changes_number"], first["since"])' "$work/report")" \
		"the numbers"
	blksnap changed "$dev" --since 2 >"$work/report"
	equal 0 "$(json 'first["changed_bytes"]' "$work/report")" "what changed since"
	exits 1 blksnap changed "$dev" --since 3
	exits 1 blksnap changed "$dev" --generation 00000000-0000-0000-0000-000000000000
	# By the id of the snapshot
	equal "$(ctl cbttakes "$dev" | tail -n 1)" "$(json 'first["take_id"]' "$work/report")" \
		"the id of the newest"
	blksnap changed "$dev" --take "$(ctl cbttakes "$dev" | sed -n 2p)" >"$work/report"
	equal 1 "$(json 'first["since"]' "$work/report")" "the number of the first"
	exits 1 blksnap changed "$dev" --take 00112233-4455-6677-8899-aabbccddeeff
	# A snapshot that has only what will be read
	local first image message
	first=$(ctl cbttakes "$dev" | sed -n 2p)
	ctl destroy "$snapshot"
	snapshot=$(blksnap snap create --store "$work")
	undo destroy "$snapshot"
	message=$(blksnap snap add "$snapshot" "$dev" --changed-since "$snapshot" 2>&1) &&
		wrong "an id that is not known"
	[[ $message == *"does not know a snapshot with that id"* ]] || wrong "$message"
	exits 2 blksnap snap add "$snapshot" "$dev" "$dev" --changed-since "$first"
	# It was not added by that.
	expect ESRCH ctl info "$dev"
	blksnap snap add "$snapshot" "$dev" --changed-since "$first"
	blksnap snap take "$snapshot"
	image=$(blksnap snap image "$dev")
	put direct 0 $((2 << 20)) "$dev"
	dd if="$image" of="$work/part" bs=64K skip=16 count=2 iflag=direct status=none
	cmp "$work/changed" "$work/part"
	dd if="$image" of=/dev/null bs=4K count=1 iflag=direct status=none 2>"$work/error" &&
		wrong "what has not changed can be read"
	grep -q "No data available" "$work/error" || wrong "$(cat "$work/error")"
}

# The recipes of the README: a file system with restic, a disk with borg
recipe_restic()
{
	local where

	need restic
	null_blk 64; dev=$REPLY
	make_fs ext4 "$dev"
	mounted "$dev"; where=$REPLY
	undo detach "$dev"
	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
	head -c 5M /dev/urandom >"$work/copy"
	cp "$work/copy" "$where/data"
	export RESTIC_REPOSITORY=$work/restic RESTIC_PASSWORD=x HOME=$work DATA=$where/data
	restic init -q
	blksnap run "$dev" --store "$work" -- sh -c '
		mkdir -p /run/image && mount -o ro,noload "$BLKSNAP_IMAGE_1" /run/image || exit
		rm "$DATA"
		(cd /run/image && restic backup -q .); status=$?
		umount /run/image; exit $status'
	restic restore -q latest --target "$work/out"
	cmp "$work/out/data" "$work/copy"
}

# Writes the same numbers to two databases until it is killed.
write_sqlite()
{
	exec python3 -c 'import sqlite3, sys
one = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
one.execute("ATTACH ? AS other", (sys.argv[2],))
for number in range(10**9):
    one.execute("BEGIN IMMEDIATE")
    one.execute("INSERT INTO main.t VALUES (?, zeroblob(3000))", (number,))
    one.execute("INSERT INTO other.t VALUES (?, zeroblob(3000))", (number,))
    one.execute("COMMIT")' "$@"
}

# numbers DATABASE: how many there are, if it is whole
numbers()
{
	python3 -c 'import sqlite3, sys
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro&immutable=1", uri=True)
assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
print(database.execute("SELECT count(*) FROM t").fetchone()[0])' "$1"
}

has_numbers()
{
	[ "$(python3 -c 'import sqlite3, sys
print(sqlite3.connect(sys.argv[1], timeout=60).execute("SELECT count(*) FROM t").fetchone()[0])' "$1")" -gt "$2" ]
}

# Two databases on two disks, that a program writes to all the while
hooks()
{
	local one two hold=$BLKSNAP_REPO/tools/blksnap/examples/hold-sqlite files=() writer before dev

	work=$(mktemp -d "$scratch/work.XXXXXX")
	undo rm -rf "$work"
	for dev in one two; do
		null_blk 64
		printf -v "$dev" %s "$REPLY"
		undo detach "$REPLY"
		make_fs ext4 "$REPLY"
		mounted "$REPLY"
		files+=("$REPLY/$dev.db")
		python3 -c 'import sqlite3, sys
sqlite3.connect(sys.argv[1]).execute("CREATE TABLE t (number, text)")' "$REPLY/$dev.db"
	done
	write_sqlite "${files[@]}" &
	writer=$!
	undo stop "$writer"
	eventually has_numbers "${files[0]}" 10
	export RUNTIME_DIRECTORY=$work
	blksnap run "$one" "$two" --store "$work" \
		--before-take "'$hold' before-take ${files[*]}" --after-take "'$hold' after-take" -- sh -ec '
		for n in 1 2; do
			mkdir -p "$0/$n"
			eval "mount -o ro,noload \"\$BLKSNAP_IMAGE_$n\" \"$0/$n\""
		done
		ls "$0/1" "$0/2" >"$0/list"
		cp "$0/1/one.db" "$0/2/two.db" "$0"
		umount "$0/1" "$0/2"' "$work"
	! grep journal "$work/list" || wrong "a transaction was under way"
	before=$(numbers "$work/one.db")
	equal "$before" "$(numbers "$work/two.db")" "the numbers of the other database"
	[ "$before" -gt 10 ]
	# It goes on.
	eventually has_numbers "${files[0]}" "$before"
	kill -TERM "$writer"
	wait "$writer" || :

	# Nothing is taken if a hook fails, and what was stopped goes on.
	exits 1 blksnap run "$one" --store "$work" --before-take 'exit 3' \
		--after-take "touch '$work/after'" -- touch "$work/ran" 2>"$work/error"
	grep -q 'before-take hook: it has ended with exit code 3' "$work/error"
	[ -e "$work/after" ]
	[ ! -e "$work/ran" ]
	equal "" "$(command blksnap status --json | json 'first["snapshots"] or ""' /dev/stdin)" "the snapshots"
	# What it took is used even if one fails afterwards.
	exits 1 blksnap run "$one" --store "$work" --after-take 'exit 4' -- touch "$work/ran" 2>"$work/error"
	grep -q 'after-take hook: it has ended with exit code 4' "$work/error"
	[ -e "$work/ran" ]
}

recipe_borg()
{
	need borg
	begin
	export BORG_REPO=$work/borg BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes HOME=$work
	borg init -e none
	blksnap snapshot "$dev" --store "$work" -- sh -c '
		dd if=/dev/zero of="$BLKSNAP_DEVICE_1" bs=1M count=16 oflag=direct status=none
		borg create --read-special ::disk "$BLKSNAP_IMAGE_1"'
	borg extract --stdout ::disk | cmp - "$scratch/old"
}

run_cases \
	"command: events" events \
	"command: events end with the snapshot" events_end \
	"command: storage that grows" grow \
	"command: storage that grows to its end" grow_to_the_end \
	"command: storage that is appended" append \
	"command: snapshot that grows" snapshot_grows \
	"command: hooks" hooks \
	"command: file systems on stacked devices" stacked \
	"command: path of a multipath device" multipath_path \
	"command: killed" killed \
	"command: create that is killed" create_killed \
	"command: destroy of what is in use" destroy_used \
	"command: backup" backup \
	"command: backup that is interrupted" backup_interrupted \
	"command: backup of a snapshot that breaks" backup_broken \
	"command: backup after the tracking began anew" backup_generation \
	"command: backup of what is written past the filter" backup_past_tracking \
	"command: backup of a disk under another name" backup_moved \
	"command: backup after LVM merged a snapshot back" backup_lvm_merge \
	"command: backup onto itself" backup_onto_itself \
	"command: store on what is snapshotted" store_on_source \
	"command: backup and others at once" backup_locked \
	"command: backup of sectors that cannot be read" backup_salvage \
	"command: backup to a full filesystem" backup_full_target \
	"command: backup that is damaged" backup_damaged \
	"command: restore to what is mounted" restore_mounted \
	"command: restore to what is mounted elsewhere" restore_mounted_elsewhere \
	"command: restore to other logical blocks" restore_other_block_size \
	"command: restore to a disk with partitions" restore_partitions \
	"command: restore to a thin volume" restore_thin \
	"command: changed" changed \
	"command: recipe with restic" recipe_restic \
	"command: recipe with borg" recipe_borg
