#!/bin/sh
# Starts Kafka on one KRaft node. Runs in the official image and in the one of
# images/kafka: both keep the jars in /opt/kafka/libs. The data stay in the
# container's own layer, so they outlive a kill and a restart.
#
# QUEUESTREAM_ADVERTISED is the host:port that clients are told to connect to;
# QUEUESTREAM_FORMAT are further arguments for making the data, without blanks
# in them.
set -euf

work=/tmp/queuestream
mkdir -p "$work/data"
{
	cat /opt/queuestream/server.properties
	echo "log.dirs=$work/data"
	echo "advertised.listeners=CLIENT://$QUEUESTREAM_ADVERTISED,INTERNAL://127.0.0.1:9094"
} >"$work/server.properties"

if [ ! -f "$work/data/meta.properties" ]; then
	# shellcheck disable=SC2086 # each word is an argument
	java -Xmx256m -cp '/opt/kafka/libs/*' kafka.tools.StorageTool format --standalone \
		-t QueuestreamBrokerTest0 -c "$work/server.properties" ${QUEUESTREAM_FORMAT-}
fi
exec java -Xms256m -Xmx1g -XX:+ExitOnOutOfMemoryError \
	-Dlog4j2.configurationFile=/opt/queuestream/log4j2.yaml \
	-cp '/opt/kafka/libs/*' kafka.Kafka "$work/server.properties"
