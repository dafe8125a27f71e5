#!/usr/bin/env bash
# Builds the images of the bridge and of the workers of deploy/compose: static
# binaries, the CA certificates and nothing else. The tag is $TAG (latest).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tag=${TAG:-latest}
context=bin/image

certificates=/etc/ssl/certs/ca-certificates.crt
if [ ! -f "$certificates" ]; then
	echo "image: $certificates is missing: install ca-certificates" >&2
	exit 1
fi
for name in bridge try; do
	package=./cmd/bridge
	[ "$name" = bridge ] || package=./examples/try
	rm -rf "$context"
	mkdir -p "$context"
	CGO_ENABLED=0 ${GO:-go} build -trimpath -ldflags='-s -w' -o "$context/bridge" "$package"
	cp "$certificates" "$context/ca-certificates.crt"
	docker build -q -f deploy/Dockerfile -t "queuestream/$name:$tag" "$context" >"$context.log" 2>&1 || { cat "$context.log" >&2; exit 1; }
	echo "image: queuestream/$name:$tag"
done
rm -rf "$context" "$context.log"
