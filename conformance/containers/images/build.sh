#!/usr/bin/env bash
# Builds the local images of the brokers, for hosts that cannot pull any.
#
#   build.sh [kafka|rabbitmq|elasticmq|moto]...   (none: all four)
#
# An image that exists is left alone; FORCE=1 builds it again. Needs docker,
# and, as root on a Debian-family host, installs what else it misses
# (debootstrap, maven, a JDK) unless NO_INSTALL=1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=versions.env
. "$here/versions.env"
export DOCKER_BUILDKIT=0 # the classic builder: engine 20.10 without buildx

base="queuestream/base:$BASE_RELEASE"
work=$(mktemp -d "${TMPDIR:-/tmp}/queuestream-images.XXXXXX")
trap 'rm -rf "$work"' EXIT

say() { echo "images: $*" >&2; }

die() {
	say "$*"
	exit 1
}

# need COMMAND PACKAGE... installs the packages when the command is missing.
need() {
	local command=$1
	shift
	command -v "$command" >/dev/null && return
	if [ "${NO_INSTALL:-}" = 1 ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		die "$command is missing: install $* (as root on a Debian-family host this script does it)"
	fi
	say "installing $*"
	DEBIAN_FRONTEND=noninteractive apt-get update -q >"$work/apt.log" 2>&1 &&
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >>"$work/apt.log" 2>&1 || {
		tail -n 20 "$work/apt.log" >&2
		die "apt-get could not install $*"
	}
}

have() { docker image inspect "$1" >/dev/null 2>&1; }

# The base image: Debian's own where it is present or can be pulled, else one
# made by debootstrap.
build_base() {
	have "$base" && return
	local official="debian:$BASE_RELEASE-slim"
	if have "$official" || { [ "${CI:-}" != true ] && timeout 120 docker pull -q "$official" >/dev/null 2>&1; }; then
		docker tag "$official" "$base"
		return
	fi
	[ "$(id -u)" = 0 ] || die "neither $official nor root's debootstrap: no base image"
	need debootstrap debootstrap
	say "bootstrapping Debian $BASE_RELEASE (about 30 s)"
	debootstrap --variant=minbase "$BASE_RELEASE" "$work/root" >"$work/debootstrap.log" 2>&1 || {
		tail -n 20 "$work/debootstrap.log" >&2
		die "debootstrap failed"
	}
	# The same file system that apt on this host reaches is what a build sees.
	rm -rf "$work/root/var/cache/apt/archives"/*.deb "$work/root/var/lib/apt/lists"/*
	tar -C "$work/root" -c . | docker import -c 'CMD ["/bin/bash"]' - "$base" >/dev/null
	rm -rf "$work/root"
}

# build NAME VERSION [maven] builds queuestream/NAME:VERSION-rREVISION.
build() {
	local name=$1 version=$2 maven=${3:-}
	local tag="queuestream/$name:$version-r$IMAGES_REVISION"
	if [ "${FORCE:-}" != 1 ] && have "$tag"; then
		say "$tag is there"
		return
	fi
	build_base
	local context="$work/$name"
	cp -r "$here/$name" "$context"
	if [ -n "$maven" ]; then
		need java default-jre-headless
		need mvn maven
		say "fetching the jars of $name $version"
		mvn -q -B -f "$context/pom.xml" -Dimage.version="$version" \
			dependency:copy-dependencies -DincludeScope=runtime \
			-DoutputDirectory="$context/libs" >"$work/mvn.log" 2>&1 || {
			tail -n 20 "$work/mvn.log" >&2
			die "maven could not fetch the jars of $name $version"
		}
	fi
	say "building $tag"
	docker build --network=host --build-arg "BASE=$base" --build-arg "VERSION=$version" \
		-t "$tag" "$context" >"$work/build.log" 2>&1 || {
		tail -n 40 "$work/build.log" >&2
		die "building $tag failed"
	}
}

# One build at a time on a host: runs side by side would do the work twice.
exec 9>"${TMPDIR:-/tmp}/queuestream-images.lock"
command -v flock >/dev/null && flock 9

[ $# -gt 0 ] || set -- kafka rabbitmq elasticmq moto
for name in "$@"; do
	case $name in
	kafka) build kafka "$KAFKA_VERSION" maven ;;
	rabbitmq) build rabbitmq "$RABBITMQ_VERSION" ;;
	elasticmq) build elasticmq "$ELASTICMQ_VERSION" maven ;;
	moto) build moto "$MOTO_VERSION" ;;
	*) die "no image is named $name" ;;
	esac
done
