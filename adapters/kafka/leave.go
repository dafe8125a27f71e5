package kafka

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// joinPatience is how long the client may take to leave by itself.
const joinPatience = 300 * time.Millisecond

// leave takes this member out of its group and closes its client. A join that
// is under way waits for every member of the group, dead ones until their
// session time-out, and the client would wait with it. It is cut off then, and
// the coordinator told over another connection.
func (c *GroupConsumer) leave() {
	defer c.cut()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout/2)
	defer cancel()
	left := make(chan error, 1)
	go func() { left <- c.client.LeaveGroupContext(ctx) }()
	var err error
	select {
	case err = <-left:
	case <-c.joinTooLong():
		c.cut()
		err = c.leaveJoin(ctx)
	}
	if err != nil {
		c.log(slog.LevelWarn, "kafka: leaving the group failed; the broker will miss this member after its session time-out", "error", err)
		c.cut()
	}
	c.client.Close()
}

// joinTooLong fires when this member is to be taken out by leaveJoin. A static
// member stays in its group anyhow, and where the broker assigns partitions no
// join waits.
func (c *GroupConsumer) joinTooLong() <-chan time.Time {
	if o := c.s.b.opts; o.InstanceID != "" || o.ServerSideGroups {
		return nil
	}
	return time.After(joinPatience)
}

// leaveJoin takes this member out of its group through the broker's own client.
func (c *GroupConsumer) leaveJoin(ctx context.Context) error {
	id, _ := c.client.GroupMetadata()
	if id == "" {
		return nil
	}
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group, req.MemberID = c.group, id
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID = id
	req.Members = append(req.Members, m)
	resp, err := req.RequestWith(ctx, c.s.b.client)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err == nil && len(resp.Members) > 0 {
		err = kerr.ErrorForCode(resp.Members[0].ErrorCode)
	}
	if errors.Is(err, kerr.UnknownMemberID) {
		return nil // the client's own request was in time
	}
	return err
}
