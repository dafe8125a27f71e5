#!/usr/bin/env bash
# Runs every fuzz target of the packages for a time each: fuzz.sh 20s ./...
set -euo pipefail

go=${GO:-go}
time=$1
shift

found=0
for package in $("$go" list "$@"); do
	for target in $("$go" test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		found=$((found + 1))
		echo "fuzz: $package $target"
		"$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -parallel 2 "$package"
	done
done
echo "fuzz: $found targets, $time each"
