# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What every script here shares: the build directory, lines of progress, running
# a command with its output in a log, and the environment of the toolchain.
# Sourced, never run:
#
#   . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
B=$(realpath -m "${BLKSNAP_BUILD:-$REPO/build}")
# make, QEMU's options and the kernel's command line split at these.
for path in "$REPO" "$B"; do
	case $path in
	*[[:space:]:,=]*)
		echo "ERROR: $path has a space, colon, comma or equals sign in it, which make and QEMU" \
			"do not take: move this directory, or name another one in BLKSNAP_BUILD" >&2
		exit 1
		;;
	esac
done
unset path
mkdir -p "$B/logs" "$B/stamps"
# The scripts call one another; all count from the first one's start.
BLKSNAP_T0=${BLKSNAP_T0:-$EPOCHSECONDS}
export BLKSNAP_BUILD=$B BLKSNAP_T0

LINUX=$B/linux          # the kernel work tree
TOOLS=$B/tools          # what is not in the distribution: bindgen, virtme-ng
export LINUX TOOLS

say() { printf '[%4d s] %s\n' "$((EPOCHSECONDS - BLKSNAP_T0))" "$*"; }
warn() { say "NOTE: $*" >&2; }
die() { say "ERROR: $*" >&2; exit 1; }

# The comment at the head of a script is its help.
usage() {
	sed -n '/^# SPDX/d; /^#!/d; /^#/!q; s/^# \{0,1\}//; p' "$0" | sed '1{/^$/d}'
	exit "${1:-0}"
}

# logged NAME COMMAND...: runs COMMAND with its output in logs/NAME.log, says every
# half minute how far it is, and shows the end of the log when it fails.
logged() {
	local name=$1 log=$B/logs/$1.log rc=0 beat me=$BASHPID
	shift
	(
		# A pipe that nobody writes: waits like sleep, but is no process that stays
		# behind with our locks and our output open.
		exec {never}<> <(:)
		while ! read -r -t 30 -u "$never" && kill -0 "$me" 2>/dev/null; do
			say "  … $name: $(tail -c 400 "$log" | tr '\r' '\n' | tail -n 1 | cut -c 1-90)$(left "$name" "$log")"
		done
	) &
	beat=$!
	"$@" >"$log" 2>&1 </dev/null || rc=$?
	kill "$beat" 2>/dev/null || true
	wait "$beat" 2>/dev/null || true
	if [ "$rc" -ne 0 ]; then
		{
			say "FAILED ($rc): $*"
			echo "--- the end of $log:"
			tail -n 40 "$log"
			echo "---"
		} >&2
	fi
	return "$rc"
}

# stage SECONDS SECONDS-AFTER [LOG LINES]: from here on, `logged` says how much time is left:
# of this stage, which takes so long on a machine with 2 cores, and of those after it. A
# stage is half done when the log LOG has half of its LINES.
stage() {
	export BLKSNAP_STAGE="$EPOCHSECONDS $*"
	say "about $((($1 + $2 + 59) / 60)) minutes left"
}

# left NAME LOG: the estimate, if there is one
left() {
	local begin seconds after log lines have spent
	[ -n "${BLKSNAP_STAGE:-}" ] || return 0
	read -r begin seconds after log lines <<<"$BLKSNAP_STAGE"
	spent=$((EPOCHSECONDS - begin))
	if [ "$log" = "$1" ]; then
		have=$(wc -l <"$2")
		# Before that it says nothing of the machine's speed.
		[ $((have * 20)) -lt "$lines" ] || seconds=$((spent * lines / have))
	fi
	seconds=$((seconds - spent))
	[ "$seconds" -gt 0 ] || seconds=0
	echo " (about $(((seconds + after + 59) / 60)) minutes left)"
}

# One script at a time for what NAME stands for; the lock goes with the process.
lock() {
	local fd
	exec {fd}>"$B/stamps/$1.lock"
	if ! flock -n "$fd"; then
		say "waiting for another run that holds $B/stamps/$1.lock"
		flock "$fd"
	fi
}

# version_at_least HAVE WANT
version_at_least() {
	[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# ran_since SECONDS NAME: whether the machine of that name has left its logs since then
ran_since() {
	[ "$(stat -c %Y "$B/logs/$2" 2>/dev/null || echo 0)" -ge "$1" ]
}

# results_since SECONDS NAME: how far those tests came that say so, if it has; random calls
# are counted in a table of the output
results_since() {
	ran_since "$@" || return 0
	{
		sed -n 's/^.*blksnap test result: /     /p' "$B/logs/$2/dmesg"
		sed -n 's/^\[[0-9.]*\] # all  *\([0-9]*\)  *\([0-9]*\)$/     \1 random calls, \2 of them successful/p' \
			"$B/logs/$2/output"
	} 2>/dev/null || true
}

# The distribution as "debian 12"; empty where that cannot be told.
distribution() {
	# shellcheck disable=SC1091
	(. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}") || true
}

# The toolchain: one compiler, one rustc and one bindgen, whatever else the user's
# PATH has. Debian 12's are used there always, so that every machine builds the same.
toolchain() {
	[ -z "${BLKSNAP_TOOLCHAIN:-}" ] || return 0
	if [ "$(distribution)" = "debian 12" ]; then
		PATH=/usr/lib/llvm-19/bin:/usr/bin:/bin:/usr/sbin:/sbin:$PATH
		LIBCLANG_PATH=/usr/lib/llvm-19/lib
		export LIBCLANG_PATH
	else
		PATH=$PATH:/usr/sbin:/sbin
		# Where `clang` is missing or old, a versioned one may be there.
		if ! version_at_least "$(clang --version 2>/dev/null | version_in)" 17.0.1; then
			local dir
			for dir in $(printf '%s\n' /usr/lib/llvm-*/bin | sort -rV); do
				if [ -x "$dir/clang" ] && [ -x "$dir/ld.lld" ]; then
					PATH=$dir:$PATH
					break
				fi
			done
		fi
	fi
	PATH=$TOOLS/bin:$PATH
	export PATH BLKSNAP_TOOLCHAIN=set
	# One answer of every tool, in one language and without the user's wrappers.
	export LC_ALL=C.UTF-8
	unset RUSTC RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER RUSTFLAGS CARGO_BUILD_TARGET MAKEFLAGS
	unset KBUILD_OUTPUT ARCH CROSS_COMPILE LLVM CC LD
	# The same source gives the same kernel, whoever builds it, whenever.
	export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 2026'
	export KBUILD_BUILD_USER=blksnap KBUILD_BUILD_HOST=blksnap
}

# How the command is compiled, so that nothing is compiled twice: in one directory, from
# crates in one place, whose path does not get into the result.
cargo_environment() {
	export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}
	export CARGO_TARGET_DIR=$B/cargo CARGO_TERM_COLOR=never
	export RUSTFLAGS="--remap-path-prefix=$CARGO_HOME=/cargo"
}

# The first thing on standard input that looks like a version.
version_in() { grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1 || true; }
