package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Configurations of a share group.
const (
	configReset     = "share.auto.offset.reset"
	configIsolation = "share.isolation.level"
	configLock      = "share.record.lock.duration.ms"
	configLimit     = "share.delivery.count.limit"
)

// groupConfigs returns a group's configuration as it is in force; empty where
// the cluster does not tell.
func (b *Broker) groupConfigs(ctx context.Context, group string) (map[string]string, error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	r := kmsg.NewDescribeConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeGroupConfig, group
	req.Resources = append(req.Resources, r)
	resp, err := req.RequestWith(ctx, b.client)
	if err != nil {
		return nil, bounded(ctx, err)
	}
	out := map[string]string{}
	for i := range resp.Resources {
		if err := kerr.ErrorForCode(resp.Resources[i].ErrorCode); err != nil {
			if isUnauthorized(classify(err)) || errors.Is(err, kerr.InvalidRequest) {
				return out, nil
			}
			return nil, fmt.Errorf("configuration of group %q: %w", group, err)
		}
		for _, c := range resp.Resources[i].Configs {
			if c.Value != nil {
				out[c.Name] = *c.Value
			}
		}
	}
	return out, nil
}

// setGroupConfigs changes a group's configuration.
func (b *Broker) setGroupConfigs(ctx context.Context, group string, want map[string]string) error {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeGroupConfig, group
	for _, k := range slices.Sorted(maps.Keys(want)) {
		c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		c.Name = k
		if v := want[k]; v == "" {
			c.Op = kmsg.IncrementalAlterConfigOpDelete
		} else {
			c.Op, c.Value = kmsg.IncrementalAlterConfigOpSet, &v
		}
		r.Configs = append(r.Configs, c)
	}
	req.Resources = append(req.Resources, r)
	resp, err := req.RequestWith(ctx, b.client)
	if err != nil {
		return bounded(ctx, err)
	}
	for i := range resp.Resources {
		if err := kerr.ErrorForCode(resp.Resources[i].ErrorCode); err != nil {
			if m := resp.Resources[i].ErrorMessage; m != nil {
				err = fmt.Errorf("%w: %s", err, *m)
			}
			return fmt.Errorf("configuration of group %q: %w", group, err)
		}
	}
	// The brokers learn of it from the controller.
	return await(ctx, func() (bool, error) {
		has, err := b.groupConfigs(ctx, group)
		if err != nil {
			return false, err
		}
		for k, v := range want {
			if v != "" && has[k] != v {
				return false, nil
			}
		}
		return true, nil
	})
}
