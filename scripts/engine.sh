#!/usr/bin/env bash
# Sees to it that a container engine answers.
#
# One that answers is used as it is. Otherwise, as root on a Debian-family host,
# one is installed if there is none and started, unless NO_INSTALL=1. Anywhere
# else this says what to do. Exit status: 0 an engine answers, 3 none does.
set -euo pipefail

log=/var/log/queuestream-dockerd.log

say() { echo "engine: $*" >&2; }

answers() { command -v docker >/dev/null && timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

none() {
	say "$*"
	say "without a container engine nothing that needs a real broker is run; install Docker and start it, or set BROKER_TEST_KAFKA and so on to endpoints (docs/testing.md)"
	exit 3
}

install_engine() {
	command -v dockerd >/dev/null && command -v iptables >/dev/null && command -v docker >/dev/null && return
	command -v apt-get >/dev/null || none "no container engine, and no apt-get to install one"
	say "installing Docker's engine (docker.io)"
	local out
	out=$(mktemp)
	# The package would start the daemon itself; start_engine does, with the
	# right flags.
	if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get install -y -q --no-install-recommends docker.io iptables ca-certificates; } >"$out" 2>&1; then
		tail -n 20 "$out" >&2
		rm -f "$out"
		none "apt-get could not install docker.io"
	fi
	rm -f "$out"
	# docker.io may come without a client where another one was packaged apart.
	command -v docker >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -q docker-cli >/dev/null 2>&1 || true
}

# alive PIDFILE NAME: the file names a live process of that name.
alive() {
	local pid
	pid=$(cat "$1" 2>/dev/null) || return 1
	[ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ]
}

# What an engine that died has left keeps the next one from starting.
clear_leftovers() {
	local f
	for f in /var/run/docker.pid /run/docker.pid; do
		alive "$f" dockerd || rm -f "$f"
	done
	for f in /var/run/docker/containerd/containerd.pid /run/docker/containerd/containerd.pid; do
		alive "$f" containerd || rm -f "$f"
	done
}

start_engine() {
	clear_leftovers
	if ! alive /var/run/docker.pid dockerd; then
		say "starting dockerd (its log: $log)"
		# Without the userland proxy: that of engine 20.10 corrupts large
		# transfers to ports on 127.0.0.1.
		setsid dockerd --userland-proxy=false >>"$log" 2>&1 </dev/null &
	fi
	local i
	for ((i = 0; i < 120; i++)); do
		answers && return
		sleep 0.5
	done
	tail -n 20 "$log" >&2 || true
	none "dockerd does not answer"
}

answers && exit 0
[ "$(uname -s)" = Linux ] || none "no container engine answers"
[ "$(id -u)" = 0 ] || none "no container engine answers, and only root can install and start one here"
[ "${NO_INSTALL:-}" != 1 ] || none "no container engine answers, and NO_INSTALL=1 forbids to install or start one"
install_engine
start_engine
say "$(docker version --format 'Docker {{.Server.Version}}') answers"
