#!/usr/bin/env bash
# Checks what is shipped to be deployed: the configurations, the chart in its
# variants, the dashboard, and the image, which is built and started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
helm=${HELM:?the helm binary}

${GO:-go} build -o bin/bridge ./cmd/bridge
for config in docs/bridge/bridge.yaml deploy/compose/bridge.yaml; do
	bin/bridge check -c "$config"
done

rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
"$helm" lint --quiet deploy/helm/bridge
"$helm" template bridge deploy/helm/bridge >"$rendered/default.yaml"
"$helm" template bridge deploy/helm/bridge --set keda.enabled=true --set serviceMonitor.enabled=true >"$rendered/all.yaml"
for kind in Deployment ConfigMap Service ServiceAccount PodDisruptionBudget; do
	grep -q "^kind: $kind\$" "$rendered/default.yaml" || { echo "deploy-check: the chart renders no $kind"; exit 1; }
done
for kind in ScaledObject ServiceMonitor; do
	grep -q "^kind: $kind\$" "$rendered/all.yaml" || { echo "deploy-check: the chart renders no $kind when asked to"; exit 1; }
done
"$helm" template bridge deploy/helm/bridge --set config.worker.listen=0.0.0.0:9090 >"$rendered/port.yaml"
grep -q 'containerPort: 9090}' "$rendered/port.yaml" ||
	{ echo 'deploy-check: the probes do not follow worker.listen'; exit 1; }
! grep -q '^  replicas:' "$rendered/all.yaml" || { echo 'deploy-check: the chart sets replicas although KEDA does'; exit 1; }

# A trigger of KEDA for each route, on the stream and the group that the bridge
# reads. All of a trigger's metadata are strings, or KEDA refuses the object.
values=deploy/helm/testdata/values.yaml
"$helm" template shop deploy/helm/bridge -f "$values" >"$rendered/scaled.yaml"
for template in scaledobject deployment; do
	"$helm" template shop deploy/helm/bridge -f "$values" -s "templates/$template.yaml" >"$rendered/$template.yaml"
done
grep -qx 'apiVersion: keda.sh/v1alpha1' "$rendered/scaledobject.yaml" || { echo 'deploy-check: the ScaledObject has another API version'; exit 1; }
diff deploy/helm/testdata/scaledobject.yaml <(sed -n '/^spec:/,$p' "$rendered/scaledobject.yaml") ||
	{ echo 'deploy-check: the ScaledObject (>) is not what the values ask for (<)'; exit 1; }
grep -qx '  name: shop-bridge' "$rendered/deployment.yaml" || { echo 'deploy-check: the ScaledObject scales no Deployment of the chart'; exit 1; }
# shellcheck disable=SC2016 # the bridge reads the variable
! "$helm" template shop deploy/helm/bridge -f "$values" --set 'config.routes[1].source.stream=${INVOICES}' >/dev/null 2>&1 ||
	{ echo 'deploy-check: a trigger names an environment variable, which KEDA does not know'; exit 1; }

# names LIST FILE: the names of what is in a list of the pod, sorted.
names() {
	awk -v list="$1:" '
		{ column = match($0, /[^ ]/) }
		column <= start { start = 0 }
		$1 == list { start = column }
		start && column == start + 2 && sub(/- /, "  ") { column += 2 }
		start && column == start + 4 { gsub(/[{},]/, " "); if ($1 == "name:") print $2 }
	' "$2" | sort
}
# Each volume is mounted, and each mount has a volume.
for file in default scaled; do
	diff <(names volumes "$rendered/$file.yaml") <(names volumeMounts "$rendered/$file.yaml") ||
		{ echo 'deploy-check: the volumes (<) are not what is mounted (>)'; exit 1; }
done
[ "$(names volumes "$rendered/scaled.yaml" | xargs)" = 'ca claims config' ] || { echo 'deploy-check: the chart lacks volumes that it is asked for'; exit 1; }

# The configuration inside the chart is one that the bridge accepts.
for file in default scaled; do
	sed -n '/^  bridge.yaml: |/,/^---/p' "$rendered/$file.yaml" | sed -e 1d -e '/^---/,$d' -e 's/^    //' >"$rendered/bridge.yaml"
	KAFKA_URL=kafka://kafka:9092 SQS_URL=sqs://eu-west-1 bin/bridge check -c "$rendered/bridge.yaml"
done
echo 'deploy-check: the chart renders'

TAG=check scripts/image.sh
[ "$(docker inspect -f '{{.Config.User}}' queuestream/bridge:check)" = 65532:65532 ] || { echo 'deploy-check: the image runs as root'; exit 1; }
docker run --rm --network none -v "$PWD/deploy/compose/bridge.yaml:/etc/bridge/bridge.yaml:ro" \
	queuestream/bridge:check check -c /etc/bridge/bridge.yaml
code=0
docker run --rm --network none queuestream/bridge:check run -c /nowhere.yaml 2>/dev/null || code=$?
[ "$code" = 2 ] || { echo "deploy-check: the image ends with $code on a missing configuration, want 2"; exit 1; }
echo "deploy-check: the image starts, $(docker image inspect -f '{{.Size}}' queuestream/bridge:check) bytes"
