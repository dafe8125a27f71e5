package streamwire

import "context"

// A Placement is where a stream lives: host and port of its nodes.
type Placement struct {
	Leader   string
	Replicas []string
}

// Locate asks for a stream's nodes. A stream without a leader at the moment is
// ErrStreamNotAvailable.
func (k *Conn) Locate(ctx context.Context, stream string) (Placement, error) {
	r, err := k.ask(ctx, keyMetadata, func(f frame) frame { return f.strs([]string{stream}) })
	if err != nil {
		return Placement{}, err
	}
	nodes := map[uint16]string{}
	for range r.count(8) {
		ref, host := r.u16(), r.str()
		nodes[ref] = joinPort(host, r.u32())
	}
	var p Placement
	code := ErrStreamDoesNotExist
	for range r.count(10) {
		name := r.str()
		c := CodeError(r.u16())
		leader := nodes[r.u16()]
		var replicas []string
		for range r.count(2) {
			if a := nodes[r.u16()]; a != "" {
				replicas = append(replicas, a)
			}
		}
		if name == stream {
			code, p = c, Placement{Leader: leader, Replicas: replicas}
		}
	}
	switch {
	case r.bad:
		return p, errMalformed
	case code != OK:
		return p, code
	case p.Leader == "":
		return p, ErrStreamNotAvailable
	}
	return p, nil
}

// Partitions returns the streams of a super stream; there are none where the
// name is not one.
func (k *Conn) Partitions(ctx context.Context, superStream string) ([]string, error) {
	r, err := k.call(ctx, keyPartitions, func(f frame) frame { return f.str(superStream) })
	if err != nil {
		return nil, err
	}
	ss := r.strs()
	return ss, r.err()
}

// Stats returns the numbers that the broker keeps of a stream:
// first_chunk_id, committed_chunk_id; -1 for none.
func (k *Conn) Stats(ctx context.Context, stream string) (map[string]int64, error) {
	r, err := k.call(ctx, keyStats, func(f frame) frame { return f.str(stream) })
	if err != nil {
		return nil, err
	}
	n := r.count(10)
	m := make(map[string]int64, n)
	for range n {
		name := r.str()
		m[name] = r.i64()
	}
	return m, r.err()
}

// StoreOffset stores a group's offset. The broker does not answer it.
func (k *Conn) StoreOffset(group, stream string, offset int64) error {
	return k.send(newFrame(keyStoreOffset, 16+len(group)+len(stream)).str(group).str(stream).i64(offset))
}

// QueryOffset returns a group's stored offset, or ErrNoOffset.
func (k *Conn) QueryOffset(ctx context.Context, group, stream string) (int64, error) {
	r, err := k.call(ctx, keyQueryOffset, func(f frame) frame { return f.str(group).str(stream) })
	if err != nil {
		return 0, err
	}
	n := r.i64()
	return n, r.err()
}

// CreateSuperStream declares a super stream and its partitions.
func (k *Conn) CreateSuperStream(ctx context.Context, name string, partitions, keys []string, args map[string]string) error {
	_, err := k.call(ctx, keyCreateSuperStream, func(f frame) frame {
		return f.str(name).strs(partitions).strs(keys).dict(args)
	})
	return err
}

// CreateStream declares a single stream.
func (k *Conn) CreateStream(ctx context.Context, name string, args map[string]string) error {
	_, err := k.call(ctx, keyCreate, func(f frame) frame { return f.str(name).dict(args) })
	return err
}

// DeleteSuperStream deletes a super stream and its partitions.
func (k *Conn) DeleteSuperStream(ctx context.Context, name string) error {
	_, err := k.call(ctx, keyDeleteSuperStream, func(f frame) frame { return f.str(name) })
	return err
}

// DeleteStream deletes a single stream.
func (k *Conn) DeleteStream(ctx context.Context, name string) error {
	_, err := k.call(ctx, keyDelete, func(f frame) frame { return f.str(name) })
	return err
}
